"""Batches that are decoded while earlier ones are trained on, over the ends of epochs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

Place = tuple[int, int]
"""Epoch, and number of a batch in it."""

Pending = TypeVar("Pending")


class DecodingAhead(Generic[Pending]):
    """The next batches of a stream, handed to threads some time before they are asked for.

    Args:
        stream: place and clips, int64 [C], of every batch in order. It is read no further than needed: what an epoch draws
            may be costly.
        start: has the clips of a batch decoded by the threads, without waiting for them.
        threads: that decode.
    """

    def __init__(
        self,
        stream: Iterator[tuple[Place, np.ndarray]],
        start: Callable[[ThreadPoolExecutor, Place, np.ndarray], Pending],
        *,
        threads: int,
    ) -> None:
        self._stream, self._start = stream, start
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
        self._begun: deque[tuple[Place, Pending]] = deque()

    def comes_to(self, place: Place) -> bool:
        """Whether the batch of that place is the next one, and begun."""
        return bool(self._begun) and self._begun[0][0] == place

    def take(self, most: int) -> Pending:
        """Hand out the next batch, begun if not yet decoded; that one and those behind it are up to ``most``, >= 1."""
        for place, rows in islice(self._stream, max(0, most - len(self._begun))):
            self._begun.append((place, self._start(self._pool, place, rows)))
        return self._begun.popleft()[1]

    def close(self) -> None:
        """Forget what was begun, and end the threads."""
        self._begun.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)
