"""Cross-modal uniformity: clips should keep away from the captions of other clips."""

from __future__ import annotations

from torch import Tensor

from clapkit.objectives.contract import full_precision
from clapkit.objectives.terms._contract import Term, check_pairs
from clapkit.objectives.terms._kernel import log_mean_kernel


def build() -> Term:
    """Make the term; it has no options."""
    return cross_uniformity


def cross_uniformity(audio: Tensor, text: Tensor, positives: Tensor) -> Tensor:
    """Log of the mean Gaussian potential between modalities, ``log mean_{i != j} exp(-2 |a_i - t_j|^2)``.

    Reference: arXiv 2405.18570. Deviation: pairs i, j that are positives of each other are left out; the paper takes all
    i != j, and so pushes a clip away from its own second caption.

    Args:
        audio: unit-norm [B, D].
        text: unit-norm [B, D].
        positives: bool [B, B], symmetric.

    Returns:
        Scalar in [-8, 0]; a constant 0 for a batch without negatives.

    Raises:
        ShapeError: if the shapes differ or B < 2.
    """
    check_pairs(audio, text, positives)
    with full_precision(audio, text) as (audio, text):
        return log_mean_kernel(text, audio, positives)
