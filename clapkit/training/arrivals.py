"""The batches of a step, taken one by one, so that the next are decoded while one is trained on."""

from __future__ import annotations

import time
from collections.abc import Iterator

from clapkit.types import Batch


class Arrivals:
    """Hands out the next batches of an epoch, keeps none, and counts.

    Args:
        batches: of the epoch, from where the step begins.
        count: how many make the step.

    Attributes:
        waited_s: seconds that the loop waited for them.
        num_clips: in those that have come.
    """

    def __init__(self, batches: Iterator[Batch], count: int) -> None:
        self._batches, self._left = batches, count
        self._seen: list[Batch] = []
        self.waited_s, self.num_clips = 0.0, 0

    def __iter__(self) -> Arrivals:
        return self

    def __next__(self) -> Batch:
        return self._seen.pop() if self._seen else self._take()

    def look_at_next(self) -> Batch:
        """The next batch, which will still be handed out."""
        if not self._seen:
            self._seen.append(self._take())
        return self._seen[0]

    def _take(self) -> Batch:
        if not self._left:
            raise StopIteration
        started = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - started
        self._left -= 1
        self.num_clips += len(batch.waveform)
        return batch
