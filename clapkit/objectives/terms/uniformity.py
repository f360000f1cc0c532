"""Uniformity: each modality should spread over the sphere."""

from __future__ import annotations

from torch import Tensor

from clapkit.objectives.contract import full_precision
from clapkit.objectives.terms._contract import Term, check_pairs
from clapkit.objectives.terms._kernel import log_mean_kernel


def build() -> Term:
    """Make the term; it has no options."""
    return uniformity


def uniformity(audio: Tensor, text: Tensor, positives: Tensor) -> Tensor:
    """Log of the mean Gaussian potential within each modality, averaged over both.

    ``(U(a) + U(t)) / 2`` with ``U(x) = log mean_{i != j} exp(-2 |x_i - x_j|^2)``: 0 for rows that are all the same, -8 for
    two opposite rows.

    Reference: Wang and Isola, 2020, arXiv 2005.10242; per modality beside a contrastive loss: arXiv 2405.18570. Deviation:
    pairs i, j that are positives of each other (one clip twice, one caption twice) are left out; the papers take all i != j.
    Rows that must be equal cannot be spread, and would hold the mean up without a gradient of their own.

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
        return (log_mean_kernel(audio, audio, positives) + log_mean_kernel(text, text, positives)) / 2
