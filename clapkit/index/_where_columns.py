"""Filters over whole Arrow columns; what Arrow has no word for is left to the caller, row by row."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

BoolArray = npt.NDArray[np.bool_]

_ORDERS: dict[type[ast.cmpop], str] = {
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}


class Like(ast.cmpop):
    """``like``: a text, or a text of a list, fits a pattern of ``*`` and ``?``."""


class NotLike(ast.cmpop):
    """``not like``."""


class ColumnFilter:
    """A filter over one batch of rows.

    Args:
        batch: N rows.
        by_rows: a comparison of two operands -> bool [N], slowly.
    """

    def __init__(self, batch: pa.RecordBatch, by_rows: Callable[[ast.Compare], BoolArray]) -> None:
        self._batch, self._by_rows = batch, by_rows

    def mask(self, node: ast.expr) -> BoolArray:
        """Which rows satisfy an expression of truth, bool [N].

        Args:
            node: an expression that ``Where`` has checked.

        Raises:
            TypeError: if a comparison makes no sense for the types of the columns.
        """
        match node:
            case ast.UnaryOp(operand=part):
                return ~self.mask(part)
            case ast.BoolOp(op=ast.And(), values=parts):
                return functools.reduce(np.logical_and, [self.mask(part) for part in parts])
            case ast.BoolOp(values=parts):
                return functools.reduce(np.logical_or, [self.mask(part) for part in parts])
            case ast.Compare(left=left, ops=ops, comparators=others):
                operands = [left, *others]
                known = [_valid(self._column(part)) for part in operands if isinstance(part, ast.Name)]
                pairs = [self._pair(op, a, b) for op, a, b in zip(ops, operands[:-1], operands[1:], strict=True)]
                return functools.reduce(np.logical_and, known + pairs)
        raise AssertionError(f"unchecked expression {ast.dump(node)}")

    def _pair(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> BoolArray:
        """One comparison; of rows with a missing value, anything."""
        match op:
            case ast.Eq():
                return self._equal(left, right)
            case ast.NotEq():
                return ~self._equal(left, right)
            case ast.In():
                return self._contained(left, right)
            case ast.NotIn():
                return ~self._contained(left, right)
            case Like():
                return self._fits(left, right)
            case NotLike():
                return ~self._fits(left, right)
        return self._ordered(op, left, right)

    def _equal(self, left: ast.expr, right: ast.expr) -> BoolArray:
        kinds = {self._kind(left), self._kind(right)}
        if "missing" in kinds:
            return self._none()
        if kinds == {"text"} or kinds == {"number"}:
            return self._call("equal", left, ast.Eq(), right)
        if "other" in kinds or kinds <= {"list", "tuple"}:
            return self._slowly(left, ast.Eq(), right)
        return self._none()  # a text is no number

    def _ordered(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> BoolArray:
        kinds = {self._kind(left), self._kind(right)}
        if "missing" in kinds:
            return self._none()
        if kinds == {"text"} or kinds == {"number"}:
            return self._call(_ORDERS[type(op)], left, op, right)
        if "other" in kinds or kinds <= {"list", "tuple"}:
            return self._slowly(left, op, right)
        raise TypeError(f"a {self._kind(left)} is neither more nor less than a {self._kind(right)}")

    def _contained(self, item: ast.expr, container: ast.expr) -> BoolArray:
        kind, place = self._kind(item), self._kind(container)
        if place == "tuple":
            assert isinstance(container, ast.Tuple | ast.List)
            found = [self._equal(item, part) for part in container.elts]
            return functools.reduce(np.logical_or, found, self._none())
        if "missing" in (kind, place):
            return self._none()
        if place == "number" or (place == "text" and kind not in ("text", "other")):
            raise TypeError(f"a {kind} cannot be in a {place}")
        text = _encodable(item)
        if text is not None and isinstance(container, ast.Name) and place in ("text", "list"):
            from pyarrow import compute

            if place == "text":
                return _true(compute.match_substring(self._column(container), text))
            return _any(self._column(container), lambda values: compute.equal(values, _scalar(text)))
        return self._slowly(item, ast.In(), container)

    def _fits(self, column: ast.expr, pattern: ast.expr) -> BoolArray:
        text = _encodable(pattern)
        if self._kind(column) == "missing":
            return self._none()
        if self._kind(column) == "number":
            raise TypeError("a number is not like a text")
        if text is None or self._kind(column) == "other":
            return self._slowly(column, Like(), pattern)
        from pyarrow import compute

        regex = rf"\A(?is:{'.*'.join(glob_parts(text))})\z"
        values = self._column(column)
        if self._kind(column) == "text":
            return _true(compute.match_substring_regex(values, regex))
        return _any(values, lambda texts: compute.match_substring_regex(texts, regex))

    def _call(self, function: str, left: ast.expr, op: ast.cmpop, right: ast.expr) -> BoolArray:
        """A comparison of two texts or two numbers, at least one of them a column."""
        from pyarrow import compute

        values = [self._column(part) if isinstance(part, ast.Name) else _constant(part) for part in (left, right)]
        if any(value is None for value in values) or all(isinstance(value, pa.Scalar) for value in values):
            return self._slowly(left, op, right)
        return _true(compute.call_function(function, values))

    def _slowly(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> BoolArray:
        return self._by_rows(ast.Compare(left=left, ops=[op], comparators=[right]))

    def _column(self, node: ast.expr) -> pa.Array:
        assert isinstance(node, ast.Name), ast.dump(node)
        return self._batch.column(node.id)

    def _none(self) -> BoolArray:
        return np.zeros(len(self._batch), dtype=bool)

    def _kind(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=str()):
                return "text"
            case ast.Tuple() | ast.List():
                return "tuple"
            case ast.Name(id=name):
                return _kind_of(self._batch.schema.field(name).type)
        return "number"


def glob_parts(pattern: str) -> Sequence[str]:
    """Regular expressions of what stands between the ``*`` of a pattern."""
    return ["".join("." if c == "?" else f"\\{c}" if c in r"\.^$+{}[]|()" else c for c in part) for part in pattern.split("*")]


def _kind_of(arrow_type: pa.DataType) -> str:
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        return "text"
    if pa.types.is_floating(arrow_type) or pa.types.is_integer(arrow_type):
        return "number"
    if pa.types.is_null(arrow_type):
        return "missing"
    is_list = pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type)
    return "list" if is_list and _kind_of(arrow_type.value_type) == "text" else "other"


def _encodable(node: ast.expr) -> str | None:
    """The text of a constant, if Arrow can hold it."""
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return None
    try:
        node.value.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return None
    return node.value


def _constant(node: ast.expr) -> pa.Scalar | None:
    """A text or number as Arrow has it; None where it would be another."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = _encodable(node)
        return None if text is None else _scalar(text)
    number: Any = ast.literal_eval(node)
    try:
        return _scalar(float(number)) if float(number) == number else None
    except OverflowError:
        return None


