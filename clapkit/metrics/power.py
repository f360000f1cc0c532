"""Which difference a test set is able to show: the smallest one that a test finds with a given probability.

The spread is that of the clips at hand. It says nothing of the difference that was observed, so it may be read beside any
number; it covers neither the training seed nor a correction for several comparisons, both of which make differences harder to
show.

Reference: Bloom, Minimum detectable effects, Evaluation Review 19(5), 1995.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.statistics import clustered_standard_error
from clapkit.metrics.student_t import student_t_critical

MIN_CLIPS = 6
"""With fewer clips even differences of one sign are no evidence: of 2^5 sign patterns two are as extreme, and 2 / 32 > 0.05."""


def minimum_detectable(values: npt.ArrayLike, clip: npt.ArrayLike, *, power: float = 0.8, significance: float = 0.05) -> float:
    """Smallest true difference that two results on such a test set show when they are compared without pairing.

    (t_significance + t_power) * sqrt(2) * clustered standard error. It assumes that the other result has the same error and
    that the two are independent, as when only its number is known. Results on the same clips are not: compared clip by clip,
    they show smaller differences (``minimum_detectable_paired``), so this is on the safe side.

    Args:
        values: per-query values of one system [Q].
        clip: integers [Q], the clip of each query.
        power: probability with which the difference is to be found.
        significance: of the two-sided test.

    Raises:
        MetricError: if there are fewer than ``MIN_CLIPS`` clips, or the arrays do not fit each other.
    """
    num_clips = len(np.unique(np.asarray(clip)))
    _check(num_clips)
    error = math.sqrt(2) * clustered_standard_error(values, clip)
    return _factor(2 * (num_clips - 1), power=power, significance=significance) * error


def minimum_detectable_paired(differences: npt.ArrayLike, *, power: float = 0.8, significance: float = 0.05) -> float:
    """Smallest true mean difference that the paired test shows, given how the differences of the clips spread.

    (t_significance + t_power) * standard deviation of the differences / sqrt(N).

    Args:
        differences: metric of one system minus metric of the other, per clip [N].
        power: probability with which the difference is to be found.
        significance: of the two-sided test.

    Raises:
        MetricError: if there are fewer than ``MIN_CLIPS`` clips.
    """
    array = np.asarray(differences, dtype=np.float64)
    _check(len(array))
    error = float(array.std(ddof=1)) / math.sqrt(len(array))
    return _factor(len(array) - 1, power=power, significance=significance) * error


def _factor(degrees: float, *, power: float, significance: float) -> float:
    if not 0.5 < power < 1 or not 0 < significance < 1:
        raise MetricError(f"power {power} at {significance}: expected a power from 0.5 to 1 and a significance from 0 to 1")
    # P(T < t) = power is P(-t < T < t) = 2 power - 1.
    return student_t_critical(1 - significance, degrees=degrees) + student_t_critical(2 * power - 1, degrees=degrees)


def _check(num_clips: int) -> None:
    if num_clips < MIN_CLIPS:
        raise MetricError(f"detectable difference: {num_clips} clips, expected at least {MIN_CLIPS}; fewer can show none")
