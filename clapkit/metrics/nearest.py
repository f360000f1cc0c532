"""The best items of every query, from embeddings, without a matrix of all similarities.

Scores are those of ``blockwise``: products summed in float64 and rounded to float32, so that equal vectors tie. They are made
in float32 first; its error has a known bound, and only items that this leaves in question are summed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.blockwise import Float32Array, checked_vectors, exact_scores, rounding_margin
from clapkit.metrics.ranking import FloatArray, IntArray, check_cutoff, checked_index

# Scores in memory at a time.
_CHUNK_SCORES = 1 << 22
# Above this share of items in question a whole block is summed in float64, which then is faster than pair by pair.
_MANY_IN_QUESTION = 0.01


@dataclass(frozen=True, slots=True)
class NearestPairs:
    """The best items of some consecutive queries: the k best, and all that tie with the last of them.

    Attributes:
        first: the first of the queries.
        num_queries: how many they are, B.
        query: int64 [P], from 0 to B - 1, ascending.
        item: int64 [P], ascending inside a query.
        score: float32 [P].
    """

    first: int
    num_queries: int
    query: IntArray
    item: IntArray
    score: Float32Array

    @property
    def starts(self) -> IntArray:
        """Place of the first pair of every query, int64 [B]."""
        return np.searchsorted(self.query, np.arange(self.num_queries)).astype(np.int64)


def nearest_pairs(
    queries: npt.ArrayLike, items: npt.ArrayLike, k: int, *, excluded: npt.ArrayLike | None = None
) -> Iterator[NearestPairs]:
    """Go through the queries, some at a time.

    Takes Q * N * D products in float32, and memory for one more copy of the items.

    Args:
        queries: embeddings [Q, D], float32 or float64.
        items: embeddings [N, D].
        k: how many items, 1 to N.
        excluded: integers [Q], an item that each query does not look at; k is at most N - 1 then. Default: none.

    Raises:
        MetricError: if shapes do not fit, a value is not finite, an index is out of range, or k is.
    """
    q, x = checked_vectors(queries, items, names=("queries", "items"))
    skipped = None if excluded is None else checked_index(excluded, len(x), name="excluded")
    if skipped is not None and len(skipped) != len(q):
        raise MetricError(f"excluded: {len(skipped)} items, expected {len(q)}, one per query")
    check_cutoff(k)
    most = len(x) - (skipped is not None)
    if k > most:
        raise MetricError(f"k = {k}: the gallery has {most} items, expected at most that many")
    return _blocks(q, x, k, skipped)


def top_items(queries: npt.ArrayLike, items: npt.ArrayLike, k: int) -> IntArray:
    """The k best items of each query, best first, int64 [Q, k]; the lower index among equals.

    Args:
        queries: embeddings [Q, D], float32 or float64.
        items: embeddings [N, D].
        k: how many, 1 to N.

    Raises:
        MetricError: as ``nearest_pairs``.
    """
    parts = []
    for pairs in nearest_pairs(queries, items, k):
        order = np.lexsort((pairs.item, -pairs.score, pairs.query))  # the queries stay where they are
        parts.append(pairs.item[order][pairs.starts[:, None] + np.arange(k)])
    return np.concatenate(parts)


def _blocks(q: FloatArray, x: FloatArray, k: int, skipped: IntArray | None) -> Iterator[NearestPairs]:
    columns = x.astype(np.float32, copy=False).T
    # Twice, because both the k-th score and the one beside it may be off.
    margin = 2 * rounding_margin(q, x)
    step = max(1, _CHUNK_SCORES // len(x))
    for start in range(0, len(q), step):
        own = None if skipped is None else skipped[start : start + step]
        scores = _without(q[start : start + step].astype(np.float32, copy=False) @ columns, own)  # [B, N]
        query, item = _at_least(scores, _kth(scores, k) - margin)
        if len(query) > max(_MANY_IN_QUESTION * scores.size, 2 * k * len(scores)):
            block = q[start : start + step].astype(np.float64) @ x.astype(np.float64).T
            scores = _without(block.astype(np.float32), own)
            query, item = _at_least(scores, _kth(scores, k))
            yield NearestPairs(start, len(scores), query, item, scores[query, item])
            continue
        score = exact_scores(q, x, query + start, item)
        pairs = NearestPairs(start, len(scores), query, item, score)
        ordered = score[np.lexsort((-score, query))]
        kept = score >= ordered[pairs.starts + k - 1][query]
        yield NearestPairs(start, len(scores), query[kept], item[kept], score[kept])


def _without(scores: Float32Array, item: IntArray | None) -> Float32Array:
    if item is not None:
        scores[np.arange(len(scores)), item] = -np.inf
    return scores


def _kth(scores: Float32Array, k: int) -> Float32Array:
    """The k-th best score of each row [B]."""
    place = scores.shape[1] - k
    if k == 1:  # several times as fast
        best: Float32Array = scores.max(axis=1)
        return best
    kth: Float32Array = np.partition(scores, place, axis=1)[:, place]
    return kth


def _at_least(scores: Float32Array, least: Float32Array) -> tuple[IntArray, IntArray]:
    """Rows and columns [P], [P] of the scores that reach what their row asks for."""
    rows, columns = np.divmod(np.flatnonzero(scores >= least[:, None]), scores.shape[1])
    return rows, columns
