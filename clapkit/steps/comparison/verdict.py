"""When a difference is called real."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from clapkit.steps.comparison.numbers import lower_is_better, show_difference

Verdict = Literal["better", "worse", "no difference shown"]
SIGNIFICANT = 0.05
RULE = (
    "A difference in a headline metric is real if p of the paired sign-flip test over clips is below 0.05 after Holm's "
    "correction for all headline metrics and methods compared, and, where a method was trained with several seeds, the 95 % "
    "interval from clips and seeds together leaves zero out. Anything else is 'no difference shown', which does not say that "
    "there is none."
)


def judge(metric: str, test: Mapping[str, Any] | None) -> tuple[Verdict, str]:
    """Decide by ``RULE`` whether a method differs from the baseline.

    With one run of each method the rule says nothing about the training seed, and so does the reason.

    Args:
        metric: a headline metric.
        test: ``difference``, ``p_holm``, ``minimum_detectable_difference`` and ``seeds`` (None, or its ``interval`` and
            ``num_runs``); None where the two could not be tested.

    Returns:
        The verdict, and why.
    """
    if test is None:
        return "no difference shown", "not tested: other clips or captions than the baseline, or no mean over clips"
    said = f"p = {test['p_holm']:.4f} after Holm"
    if test["p_holm"] >= SIGNIFICANT:
        return "no difference shown", said + _power(metric, test["minimum_detectable_difference"])
    seeds = test["seeds"]
    if seeds is None:
        return _direction(metric, test["difference"]), f"{said}; one run of each, so the training seed is not covered"
    lower, upper = seeds["interval"]
    bounds = f"{show_difference(metric, lower)} to {show_difference(metric, upper)}"
    runs = " and ".join(map(str, seeds["num_runs"]))
    if lower <= 0 <= upper:
        return "no difference shown", f"{said}, but with the seeds ({runs} runs) the interval {bounds} holds zero"
    return _direction(metric, test["difference"]), f"{said}; with the seeds ({runs} runs) {bounds}"


def _power(metric: str, detectable: float | None) -> str:
    if detectable is None:
        return ""
    smallest = show_difference(metric, detectable).lstrip("+")
    return f"; a true difference of {smallest} would be found in 80 % of such tests before the correction"


def _direction(metric: str, difference: float) -> Verdict:
    return "better" if (difference < 0) == lower_is_better(metric) else "worse"
