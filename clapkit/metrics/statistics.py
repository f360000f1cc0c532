"""How certain a metric is: bootstrap over clips, clustered standard error, paired sign-flip test.

The clip is the unit of all three: the captions of a clip succeed or fail together, and treating them as independent
understates the error by a factor of about two. The gallery stays fixed and only queries are drawn again, because a
gallery with duplicates would be another task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError

FloatArray = npt.NDArray[np.floating[Any]]
Summary = Callable[[FloatArray], FloatArray]
"""Weights of the clips [draws, N] to one value per draw [draws]; NaN where a draw has none."""

# 2**n sign patterns are enumerated up to this many clips, and drawn beyond.
MAX_EXACT_CLIPS = 16
_CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True, slots=True)
class SignFlip:
    """Outcome of a paired test.

    Attributes:
        mean_difference: of the clips.
        two_sided_p: share of the sign patterns whose mean is at least as far from zero.
        one_sided_p: share of the sign patterns whose mean is at least as large.
        num_patterns: sign patterns that were looked at.
    """

    mean_difference: float
    two_sided_p: float
    one_sided_p: float
    num_patterns: int


def bootstrap_weights(num_clips: int, *, num_draws: int, seed: int) -> Iterator[FloatArray]:
    """How often each clip is drawn, in blocks [draws, N] that together hold ``num_draws`` rows.

    Raises:
        MetricError: if there are no clips.
    """
    if num_clips < 1:
        raise MetricError("bootstrap: no clips; expected at least one")
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_WEIGHTS // num_clips)
    for start in range(0, num_draws, step):
        rows = min(step, num_draws - start)
        drawn = generator.integers(0, num_clips, size=(rows, num_clips))
        flat = (drawn + np.arange(rows)[:, None] * num_clips).ravel()
        yield np.bincount(flat, minlength=rows * num_clips).reshape(rows, num_clips).astype(np.float64)


def bootstrap_intervals(
    summaries: Mapping[str, Summary], *, num_clips: int, num_draws: int = 2000, seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals; every quantity sees the same draws.

    Args:
        summaries: name -> how the quantity follows from the weights of the clips.
        num_clips: N.
        num_draws: bootstrap samples.
        seed: of the draws.
        level: coverage, between 0 and 1.

    Returns:
        name -> (lower, upper).

    Raises:
        MetricError: if there are no clips or no draws.
    """
    if num_draws < 1:
        raise MetricError(f"bootstrap: {num_draws} draws, expected at least 1")
    values: dict[str, list[FloatArray]] = {name: [] for name in summaries}
    for weights in bootstrap_weights(num_clips, num_draws=num_draws, seed=seed):
        for name, summary in summaries.items():
            values[name].append(summary(weights))
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, parts in values.items():
        lower, upper = np.nanquantile(np.concatenate(parts), tails)
        intervals[name] = (float(lower), float(upper))
    return intervals


def weighted_mean(values: npt.ArrayLike, clip: npt.ArrayLike, *, num_clips: int) -> Summary:
    """Mean over queries, as a function of the weights of their clips.

    Args:
        values: per-query values [Q].
        clip: integers [Q], the clip of each query.
        num_clips: N.

    Raises:
        MetricError: if the arrays do not fit each other.
    """
    totals, counts = _per_clip(values, clip, num_clips=num_clips)

    def summary(weights: FloatArray) -> FloatArray:
        result: FloatArray = (weights @ totals) / (weights @ counts)
        return result

    return summary


def weighted_median(values: npt.ArrayLike, clip: npt.ArrayLike, *, num_clips: int) -> Summary:
    """Plain median over queries (mean of the middle two), as a function of the weights of their clips.

    Args:
        values: per-query values [Q].
        clip: integers [Q], the clip of each query.
        num_clips: N.

    Raises:
        MetricError: if the arrays do not fit each other.
    """
    _per_clip(values, clip, num_clips=num_clips)
    order = np.argsort(np.asarray(values), kind="stable")
    ordered, clips = np.asarray(values, dtype=np.float64)[order], np.asarray(clip)[order]

    def summary(weights: FloatArray) -> FloatArray:
        cumulative = np.cumsum(weights[:, clips], axis=1)  # [draws, Q] queries up to and including this one
        total = cumulative[:, -1]
        lower = (cumulative >= np.floor((total + 1) / 2)[:, None]).argmax(axis=1)
        upper = (cumulative >= (np.floor(total / 2) + 1)[:, None]).argmax(axis=1)
        middle: FloatArray = (ordered[lower] + ordered[upper]) / 2
        return middle

    return summary


