"""Triplet: a pair should beat every negative by a margin."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require, require_choice
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives
from clapkit.types import LossOutput

Reduction = Literal["sum", "max", "mean", "weighted"]


DEFAULT_MARGIN = 0.2


def build(*, margin: float | None = None, reduction: Reduction = "sum", schedule: nn.Module | None = None) -> Triplet:
    """Make the objective.

    Args:
        margin: how much higher the cosine of a pair should be than that of a negative; 0.2.
        reduction: over the negatives of an anchor: their ``sum``, the hardest one (``max``), their ``mean``, or a
            polynomial of the hardest one (``weighted``).
        schedule: gives every anchor its margin, instead of ``margin``.

    Raises:
        ConfigError: if an option is out of its range, or ``margin`` is given beside a schedule.
    """
    require_choice("reduction", reduction, Reduction)
    if schedule is not None:
        require(margin is None, f"margin={margin}: the schedule gives every anchor its margin; leave margin out")
        return Triplet(schedule, reduction)
    margin = DEFAULT_MARGIN if margin is None else margin
    require(0 < margin < 2, f"margin={margin}: expected more than 0 and less than 2; cosines lie in [-1, 1]")
    return Triplet(margin, reduction)


class Triplet(nn.Module):
    """Hinges ``h_ij = relu(m_i - s_ii + s_ij)`` over the negatives j of each anchor i, in both directions.

    ``sum``: ``(1/B) sum_ij (h_ij + h'_ij)``; ``max``: the largest hinge of each anchor instead of the sum; ``mean``:
    the average over all ``2 B (B - 1)`` hinges, zeros included; ``weighted``: for each anchor with a negative inside
    the margin, ``relu(0.2 p^2 - 0.7 p + 0.5) + relu(0.9 n^2 - 0.4 n + 0.03)``, p the cosine of the pair and n the
    largest one of a negative. Positives off the diagonal never contribute.

    Reference: Mei et al., On metric learning for audio-text cross-modal retrieval, 2022, arXiv 2203.15537; ``mean`` is
    not one of theirs. Margins that are scheduled for each anchor, with ``mean``: MM-TS, arXiv 2603.08202.

    Args:
        margin: m, or a schedule ``(index [B], progress) -> [B]`` that gives m_i, the same in both directions.
        reduction: how the hinges of an anchor are put together.
    """

    def __init__(self, margin: float | nn.Module, reduction: Reduction) -> None:
        super().__init__()
        self.margin = margin
        self.reduction = reduction

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            similarity = cosine(text, audio)  # [B, B], rows are texts
            margin = self._margins(index, progress, like=similarity)
            text_to_audio = self.one_direction(similarity, positives, margin)
            audio_to_text = self.one_direction(similarity.T, positives.T, margin)
            total = text_to_audio + audio_to_text
            total = total / 2 if self.reduction == "mean" else total
            stats: dict[str, Tensor | float] = {"positive_cosine": similarity.diagonal().mean()}
            if isinstance(margin, Tensor):
                stats |= {"margin": margin.mean(), "margin_min": margin.min(), "margin_max": margin.max()}
            return loss_output(total, {"t2a": text_to_audio, "a2t": audio_to_text}, stats)

    def _margins(self, index: Tensor, progress: float, *, like: Tensor) -> Tensor | float:
        """The margin; with a schedule that of each anchor, [B]."""
        if isinstance(self.margin, nn.Module):
            margins: Tensor = self.margin(index, progress).to(like.dtype)
            return margins
        return self.margin

    def one_direction(self, similarity: Tensor, positives: Tensor, margin: Tensor | float) -> Tensor:
        """Loss of the anchors in the rows.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal.
            positives: bool [B, B], likewise.
            margin: m, a number or [B] with that of each anchor.

        Returns:
            Scalar.
        """
        excluded = no_negatives(positives)
        reach = margin - similarity.diagonal()  # [B]; a negative above minus this is inside the margin
        if self.reduction == "weighted":
            return self._weighted(similarity, excluded, reach).mean()
        hinges = relu(reach[:, None] + similarity).masked_fill(excluded, 0.0)  # [B, B]
        if self.reduction == "max":
            return hinges.amax(dim=1).mean()
        if self.reduction == "mean":
            return hinges.sum() / (hinges.numel() - hinges.shape[0])
        return hinges.sum(dim=1).mean()

    def _weighted(self, similarity: Tensor, excluded: Tensor, reach: Tensor) -> Tensor:
        positive = similarity.diagonal()  # [B]
        hardest = similarity.masked_fill(excluded, -math.inf).amax(dim=1)  # [B]
        active = reach + hardest > 0
        # A row without negatives has hardest = -inf; its polynomial must not reach the gradient as inf * 0.
        hardest = torch.where(active, hardest, torch.zeros_like(hardest))
        pull = relu(0.2 * positive.square() - 0.7 * positive + 0.5)
        push = relu(0.9 * hardest.square() - 0.4 * hardest + 0.03)
        return torch.where(active, pull + push, torch.zeros_like(positive))  # [B]

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """No optimiser groups: nothing here is learned."""
        return []

    def after_step(self) -> None:
        """Do nothing: there is nothing to keep in range."""
