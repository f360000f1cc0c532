"""The one place where scores become ranks, and where ties are decided.

The rank of a relevant item is 1 + the number of items ahead of it. Ties are pessimistic: a wrong item with the same
score stands ahead of a right one, so that a collapsed model, which gives every pair the same score, earns nothing.
The number of tied queries is always kept, and so are the numbers from which the optimistic and the expected values
follow.

With several relevant items the j-th best of them has rank j + (wrong items ahead of it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Ties = Literal["pessimistic", "optimistic", "expected"]

# Scores compared at a time: 4 million float32 are 16 MB, and small enough for the cache to help.
_CHUNK_SCORES = 1 << 22


@dataclass(frozen=True, slots=True)
class Ranking:
    """Where the relevant items of Q queries stand; P is the number of (query, relevant item) pairs.

    Attributes:
        query: int64 [P], ascending.
        rank: int64 [P], pessimistic, from 1, ascending inside a query.
        position: int64 [P], j: the pair is the j-th best relevant item of its query, from 1.
        num_relevant: int64 [Q].
        num_better: int64 [Q], wrong items that score higher than the best relevant one.
        num_tied_wrong: int64 [Q], wrong items that score the same as the best relevant one.
        num_tied_right: int64 [Q], relevant items with the best relevant score, at least 1.
        is_tied: bool [Q], whether any relevant item has the score of a wrong one.
    """

    query: IntArray
    rank: IntArray
    position: IntArray
    num_relevant: IntArray
    num_better: IntArray
    num_tied_wrong: IntArray
    num_tied_right: IntArray
    is_tied: BoolArray

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.num_relevant)

    @property
    def num_tied_queries(self) -> int:
        """Queries whose value depends on how ties are decided."""
        return int(self.is_tied.sum())


def checked_scores(scores: npt.ArrayLike, *, name: str = "scores") -> FloatArray:
    """Scores that can be ranked.

    Args:
        scores: [Q, N], float32, float64 or integers.
        name: what the message calls them.

    Raises:
        MetricError: if they are no matrix, empty, of half precision or not finite.
    """
    array = np.asarray(scores)
    if array.ndim != 2 or 0 in array.shape:
        raise MetricError(f"{name}: shape {list(array.shape)}, expected a matrix with at least one row and column")
    if array.dtype.kind in "iu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f":
        raise MetricError(f"{name}: type {array.dtype}, expected float32 or float64")
    if array.dtype.itemsize < 4:
        raise MetricError(f"{name}: type {array.dtype} makes ties that are none; compute them in float32")
    rows = max(1, _CHUNK_SCORES // array.shape[1])
    for start in range(0, len(array), rows):
        finite = np.isfinite(array[start : start + rows])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise MetricError(
                f"{name}: entry [{start + row}, {column}] is {array[start + row, column]}, expected a finite number; "
                "the embeddings are damaged or the model has diverged"
            )
    return array


def rank_relevant(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> Ranking:
    """Rank the relevant items of each query.

    Args:
        scores: [Q, N], higher is better.
        relevant: bool [Q, N], at least one True in every row.

    Raises:
        MetricError: if shapes differ, scores are not finite, or a query has no relevant item.
    """
    mask = np.asarray(relevant)
    checked = np.asarray(scores)
    if mask.shape != checked.shape:
        raise MetricError(f"relevant: shape {list(mask.shape)}, expected {list(checked.shape)}, that of the scores")
    if mask.dtype != np.bool_:
        raise MetricError(f"relevant: type {mask.dtype}, expected bool; a grade needs a threshold first")
    query, item = np.nonzero(mask)
    return rank_pairs(scores, query, item)


def rank_pairs(scores: npt.ArrayLike, query: npt.ArrayLike, item: npt.ArrayLike) -> Ranking:
    """Rank the relevant items of each query, given as pairs; no [Q, N] relevance is ever built.

    Args:
        scores: [Q, N], higher is better.
        query: integers [P], row of each relevant pair; every row of ``scores`` must occur.
        item: integers [P], column of each relevant pair; no pair twice.

    Raises:
        MetricError: if scores are not finite, an index is out of range, or a query has no relevant item.
    """
    checked = checked_scores(scores)
    rows = checked_index(query, len(checked), name="query")
    columns = checked_index(item, checked.shape[1], name="item")
    if len(rows) != len(columns):
        raise MetricError(f"item: {len(columns)} entries, expected {len(rows)}, one per query index")
    num_relevant = np.bincount(rows, minlength=len(checked))
    if not num_relevant.all():
        raise MetricError(f"query {int(np.argmin(num_relevant))}: has no relevant item; leave such queries out")
    own = checked[rows, columns]
    return ranking_from_counts(rows, own, *_count(checked, rows, own))


def ranking_from_counts(query: IntArray, own: FloatArray, num_higher: IntArray, num_equal: IntArray) -> Ranking:
    """Rank relevant items that were compared with all items already.

    Args:
        query: int64 [P], query of each relevant pair; every query from 0 to Q - 1 occurs.
        own: scores [P] of the pairs.
        num_higher: int64 [P], items of the query, relevant or not, that score higher.
        num_equal: int64 [P], items of the query with the same score, this one included.
    """
    order = np.lexsort((-own, query))  # by query, then best first
    query, own, num_higher, num_equal = query[order], own[order], num_higher[order], num_equal[order]
    num_relevant = np.bincount(query)
    first = np.concatenate(([0], np.cumsum(num_relevant)[:-1]))  # [Q] pair with the best relevant item of each query
    position = np.arange(len(query)) - first[query] + 1
    group_first, group_last = _tie_groups(query, own)
    # Of the items that score higher (or the same), the relevant ones are no wrong items.
    wrong_higher = num_higher - (group_first - first[query])
    wrong_equal = num_equal - (group_last - group_first + 1)
    return Ranking(
        query=query,
        rank=position + wrong_higher + wrong_equal,
        position=position,
        num_relevant=num_relevant,
        num_better=wrong_higher[first],
        num_tied_wrong=wrong_equal[first],
        num_tied_right=(group_last - group_first + 1)[first],
        is_tied=np.bincount(query, weights=wrong_equal > 0, minlength=len(num_relevant)) > 0,
    )


def _tie_groups(query: IntArray, own: FloatArray) -> tuple[IntArray, IntArray]:
    """First and last pair [P], [P] of the run of equal scores that each pair belongs to."""
    starts = np.concatenate(([True], (np.diff(query) != 0) | (np.diff(own) != 0)))
    group = np.cumsum(starts) - 1
    first = np.flatnonzero(starts)
    last = np.concatenate((first[1:], [len(query)])) - 1
    return first[group], last[group]


def _count(scores: FloatArray, query: IntArray, own: FloatArray) -> tuple[IntArray, IntArray]:
    """How many items of the query's row score higher than, and the same as, each pair: [P], [P]."""
    higher = np.empty(len(query), dtype=np.int64)
    equal = np.empty(len(query), dtype=np.int64)
    step = max(1, _CHUNK_SCORES // scores.shape[1])
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        rows = scores[query[part]]  # [step, N]
        higher[part] = np.count_nonzero(rows > own[part, None], axis=1)
        equal[part] = np.count_nonzero(rows == own[part, None], axis=1)
    return higher, equal


def best_rank(ranking: Ranking, *, ties: Ties = "pessimistic") -> FloatArray:
    """Rank of the best relevant item of each query, float64 [Q].

    With g better wrong items, t tied wrong ones and p tied right ones: g + t + 1 (pessimistic), g + 1 (optimistic), and
    g + (t + p + 1) / (p + 1), the mean over random orders (expected).
    """
    better, wrong, right = ranking.num_better, ranking.num_tied_wrong, ranking.num_tied_right
    if ties == "optimistic":
        return (better + 1).astype(np.float64)
    if ties == "expected":
        expected: FloatArray = better + (wrong + right + 1) / (right + 1)
        return expected
    return (better + wrong + 1).astype(np.float64)


def hit_probability(ranking: Ranking, k: int, *, ties: Ties = "pessimistic") -> FloatArray:
    """Probability that the best relevant item of each query has a rank of at most k, float64 [Q].

    0 or 1 unless ``ties`` is ``"expected"``: then 1 - C(t, k - g) / C(t + p, k - g), in the symbols of ``best_rank``.

    Raises:
        MetricError: if k is less than 1.
    """
    check_cutoff(k)
    if ties != "expected":
        return (best_rank(ranking, ties=ties) <= k).astype(np.float64)
    wrong, right = ranking.num_tied_wrong, ranking.num_tied_right
    slots = k - ranking.num_better  # places that the tied items fill among the first k
    miss = np.ones(ranking.num_queries)
    for place in range(k):  # C(t, m) / C(t + p, m) = product of (t - i) / (t + p - i)
        left = np.maximum(wrong - place, 0)
        miss *= np.where(place < slots, left / (left + right), 1.0)
    return 1.0 - miss


def check_cutoff(k: int) -> None:
    """Refuse a cut-off that keeps nothing.

    Raises:
        MetricError: if k is less than 1.
    """
    if k < 1:
        raise MetricError(f"k = {k}: expected at least 1")


def checked_index(index: npt.ArrayLike, size: int, *, name: str) -> IntArray:
    """Row numbers, int64 [P].

    Raises:
        MetricError: if they are no list of whole numbers from 0 to ``size - 1``.
    """
    array = np.asarray(index)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise MetricError(f"{name}: {array.dtype} {list(array.shape)}, expected a list of whole numbers")
    outside = (array < 0) | (array >= size)
    if outside.any():
        place = int(np.argmax(outside))
        raise MetricError(f"{name}: entry {place} is {array[place]}, expected 0 to {size - 1}")
    return array.astype(np.int64)
