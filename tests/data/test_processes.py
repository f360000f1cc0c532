import os
from itertools import count, islice

import pytest

from clapkit.data.processes import Crashed, map_in_processes


def double(number: int) -> int:
    return 2 * number


def double_or_die(number: int) -> int:
    if number % 10 == 7:
        os._exit(1)  # as a decoder that crashes would
    return 2 * number


@pytest.mark.parametrize("chunk_size", [1, 7, 100])
def test_results_come_in_the_order_of_the_items(chunk_size: int) -> None:
    assert list(map_in_processes(double, range(50), workers=2, chunk_size=chunk_size)) == [2 * n for n in range(50)]


def test_nothing_gives_nothing() -> None:
    assert list(map_in_processes(double, [], workers=2, chunk_size=4)) == []


def test_items_are_taken_as_they_are_needed() -> None:
    taken = count()
    results = map_in_processes(double, (number for number in taken), workers=1, chunk_size=2)
    assert list(islice(results, 3)) == [0, 2, 4]
    assert next(taken) < 20  # an endless source was not drained


def test_an_item_that_kills_its_process_is_named_and_the_others_survive() -> None:
    found = list(map_in_processes(double_or_die, range(20), workers=2, chunk_size=4))
    assert found == [Crashed(n) if n in (7, 17) else 2 * n for n in range(20)]