def clustered_standard_error(values: npt.ArrayLike, clip: npt.ArrayLike) -> float:
    """Standard error of the mean over queries when the queries of a clip are correlated.

    sqrt(n / (n - 1) * sum over clips of (sum of the clip's deviations from the mean)^2) / Q; with equally many
    queries per clip it is the jackknife over clips.

    Args:
        values: per-query values [Q].
        clip: integers [Q], the clip of each query.

    Raises:
        MetricError: if there are fewer than two clips.
    """
    _, index = np.unique(np.asarray(clip), return_inverse=True)
    num_clips = int(index.max(initial=-1)) + 1
    if num_clips < 2:
        raise MetricError(f"standard error: {num_clips} clips, expected at least 2")
    array = np.asarray(values, dtype=np.float64)
    deviations, _ = _per_clip(array - array.mean(), index, num_clips=num_clips)
    return float(np.sqrt(num_clips / (num_clips - 1) * np.square(deviations).sum()) / len(array))


def paired_sign_flip(differences: npt.ArrayLike, *, num_draws: int = 10_000, seed: int = 0) -> SignFlip:
    """Test whether two systems differ, from the difference of each clip.

    Under the null hypothesis every difference is as likely to have the other sign. All patterns are enumerated up to
    ``MAX_EXACT_CLIPS`` clips; beyond, random ones are drawn and the observed one is counted with them.

    Args:
        differences: metric of one system minus metric of the other, per clip [N].
        num_draws: random patterns beyond the exact range.
        seed: of the random patterns.

    Raises:
        MetricError: if there are no differences or they are not finite.
    """
    array = np.asarray(differences, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise MetricError(f"sign-flip test: {array.size} differences, expected at least one, all finite")
    return paired_sign_flips(array[:, None], num_draws=num_draws, seed=seed)[0]


def paired_sign_flips(differences: npt.ArrayLike, *, num_draws: int = 10_000, seed: int = 0) -> list[SignFlip]:
    """``paired_sign_flip`` of several quantities of the same clips at once; all see the same patterns.

    Args:
        differences: metric of one system minus metric of the other, per clip and quantity [N, M].
        num_draws: random patterns beyond the exact range.
        seed: of the random patterns.

    Raises:
        MetricError: if there are no clips or a difference is not finite.
    """
    array = np.asarray(differences, dtype=np.float64)
    if array.ndim != 2 or not len(array) or not np.isfinite(array).all():
        raise MetricError(f"sign-flip test: differences {list(array.shape)}, expected [clips, quantities], all finite")
    exact = len(array) <= MAX_EXACT_CLIPS
    blocks = _all_signs(len(array)) if exact else _random_signs(len(array), num_draws, seed)
    observed = array.sum(axis=0)  # [M]
    # Patterns that equal the observed sum up to rounding must count, or p would depend on the order of the additions.
    slack = 1e-12 * np.abs(array).sum(axis=0)
    patterns = 0 if exact else 1
    far = np.full(array.shape[1], patterns)
    large = far.copy()
    for signs in blocks:
        sums = signs @ array  # [patterns, M]
        far += (np.abs(sums) >= np.abs(observed) - slack).sum(axis=0)
        large += (sums >= observed - slack).sum(axis=0)
        patterns += len(signs)
    means = array.mean(axis=0)
    return [
        SignFlip(float(mean), int(f) / patterns, int(n) / patterns, patterns)
        for mean, f, n in zip(means, far, large, strict=True)
    ]


def _all_signs(size: int) -> Iterator[FloatArray]:
    bits = (np.arange(1 << size)[:, None] >> np.arange(size)) & 1  # [2**N, N]
    yield bits * 2.0 - 1.0


def _random_signs(size: int, num_draws: int, seed: int) -> Iterator[FloatArray]:
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_WEIGHTS // size)
    for start in range(0, num_draws, step):
        yield generator.integers(0, 2, size=(min(step, num_draws - start), size)) * 2.0 - 1.0


def _per_clip(values: npt.ArrayLike, clip: npt.ArrayLike, *, num_clips: int) -> tuple[FloatArray, FloatArray]:
    """Sum of the values and number of queries of each clip: [N], [N]."""
    array, index = np.asarray(values, dtype=np.float64), np.asarray(clip)
    if array.ndim != 1 or array.shape != index.shape:
        raise MetricError(f"clip: shape {list(index.shape)}, expected {list(array.shape)}, one clip per query")
    counts = np.bincount(index, minlength=num_clips)
    if len(counts) != num_clips or not counts.all():
        raise MetricError(f"clip: indices must cover 0 to {num_clips - 1}; number the clips that have queries")
    totals = np.bincount(index, weights=array, minlength=num_clips).astype(np.float64)
    return totals, counts.astype(np.float64)
