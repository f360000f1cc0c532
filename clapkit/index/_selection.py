"""The k best rows of each query out of scores that arrive block by block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Candidates kept beyond k before they are scored exactly: more only come together where many rows are alike.
_MARGIN = 100
_FEWEST_PENDING = 1 << 10
# Few enough that their float64 copies stay in the cache; memory that is asked for anew costs more than the products.
_RESCORED_NUMBERS = 1 << 14
# Rows whose scores are compared with a floor together.
_GROUP_ROWS = 32


class Best:
    """The best rows of each query so far.

    Scores come in float32, each within a rounding error of the true one. A row is a candidate as long as it may be among
    the k best, whatever the errors; candidates are scored again in float64, so that equal vectors get equal scores
    whatever block they lie in. Equal scores are ordered by row.

    Attributes:
        k: rows wanted for each query.
    """

    def __init__(self, queries: FloatArray, vectors: FloatArray, k: int, *, error: float | None = None) -> None:
        """Start with no rows.

        Args:
            queries: float32 [Q, D].
            vectors: unit norm [N, D], to score candidates again.
            k: rows wanted for each query.
            error: no score is farther from the true one than this; the rounding of a float32 product, if it is not given.
        """
        self._queries, self._vectors, self.k = queries, vectors, k
        # A sum of D products in any order is off by D roundings of the norms at most, here and at the k-th best.
        rounding = (queries.shape[1] + 8) * 2.0**-24 * np.linalg.norm(queries, axis=1)
        slack = 2 * rounding if error is None else np.full(len(queries), 2 * error)
        self._slack = slack.astype(np.float32)  # [Q]
        self._floors = np.full(len(queries), -np.inf, dtype=np.float32)  # [Q]
        self._held = _Candidates.none()
        self._pending: list[_Candidates] = []
        self._num_pending = 0

    @property
    def floors(self) -> FloatArray:
        """float32 [Q]: rows with a lower score are no candidates any more."""
        return self._floors.copy()

    @property
    def has_floors(self) -> bool:
        """Whether k rows of each query are known."""
        return not np.isneginf(self._floors).any()

    def floor_of(self, scores: FloatArray, *, query_number: int) -> float:
        """What the floor of a query would be if these scores [n] were all; minus infinity if n is less than k."""
        if len(scores) < self.k:
            return -np.inf
        kth = len(scores) - self.k
        return float(np.partition(scores, kth)[kth] - self._slack[query_number])

    def offer(self, scores: FloatArray, rows: IntArray) -> None:
        """Take the candidates of a block.

        Args:
            scores: float32 [n, Q], finite.
            rows: [n].
        """
        for number in np.flatnonzero(np.isneginf(self._floors)).tolist():
            self._floors[number] = self.floor_of(scores[:, number], query_number=number)
        places, query_numbers = _above(scores, self._floors)
        self.offer_pairs(query_numbers, rows[places], scores[places, query_numbers])

    def offer_pairs(self, query_numbers: IntArray, rows: IntArray, scores: FloatArray) -> None:
        """Take candidates one by one.

        Args:
            query_numbers: [C].
            rows: [C].
            scores: float32 [C], finite.
        """
        self._pending.append(_Candidates(query_numbers, rows, scores))
        self._num_pending += len(rows)
        if self._num_pending > max(_FEWEST_PENDING, 4 * self.k * len(self._queries)) or not self.has_floors:
            self._shrink()

    def result(self) -> tuple[FloatArray, IntArray]:
        """Scores float32 [Q, k] and rows int64 [Q, k], best first; fewer columns if fewer rows were offered."""
        self._shrink()
        best = self._rescored(self._held)
        shape = (len(self._queries), len(best.rows) // max(1, len(self._queries)))
        return best.scores.reshape(shape), best.rows.reshape(shape)

    def _shrink(self) -> None:
        """Raise the floors and drop what is below."""
        held = _Candidates.joined([self._held, *self._pending]).ranked()
        self._pending, self._num_pending = [], 0
        kth = held.places() == self.k - 1
        self._floors[held.queries[kth]] = held.scores[kth] - self._slack[held.queries[kth]]
        held = held.only(held.scores >= self._floors[held.queries])
        if len(held.rows) > len(self._queries) * (self.k + _MARGIN):
            held = self._rescored(held)
        self._held = held

    def _rescored(self, candidates: _Candidates) -> _Candidates:
        """The k best of each query by exact scores."""
        scores = rescore(self._queries, self._vectors, candidates.queries, candidates.rows)
        ranked = _Candidates(candidates.queries, candidates.rows, scores).ranked()
        return ranked.only(ranked.places() < self.k)


def _above(scores: FloatArray, floors: FloatArray) -> tuple[IntArray, IntArray]:
    """Where scores [n, Q] reach the floor [Q] of their query: places and query numbers.

    Few do, so groups of rows are looked at by their maxima first.
    """
    num_groups, num_queries = len(scores) // _GROUP_ROWS, len(floors)
    groups = scores[: num_groups * _GROUP_ROWS].reshape(num_groups, _GROUP_ROWS, num_queries)
    group_numbers, asked = np.divmod(np.flatnonzero(groups.max(axis=1) >= floors), num_queries)
    members, within = np.divmod(np.flatnonzero(groups[group_numbers, :, asked] >= floors[asked, None]), _GROUP_ROWS)
    left_over, asked_left_over = np.divmod(np.flatnonzero(scores[num_groups * _GROUP_ROWS :] >= floors), num_queries)
    places = np.concatenate([group_numbers[members] * _GROUP_ROWS + within, left_over + num_groups * _GROUP_ROWS])
    return places, np.concatenate([asked[members], asked_left_over])


class _Candidates:
    """Rows that may be hits: query, row and score of each [C]."""

    def __init__(self, queries: IntArray, rows: IntArray, scores: FloatArray) -> None:
        self.queries, self.rows, self.scores = queries, rows, scores

    @classmethod
    def none(cls) -> _Candidates:
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    @classmethod
    def joined(cls, parts: list[_Candidates]) -> _Candidates:
        return cls(
            np.concatenate([part.queries for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.scores for part in parts]),
        )

    def only(self, which: npt.NDArray[Any]) -> _Candidates:
        return _Candidates(self.queries[which], self.rows[which], self.scores[which])

    def ranked(self) -> _Candidates:
        """By query, then best first, then by row."""
        return self.only(np.lexsort((self.rows, -self.scores, self.queries)))

    def places(self) -> IntArray:
        """Rank of each within its query, from 0, of ranked candidates."""
        starts = np.searchsorted(self.queries, self.queries)
        return np.arange(len(self.queries)) - starts


def rescore(queries: FloatArray, vectors: FloatArray, query_numbers: IntArray, rows: IntArray) -> FloatArray:
    """Scores of pairs, computed in float64.

    Args:
        queries: [Q, D].
        vectors: [N, D].
        query_numbers: [C].
        rows: [C].

    Returns:
        float32 [C].
    """
    scores = np.empty(len(rows), dtype=np.float32)
    step = max(1, _RESCORED_NUMBERS // max(1, vectors.shape[1]))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        items, asked = vectors[rows[part]].astype(np.float64), queries[query_numbers[part]].astype(np.float64)
        scores[part] = np.einsum("cd,cd->c", items, asked)
    return scores + np.float32(0.0)  # -0 becomes 0


def rerank(queries: FloatArray, vectors: FloatArray, candidates: IntArray, k: int) -> tuple[FloatArray, IntArray]:
    """Score candidate rows exactly and keep the k best.

    Args:
        queries: [Q, D].
        vectors: [N, D].
        candidates: rows [Q, C], in any order.
        k: at most C.

    Returns:
        Scores float32 [Q, k] and rows int64 [Q, k], best first, equal ones by row.
    """
    query_numbers = np.repeat(np.arange(len(candidates)), candidates.shape[1])
    scores = rescore(queries, vectors, query_numbers, candidates.reshape(-1)).reshape(candidates.shape)
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(candidates, order, axis=1)
