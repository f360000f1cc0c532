"""Which rows of a new table an index has already, told by their content and not by their place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from clapkit.index._codes import WHOLE, Coder, blocks, codes

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
KeyArray = npt.NDArray[np.uint64]


def kept_rows(
    stored: Iterable[tuple[IntArray, npt.NDArray[np.uint8]]], num_stored: int, vectors: FloatArray, *, coder: Coder = WHOLE
) -> IntArray:
    """Number in the index of every row of a table, -1 where the index does not have it.

    Rows are told apart by the codes that an index keeps; rows of equal codes are paired in their order.

    Args:
        stored: labels [n] and codes [n, W], all rows of the index in parts.
        num_stored: rows of the index; labels are below.
        vectors: of the table [N, D].
        coder: that the codes are of.

    Returns:
        int64 [N]; no number but -1 comes twice.
    """
    old = np.zeros(num_stored, dtype=np.uint64)
    for labels, parts in stored:
        old[labels] = _keys(parts)
    new = np.concatenate([np.empty(0, dtype=np.uint64)] + [_keys(codes(block, coder)) for _, block in blocks(vectors)])
    return _paired(old, new)


def _paired(old: KeyArray, new: KeyArray) -> IntArray:
    """Place in ``old`` of every key of ``new``, the nth of equal keys with the nth; -1 where there is none."""
    old_order, new_order = np.argsort(old, kind="stable"), np.argsort(new, kind="stable")
    old_sorted, new_sorted = old[old_order], new[new_order]
    nth = np.arange(len(new)) - np.searchsorted(new_sorted, new_sorted, side="left")
    places = np.searchsorted(old_sorted, new_sorted, side="left") + nth
    there = places < np.searchsorted(old_sorted, new_sorted, side="right")
    kept = np.full(len(new), -1, dtype=np.int64)
    kept[new_order[there]] = old_order[places[there]]
    return kept


def _keys(rows: npt.NDArray[np.uint8]) -> KeyArray:
    """XXH3-64 of each row [n]; a pair of different rows shares one in 1 of 2e19 cases."""
    return np.fromiter((xxhash.xxh3_64_intdigest(row) for row in rows), dtype=np.uint64, count=len(rows))
