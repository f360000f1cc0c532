"""Quantiles of Student's t distribution."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

import numpy as np

from clapkit.errors import MetricError

# Beyond this many degrees of freedom the normal quantile is right to four digits.
_NORMAL_FROM = 10_000.0
_GRID_SIZE = 1 << 14


@functools.lru_cache(maxsize=256)
def student_t_critical(level: float, *, degrees: float) -> float:
    """The t with P(-t < T < t) = ``level``.

    With T = sqrt(degrees) tan(x) the density becomes proportional to cos(x)^(degrees - 1), a bounded function on a bounded
    interval; it is integrated by trapezoids.

    Args:
        level: coverage, between 0 and 1.
        degrees: of freedom, at least 1, whole or not; infinity is the normal distribution.

    Raises:
        MetricError: if an argument is out of range.
    """
    if not 0 < level < 1 or not degrees >= 1:
        raise MetricError(f"t quantile: level {level}, {degrees} degrees of freedom; expected 0 to 1, and at least 1")
    if degrees >= _NORMAL_FROM:
        return NormalDist().inv_cdf((1 + level) / 2)
    # Mass lies within a few 1 / sqrt(degrees). Where it reaches pi / 2 it rises steeply there, so the nodes crowd at that end.
    end = min(math.pi / 2, 40 / math.sqrt(degrees))
    angles = end * (1 - np.square(np.linspace(1.0, 0.0, _GRID_SIZE)))
    density = np.maximum(np.cos(angles), 0.0) ** (degrees - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) * np.diff(angles))])
    return math.sqrt(degrees) * math.tan(float(np.interp(level * mass[-1], mass, angles)))
