"""Hierarchical navigable small world: a graph of near neighbours that a query walks towards its hits.

Finds more than ``ivf`` in the same time and takes far longer to build. Rows can be added, but not taken out.

Reference: Malkov and Yashunin, Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small
World graphs, 2016, arXiv 1603.09320. Deviation: candidates are scored again exactly.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError
from clapkit.index._codes import WHOLE, Coder, blocks
from clapkit.index._faiss import ApproximateIndex, as_bytes, check_at_least_one, check_target, load_faiss

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

_LEAST_EFFORT = 16
_GREATEST_EFFORT = 8192


@dataclass(frozen=True)
class NeighborGraph:
    """The method of ``hnsw``; the options are those of ``build``."""

    num_neighbors: int
    construction_effort: int
    effort: int | None
    recall: float
    threads: int | None
    name: str = "hnsw"
    effort_name: str = "ef_search"

    def make(self, vectors: FloatArray) -> Any:
        """Put every row into the graph."""
        faiss = load_faiss()
        graph = faiss.IndexHNSWSQ(
            vectors.shape[1], faiss.ScalarQuantizer.QT_8bit_direct_signed, self.num_neighbors, faiss.METRIC_INNER_PRODUCT
        )
        graph.hnsw.efConstruction = self.construction_effort
        graph.is_trained = True  # bytes have nothing to train
        inner = faiss.IndexIDMap(graph)  # a graph numbers rows as they come; the table renumbers them
        self._add(inner, vectors, np.arange(len(vectors)))
        return inner

    def efforts(self, inner: Any) -> tuple[int, int]:
        """From a few candidates to as many as there are rows, within reason."""
        return _LEAST_EFFORT, max(_LEAST_EFFORT, min(int(inner.ntotal), _GREATEST_EFFORT))

    def parameters(self, effort: int, selector: Any) -> Any:
        """Search parameters of faiss."""
        faiss = load_faiss()
        return faiss.SearchParametersHNSW(efSearch=effort, sel=selector)

    def coder(self, inner: Any) -> Coder:
        """Whole vectors."""
        return WHOLE

    def searched(self, inner: Any) -> Any:
        """All of it."""
        return inner

    def facts(self, inner: Any) -> dict[str, int]:
        """Links of a row."""
        return {"neighbors": self.num_neighbors}

    def stored_rows(self, inner: Any) -> Iterator[tuple[IntArray, npt.NDArray[np.uint8]]]:
        """Every row as it is stored, in the order of the graph."""
        faiss = load_faiss()
        storage = faiss.downcast_index(_graph(inner).storage)
        yield _labels(inner), as_bytes(storage.codes.data(), (storage.ntotal, storage.code_size))

    def update(self, inner: Any, kept: IntArray, vectors: FloatArray) -> bool:
        """Add new rows to the graph; it cannot do without one that it has."""
        num_kept = int((kept >= 0).sum())
        if num_kept < inner.ntotal:
            return False
        new_number = np.full(inner.ntotal, -1, dtype=np.int64)
        new_number[kept[kept >= 0]] = np.flatnonzero(kept >= 0)
        labels = _labels(inner)
        labels[:] = new_number[labels]
        self._add(inner, vectors, np.flatnonzero(kept < 0))
        return True

    def _add(self, inner: Any, vectors: FloatArray, rows: IntArray) -> None:
        with _threads(self.threads):
            for numbers, block in blocks(vectors, rows):
                inner.add_with_ids(WHOLE.rows(block), numbers)


def _graph(inner: Any) -> Any:
    faiss = load_faiss()
    return faiss.downcast_index(inner.index)


def _labels(inner: Any) -> IntArray:
    """The memory of faiss, not a copy."""
    faiss = load_faiss()
    if not inner.ntotal:
        return np.empty(0, dtype=np.int64)
    labels: IntArray = faiss.rev_swig_ptr(inner.id_map.data(), inner.ntotal)
    return labels


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Let faiss use so many threads meanwhile."""
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(count or before)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def build(
    *,
    neighbors: int = 32,
    ef_construction: int = 40,
    ef_search: int | None = None,
    recall: float = 0.95,
    threads: int | None = None,
) -> ApproximateIndex:
    """A graph of near neighbours.

    Args:
        neighbors: links of a row, twice as many in the lowest layer, which has all rows; 8 bytes a row for each.
        ef_construction: candidates that a new row is linked from; more make a better graph more slowly.
        ef_search: candidates that a query keeps while it walks; None chooses as many as ``recall`` takes.
        recall: recall@10 to choose ``ef_search`` for, measured against exact search.
        threads: that build the graph; None is all. Only with one is it the same graph every time.

    Raises:
        ConfigError: if a count is too small or the recall is no share.
    """
    if neighbors < 2:
        raise ConfigError(f"option neighbors={neighbors}: expected at least 2, a graph of single links leads nowhere")
    check_at_least_one(ef_construction=ef_construction, ef_search=ef_search, threads=threads)
    check_target(recall)
    return ApproximateIndex(NeighborGraph(neighbors, ef_construction, ef_search, recall, threads))
