"""Reweighted: a contrastive loss of which one or both directions count more; what svr is at radius 0."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require, require_choice
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.row_blocks import needs_blocks, pair_cosines
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.similarity import cosine
from clapkit.objectives.svr import Base, Sides, make_base
from clapkit.objectives.targets import SoftmaxPolicy
from clapkit.objectives.temperature import TemperatureKind
from clapkit.types import LossOutput


def build(
    *,
    base: Base = "infonce",
    sides: Sides = "bi",
    alpha: float = 1.0,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    bias_init: Literal["auto"] | float = "auto",
    targets: SoftmaxPolicy = "ignore",
    ot_share: float | None = None,
    ot_eps: float | None = None,
    schedule: nn.Module | None = None,
) -> Reweighted:
    """Make the objective; the defaults weigh like those of svr.

    Args:
        base: the loss that is weighed.
        sides: count both directions ``1 + alpha`` times (``bi``) or text to audio only (``uni``).
        alpha: the extra weight; 0 leaves the base loss.
        temperature: of the base.
        tau: of the base; its own default unless set.
        bias_init: of the base ``siglip``.
        targets: of the base.
        ot_share: of the base ``infonce``, with ``targets=ot``.
        ot_eps: likewise.
        schedule: of the base ``infonce``: gives every anchor its temperature.

    Raises:
        ConfigError: if an option is out of its range or has no meaning beside the others.
    """
    require_choice("base", base, Base)
    require_choice("sides", sides, Sides)
    require(0 <= alpha < math.inf, f"alpha={alpha}: expected a weight of 0 or more")
    contrast = make_base(
        base,
        temperature=temperature,
        tau=tau,
        bias_init=bias_init,
        targets=targets,
        ot_share=ot_share,
        ot_eps=ot_eps,
        schedule=schedule,
    )
    return Reweighted(contrast, sides, alpha)


class Reweighted(nn.Module):
    """The base loss with one or both directions counted ``1 + alpha`` times.

    ``bi``: ``L = (1 + alpha) L_base``; ``uni``: ``L = ((1 + alpha) L_t2a + L_a2t) / 2``. This is what svr becomes where its
    radius is 0, value and gradient, without support vectors: what svr gains over its base and this does not is due to the
    radius. The one direction of ``siglip`` stands for either of the two.

    Reference: none; derived from SupCLAP, ICLR 2026, arXiv 2509.21033, at R = 0.

    Args:
        base: loss and options of the base.
        sides: ``bi`` or ``uni``.
        alpha: the extra weight.
    """

    def __init__(self, base: InfoNCE | SigLIP, sides: Sides, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.sides = sides
        self.alpha = alpha

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        weights: Tensor | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``weights`` [B]: how much each pair counts.

        Raises:
            ShapeError: if the shapes differ, B < 2, or B is too large for the targets of the base.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            scale = self.base.temperature.scale(index, progress, dtype=text.dtype)
            if needs_blocks(text):
                total, terms = self.base.both_in_blocks(text, audio, positives, scale, weights)
                stats = self.base.pair_stats(pair_cosines(audio, text), index, progress)
            else:
                similarity = cosine(text, audio)  # [B, B], rows are texts
                total, terms = self.base.both_directions(similarity, positives, scale, weights)
                stats = self.base.stats(similarity, index, progress)
            # The loss of texts: the first term of both bases.
            total = (1 + self.alpha) * total if self.sides == "bi" else total + self.alpha * next(iter(terms.values())) / 2
            return loss_output(total, terms, stats)

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the base; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.base.param_groups(lr, weight_decay)

    def after_step(self) -> None:
        """Keep the scale of the base in its range."""
        self.base.after_step()
