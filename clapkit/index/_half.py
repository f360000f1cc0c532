"""Scores of rows of float16, or of codes of 8 bits, where they lie: no copy of the table in float32, and no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

HalfArray = npt.NDArray[np.float16]
CodeArray = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
SingleArray = npt.NDArray[np.float32]

# A float16 put where a float32 is expected has an exponent whose bias is 15 where 127 is expected: 2 ** (127 - 15).
_BIAS = np.float32(2.0**112)
_SIGN_EXPONENT_FRACTION = np.int32(-0x70002000)  # 0x8FFFE000: sign, five bits of exponent, ten of fraction
_EXPONENT = 0x7C00  # all ones: infinity or NaN
_SIGN = 0x8000
# Rows that are decoded together fit into the second-level cache.
_DECODED_ROWS = 512


def decode(half: HalfArray, out: SingleArray) -> int | None:
    """Convert float16 rows as ``astype`` does, to the same bits, about ten times as fast.

    Args:
        half: [n, D].
        out: [n, D], contiguous; what is in it from the returned row on is undefined.

    Returns:
        The first row that holds an infinity or a NaN, or None.
    """
    for start in range(0, len(half), _DECODED_ROWS):
        bits = half[start : start + _DECODED_ROWS].view(np.int16)
        block = out[start : start + _DECODED_ROWS]
        if _largest_magnitude(bits) >= _EXPONENT:
            return start + int(np.argmax(((bits & _EXPONENT) == _EXPONENT).any(axis=1)))
        places = block.view(np.int32)
        places[...] = bits  # copies of the sign fill the upper half
        np.left_shift(places, 13, out=places)
        np.bitwise_and(places, _SIGN_EXPONENT_FRACTION, out=places)
        np.multiply(block, _BIAS, out=block)
    return None


def scan_all(half: HalfArray | CodeArray, query: SingleArray) -> tuple[IntArray, SingleArray]:
    """Inner products of one query and rows.

    Args:
        half: [n, D], contiguous; a byte stands for itself less 128.
        query: [D], contiguous and finite; beside bytes, whole numbers from -127 to 127.

    Returns:
        Rows int64 [m], ascending, and their scores float32 [m]: all rows save those whose score is NaN or minus infinity.
    """
    import faiss

    scanner = _scanner(half, query)
    results = faiss.RangeSearchResult(1)
    partial = faiss.RangeSearchPartialResult(results)  # type: ignore[attr-defined]
    scanner.scan_codes_range(len(half), _codes(half), None, -np.inf, partial.new_result(0))
    partial.set_lims()
    results.do_allocation()
    partial.copy_result()
    count = int(faiss.rev_swig_ptr(results.lims, 2)[1])
    # Copies, because the results free what they hold.
    return faiss.rev_swig_ptr(results.labels, count).copy(), faiss.rev_swig_ptr(results.distances, count).copy()


def scan_above(
    half: HalfArray | CodeArray, query: SingleArray, *, bound: float, most: int
) -> tuple[IntArray, SingleArray] | None:
    """Rows whose inner product with a query is above a bound, a quarter faster than all of them.

    Args:
        half: [n, D], contiguous; a byte stands for itself less 128.
        query: [D], contiguous and finite; beside bytes, whole numbers from -127 to 127.
        bound: the bound, finite.
        most: rows to expect at most.

    Returns:
        Rows int64 [m], ascending, and their scores float32 [m], or None if there may be more than ``most``.
    """
    import faiss

    scores = np.full(most, bound, dtype=np.float32)  # a heap whose least element is the bound
    rows = np.full(most, -1, dtype=np.int64)
    scanner = _scanner(half, query)
    scanner.scan_codes(len(half), _codes(half), None, faiss.swig_ptr(scores), faiss.swig_ptr(rows), most)
    is_row = rows >= 0
    if is_row.all():
        return None
    order = np.argsort(rows[is_row])
    return rows[is_row][order], scores[is_row][order]


def _scanner(half: HalfArray | CodeArray, query: SingleArray) -> Any:
    import faiss  # takes longer than the search of a small table

    # Newer versions of faiss cut a query to whole numbers beside bytes, older ones do not; with whole numbers both are exact.
    kind = "QT_fp16" if half.dtype == np.float16 else "QT_8bit_direct_signed"
    quantizer = faiss.ScalarQuantizer(half.shape[1], getattr(faiss.ScalarQuantizer, kind))
    scanner = quantizer.select_InvertedListScanner(  # type: ignore[attr-defined]
        faiss.METRIC_INNER_PRODUCT, None, True, None
    )
    scanner.keep = quantizer, query  # it refers to both
    scanner.set_query(faiss.swig_ptr(query))
    scanner.set_list(0, 0.0)
    return scanner


def _codes(half: HalfArray | CodeArray) -> Any:
    import faiss

    return faiss.swig_ptr(half.view(np.uint8).reshape(-1))


def _largest_magnitude(bits: npt.NDArray[np.int16]) -> int:
    """The largest float16 without its sign, as an integer: one that is not finite has an exponent of ones."""
    if bits.size == 0:
        return 0
    return max(int(bits.max()), int(bits.view(np.uint16).max()) - _SIGN)
