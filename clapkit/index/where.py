"""Filters over the metadata of a table: a small, safe part of Python's expressions.

Allowed are the columns as names, texts, numbers and tuples of them as constants, comparisons, ``in``, ``and``,
``or``, ``not`` and brackets: ``split == 'test' and 'dog barking' in labels``. A row whose value is missing satisfies
no comparison.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError

COLUMNS = ("id", "path", "split", "caption", "captions", "labels", "start_s", "end_s")
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
            self._root = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"--where {text!r}: cannot be read as an expression; {_EXAMPLE}") from error
        self.columns = tuple(sorted(self._check(self._root)))

    def mask(self, columns: Mapping[str, Sequence[Any]]) -> npt.NDArray[np.bool_]:
        """Which rows satisfy the filter.

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
            raise ConfigError(f"--where {self.text!r}: compares what cannot be compared ({error}); {_EXAMPLE}") from error

    def _check(self, node: ast.expr) -> set[str]:
        """Names used by an expression of truth; refuses everything else."""
        match node:
            case ast.BoolOp(values=parts):
                return set().union(*(self._check(part) for part in parts))
            case ast.UnaryOp(op=ast.Not(), operand=part):
                return self._check(part)
            case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
                names = set().union(*(self._check_operand(part) for part in (left, *others)))
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

    def _refusal(self, node: ast.expr) -> ConfigError:
        part = ast.get_source_segment(self.text.strip(), node)
        return ConfigError(
            f"--where {self.text!r}: {part!r} is not allowed, expected comparisons of columns with texts and numbers, "
            f"{_EXAMPLE}"
        )


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
