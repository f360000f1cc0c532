"""Inverted file: rows are grouped into lists by k-means, and a query looks into the lists that are nearest to it.

Quick to build, and rows can be added and taken out. Where the leading principal components of the rows say nearly all, lists
hold these, and whole vectors otherwise: a byte for each number.

Reference: Sivic and Zisserman, Video Google, 2003; Jégou, Douze and Schmid, Product Quantization for Nearest Neighbor
Search, 2011, section IV. Deviation: lists hold vectors or components as bytes, not product codes, and candidates
are scored again exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError
from clapkit.index._codes import WHOLE, Coder, blocks
from clapkit.index._faiss import ApproximateIndex, as_bytes, check_at_least_one, check_target, load_faiss
from clapkit.index._projection import LEAST_COMPONENTS, Projection

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Below 39 rows a list, faiss warns that k-means has too little to go by; beyond 64, lists hardly get better.
_MIN_ROWS_PER_LIST = 39
_MAX_TRAINING_ROWS_PER_LIST = 64
# What the axes of the rows are computed from.
_PROJECTION_ROWS = 65_536


@dataclass(frozen=True)
class InvertedFile:
    """The method of ``ivf``; the options are those of ``build``."""

    num_lists: int | None
    components: int | None
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
        if self.components is not None and self.components > vectors.shape[1]:
            raise ConfigError(
                f"option components={self.components}: vectors have {vectors.shape[1]} numbers; expected at most that"
            )
        projection = self._projection(vectors)
        coder = projection or WHOLE
        width = vectors.shape[1] if projection is None else len(projection.offset)
        lists = faiss.IndexIVFScalarQuantizer(
            faiss.IndexFlatIP(width),
            width,
            num_lists,
            faiss.ScalarQuantizer.QT_8bit_direct_signed,
            faiss.METRIC_INNER_PRODUCT,
            False,  # not residuals: a row is stored the same in whatever list it is
        )
        lists.cp.niter = self.iterations
        lists.cp.seed = self.seed % 2**31
        lists.cp.min_points_per_centroid = 1  # faiss would print a warning where the user asks for many lists
        lists.cp.max_points_per_centroid = _MAX_TRAINING_ROWS_PER_LIST
        sample = _sample(vectors, num_lists * _MAX_TRAINING_ROWS_PER_LIST, seed=self.seed)
        lists.train(np.concatenate([block if projection is None else projection.rows(block) for block in sample]))
        for numbers, block in blocks(vectors):
            lists.add_with_ids(coder.rows(block), numbers)
        return lists if projection is None else _with_projection(lists, projection)

    def efforts(self, inner: Any) -> tuple[int, int]:
        """One list, or all."""
        return 1, int(self.searched(inner).nlist)

    def parameters(self, effort: int, selector: Any) -> Any:
        """Search parameters of faiss."""
        faiss = load_faiss()
        return faiss.SearchParametersIVF(nprobe=effort, sel=selector)

    def coder(self, inner: Any) -> Coder:
        """The projection that the index was made with, or whole vectors."""
        faiss = load_faiss()
        if not isinstance(inner, faiss.IndexPreTransform):
            return WHOLE
        return Projection.of_faiss(faiss.downcast_VectorTransform(inner.chain.at(0)))

    def searched(self, inner: Any) -> Any:
        """The lists."""
        faiss = load_faiss()
        return faiss.downcast_index(inner.index) if isinstance(inner, faiss.IndexPreTransform) else inner

    def facts(self, inner: Any) -> dict[str, int]:
        """The number of lists, and of numbers kept of a row."""
        lists = self.searched(inner)
        return {"nlist": int(lists.nlist), "components": int(lists.d)}

    def stored_rows(self, inner: Any) -> Iterator[tuple[IntArray, npt.NDArray[np.uint8]]]:
        """Every row as it is stored, list by list."""
        lists = self.searched(inner)
        for number in range(lists.nlist):
            labels = self._labels(lists.invlists, number)
            yield labels, as_bytes(lists.invlists.get_codes(number), (len(labels), lists.code_size))

    def update(self, inner: Any, kept: IntArray, vectors: FloatArray) -> bool:
        """Take out rows that are gone, give the others their new numbers, and add those that are new."""
        faiss = load_faiss()
        lists, coder = self.searched(inner), self.coder(inner)
        new_number = np.full(lists.ntotal, -1, dtype=np.int64)
        new_number[kept[kept >= 0]] = np.flatnonzero(kept >= 0)
        lists.remove_ids(faiss.IDSelectorBitmap(np.packbits(new_number < 0, bitorder="little")))
        for number in range(lists.nlist):
            labels = self._labels(lists.invlists, number)
            labels[:] = new_number[labels]
        for numbers, block in blocks(vectors, np.flatnonzero(kept < 0)):
            lists.add_with_ids(coder.rows(block), numbers)
        inner.ntotal = lists.ntotal  # where the projection is kept around the lists, faiss counts in both places
        return True

    def _projection(self, vectors: FloatArray) -> Projection | None:
        """What to keep of a row; None is all."""
        if self.components is None and 2 * LEAST_COMPONENTS > vectors.shape[1]:
            return None
        return Projection.fitted(_sample(vectors, _PROJECTION_ROWS, seed=self.seed), components=self.components)

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


def _sample(vectors: FloatArray, count: int, *, seed: int) -> Iterator[FloatArray]:
    """At most ``count`` rows in float32, some at a time."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(vectors))[:count])
    for _, block in blocks(vectors, rows):
        yield block


def _with_projection(lists: Any, projection: Projection) -> Any:
    """One faiss index of both, so that one file holds them; rows and queries are projected before faiss sees them."""
    faiss = load_faiss()
    transform = projection.to_faiss()
    inner = faiss.IndexPreTransform(transform, lists)
    return inner


def build(
    *,
    nlist: int | None = None,
    components: int | None = None,
    nprobe: int | None = None,
    recall: float = 0.95,
    iterations: int = 10,
    seed: int = 0,
) -> ApproximateIndex:
    """An inverted file.

    Args:
        nlist: lists to make; None is four times the square root of the rows, but at least 39 rows for each.
        components: leading principal components to keep of a row, a byte for each; the width of the vectors keeps these as they
            are. None chooses as few as keep 99 % of the variance of products of two rows, or the vectors if that is more than
            half of their width.
        nprobe: lists that a query looks into; None chooses as many as ``recall`` takes.
        recall: recall@10 to choose ``nprobe`` for, measured against exact search.
        iterations: of k-means.
        seed: of the sample that k-means is trained on and of its first centroids.

    Raises:
        ConfigError: if a count is less than 1 or the recall is no share.
    """
    check_at_least_one(nlist=nlist, components=components, nprobe=nprobe, iterations=iterations)
    check_target(recall)
    return ApproximateIndex(InvertedFile(nlist, components, nprobe, recall, iterations, seed))
