"""The filters of ``--where`` in the languages of the engines.

Both engines know a third truth value for missing values; clapkit does not: a row whose value is missing satisfies no
comparison, and ``not`` of a comparison is true for it. So each comparison is written behind a test that its columns are
there, which makes it true or false. What an engine cannot say is refused, never approximated.
"""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Literal, Protocol

import pyarrow as pa

from clapkit.errors import ConfigError
from clapkit.index._where_columns import Like, NotLike, glob_parts
from clapkit.index.layout import SCHEMA
from clapkit.index.where import Where

Kind = Literal["text", "number", "list", "several"]

_SYMBOLS: dict[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
# The parsers of the engines recurse; nobody types this much.
_MAX_DEPTH = 20


@dataclass(frozen=True, slots=True)
class _Operand:
    """One side of a comparison.

    Attributes:
        kind: what it holds.
        written: in the engine's language.
        column: its name; None for constants.
        value: of a text constant.
        elements: of several.
    """

    kind: Kind
    written: str = ""
    column: str | None = None
    value: str | None = None
    elements: tuple[_Operand, ...] = ()


class _Cannot(Exception):
    """The engine has no words for it."""


class _Language(Protocol):
    """How an engine writes what its grammar has."""

    name: str

    def text(self, value: str) -> str:
        """A text constant."""
        ...

    def compare(self, left: str, symbol: str, right: str) -> str:
        """A comparison; the symbol is Python's."""
        ...

    def one_of(self, item: str, constants: list[str]) -> str:
        """Whether an item is one of at least one constants."""
        ...

    def has_text(self, text: _Operand, part: _Operand) -> str:
        """Whether a text column holds a part."""
        ...

    def has_item(self, items: _Operand, item: _Operand) -> str:
        """Whether a list column holds an item."""
        ...

    def fits(self, text: _Operand, pattern: str) -> str:
        """Whether a text column is like a pattern, whatever its case."""
        ...


class _Lance:
    """SQL as LanceDB reads it."""

    name = "LanceDB"

    def text(self, value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    def compare(self, left: str, symbol: str, right: str) -> str:
        return f"{left} {'=' if symbol == '==' else symbol} {right}"

    def one_of(self, item: str, constants: list[str]) -> str:
        return f"{item} IN ({', '.join(constants)})"

    def has_text(self, text: _Operand, part: _Operand) -> str:
        return f"contains({text.written}, {part.written})"

    def has_item(self, items: _Operand, item: _Operand) -> str:
        return f"array_has({items.written}, {item.written})"

    def fits(self, text: _Operand, pattern: str) -> str:
        regex = rf"\A(?is:{'.*'.join(glob_parts(pattern))})\z"
        return f"regexp_like({text.written}, {self.text(regex)})"


class _Milvus:
    """The boolean expressions of Milvus."""

    name = "Milvus"

    def text(self, value: str) -> str:
        for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
            value = value.replace(plain, escaped)
        return f'"{value}"'

    def compare(self, left: str, symbol: str, right: str) -> str:
        return f"{left} {symbol} {right}"

    def one_of(self, item: str, constants: list[str]) -> str:
        return f"{item} in [{', '.join(constants)}]"

    def has_text(self, text: _Operand, part: _Operand) -> str:
        # Versions disagree on how to take the special meaning from these.
        if part.value is None or set("%_\\") & set(part.value):
            raise _Cannot
        return f"{text.written} like {self.text(f'%{part.value}%')}"

    def has_item(self, items: _Operand, item: _Operand) -> str:
        if item.column is not None:
            raise _Cannot
        return f"array_contains({items.written}, {item.written})"

    def fits(self, text: _Operand, pattern: str) -> str:
        raise _Cannot  # it knows patterns that tell upper from lower case only


def to_lance(where: Where) -> str:
    """A filter as SQL of LanceDB.

    Args:
        where: that was read and found to be safe.

    Raises:
        ConfigError: if a part of it cannot be said in SQL; names it.
    """
    return _Translation(where, _Lance()).result()


def to_milvus(where: Where) -> str:
    """A filter as an expression of Milvus.

    Args:
        where: that was read and found to be safe.

    Raises:
        ConfigError: if a part of it cannot be said there; names it.
    """
    return _Translation(where, _Milvus()).result()


class _Translation:
    def __init__(self, where: Where, language: _Language) -> None:
        self._text, self._root, self._language = where.text.strip(), where._root, language

    def result(self) -> str:
        return self._truth(self._root, depth=0)

    def _truth(self, node: ast.expr, *, depth: int) -> str:
        """An expression that is true or false for every row, in brackets."""
        if depth > _MAX_DEPTH:
            raise ConfigError(f"--where {self._text!r}: is nested deeper than {_MAX_DEPTH} levels; simplify it")
        match node:
            case ast.BoolOp(op=op, values=parts):
                word = " and " if isinstance(op, ast.And) else " or "
                return f"({word.join(self._truth(part, depth=depth + 1) for part in parts)})"
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return f"(not {self._truth(part, depth=depth + 1)})"
            case ast.Compare(left=left, ops=ops, comparators=others):
                try:
                    return self._chain([self._operand(part) for part in (left, *others)], ops)
                except _Cannot:
                    pass
        raise self._refusal(node)

    def _chain(self, operands: list[_Operand], ops: list[ast.cmpop]) -> str:
        pairs = zip(ops, operands[:-1], operands[1:], strict=True)
        return self._guarded(operands, [self._pair(op, left, right) for op, left, right in pairs])

    def _guarded(self, operands: list[_Operand], parts: list[str]) -> str:
        columns = dict.fromkeys(operand.column for operand in operands if operand.column is not None)
        return f"({' and '.join([*(f'{column} is not null' for column in columns), *parts])})"

    def _pair(self, op: ast.cmpop, left: _Operand, right: _Operand) -> str:
        if isinstance(op, ast.NotIn):
            return f"(not ({self._contains(right, left)}))"
        if isinstance(op, ast.In):
            return self._contains(right, left)
        if isinstance(op, Like):
            return self._fits(left, right)
        if isinstance(op, NotLike):
            return f"(not ({self._fits(left, right)}))"
        return self._compare(type(op), left, right)

    def _compare(self, op: type[ast.cmpop], left: _Operand, right: _Operand) -> str:
        if left.kind != right.kind or left.kind not in ("text", "number") or left.column == right.column:
            raise _Cannot  # the last: two constants, or a column with itself
        return self._language.compare(left.written, _SYMBOLS[op], right.written)

    def _contains(self, container: _Operand, item: _Operand) -> str:
        if container.kind == "several":
            return self._is_one_of(item, container.elements)
        if item.kind != "text" or container.column is None or container.column == item.column:
            raise _Cannot
        if container.kind == "list":
            return self._language.has_item(container, item)
        if container.kind == "text":
            return self._language.has_text(container, item)
        raise _Cannot

    def _fits(self, column: _Operand, pattern: _Operand) -> str:
        if column.kind != "text" or pattern.value is None:
            raise _Cannot
        return self._language.fits(column, pattern.value)

    def _is_one_of(self, item: _Operand, elements: tuple[_Operand, ...]) -> str:
        """Not a comparison with a list, because elements may be columns, and those may be missing."""
        if not elements:
            raise _Cannot
        constants = [element for element in elements if element.column is None]
        parts = []
        if constants:
            if item.column is None or any(element.kind != item.kind for element in constants):
                raise _Cannot
            parts.append(self._language.one_of(item.written, [element.written for element in constants]))
        for element in elements:
            if element.column is not None:
                parts.append(self._guarded([element], [self._compare(ast.Eq, item, element)]))
        return f"({' or '.join(parts)})"

    def _operand(self, node: ast.expr) -> _Operand:
        match node:
            case ast.Name(id=name) if name in SCHEMA.names:
                return _Operand(_kind(SCHEMA.field(name).type), name, column=name)
            case ast.Constant(value=str() as text):
                return self._constant(text)
            case ast.Constant(value=int() | float() as number):
                return _Operand("number", self._number(number))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return _Operand("number", self._number(-number))
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return _Operand("several", elements=tuple(self._operand(part) for part in parts))
        raise self._refusal(node)

    def _constant(self, text: str) -> _Operand:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _Cannot from error
        return _Operand("text", self._language.text(text), value=text)

    def _number(self, number: float) -> str:
        try:
            value = float(number)
        except OverflowError as error:
            raise _Cannot from error
        if not math.isfinite(value):
            raise _Cannot
        return repr(value)

    def _refusal(self, node: ast.expr) -> ConfigError:
        part = ast.get_source_segment(self._text, node)
        return ConfigError(
            f"--where {self._text!r}: {part!r} cannot be said in the language of {self._language.name}; rewrite it, or search "
            "the table itself"
        )


def _kind(type_: pa.DataType) -> Kind:
    if pa.types.is_list(type_):
        return "list"
    return "text" if pa.types.is_string(type_) else "number"
