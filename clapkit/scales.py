"""What the names of metrics say: which are fractions, with how many decimals they are shown, and which end is good.

A metric is a fraction, shown in percent, of which more is better, unless its name says otherwise here. A metric of a new task
that is none ends with one of the words below, or is added to them.
"""

from __future__ import annotations

from typing import Literal

# Ranks, in places of a list.
_RANKS = ("MedR", "MeanR")
# Quantities without unit, by their endings.
_QUANTITIES = (
    "modality_gap",
    "alignment",
    "uniformity_audio",
    "uniformity_text",
    "_rank_audio",
    "_rank_text",
    "_ratio_audio",
    "_ratio_text",
    "_cosine",
    "_distance",
    "_variance",
    "mrv",
    "margin_t2a",
    "margin_a2t",
    "hubness_t2a",
    "hubness_a2t",
    "tolerance",
)
_COST = "cost_"
_LOWER = (*_RANKS, "alignment", "_rank_variance", "mrv", "_caption_distance")
# Neither end is good by itself: they describe a space, or the difference between two metrics.
_NEITHER = (
    "modality_gap",
    "modality_separability",
    "uniformity_audio",
    "uniformity_text",
    "_rank_audio",
    "_rank_text",
    "_ratio_audio",
    "_ratio_text",
    "negative_cosine",
    "hubness_t2a",
    "hubness_a2t",
    "tolerance",
    "_drop",
)


def is_fraction(name: str) -> bool:
    """Whether a metric is a share, or a difference of shares, and shown in percent."""
    return not name.startswith(_COST) and not name.endswith((*_RANKS, *_QUANTITIES))


def decimals(name: str) -> int:
    """Digits behind the point where a metric is shown; fractions are in percent then."""
    if is_fraction(name) or name.startswith(_COST) or name.endswith((*_RANKS, "_rank_audio", "_rank_text")):
        return 1
    return 1 if name.endswith(("_ratio_audio", "_ratio_text")) else 3


def better_end(name: str) -> Literal["higher", "lower"] | None:
    """Which values of a metric are the better ones; None where neither are, so that nobody wins by it."""
    if name.startswith(_COST) or name.endswith(_NEITHER):
        return None
    return "lower" if name.endswith(_LOWER) else "higher"
