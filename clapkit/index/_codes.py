"""Vectors as approximate indexes hold them: whole numbers of a byte each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clapkit.errors import EmbeddingError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

_BLOCK_ROWS = 65_536
# A number of a unit vector of width D has a deviation of about 1 / sqrt(D); beyond eight deviations it is cut.
_CODED_DEVIATIONS = 8
LARGEST_CODE = 127


class Coder(Protocol):
    """What an index holds of vectors: whole numbers from -127 to 127 whose products with those of a query order the rows.

    Attributes:
        is_lossy: whether it leaves out more than rounding does, so that hits may come after many other rows.
    """

    @property
    def is_lossy(self) -> bool: ...  # noqa: D102

    def rows(self, vectors: FloatArray) -> FloatArray:
        """float32 [n, W] of unit norm float32 vectors [n, D]; equal rows have equal codes, whatever is beside them."""
        ...

    def queries(self, queries: FloatArray) -> FloatArray:
        """float32 [Q, W] of finite queries [Q, D]."""
        ...


class Whole:
    """All numbers of a vector."""

    is_lossy = False

    def rows(self, vectors: FloatArray) -> FloatArray:
        """See ``coded``."""
        return coded(vectors)

    def queries(self, queries: FloatArray) -> FloatArray:
        """See ``coded_queries``."""
        return coded_queries(queries)


WHOLE = Whole()


def coded(vectors: FloatArray) -> FloatArray:
    """Vectors as an index holds them: whole numbers from -127 to 127, a quarter of float32 and half of float16.

    They order rows nearly as the vectors do, which is enough to find candidates. All indexes use one scale, so that equal
    rows have equal codes whenever they are added.

    Args:
        vectors: unit norm float32 [n, D].

    Returns:
        float32 [n, D], which faiss stores as bytes without loss.
    """
    scaled: FloatArray = np.rint(vectors * np.float32(_scale(vectors.shape[1])))
    return scaled.clip(-LARGEST_CODE, LARGEST_CODE, out=scaled)


def coded_norm(width: int) -> float:
    """No ``coded`` vector of unit norm is longer, however it is rounded."""
    return 1.01 * _scale(width) + math.sqrt(width) / 2


def coded_queries(queries: FloatArray) -> FloatArray:
    """Queries as whole numbers from -127 to 127, each scaled to use them all, which does not change the order of its hits.

    Where faiss computes with bytes (x86, widths that 16 or 32 divides), it cuts the fraction off each number of a query; a
    query of whole numbers loses nothing and gives the same scores everywhere.

    Args:
        queries: float32 [Q, D], finite.

    Returns:
        float32 [Q, D].
    """
    largest = np.abs(queries).max(axis=1, keepdims=True)
    scaled: FloatArray = np.rint(queries * (LARGEST_CODE / np.maximum(largest, 1e-30)))  # zeros stay zeros
    return scaled.astype(np.float32, copy=False)


def codes(vectors: FloatArray, coder: Coder = WHOLE) -> npt.NDArray[np.uint8]:
    """The bytes [n, W] that faiss makes of coded vectors."""
    return (coder.rows(vectors) + np.float32(128)).astype(np.uint8)


def blocks(vectors: FloatArray, rows: IntArray | None = None) -> Iterator[tuple[IntArray, FloatArray]]:
    """Row numbers and float32 vectors, some at a time, so that a memory-mapped table is never in memory as a whole.

    Args:
        vectors: [N, D].
        rows: which; all if None.

    Raises:
        EmbeddingError: if a vector is not finite.
    """
    count = len(vectors) if rows is None else len(rows)
    for start in range(0, count, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, count)
        numbers = np.arange(start, stop) if rows is None else rows[start:stop]
        block = np.ascontiguousarray(vectors[start:stop] if rows is None else vectors[numbers], dtype=np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            raise EmbeddingError(f"vectors: row {numbers[np.argmin(finite)]} is not finite; embed again")
        yield numbers, block


def _scale(width: int) -> float:
    return LARGEST_CODE * math.sqrt(width) / _CODED_DEVIATIONS
