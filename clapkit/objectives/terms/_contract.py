"""What all terms share: how they are called and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clapkit.objectives.contract import check_batch

Term = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``term(audio [B, D], text [B, D], positives bool [B, B]) -> scalar``: unit-norm rows in, float32 (or float64) out."""


def check_pairs(audio: Tensor, text: Tensor, positives: Tensor) -> None:
    """Check that the arguments of a term describe one batch of B >= 2 pairs.

    Raises:
        ShapeError: if they do not.
    """
    # Terms keep nothing per training row; the rows are counted for the check that objectives share.
    check_batch(audio, text, positives, torch.arange(len(audio)))
