"""ALIP, consistency gates: a pair counts less where the captions of its clip contradict each other or the sound."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clapkit.objectives.contract import require
from clapkit.objectives.pair_weights import WeightedPairs

DEFAULT_STRENGTH = 2.0
DEFAULT_MOMENTUM = 0.99


def build(
    *,
    wrapped: nn.Module | None = None,
    strength: float = DEFAULT_STRENGTH,
    momentum: float = DEFAULT_MOMENTUM,
    cap: bool = True,
) -> ALIP:
    """Make the objective.

    Args:
        wrapped: the loss whose pairs are weighed, ``infonce``, ``siglip``, ``svr`` or ``reweighted``; ``infonce`` unless
            given. ``clapkit train`` makes it for ``--base``.
        strength: how much a cosine below the usual takes off: the weight is ``exp(strength * difference)``.
        momentum: how slowly the usual cosines follow those of the batches.
        cap: keep the gate of a pair at 1 or less too; without it (the authors' code) a pair that fits better than usual
            counts more than 1 where its captions disagree.

    Raises:
        ConfigError: if an option is out of its range, or the loss takes no weights.
    """
    require(0 <= strength < math.inf, f"strength={strength}: expected 0 or more, for example {DEFAULT_STRENGTH}")
    require(0 <= momentum < 1, f"momentum={momentum}: expected at least 0 and less than 1, for example {DEFAULT_MOMENTUM}")
    return ALIP(wrapped, strength=strength, momentum=momentum, cap=cap)


class ALIP(WeightedPairs):
    """A loss in which pairs are weighed by two gates: do the captions of the clip agree, and does this one fit the sound.

    Of a pair (a, t) whose clip has further captions t' in the batch let c be the mean of the cosines t.t', and H_tt and H_ta
    slow means of c and of t.a over the batches so far, 1 at the start. The sample gate is
    ``w = min(1, exp(strength (c - H_tt)))``, the pair gate ``v = min(1, exp(strength (t.a - H_ta)))`` where ``w < 1``, else 1.
    The pair counts ``w v`` times. A pair whose clip has no other caption in the batch counts once.

    Reference: Yang et al., ALIP: adaptive language-image pre-training with synthetic captions, ICCV 2023, arXiv 2308.08428.
    Deviations: their two captions are of two kinds, written and synthetic, with a mean of t.a for each; here they are drawn
    from one list and have one. ``v`` is capped. All captions of a batch are candidates of one softmax where theirs are two.

    Args:
        wrapped: the loss.
        strength: of both gates.
        momentum: of both means.
        cap: whether ``v`` is at most 1.
    """

    usual: Tensor

    def __init__(self, wrapped: nn.Module | None, *, strength: float, momentum: float, cap: bool) -> None:
        super().__init__(wrapped)
        self.strength, self.momentum, self.cap = strength, momentum, cap
        self.register_buffer("usual", torch.ones(2))  # H_tt and H_ta

    def weigh(
        self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float
    ) -> tuple[Tensor | None, Mapping[str, Tensor], Tensor | None]:
        """Weights from the usual cosines, and the cosines of the batch [2] that will move them; see ``WeightedPairs``."""
        agreement, has_others = caption_agreement(text, index)  # [B] each
        fit = (text * audio).sum(dim=1)  # [B]
        usual = self.usual.to(text.dtype)
        sample = (self.strength * (agreement - usual[0])).exp().clamp(max=1.0)
        pair = (self.strength * (fit - usual[1])).exp()
        pair = torch.where(sample < 1, pair.clamp(max=1.0) if self.cap else pair, torch.ones_like(pair))
        weights = torch.where(has_others, sample * pair, torch.ones_like(sample))
        seen = torch.stack([agreement[has_others].mean(), fit[has_others].mean()]) if bool(has_others.any()) else None
        scalars = {
            "mean_weight": weights.mean(),
            "gated_share": (weights != 1).float().mean(),
            "usual_agreement": usual[0],
            "usual_fit": usual[1],
        }
        return weights, scalars, seen

    def remember(self, noted: list[Tensor | None]) -> None:
        """Move the usual cosines towards those of the step, once; not at all if no clip had several captions."""
        seen = [cosines for cosines in noted if cosines is not None]
        if seen:
            self.usual.lerp_(torch.stack(seen).mean(dim=0).to(self.usual.dtype), 1 - self.momentum)


def caption_agreement(text: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine of every caption with the other captions of its clip.

    Args:
        text: unit-norm [B, D].
        index: int64 [B], equal for captions of one clip.

    Returns:
        [B], 1 where there are no others; bool [B], whether there are.
    """
    clips, clip = torch.unique(index, return_inverse=True)  # [C], [B]
    count = torch.bincount(clip, minlength=len(clips))[clip]  # [B]
    # Sums over clips, because a matrix of all captions with each other is what large batches must do without.
    total = text.new_zeros(len(clips), text.shape[1]).index_add_(0, clip, text)[clip]  # [B, D]
    has_others = count > 1
    others = (text * (total - text)).sum(dim=1) / (count - 1).clamp(min=1)
    return torch.where(has_others, others, torch.ones_like(others)), has_others
