from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from clapkit.training.arrivals import Arrivals
from clapkit.types import Batch


def epoch(taken: list[int]) -> Iterator[Batch]:
    for number in range(5):
        taken.append(number)
        rows = torch.arange(number + 1)
        yield Batch(
            torch.zeros(number + 1, 8), rows, [str(n) for n in range(number + 1)], rows, rows[:, None], rows[:, None], rows
        )


def test_batches_come_when_they_are_asked_for_and_no_more_than_the_step_has() -> None:
    taken: list[int] = []
    batches = epoch(taken)
    first = Arrivals(batches, 2)
    assert taken == []
    assert [(len(batch.waveform), len(taken)) for batch in first] == [(1, 1), (2, 2)]
    assert first.num_clips == 1 + 2
    assert [len(batch.waveform) for batch in Arrivals(batches, 3)] == [3, 4, 5]


def test_a_batch_that_was_looked_at_still_comes() -> None:
    taken: list[int] = []
    arrivals = Arrivals(epoch(taken), 2)
    seen = arrivals.look_at_next()
    assert arrivals.look_at_next() is seen
    assert taken == [0]
    assert next(arrivals) is seen
    assert len(next(arrivals).waveform) == 2
    assert (arrivals.num_clips, list(arrivals)) == (3, [])


def test_waiting_is_counted_and_training_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("clapkit.training.arrivals.time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def slowly() -> Iterator[Batch]:
        for batch in epoch([]):
            clock[0] += 2.0
            yield batch

    arrivals = Arrivals(slowly(), 3)
    for _ in arrivals:
        clock[0] += 100.0
    assert arrivals.waited_s == 6.0
