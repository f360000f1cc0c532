"""Alignment: the two halves of a pair should lie on one point."""

from __future__ import annotations

from torch import Tensor

from clapkit.objectives.contract import full_precision
from clapkit.objectives.terms._contract import Term, check_pairs


def build() -> Term:
    """Make the term; it has no options."""
    return alignment


def alignment(audio: Tensor, text: Tensor, positives: Tensor) -> Tensor:
    """Mean squared distance of the pairs, ``mean_i |a_i - t_i|^2``; 0 exactly where the towers coincide.

    Reference: Wang and Isola, Understanding contrastive representation learning through alignment and uniformity on the
    hypersphere, 2020, arXiv 2005.10242; added to the loss of CLIP to close the gap between modalities: arXiv 2405.18570.

    Args:
        audio: unit-norm [B, D].
        text: unit-norm [B, D].
        positives: bool [B, B]; only the diagonal counts, further positives are not pulled.

    Returns:
        Scalar in [0, 4].

    Raises:
        ShapeError: if the shapes differ or B < 2.
    """
    check_pairs(audio, text, positives)
    with full_precision(audio, text) as (audio, text):
        # From the differences: 2 - 2 cos of equal rows is not 0 but rounding.
        return (audio - text).square().sum(dim=1).mean()
