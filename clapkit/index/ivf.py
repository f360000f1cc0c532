"""Inverted file: rows are grouped into lists by k-means, and a query looks into the lists that are nearest to it.

Quick to build, and rows can be added and taken out. An index takes D bytes a row.

Reference: Sivic and Zisserman, Video Google, 2003; Jégou, Douze and Schmid, Product Quantization for Nearest Neighbor
Search, 2011, section IV. Deviation: lists hold whole vectors as bytes, not product codes, and candidates are scored
again exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError
from clapkit.index._codes import blocks, coded
from clapkit.index._faiss import ApproximateIndex, as_bytes, check_at_least_one, check_target, load_faiss

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Below 39 rows a list, faiss warns that k-means has too little to go by; beyond 64, lists hardly get better.
_MIN_ROWS_PER_LIST = 39
_MAX_TRAINING_ROWS_PER_LIST = 64


@dataclass(frozen=True)
class InvertedFile:
    """The method of ``ivf``; the options are those of ``build``."""

    num_lists: int | None
    effort: int | None
    recall: float
    iterations: int
    seed: int
    name: str = "ivf"
    effort_name: str = "nprobe"

    def make(self, vectors: FloatArray) -> Any:
        """Train the lists on a sample and put every row into one."""
        faiss = load_faiss()
        num_lists = self.num_lists or default_num_lists(len(vectors))
        if num_lists > len(vectors):
            raise ConfigError(f"option nlist={num_lists}: there are {len(vectors)} rows; expected at most one list per row")
        width = vectors.shape[1]
        inner = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(width),
            width,
            num_lists,
            faiss.ScalarQuantizer.QT_8bit_direct_signed,
            faiss.METRIC_INNER_PRODUCT,
            False,  # whole vectors, not residuals: a row is stored as it is in the table
        )
        inner.cp.niter = self.iterations
        inner.cp.seed = self.seed % 2**31
        inner.cp.min_points_per_centroid = 1  # faiss would print a warning where the user asks for many lists
        inner.cp.max_points_per_centroid = _MAX_TRAINING_ROWS_PER_LIST
        inner.train(_training_sample(vectors, num_lists * _MAX_TRAINING_ROWS_PER_LIST, seed=self.seed))
        for numbers, block in blocks(vectors):
            inner.add_with_ids(coded(block), numbers)
        return inner

    def efforts(self, inner: Any) -> tuple[int, int]:
        """One list, or all."""
        return 1, int(inner.nlist)

    def parameters(self, effort: int, selector: Any) -> Any:
        """Search parameters of faiss."""
        faiss = load_faiss()
        return faiss.SearchParametersIVF(nprobe=effort, sel=selector)

    def facts(self, inner: Any) -> dict[str, int]:
        """The number of lists."""
        return {"nlist": int(inner.nlist)}

    def stored_rows(self, inner: Any) -> Iterator[tuple[IntArray, npt.NDArray[np.uint8]]]:
        """Every row as it is stored, list by list."""
        lists = inner.invlists
        for number in range(inner.nlist):
            labels = self._labels(lists, number)
            yield labels, as_bytes(lists.get_codes(number), (len(labels), inner.code_size))

    def update(self, inner: Any, kept: IntArray, vectors: FloatArray) -> bool:
        """Take out rows that are gone, give the others their new numbers, and add those that are new."""
        faiss = load_faiss()
        new_number = np.full(inner.ntotal, -1, dtype=np.int64)
        new_number[kept[kept >= 0]] = np.flatnonzero(kept >= 0)
        inner.remove_ids(faiss.IDSelectorBitmap(np.packbits(new_number < 0, bitorder="little")))
        for number in range(inner.nlist):
            labels = self._labels(inner.invlists, number)
            labels[:] = new_number[labels]
        for numbers, block in blocks(vectors, np.flatnonzero(kept < 0)):
            inner.add_with_ids(coded(block), numbers)
        return True

    def _labels(self, lists: Any, number: int) -> IntArray:
        """The memory of faiss, not a copy."""
        faiss = load_faiss()
        size = lists.list_size(number)
        if not size:
            return np.empty(0, dtype=np.int64)
        labels: IntArray = faiss.rev_swig_ptr(lists.get_ids(number), size)
        return labels


def default_num_lists(num_rows: int) -> int:
    """Lists to make of N rows: four times the square root, but at least 39 rows for each."""
    return max(1, min(round(4 * math.sqrt(num_rows)), num_rows // _MIN_ROWS_PER_LIST))


def _training_sample(vectors: FloatArray, count: int, *, seed: int) -> FloatArray:
    """At most ``count`` rows in float32."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:count])
    return np.concatenate([block for _, block in blocks(vectors, rows)])


def build(
    *, nlist: int | None = None, nprobe: int | None = None, recall: float = 0.95, iterations: int = 10, seed: int = 0
) -> ApproximateIndex:
    """An inverted file.

    Args:
        nlist: lists to make; None is four times the square root of the rows, but at least 39 rows for each.
        nprobe: lists that a query looks into; None chooses as many as ``recall`` takes.
        recall: recall@10 to choose ``nprobe`` for, measured against exact search.
        iterations: of k-means.
        seed: of the sample that k-means is trained on and of its first centroids.

    Raises:
        ConfigError: if a count is less than 1 or the recall is no share.
    """
    check_at_least_one(nlist=nlist, nprobe=nprobe, iterations=iterations)
    check_target(recall)
    return ApproximateIndex(InvertedFile(nlist, nprobe, recall, iterations, seed))
