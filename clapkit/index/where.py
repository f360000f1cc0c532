"""Filters over the metadata of a table: a small, safe part of Python's expressions.

Allowed are the columns as names, texts, numbers and tuples of them as constants, comparisons, ``in``, ``and``,
``or``, ``not`` and brackets: ``split == 'test' and 'dog barking' in labels``. A row whose value is missing satisfies
no comparison. One word is added to Python's: ``path like '*.wav'``, where ``*`` stands for any text and ``?`` for any
character, upper and lower case are the same, and a list is like a pattern if one of its texts is.
"""

from __future__ import annotations

import ast
import functools
import io
import itertools
import operator
import re
import tokenize
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clapkit.errors import ConfigError
from clapkit.index._where_columns import BoolArray, ColumnFilter, Like, NotLike, glob_parts

COLUMNS = ("id", "path", "split", "caption", "captions", "labels", "start_s", "end_s", "content")
_EXAMPLE = "for example \"split == 'test' and 'dog barking' in labels\""
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
    Like: lambda value, pattern: _is_like(value, pattern),
    NotLike: lambda value, pattern: not _is_like(value, pattern),
}
# Deeply nested brackets exhaust the parser's stack; nobody types this much.
_MAX_LENGTH = 1000


class Where:
    """A filter that was read and found to be safe.

    Attributes:
        text: as it was given.
        columns: the metadata columns that it looks at.
    """

    def __init__(self, text: str, *, known: Sequence[str] = COLUMNS) -> None:
        """Read an expression.

        Args:
            text: what the user wrote.
            known: the columns that there are.

        Raises:
            ConfigError: if it is no expression, or holds anything but columns, constants and comparisons.
        """
        self.text, self._known = text, known
        if len(text) > _MAX_LENGTH:
            raise ConfigError(f"--where: {len(text)} characters, expected at most {_MAX_LENGTH}; simplify it")
        try:
            self._root = _parse(text.strip())
        except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError) as error:
            raise ConfigError(f"--where {text!r}: cannot be read as an expression; {_EXAMPLE}") from error
        self.columns = tuple(sorted(self._check(self._root)))

    def mask_table(self, table: pa.Table) -> BoolArray:
        """Which rows satisfy the filter, column by column: a million rows take a fraction of a second.

        Args:
            table: with at least the columns of ``columns``.

        Returns:
            bool [N].

        Raises:
            ConfigError: if a comparison makes no sense, for example of a text with a number.
        """
        parts = [self._of_batch(batch) for batch in table.select(list(self.columns)).to_batches()]
        return np.concatenate([np.empty(0, dtype=bool), *parts])

    def mask(self, columns: Mapping[str, Sequence[Any]]) -> BoolArray:
        """Which rows satisfy the filter, row by row; for a few rows that are no Arrow table.

        Args:
            columns: at least those of ``columns``, of equal length.

        Returns:
            bool [N].

        Raises:
            ConfigError: if a comparison makes no sense, for example of a text with a number.
        """
        rows = zip(*(columns[name] for name in self.columns), strict=True)
        try:
            return np.array([bool(_value(self._root, dict(zip(self.columns, row, strict=True)))) for row in rows], bool)
        except TypeError as error:
            raise self._senseless(error) from error

    def _of_batch(self, batch: pa.RecordBatch) -> BoolArray:
        try:
            return ColumnFilter(batch, functools.partial(_by_rows, batch)).mask(self._root)
        except TypeError as error:
            raise self._senseless(error) from error

    def _senseless(self, error: TypeError) -> ConfigError:
        return ConfigError(f"--where {self.text!r}: compares what cannot be compared ({error}); {_EXAMPLE}")

    def _check(self, node: ast.expr) -> set[str]:
        """Names used by an expression of truth; refuses everything else."""
        match node:
            case ast.BoolOp(values=parts):
                return set().union(*(self._check(part) for part in parts))
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return self._check(part)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                names = set().union(*(self._check_operand(part) for part in (left, *others)))
                for op, column, pattern in zip(ops, (left, *others[:-1]), others, strict=True):
                    if isinstance(op, Like | NotLike):
                        self._check_like(column, pattern)
                if names:
                    return names
                raise ConfigError(f"--where {self.text!r}: compares constants only, expected a column; {_EXAMPLE}")
        raise self._refusal(node)

    def _check_operand(self, node: ast.expr) -> set[str]:
        match node:
            case ast.Name(id=name) if name in self._known:
                return {name}
            case ast.Name(id=name):
                raise ConfigError(f"--where {self.text!r}: no column {name!r}; known: {', '.join(self._known)}")
            case ast.Constant(value=str() | int() | float()):
                return set()
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
                return set()
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return set().union(*(self._check_operand(part) for part in parts))
        raise self._refusal(node)

    def _check_like(self, column: ast.expr, pattern: ast.expr) -> None:
        if not isinstance(column, ast.Name) or not (isinstance(pattern, ast.Constant) and isinstance(pattern.value, str)):
            raise ConfigError(
                f"--where {self.text!r}: 'like' compares a column with a text in quotes, for example \"path like '*.wav'\""
            )

    def _refusal(self, node: ast.expr) -> ConfigError:
        part = ast.get_source_segment(self.text.strip(), node)
        return ConfigError(
            f"--where {self.text!r}: {part!r} is not allowed, expected comparisons of columns with texts and numbers, "
            f"{_EXAMPLE}"
        )


