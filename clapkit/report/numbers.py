"""Numbers on a page: shown in the unit of their metric, and with what they exactly are and where ``results.json`` says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from clapkit.report._html import MISSING

At = tuple[str | int, ...]
"""Where a value stands in ``results.json``: keys and places, from the outside."""


@dataclass(frozen=True, slots=True)
class Scales:
    """How metrics are shown.

    Attributes:
        is_fraction: whether a metric is a fraction, shown in percent.
        decimals: digits behind the point, of percent for fractions.
    """

    is_fraction: Callable[[str], bool]
    decimals: Callable[[str], int]

    def text(self, metric: str, value: float) -> str:
        """A value as it is shown, without its unit."""
        return f"{self._scaled(metric, value):.{self.decimals(metric)}f}"

    def with_unit(self, metric: str, value: float) -> str:
        """A value as a sentence says it."""
        return f"{self.text(metric, value)} %" if self.is_fraction(metric) else self.text(metric, value)

    def signed(self, metric: str, value: float) -> str:
        """A difference with its sign; what rounds to zero has none."""
        digits = self.decimals(metric)
        scaled = round(self._scaled(metric, value), digits)
        return f"{scaled:+.{digits}f}" if scaled else f"{0:.{digits}f}"

    def number(self, metric: str, value: float, at: At) -> str:
        """A value as HTML that knows where it is from."""
        return known(self.text(metric, value), value, at)

    def cell(self, metric: str, value: float | None, at: At, interval: Sequence[float] | None, interval_at: At) -> str:
        """A cell of a table with a value and below it its interval."""
        if value is None:
            return f'<td class="number">{MISSING}</td>'
        below = ""
        if interval is not None:
            low, high = (self.number(metric, bound, (*interval_at, place)) for place, bound in enumerate(interval))
            below = f'<span class="soft">{low} to {high}</span>'
        return f'<td class="number">{self.number(metric, value, at)}{below}</td>'

    def difference(self, metric: str, value: float, at: At) -> str:
        """A difference as HTML that knows where it is from."""
        return known(self.signed(metric, value), value, at)

    def _scaled(self, metric: str, value: float) -> float:
        return 100 * value if self.is_fraction(metric) else value


def known(text: str, value: Any, at: At) -> str:
    """Text that stands for a value of ``results.json``; scripts of readers find both in its attributes.

    Args:
        text: plain, as it is shown.
        value: unrounded.
        at: where it stands, written as a JSON pointer (RFC 6901).
    """
    exact, place = escape(repr(value), quote=True), escape(pointer(at), quote=True)
    return f'<span data-value="{exact}" data-at="{place}">{escape(text)}</span>'


def pointer(at: At) -> str:
    """A JSON pointer, RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in at)


def count(value: int, at: At) -> str:
    """A whole number as HTML that knows where it is from."""
    return known(f"{value:,}", value, at)
