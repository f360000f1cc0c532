"""The Gaussian potential that both uniformity terms average."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives

EXPONENT = 2.0
"""t of the kernel ``exp(-t |x - y|^2)``; Wang and Isola's value, and that of arXiv 2405.18570."""


def squared_distances(left: Tensor, right: Tensor) -> Tensor:
    """Squared distance of every row to every row, ``2 - 2 cos``.

    Args:
        left: unit-norm [B, D].
        right: unit-norm [B, D].

    Returns:
        [B, B]. The cancellation in close pairs costs 1e-7, which moves their kernel, near 1, by as little.
    """
    return 2 - 2 * cosine(left, right)


def log_mean_kernel(left: Tensor, right: Tensor, positives: Tensor) -> Tensor:
    """``log mean exp(-2 |x_i - y_j|^2)`` over the pairs i, j that are negatives of each other.

    Args:
        left: x, unit-norm [B, D].
        right: y, unit-norm [B, D].
        positives: bool [B, B], pairs to leave out; the diagonal is left out in any case.

    Returns:
        Scalar in [-8, 0]; a constant 0 where no pair is left.
    """
    negatives = ~no_negatives(positives)  # [B, B]
    # Without negatives every entry is a constant 0, because a logsumexp over nothing has no gradient but NaN.
    # No branch in Python: reading the flag would stall a GPU.
    none_left = ~negatives.any()
    exponents = -EXPONENT * squared_distances(left, right)  # [B, B]
    absent = torch.where(none_left, 0.0, -math.inf).to(exponents.dtype)
    count = torch.where(none_left, negatives.numel(), negatives.sum())
    return torch.where(negatives, exponents, absent).flatten().logsumexp(dim=0) - count.to(exponents.dtype).log()
