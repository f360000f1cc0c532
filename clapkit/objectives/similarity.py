"""Similarities between anchors and candidates: plain cosines, and those of support vectors."""

from __future__ import annotations

from torch import Tensor

EPSILON = 1e-4
"""Smooths every norm: identical embeddings have distance 1e-4 instead of 0, so that nothing is divided by 0."""


def cosine(anchors: Tensor, candidates: Tensor) -> Tensor:
    """Cosine of every anchor with every candidate, for unit-norm rows (a plain dot product for others).

    Args:
        anchors: [B, D].
        candidates: [B, D].

    Returns:
        [B, B], one row per anchor.
    """
    return anchors @ candidates.T


def smooth_norm(vectors: Tensor) -> Tensor:
    """Length of each row, ``sqrt(|x|^2 + EPSILON^2)``, with a finite gradient at 0.

    Args:
        vectors: [B, D].

    Returns:
        [B], at least ``EPSILON``.
    """
    return (vectors.square().sum(dim=1) + EPSILON**2).sqrt()


def support_vectors(anchors: Tensor, targets: Tensor, ratio: Tensor, *, normalize: bool = False) -> Tensor:
    """Anchors moved towards their own targets, by a share of the way.

    With D the distance of a pair and R its semantic radius, ``ratio`` is ``rho = R / D`` and a row is
    ``t + R (a - t) / D = t + rho (a - t)``. Its dot product with a candidate ``c`` is the interpolation
    ``(1 - rho) t.c + rho a.c`` of cross-modal and intra-modal similarity. Moving the vector [B, D] and multiplying once
    costs the same product as that interpolation without its [B, B] temporaries, and does not lose digits to
    cancellation where rho is large.

    Reference: SupCLAP, arXiv 2509.21033.

    Args:
        anchors: [B, D], for example text embeddings t.
        targets: [B, D], the other half of each pair, for example audio embeddings a.
        ratio: [B], rho.
        normalize: bring the moved vectors back to unit norm (not in the paper).

    Returns:
        [B, D].
    """
    support = anchors + ratio[:, None] * (targets - anchors)  # [B, D]
    return support / smooth_norm(support)[:, None] if normalize else support
