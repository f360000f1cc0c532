"""Exact search: every vector is compared with every query.

Scores are found in float32 over blocks of rows; the best of them, and a margin of a hundred, are computed again in
float64, so that equal vectors get equal scores whatever block they lie in. Equal scores are ordered by row, so
results are reproducible. Needs numpy only, so a query does not wait for torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import EmbeddingError, ShapeError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Blocks of 8k rows convert from float16 in the cache; larger ones are slower.
_BLOCK_ROWS = 8192
_BLOCK_SCORES = 1 << 22
# Candidates kept beyond k, so that rounding in float32 cannot push a true hit out.
_MARGIN = 100


class ExactIndex:
    """Cosine search over unit-norm vectors."""

    def __init__(self) -> None:
        self._vectors: FloatArray | None = None

    def add(self, vectors: FloatArray) -> None:
        """Set the vectors to search.

        Args:
            vectors: unit norm [N, D], float16 or float32; not copied.

        Raises:
            ShapeError: if they are no matrix.
        """
        if vectors.ndim != 2:
            raise ShapeError(f"vectors: shape {list(vectors.shape)}, expected [items, width]")
        self._vectors = vectors

    def search(self, queries: FloatArray, k: int, *, rows: IntArray | None = None) -> tuple[FloatArray, IntArray]:
        """The k best items of each query, best first.

        Args:
            queries: unit norm [Q, D].
            k: hits per query; fewer if there are fewer items.
            rows: ascending rows to search, if not all.

        Returns:
            Scores float32 [Q, k] and rows int64 [Q, k]; equal scores in the order of the rows.

        Raises:
            EmbeddingError: if nothing was added.
            ShapeError: if the widths differ or k is less than 1.
        """
        if self._vectors is None:
            raise EmbeddingError("exact index: is empty; add vectors before searching")
        vectors = self._vectors
        if queries.ndim != 2 or queries.shape[1] != vectors.shape[1]:
            raise ShapeError(f"queries: shape {list(queries.shape)}, expected [queries, {vectors.shape[1]}]")
        if k < 1:
            raise ShapeError(f"k = {k}: expected at least 1")
        wanted = np.arange(len(vectors)) if rows is None else np.asarray(rows, dtype=np.int64)
        scores = np.empty((len(queries), min(k, len(wanted))), dtype=np.float32)
        found = np.empty(scores.shape, dtype=np.int64)
        step = max(1, _BLOCK_SCORES // _BLOCK_ROWS)
        for start in range(0, len(queries), step):
            part = slice(start, start + step)
            block = queries[part].astype(np.float32)
            candidates = _candidates(block, vectors, wanted, min(k + _MARGIN, len(wanted)))
            scores[part], found[part] = _rerank(block, vectors, candidates, scores.shape[1])
        return scores, found


def build() -> ExactIndex:
    """An empty exact index."""
    return ExactIndex()


def _candidates(queries: FloatArray, vectors: FloatArray, wanted: IntArray, count: int) -> IntArray:
    """Rows [Q, count] of the best scores in float32, in no order."""
    best = np.empty((len(queries), 0), dtype=np.int64)
    for start in range(0, len(wanted), _BLOCK_ROWS):
        rows = wanted[start : start + _BLOCK_ROWS]
        contiguous = len(rows) == rows[-1] - rows[0] + 1
        block = vectors[rows[0] : rows[-1] + 1] if contiguous else vectors[rows]  # a slice spares the copy
        scores = queries @ block.astype(np.float32, copy=False).T  # [Q, rows]
        places = np.arange(start, start + len(rows))
        best = _largest(np.concatenate((best, _sort_keys(scores, places)), axis=1), count)
    return wanted[_places(best)]


def _rerank(queries: FloatArray, vectors: FloatArray, candidates: IntArray, k: int) -> tuple[FloatArray, IntArray]:
    """Score candidate rows [Q, C] again and keep the k best, sorted."""
    ordered = np.sort(candidates, axis=1)
    scores = np.empty(ordered.shape, dtype=np.float32)
    step = max(1, _BLOCK_SCORES // max(1, ordered.shape[1] * vectors.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        block = vectors[ordered[part]].astype(np.float64)  # [step, C, D]
        scores[part] = np.matmul(block, queries[part, :, None].astype(np.float64))[..., 0]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(ordered, order, axis=1)


def _sort_keys(scores: FloatArray, places: IntArray) -> IntArray:
    """One int64 per score that orders by score and then by place, so that a partition has no ties to decide."""
    bits = (scores.astype(np.float32) + np.float32(0.0)).view(np.int32).astype(np.int64)  # adding 0 turns -0 into +0
    ascending = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # IEEE 754 is sign and magnitude
    return (ascending << 32) | (0xFFFFFFFF - places)


def _places(keys: IntArray) -> IntArray:
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def _largest(keys: IntArray, count: int) -> IntArray:
    if keys.shape[1] <= count:
        return keys
    return np.partition(keys, keys.shape[1] - count, axis=1)[:, keys.shape[1] - count :]