def _scalar(value: str | float) -> pa.Scalar:
    """Made of its buffers, because pa.scalar() imports pandas."""
    if isinstance(value, str):
        content = value.encode()
        ends = np.array([0, len(content)], dtype=np.int32)
        return pa.StringArray.from_buffers(1, pa.py_buffer(ends.tobytes()), pa.py_buffer(content))[0]
    return pa.Array.from_buffers(pa.float64(), 1, [None, pa.py_buffer(np.array([value]).tobytes())])[0]


def _true(values: pa.BooleanArray) -> BoolArray:
    """Where a column of truth is true, bool [N]; to_numpy() imports pandas."""
    return _bits(values.buffers()[1], values) & _valid(values)


def _valid(values: pa.Array) -> BoolArray:
    """Where a column has a value, bool [N]."""
    if pa.types.is_null(values.type):
        return np.zeros(len(values), dtype=bool)
    bitmap = values.buffers()[0]
    return np.ones(len(values), dtype=bool) if bitmap is None else _bits(bitmap, values)


def _bits(buffer: pa.Buffer, values: pa.Array) -> BoolArray:
    packed = np.frombuffer(buffer, dtype=np.uint8)[: (values.offset + len(values) + 7) // 8]
    return np.unpackbits(packed, count=values.offset + len(values), bitorder="little")[values.offset :].view(np.bool_)


def _any(lists: pa.ListArray, test: Callable[[pa.Array], pa.BooleanArray]) -> BoolArray:
    """Which lists have a text that passes a test, bool [N]."""
    from pyarrow import compute

    hits = np.concatenate(([0], np.cumsum(_true(test(lists.flatten())))))
    lengths = compute.list_value_length(lists)
    width = np.int32 if pa.types.is_int32(lengths.type) else np.int64
    counts = np.frombuffer(lengths.buffers()[1], dtype=width)[lengths.offset : lengths.offset + len(lists)]
    ends = np.cumsum(np.where(_valid(lists), counts, 0))
    starts = np.concatenate(([0], ends[:-1]))[: len(ends)]
    return hits[ends] > hits[starts]  # type: ignore[no-any-return]
