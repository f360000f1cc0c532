"""Two sources of error of a method that was trained several times: which clips the test set has, and which seed the run had.

y_sn, the value of clip n with seed s, is taken as mean + seed effect + clip effect + rest. The seeds of a method are a sample
of all its seeds as the clips are one of all clips, so the variance of the grand mean is

    var(seed means) / S + var(clip means) / N - var(rest) / (S N);

the first two hold the third each, which must count once. Seeds of two methods are independent, their clips are the same.

Reference: Searle, Casella and McCulloch, Variance Components, 1992 (two-way crossed random model); Satterthwaite, An
approximate distribution of estimates of variance components, Biometrics Bulletin 2, 1946.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.student_t import student_t_critical

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SeedError:
    """A mean over seeds and clips, or the difference of two, with its errors.

    Attributes:
        mean: of the seeds' means over clips.
        test_error: standard error from the choice of clips, of the clip's values averaged over the seeds.
        seed_error: standard error from the choice of seeds.
        interval: from both, by Student's t.
    """

    mean: float
    test_error: float
    seed_error: float
    interval: tuple[float, float]


@dataclass(frozen=True, slots=True)
class _Part:
    """One method's share of the variance of a mean."""

    clip_means: FloatArray
    seed_variance: float
    rest_variance: float
    num_seeds: int


def seed_error(values: npt.ArrayLike, *, level: float = 0.95) -> SeedError:
    """Mean of a method over its seeds, with both errors.

    Args:
        values: per seed and clip [S, N], S and N at least 2.
        level: coverage of the interval.

    Raises:
        MetricError: if there are fewer than two seeds or clips.
    """
    part = _part(_checked(values))
    if part.num_seeds < 2:
        raise MetricError("seeds: 1 run, expected at least 2 to tell how runs differ")
    return _combined(part.clip_means, [part], level=level)


def seed_difference(first: npt.ArrayLike, second: npt.ArrayLike, *, level: float = 0.95) -> SeedError:
    """Difference of two methods, first minus second, with both errors.

    Where one of the two was trained once, its seeds are taken to differ as much as those of the other.

    Args:
        first: per seed and clip [S, N].
        second: per seed and clip [S', N]; S or S' at least 2.
        level: coverage of the interval.

    Raises:
        MetricError: if the clips are not as many, fewer than two, or both methods have one run.
    """
    arrays = _checked(first), _checked(second)
    if arrays[0].shape[1] != arrays[1].shape[1]:
        raise MetricError(f"seeds: {arrays[0].shape[1]} and {arrays[1].shape[1]} clips, expected the same clips")
    parts = [_part(array) for array in arrays]
    if max(part.num_seeds for part in parts) < 2:
        raise MetricError("seeds: 1 run of each method, expected at least 2 of one to tell how runs differ")
    return _combined(parts[0].clip_means - parts[1].clip_means, parts, level=level)


def _checked(values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 1 or array.shape[1] < 2 or not np.isfinite(array).all():
        raise MetricError(f"seeds: values {list(array.shape)}, expected [seeds, clips] with at least 2 clips, all finite")
    return array


def _part(array: FloatArray) -> _Part:
    num_seeds, num_clips = array.shape
    clip_means, seed_means = array.mean(axis=0), array.mean(axis=1)
    if num_seeds < 2:
        return _Part(clip_means, math.nan, math.nan, num_seeds)
    rest = array - clip_means - seed_means[:, None] + array.mean()
    return _Part(
        clip_means,
        float(seed_means.var(ddof=1)),
        float(np.square(rest).sum()) / ((num_seeds - 1) * (num_clips - 1)),
        num_seeds,
    )


def _combined(clip_means: FloatArray, parts: list[_Part], *, level: float) -> SeedError:
    """Errors of the mean of ``clip_means`` [N], to whose seed error each part contributes."""
    known = [part for part in parts if part.num_seeds > 1]
    num_clips, mean = len(clip_means), float(clip_means.mean())
    test = float(clip_means.var(ddof=1)) / num_clips
    seed, rest = 0.0, 0.0
    # A part of one run borrows the variance of the other, so its share hangs on the same degrees of freedom.
    shares = {id(part): 0.0 for part in known}
    for part in parts:
        source = part if part.num_seeds > 1 else known[0]
        seed += source.seed_variance / part.num_seeds
        rest += source.rest_variance / part.num_seeds / num_clips
        shares[id(source)] += source.seed_variance / part.num_seeds
    # Each of the two is an estimate of at most the whole, so the subtraction never goes below them.
    total = max(seed + test - rest, seed, test)
    spread = sum(shares[id(part)] ** 2 / (part.num_seeds - 1) for part in known) + test**2 / (num_clips - 1)
    degrees = max(total**2 / spread, 1.0) if spread else math.inf
    half = student_t_critical(level, degrees=degrees) * math.sqrt(total)
    return SeedError(mean, math.sqrt(test), math.sqrt(seed), (mean - half, mean + half))
