"""What the approximate indexes share: faiss proposes candidates, the rows of the table decide.

Candidates are scored again with the table's own rows as exact search does it, so that scores are exact cosines and only
hits can be missing. Few rows, all or wanted ones, are searched exactly: that takes no longer and misses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError, EmbeddingError, ShapeError
from clapkit.index._codes import WHOLE, Coder
from clapkit.index._recall import RECALL_K, Recall, least_effort, recall_of
from clapkit.index._selection import rerank
from clapkit.index.exact import ExactIndex

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# So few rows are searched exactly in about the time of an approximate search.
_EXACT_ROWS = 10_000
_EXACT_SHARE = 0.02
_TUNING_QUERIES = 500

FEWEST_CANDIDATES = 40
"""Rows that are scored exactly for ten hits: whole vectors in bytes are in the wrong order among near equals only."""
_MOST_CANDIDATES = 1280
_SHORTLIST_QUERIES = 100
# Of the hits that may be missing, codes that leave something out may lose this share; the rest is for the effort.
_SHORTLIST_MISSES = 0.2


class Method(Protocol):
    """One kind of faiss index: how it is made, searched and brought up to date.

    Attributes:
        name: of the plug-in.
        effort_name: what faiss calls the number that trades time for recall.
        effort: that number where the user gave it; None to choose it.
        recall: recall@10 to choose it for.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def effort_name(self) -> str: ...  # noqa: D102

    @property
    def effort(self) -> int | None: ...  # noqa: D102

    @property
    def recall(self) -> float: ...  # noqa: D102

    def make(self, vectors: FloatArray) -> Any:
        """A faiss index of rows [N, D] whose labels are the row numbers."""
        ...

    def efforts(self, inner: Any) -> tuple[int, int]:
        """The least and the greatest effort that make sense."""
        ...

    def parameters(self, effort: int, selector: Any) -> Any:
        """Search parameters of faiss; ``selector`` is None for all rows."""
        ...

    def coder(self, inner: Any) -> Coder:
        """What it holds of a vector."""
        ...

    def searched(self, inner: Any) -> Any:
        """The part of the faiss index that takes coded queries."""
        ...

    def facts(self, inner: Any) -> dict[str, int]:
        """Numbers that say how large it is, for the report."""
        ...

    def stored_rows(self, inner: Any) -> Iterator[tuple[IntArray, npt.NDArray[np.uint8]]]:
        """Every row as it is stored: labels [n] and ``codes`` [n, W]."""
        ...

    def update(self, inner: Any, kept: IntArray, vectors: FloatArray) -> bool:
        """Turn an index of an old table into one of a new table; False if faiss cannot, and then nothing changed.

        Args:
            inner: of the old table, in memory.
            kept: old row of each new row, -1 where it is new; [N].
            vectors: the new table [N, D].
        """
        ...


