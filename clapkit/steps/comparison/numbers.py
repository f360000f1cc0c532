"""How tables show metrics: in which unit, with how many digits, and which end is good."""

from __future__ import annotations

from clapkit.scales import better_end, decimals, is_fraction

_RANKS = ("MedR", "MeanR")
# Tables are for papers, which compare hundredths of a percent.
_PERCENT_DIGITS = 2


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value is the better one."""
    return better_end(metric) == "lower"


def unit(metric: str) -> str:
    """``%`` for fractions, ``rank`` for ranks, nothing for what its own name must say."""
    if metric.endswith(_RANKS):
        return "rank"
    return "%" if is_fraction(metric) else ""


def show(metric: str, value: float) -> str:
    """A value in the unit of its metric."""
    return f"{_scaled(metric, value):.{_digits(metric)}f}"


def show_interval(metric: str, interval: tuple[float, float]) -> str:
    """Both ends of an interval, in brackets."""
    return f"[{show(metric, interval[0])}, {show(metric, interval[1])}]"


def show_difference(metric: str, value: float) -> str:
    """A difference with its sign, if it has one; that of a fraction is in percentage points."""
    points = " points" if unit(metric) == "%" else ""
    # Rounded before the sign is chosen: what is shown as nothing has none. Adding zero turns -0.0 into 0.0.
    rounded = round(_scaled(metric, value), _digits(metric)) + 0.0
    return f"{rounded:{'+' if rounded else ''}.{_digits(metric)}f}{points}"


def _scaled(metric: str, value: float) -> float:
    return 100 * value if is_fraction(metric) else value


def _digits(metric: str) -> int:
    return _PERCENT_DIGITS if is_fraction(metric) else decimals(metric)
