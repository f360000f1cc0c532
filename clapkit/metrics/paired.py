"""Paired comparison of systems on the same clips, many quantities at once, and Holm's correction for their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.power import MIN_CLIPS, minimum_detectable_paired
from clapkit.metrics.statistics import bootstrap_weights, paired_sign_flips


@dataclass(frozen=True, slots=True)
class PairedTest:
    """How two systems differ in one quantity.

    Attributes:
        difference: mean over clips.
        interval: 95 % bootstrap interval of the difference; None without draws.
        two_sided_p: of the sign-flip test, not corrected.
        num_clips: N.
        minimum_detectable_difference: smallest true difference that this test finds with 80 % probability at 0.05; None where
            the clips are too few to show any or their differences are all the same.
    """

    difference: float
    interval: tuple[float, float] | None
    two_sided_p: float
    num_clips: int
    minimum_detectable_difference: float | None


def paired_tests(differences: npt.ArrayLike, *, num_draws: int = 2000, seed: int = 0, level: float = 0.95) -> list[PairedTest]:
    """Sign-flip test and bootstrap interval of every column.

    Args:
        differences: metric of one system minus metric of the other, per clip and quantity [N, M].
        num_draws: of the bootstrap; 0 for no intervals.
        seed: of all draws.
        level: coverage of the intervals.

    Raises:
        MetricError: if there are no clips or a difference is not finite.
    """
    array = np.asarray(differences, dtype=np.float64)
    flips = paired_sign_flips(array, seed=seed)
    intervals: list[tuple[float, float] | None] = [None] * len(flips)
    if num_draws and flips:
        drawn = bootstrap_weights(len(array), num_draws=num_draws, seed=seed)
        means = np.concatenate([weights @ array for weights in drawn]) / len(array)  # [draws, M]
        lower, upper = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
        intervals = list(zip(lower.tolist(), upper.tolist(), strict=True))
    return [
        PairedTest(flip.mean_difference, interval, flip.two_sided_p, len(array), _detectable(column))
        for flip, interval, column in zip(flips, intervals, array.T, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p for the number of tests: the i-th smallest times (m - i + 1), at most 1 and never below the one before.

    Whoever rejects below 0.05 then makes a single false claim among all with probability 0.05 at most, however the tests
    depend on each other.

    Reference: Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.

    Args:
        p_values: m of them, from 0 to 1.

    Returns:
        In the order given.

    Raises:
        MetricError: if one is out of range.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise MetricError(f"Holm: p from {p.min()} to {p.max()}, expected 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(np.minimum(p[order] * np.arange(len(p), 0, -1), 1.0))
    found: list[float] = adjusted.tolist()
    return found


def _detectable(differences: npt.NDArray[np.float64]) -> float | None:
    if len(differences) < MIN_CLIPS or not np.ptp(differences):
        return None
    return minimum_detectable_paired(differences)
