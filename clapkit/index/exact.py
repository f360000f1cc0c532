"""Exact search: every vector is compared with every query.

Scores are found in float32, block of rows by block of rows, and every row that rounding may hide among the k best is
scored again in float64, so that results are those of a full sort: equal vectors get equal scores whatever block they lie
in, and equal scores are ordered by row. A table of float16 is read where it lies, also in a memory-mapped file; what is
taken beside it does not grow with its length. Needs numpy, and faiss for large tables, so a query does not wait for torch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import EmbeddingError, ShapeError
from clapkit.index import _half
from clapkit.index._selection import Best

if TYPE_CHECKING:
    from clapkit.index._sketch import FoldedQuery, Sketch

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
# Rows and scores of the candidates of each query.
_Found = list[tuple[IntArray, FloatArray]]

# Rows that are decoded together stay in the last-level cache until they are multiplied.
_BLOCK_ROWS = 4096
_BLOCK_NUMBERS = 1 << 22
_QUERIES_TOGETHER = 1024
# One query is bound by memory: it reads float16 as it is. From a few on, decoding once and multiplying is faster.
_MOST_SCANNED_QUERIES = 8
_SCANNED_BLOCK_ROWS = 32768
_FIRST_BLOCK_ROWS = 4096
# The first block gives every query a floor; a small one costs less, and a larger one lets fewer candidates through after it.
_FIRST_PRODUCT_ROWS = 1024
# The scan keeps what is above a bound, the floor itself belongs to the candidates.
_BELOW = 1e-6
# Candidates beyond 4 k that a block is expected to have at most; more take a second look.
_MOST_ABOVE = 512
# A candidate of a sketch is read at random and scored in float64, which takes as long as reading a hundred in order.
_MOST_SKETCHED = 0.01
_FEWEST_SKETCHED = 1 << 12
# A smaller table is searched sooner than faiss is imported.
_FEWEST_SCANNED_ROWS = 1 << 18
# A wanted row that is gathered costs about as much as four that are read in order.
_GATHER_COST = 4


class ExactIndex:
    """Cosine search over unit-norm vectors."""

    def __init__(self) -> None:
        self._sketch: Sketch | None = None
        self._vectors: FloatArray | None = None
        self._name = "vectors"
        self._is_finite = False  # known once all vectors have been read

    def add(self, vectors: FloatArray, sketch: Sketch | None = None) -> None:
        """Set the vectors to search.

        Args:
            vectors: unit norm [N, D], float16 or float32, may be memory-mapped and read-only; not copied.
            sketch: of the same vectors: a few queries are answered faster, with the same results. Rows that it rules out
                are not read, so an infinity or a NaN that came into them later is not found.

        Raises:
            ShapeError: if they are no matrix, or the sketch is of another shape.
        """
        if vectors.ndim != 2:
            raise ShapeError(f"vectors: shape {list(vectors.shape)}, expected [items, width]")
        if sketch is not None and sketch.codes.shape != vectors.shape:
            raise ShapeError(f"sketch: shape {list(sketch.codes.shape)}, expected {list(vectors.shape)} as the vectors have")
        self._name = os.fspath(getattr(vectors, "filename", None) or "vectors")
        self._vectors, self._is_finite = np.asarray(vectors), False  # slices of a memmap object are slow to make
        self._sketch = sketch

    def search(self, queries: FloatArray, k: int, *, rows: IntArray | None = None) -> tuple[FloatArray, IntArray]:
        """The k best items of each query, best first.

        Args:
            queries: unit norm [Q, D].
            k: hits per query; fewer if there are fewer items.
            rows: ascending rows to search, if not all.

        Returns:
            Scores float32 [Q, k] and rows int64 [Q, k]; equal scores in the order of the rows.

        Raises:
            EmbeddingError: if nothing was added, or a vector or a query holds an infinity or a NaN.
            ShapeError: if the widths differ, k is less than 1, or rows are not ascending rows of the table.
        """
        if self._vectors is None:
            raise EmbeddingError("exact index: is empty; add vectors before searching")
        vectors = self._vectors
        if queries.ndim != 2 or queries.shape[1] != vectors.shape[1]:
            raise ShapeError(f"queries: shape {list(queries.shape)}, expected [queries, {vectors.shape[1]}]")
        if k < 1:
            raise ShapeError(f"k = {k}: expected at least 1")
        asked = np.ascontiguousarray(queries, dtype=np.float32)
        _check_queries(asked)
        wanted = None if rows is None else _checked_rows(rows, num_rows=len(vectors))
        num_hits = min(k, len(vectors) if wanted is None else len(wanted))
        scores = np.empty((len(asked), num_hits), dtype=np.float32)
        found = np.empty((len(asked), num_hits), dtype=np.int64)
        if num_hits:
            # Each query has a bound of its own on what a sketch may hide.
            step = 1 if self._sketch is not None and _is_scanned(asked, vectors) else _QUERIES_TOGETHER
            for start in range(0, len(asked), step):
                part = slice(start, start + step)
                scores[part], found[part] = self._best(asked[part], vectors, num_hits, wanted=wanted)
        return scores, found

    def _best(
        self, queries: FloatArray, vectors: FloatArray, k: int, *, wanted: IntArray | None
    ) -> tuple[FloatArray, IntArray]:
        if self._sketch is not None and len(queries) == 1 and _is_scanned(queries, vectors):
            sketched = _best_by_sketch(queries, vectors, self._sketch, k, wanted=wanted)
            if sketched is not None:
                return sketched.result()
        best = Best(queries, vectors, k)
        try:
            if _is_scanned(queries, vectors):
                _scan(best, queries, vectors, wanted, is_finite=self._is_finite)
            else:
                _multiply(best, queries, vectors, wanted)
        except _NotFinite as error:
            raise EmbeddingError(
                f"{self._name}: row {error.row} holds an infinity or a NaN, expected finite numbers; embed again"
            ) from error
        self._is_finite |= wanted is None
        return best.result()


def build() -> ExactIndex:
    """An empty exact index."""
    return ExactIndex()


class _NotFinite(Exception):
    """The row that holds an infinity or a NaN."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row