class ApproximateIndex:
    """Cosine search over unit-norm vectors that looks at a part of them.

    Args:
        method: the kind of faiss index.

    Attributes:
        effort: what a search takes; None as long as it has to be chosen.
        candidates: rows that are scored exactly for ten hits.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self.effort = method.effort
        self.candidates = FEWEST_CANDIDATES
        self.inner: Any = None
        self._searched: Any = None
        self._coder: Coder = WHOLE
        self._vectors: FloatArray | None = None
        self._exact = ExactIndex()

    def add(self, vectors: FloatArray) -> None:
        """Build the index of some vectors.

        Args:
            vectors: unit norm [N, D], float16 or float32; not copied, but the index holds them as bytes as well.

        Raises:
            ShapeError: if they are no matrix.
            EmbeddingError: if one is not finite.
        """
        self._exact.add(vectors)
        self.attach(self.method.make(vectors), vectors, effort=self.method.effort)

    def attach(self, inner: Any, vectors: FloatArray, *, effort: int | None, candidates: int = FEWEST_CANDIDATES) -> None:
        """Use a faiss index that was made of these vectors before.

        Args:
            inner: the faiss index.
            vectors: [N, D].
            effort: that was chosen for it.
            candidates: that were chosen for it.
        """
        self._exact.add(vectors)
        self.inner, self._vectors, self.effort, self.candidates = inner, vectors, effort, candidates
        self._searched, self._coder = self.method.searched(inner), self.method.coder(inner)

    def search(self, queries: FloatArray, k: int, *, rows: IntArray | None = None) -> tuple[FloatArray, IntArray]:
        """The k best items of each query that are found, best first.

        Args:
            queries: unit norm [Q, D].
            k: hits per query; fewer only if there are fewer items.
            rows: ascending rows to search, if not all.

        Returns:
            Exact scores float32 [Q, k] and rows int64 [Q, k]; equal scores in the order of the rows.

        Raises:
            EmbeddingError: if nothing was added, a query is not finite, or the index names rows that the table does not have.
            ShapeError: if the widths differ or k is less than 1.
        """
        vectors = self._filled()
        if queries.ndim != 2 or queries.shape[1] != vectors.shape[1]:
            raise ShapeError(f"queries: shape {list(queries.shape)}, expected [queries, {vectors.shape[1]}]")
        if k < 1:
            raise ShapeError(f"k = {k}: expected at least 1")
        finite = np.isfinite(queries).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise EmbeddingError(f"queries: row {row} holds an infinity or a NaN, expected finite numbers")
        if rows is not None and len(rows) and not 0 <= rows.min() <= rows.max() < len(vectors):
            raise ShapeError(f"rows: {rows.min()} to {rows.max()}, expected rows of a table of {len(vectors)}")
        num_wanted = len(vectors) if rows is None else len(rows)
        if num_wanted <= max(_EXACT_ROWS, _EXACT_SHARE * len(vectors), self._num_candidates(k)):
            return self._exact.search(queries, k, rows=rows)
        if self.effort is None:
            self.tune()
        assert self.effort is not None
        return self._search(queries, k, rows=rows, effort=self.effort)

    def tune(self, queries: FloatArray | None = None, *, seed: int = 0) -> Recall:
        """Choose the least effort whose recall@10 reaches the target, unless the user chose it, and measure its recall.

        Codes that leave something out are given as many candidates before as it takes to hide that.

        One standard error is asked for above the target, so that other queries of the kind reach it, too.

        Args:
            queries: unit norm [Q, D], of the kind that will be asked; some rows of the table if None, each without itself.
            seed: of the choice among many queries.
        """
        vectors = self._filled()
        pool, skip = (vectors, 1) if queries is None else (queries, 0)
        chosen = np.random.default_rng(seed).permutation(len(pool))[:_TUNING_QUERIES]
        sample = pool[np.sort(chosen)].astype(np.float32)
        k = min(RECALL_K + skip, len(vectors))
        if len(vectors) <= _EXACT_ROWS or k <= skip:  # the index will not be asked
            self.effort = self.effort or self.method.efforts(self.inner)[1]
            return Recall(mean=1.0, standard_error=0.0, num_queries=len(sample))
        true_scores, _ = self._exact.search(sample, k)
        if self._coder.is_lossy:
            self._choose_candidates(sample[:_SHORTLIST_QUERIES], true_scores[:_SHORTLIST_QUERIES], skip=skip)
        measured: dict[int, Recall] = {}

        def measure(effort: int) -> Recall:
            if effort not in measured:
                scores, _ = self._search(sample, k, rows=None, effort=effort)
                measured[effort] = recall_of(scores[:, skip:], true_scores[:, skip:])
            return measured[effort]

        def reaches(effort: int) -> bool:
            recall = measure(effort)
            return recall.mean - recall.standard_error >= self.method.recall

        if self.method.effort is None:
            self.effort = least_effort(reaches, *self.method.efforts(self.inner))
        assert self.effort is not None
        return measure(self.effort)

    def _choose_candidates(self, queries: FloatArray, true_scores: FloatArray, *, skip: int) -> None:
        """As few as hardly miss hits when nothing else does, with the greatest effort.

        Args:
            queries: [Q, D].
            true_scores: of exact search [Q, k].
            skip: leading hits that do not count.
        """
        highest, k = self.method.efforts(self.inner)[1], true_scores.shape[1]
        wanted = 1 - _SHORTLIST_MISSES * (1 - self.method.recall)
        self.candidates = FEWEST_CANDIDATES
        while self.candidates < _MOST_CANDIDATES:
            scores, _ = self._search(queries, k, rows=None, effort=highest)
            if recall_of(scores[:, skip:], true_scores[:, skip:]).mean >= wanted:
                return
            self.candidates *= 2

    def _num_candidates(self, k: int) -> int:
        """How many rows are scored exactly for k hits; with the fewest, 2 k + 20."""
        return self.candidates * (k + RECALL_K) // (2 * RECALL_K)

    def _filled(self) -> FloatArray:
        if self._vectors is None:
            raise EmbeddingError(f"{self.method.name} index: is empty; add vectors before searching")
        return self._vectors

    def _search(self, queries: FloatArray, k: int, *, rows: IntArray | None, effort: int) -> tuple[FloatArray, IntArray]:
        """Candidates of faiss, scored exactly; queries that faiss has too few for are searched exactly."""
        vectors = self._filled()
        block = np.ascontiguousarray(queries, dtype=np.float32)
        selector = None if rows is None else _selector(rows, len(vectors))
        num_wanted = len(vectors) if rows is None else len(rows)
        # The best of few wanted rows are as far away as many hits of the whole table.
        effort = math.ceil(effort * len(vectors) / num_wanted)
        candidates = self._candidates(block, min(self._num_candidates(k), num_wanted), effort=effort, selector=selector)
        scores = np.empty((len(queries), min(k, num_wanted)), dtype=np.float32)
        found = np.empty(scores.shape, dtype=np.int64)
        short = (candidates < 0).any(axis=1)
        scores[~short], found[~short] = rerank(block[~short], vectors, candidates[~short], scores.shape[1])
        if short.any():
            scores[short], found[short] = self._exact.search(block[short], k, rows=rows)
        return scores, found

    def _candidates(self, queries: FloatArray, count: int, *, effort: int, selector: Any) -> IntArray:
        """Rows [Q, count], -1 where there are none even with the greatest effort."""
        highest = self.method.efforts(self.inner)[1]
        effort = min(effort, highest)
        found = self._ask(queries, count, effort=effort, selector=selector)
        short = np.flatnonzero((found < 0).any(axis=1))
        while len(short) and effort < highest:
            effort = min(4 * effort, highest)
            found[short] = self._ask(queries[short], count, effort=effort, selector=selector)
            short = short[(found[short] < 0).any(axis=1)]
        return found

    def _ask(self, queries: FloatArray, count: int, *, effort: int, selector: Any) -> IntArray:
        parameters = self.method.parameters(effort, selector)
        found: IntArray = self._searched.search(self._coder.queries(queries), count, params=parameters)[1]
        num_rows = len(self._filled())
        if found.size and found.max() >= num_rows:
            raise EmbeddingError(
                f"{self.method.name} index: names row {found.max()} of a table of {num_rows} rows; build the index again"
            )
        return found


def load_faiss() -> Any:
    """The faiss module; its own type hints do not know half of what is in it, and are wrong about the rest."""
    import faiss

    return faiss


def check_target(recall: float) -> None:
    """Refuse a target that no index can have.

    Raises:
        ConfigError: if it is not above 0 and at most 1.
    """
    if not 0 < recall <= 1:
        raise ConfigError(f"option recall={recall}: expected a share above 0 and at most 1, for example 0.95")


def check_at_least_one(**options: int | None) -> None:
    """Refuse counts below 1.

    Raises:
        ConfigError: naming the option.
    """
    for name, value in options.items():
        if value is not None and value < 1:
            raise ConfigError(f"option {name}={value}: expected at least 1")


def as_bytes(pointer: Any, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Memory of faiss as an array that is not copied."""
    faiss = load_faiss()
    if 0 in shape:
        return np.empty(shape, dtype=np.uint8)
    view: npt.NDArray[np.uint8] = faiss.rev_swig_ptr(pointer, shape[0] * shape[1]).reshape(shape)
    return view


def _selector(rows: IntArray, num_rows: int) -> Any:
    faiss = load_faiss()
    mask = np.zeros(num_rows, dtype=np.bool_)
    mask[rows] = True
    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