def _parse(text: str) -> ast.expr:
    """Read an expression; ``like`` is read as ``in`` and put back, for Python's grammar has no such word."""
    patterns: set[tuple[int, int]] = set()
    if "like" in text:
        text, patterns = _without_like(text)
    root = ast.parse(text, mode="eval").body
    for node in ast.walk(root):
        if isinstance(node, ast.Compare):
            for number, operand in enumerate(node.comparators):
                if (operand.lineno, operand.col_offset) in patterns:
                    node.ops[number] = Like() if isinstance(node.ops[number], ast.In) else NotLike()
    return root


def _without_like(text: str) -> tuple[str, set[tuple[int, int]]]:
    """The text with ``in`` for ``like``, as long as it was, and where the patterns stand: line and byte."""
    lines, patterns = text.split("\n"), set()  # as the tokenizer counts them
    tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    for token, following in itertools.pairwise(tokens):
        if token.type == tokenize.NAME and token.string == "like":
            if following.type != tokenize.STRING:
                raise SyntaxError("like without a pattern")
            number, column = token.start
            lines[number - 1] = lines[number - 1][:column] + "  in" + lines[number - 1][column + 4 :]
            row, start = following.start
            patterns.add((row, len(lines[row - 1][:start].encode())))
    return "\n".join(lines), patterns


def _by_rows(batch: pa.RecordBatch, node: ast.Compare) -> BoolArray:
    """A comparison that Arrow has no word for."""
    names = sorted({part.id for part in ast.walk(node) if isinstance(part, ast.Name)})
    if not names:
        return np.full(len(batch), bool(_value(node, {})))
    rows = zip(*(batch.column(name).to_pylist() for name in names), strict=True)
    return np.array([bool(_value(node, dict(zip(names, row, strict=True)))) for row in rows], dtype=bool)


def _is_like(value: Any, pattern: str) -> bool:
    if isinstance(value, float | int):
        raise TypeError("a number is not like a text")
    texts = [value] if isinstance(value, str) else value
    return any(_glob(pattern).fullmatch(text) is not None for text in texts if text is not None)


@functools.lru_cache(maxsize=16)
def _glob(pattern: str) -> re.Pattern[str]:
    first, *rest = glob_parts(pattern)
    # Atomic groups: once a part is found, its place is not tried again, so that many * do not take exponential time.
    middle = "".join(f"(?>.*?{part})" for part in rest[:-1])
    return re.compile(first + middle + "".join(f".*{part}" for part in rest[-1:]), re.IGNORECASE | re.DOTALL)


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return row[name]
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return [_value(part, row) for part in parts]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, row)
        case ast.UnaryOp(operand=operand):
            return not _value(operand, row)
        case ast.BoolOp(op=ast.And(), values=parts):
            return all(_value(part, row) for part in parts)
        case ast.BoolOp(values=parts):
            return any(_value(part, row) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=others):
            values = [_value(part, row) for part in (left, *others)]
            pairs = zip(ops, values[:-1], values[1:], strict=True)
            return None not in values and all(_COMPARISONS[type(op)](a, b) for op, a, b in pairs)
    raise AssertionError(f"unchecked expression {ast.dump(node)}")