class _TooManyCandidates(Exception):
    """A sketch does not tell enough rows apart."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows ``start`` to ``stop`` of the table, of which ``rows`` are wanted; all, if it is None."""

    start: int
    stop: int
    rows: IntArray | None

    @property
    def is_read_whole(self) -> bool:
        return self.rows is None or _GATHER_COST * len(self.rows) >= self.stop - self.start

    def items(self, vectors: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The vectors to read [n, D]: all of the block, which takes no copy, or the wanted ones."""
        return vectors[self.start : self.stop] if self.is_read_whole else vectors[self.rows]

    @property
    def numbers(self) -> IntArray:
        """The row of each vector that is read [n]."""
        return self.rows if self.rows is not None and not self.is_read_whole else np.arange(self.start, self.stop)

    @property
    def places(self) -> IntArray | None:
        """Where the wanted rows are among those that are read, if not everywhere."""
        return self.rows - self.start if self.rows is not None and self.is_read_whole else None


def _blocks(num_rows: int, size: int, wanted: IntArray | None, *, first: int | None = None) -> Iterator[_Block]:
    bounds = np.unique(np.append(np.arange(first or size, num_rows, size), (0, num_rows)))
    edges = bounds if wanted is None else np.searchsorted(wanted, bounds)
    for number in np.flatnonzero(np.diff(edges)).tolist():
        rows = None if wanted is None else wanted[edges[number] : edges[number + 1]]
        yield _Block(int(bounds[number]), int(bounds[number + 1]), rows)


def _multiply(best: Best, queries: FloatArray, vectors: FloatArray, wanted: IntArray | None) -> None:
    """Score by matrix products, which use all cores themselves."""
    size = max(1, min(_BLOCK_ROWS, _BLOCK_NUMBERS // max(1, vectors.shape[1])))
    space = np.empty((size, vectors.shape[1]), dtype=np.float32)
    products = np.empty((size, len(queries)), dtype=np.float32)
    first = min(size, max(_FIRST_PRODUCT_ROWS, 16 * best.k))
    for block in _blocks(len(vectors), size, wanted, first=first):
        items, numbers, places = block.items(vectors), block.numbers, block.places
        if items.dtype == np.float16:
            decoded = space[: len(items)]
            wrong = _half.decode(items, decoded)
            if wrong is not None:
                raise _NotFinite(int(numbers[wrong]))
        else:
            decoded = items.astype(np.float32, copy=False)
        with np.errstate(invalid="ignore"):  # what is not finite is told by its row
            scores = np.matmul(decoded, queries.T, out=products[: len(items)])  # [n, Q]; the other way round is slower
        finite = np.isfinite(scores[:, 0])  # a row that is not finite has no finite score, whatever the query
        if not finite.all():
            raise _NotFinite(int(numbers[np.argmin(finite)]))
        best.offer(*((scores, numbers) if places is None else (scores[places], numbers[places])))


def _scan(best: Best, queries: FloatArray, vectors: FloatArray, wanted: IntArray | None, *, is_finite: bool) -> None:
    """Score float16 rows as they lie."""
    _in_threads(best, partial(_scan_block, best, queries, vectors, is_finite=is_finite), len(vectors), wanted)


def _in_threads(
    best: Best, find: Callable[[FloatArray, _Block], _Found], num_rows: int, wanted: IntArray | None, *, most: float = np.inf
) -> None:
    """Find candidates in blocks side by side, and stop where there are more than ``most`` in all."""
    num_threads = _num_threads()
    num_found = 0
    with ThreadPoolExecutor(num_threads) as pool:
        under_way: deque[Future[_Found]] = deque()

        def take() -> None:
            nonlocal num_found
            for number, (rows, scores) in enumerate(under_way.popleft().result()):
                num_found += len(rows)
                if num_found > most:
                    raise _TooManyCandidates
                best.offer_pairs(np.full(len(rows), number), rows, scores)

        for block in _blocks(num_rows, _SCANNED_BLOCK_ROWS, wanted, first=max(_FIRST_BLOCK_ROWS, 16 * best.k)):
            under_way.append(pool.submit(find, best.floors, block))
            if len(under_way) > num_threads or not best.has_floors:  # without a floor, every row is a candidate
                take()
        while under_way:
            take()


def _scan_block(
    best: Best, queries: FloatArray, vectors: FloatArray, floors: FloatArray, block: _Block, *, is_finite: bool
) -> _Found:
    items, numbers = block.items(vectors), block.numbers
    found = []
    for number, (query, floor) in enumerate(zip(queries, floors.tolist(), strict=True)):
        above = None
        if is_finite and floor != -np.inf:
            above = _half.scan_above(items, query, bound=floor - _BELOW, most=_MOST_ABOVE + 4 * best.k)
        # A bound skips rows that hold a NaN as well, so all rows are looked at until the table is known to hold none.
        hits, scores = above or _half.scan_all(items, query)
        if (above is None and len(hits) < len(items)) or not np.isfinite(scores).all():
            raise _NotFinite(int(numbers[np.argmin(np.isfinite(items).all(axis=1))]))
        hits, scores = _only_wanted(hits, scores, block, len(items))
        kept = scores >= (best.floor_of(scores, query_number=number) if floor == -np.inf else floor)
        found.append((numbers[hits[kept]], scores[kept]))
    return found


def _only_wanted(hits: IntArray, scores: FloatArray, block: _Block, num_items: int) -> tuple[IntArray, FloatArray]:
    if block.places is None:
        return hits, scores
    is_wanted = np.zeros(num_items, dtype=np.bool_)
    is_wanted[block.places] = True
    kept = is_wanted[hits]
    return hits[kept], scores[kept]


def _best_by_sketch(query: FloatArray, vectors: FloatArray, sketch: Sketch, k: int, *, wanted: IntArray | None) -> Best | None:
    """The best rows of one query [1, D], or None where scoring the candidates again would take longer than a scan."""
    folded = sketch.fold(query[0])
    best = Best(query, vectors, k, error=folded.error)
    most = max(_FEWEST_SKETCHED, int(_MOST_SKETCHED * len(vectors))) + 4 * k
    find = partial(_sketch_block, best, folded, sketch, most=most)
    try:
        _in_threads(best, find, len(vectors), wanted, most=most)
    except _TooManyCandidates:
        return None
    return best


def _sketch_block(best: Best, folded: FoldedQuery, sketch: Sketch, floors: FloatArray, block: _Block, *, most: int) -> _Found:
    codes, floor = block.items(sketch.codes), float(floors[0])
    if floor == -np.inf:
        above = _half.scan_all(codes, folded.integers)
    else:
        room = min(most, len(codes)) + 1  # never full where the whole block fits
        found = _half.scan_above(codes, folded.integers, bound=folded.product_below(floor), most=room)
        if found is None:
            raise _TooManyCandidates
        above = found
    hits, scores = _only_wanted(above[0], folded.scores(above[1]), block, len(codes))
    kept = scores >= (best.floor_of(scores, query_number=0) if floor == -np.inf else floor)
    return [(block.numbers[hits[kept]], scores[kept])]


def _num_threads() -> int:
    limit = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, int(limit)) if limit.isdigit() and int(limit) else cores


def _is_scanned(queries: FloatArray, vectors: FloatArray) -> bool:
    return (
        len(queries) <= _MOST_SCANNED_QUERIES
        and len(vectors) >= _FEWEST_SCANNED_ROWS
        and vectors.dtype == np.float16
        and vectors.flags.c_contiguous
    )


def _check_queries(queries: FloatArray) -> None:
    finite = np.isfinite(queries).all(axis=1)
    if not finite.all():
        raise EmbeddingError(f"queries: row {int(np.argmin(finite))} holds an infinity or a NaN, expected finite numbers")


def _checked_rows(rows: IntArray, *, num_rows: int) -> IntArray:
    wanted = np.asarray(rows, dtype=np.int64)
    if len(wanted) and (wanted[0] < 0 or wanted[-1] >= num_rows or (np.diff(wanted) <= 0).any()):
        raise ShapeError(f"rows: expected ascending numbers from 0 to {num_rows - 1}, each once")
    return wanted
