import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from clapkit.data.ahead import DecodingAhead, Place


class Log:
    """Counts what is read and begun, and gives the rows back as the result of a thread."""

    def __init__(self) -> None:
        self.read: list[Place] = []
        self.begun: list[Place] = []

    def stream(self, *places: Place) -> Iterator[tuple[Place, np.ndarray]]:
        for place in places:
            self.read.append(place)
            yield place, np.array(place)

    def start(self, pool: ThreadPoolExecutor, place: Place, rows: np.ndarray) -> Future[np.ndarray]:
        self.begun.append(place)
        return pool.submit(lambda: rows + 1)


def test_batches_come_in_order_and_no_more_are_begun_than_allowed() -> None:
    log = Log()
    ahead = DecodingAhead(log.stream((0, 0), (0, 1), (1, 0), (1, 1)), log.start, threads=1)
    assert ahead.take(3).result().tolist() == [1, 1]
    assert log.begun == log.read == [(0, 0), (0, 1), (1, 0)]
    assert ahead.comes_to((0, 1))
    assert not ahead.comes_to((1, 0))
    assert ahead.take(1).result().tolist() == [1, 2]
    assert log.begun == [(0, 0), (0, 1), (1, 0)]  # two were begun already
    ahead.close()


def test_the_end_of_the_stream_is_no_place() -> None:
    log = Log()
    ahead = DecodingAhead(log.stream((4, 0)), log.start, threads=1)
    ahead.take(8)
    assert not ahead.comes_to((5, 0))
    ahead.close()


def test_what_was_begun_and_not_taken_is_forgotten() -> None:
    log = Log()
    before = set(threading.enumerate())
    ahead = DecodingAhead(log.stream((0, 0), (0, 1)), log.start, threads=2)
    ahead.take(2)
    ahead.close()
    assert not ahead.comes_to((0, 1))
    assert set(threading.enumerate()) <= before
