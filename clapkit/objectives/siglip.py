"""SigLIP: every pair of the batch is its own yes-or-no question."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from clapkit.objectives.contract import (
    ParamGroup,
    check_batch,
    full_precision,
    loss_output,
    require,
    undecayed_group,
)
from clapkit.objectives.row_blocks import mean_over_rows, needs_blocks, pair_cosines, weighted_mean
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import Policy, check_policy, further_positives, no_negatives
from clapkit.objectives.temperature import Temperature, TemperatureKind
from clapkit.types import LossOutput


def build(
    *,
    temperature: TemperatureKind = "learnable",
    tau: float = 0.1,
    bias_init: Literal["auto"] | float = "auto",
    targets: Policy = "ignore",
) -> SigLIP:
    """Make the objective.

    Args:
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned.
        bias_init: where the learned bias starts; ``auto`` is ``-ln(B - 1)``, the log odds of a positive in a batch of B
            (the paper's -10 is meant for batches of thousands).
        targets: what happens to further positives of a row: ``ignore`` gives them weight 0, ``soft`` label +1.

    Raises:
        ConfigError: if an option is out of its range.
    """
    is_number = not isinstance(bias_init, str) and math.isfinite(bias_init)
    require(bias_init == "auto" or is_number, f"bias_init={bias_init}: expected auto or a finite number")
    return SigLIP(Temperature(tau, temperature), bias_init, check_policy(targets))


class SigLIP(nn.Module):
    """Logistic loss on all B x B pairs, divided by B.

    ``L = (1 / B) sum_ij softplus(-y_ij z_ij)`` with ``z_ij = s_ij / tau + b``, ``y_ij`` +1 for pairs and -1 for others.

    Reference: Zhai et al., Sigmoid loss for language image pre-training, 2023, arXiv 2303.15343. Deviation: with
    ``bias_init="auto"`` the learned ``bias`` starts at 0 and ``-ln(B - 1)`` of the present batch is added to it. For a
    constant B this is a bias that starts at ``-ln(B - 1)``, without a first batch to remember when a run is resumed.

    Args:
        temperature: scales the similarities.
        bias_init: where the bias starts.
        targets: the policy for further positives.
    """

    def __init__(self, temperature: Temperature, bias_init: Literal["auto"] | float, targets: Policy) -> None:
        super().__init__()
        self.temperature = temperature
        self.adds_log_prior = bias_init == "auto"
        self.bias = nn.Parameter(torch.tensor(0.0 if isinstance(bias_init, str) else float(bias_init)))
        self.targets = targets

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
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            scale = self.temperature.scale(index, progress)
            if needs_blocks(text):
                total, terms = self.both_in_blocks(text, audio, positives, scale, weights)
                return loss_output(total, terms, self.pair_stats(pair_cosines(audio, text), index, progress))
            similarity = cosine(text, audio)  # [B, B], rows are texts
            total, terms = self.both_directions(similarity, positives, scale, weights)
            return loss_output(total, terms, self.stats(similarity, index, progress))

    def both_directions(
        self,
        similarity: Tensor,
        positives: Tensor,
        scale: Tensor | float,
        weights: Tensor | None = None,
        plan: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its one term; the sigmoid loss is the same from both sides.

        With ``weights`` [B] it is the mean of both: an entry counts with the mean weight of its text and its clip.
        """
        assert plan is None, "there is no target to be moved from one candidate to another"
        loss = self.one_direction(similarity, positives, scale, weights)
        if weights is not None:
            loss = (loss + self.one_direction(similarity.T, positives.T, scale, weights)) / 2
        return loss, {"siglip": loss}

    def both_in_blocks(
        self, text: Tensor, audio: Tensor, positives: Tensor, scale: Tensor | float, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As ``both_directions``, from the embeddings of a large batch, [B, D] each."""
        loss = mean_over_rows(self.one_direction, text, audio, positives, scale, weights)
        if weights is not None:
            loss = (loss + mean_over_rows(self.one_direction, audio, text, positives.T, scale, weights)) / 2
        return loss, {"siglip": loss}

    def plan(self, similarity: Tensor) -> None:
        """None: a sigmoid asks every entry on its own, there is no target to be moved from one candidate to another."""

    def one_direction(
        self,
        similarity: Tensor,
        positives: Tensor,
        scale: Tensor | float,
        weights: Tensor | None = None,
        plan: Tensor | None = None,
    ) -> Tensor:
        """Logistic loss of all entries, divided by the number of rows.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal; or [R, B], a block of rows.
            positives: bool, likewise.
            scale: 1 / tau, from ``temperature.scale``.
            weights: [B], how much each row counts; 1 unless given.
            plan: None, see ``plan``.

        Returns:
            Scalar, nats per pair.
        """
        assert plan is None, "there is no target to be moved from one candidate to another"
        logits = scale * similarity + self.offset(similarity.shape[1])  # [B, B]
        losses = softplus(torch.where(no_negatives(positives), -logits, logits))  # [B, B]
        if self.targets == "ignore":
            losses = losses.masked_fill(further_positives(positives), 0.0)
        return losses.sum() / similarity.shape[0] if weights is None else weighted_mean(losses.sum(dim=1), weights)

    def offset(self, batch_size: int) -> Tensor:
        """The bias b that goes into the logits of a batch of B."""
        return self.bias - math.log(batch_size - 1) if self.adds_log_prior else self.bias

    def stats(self, similarity: Tensor, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """The temperature, the bias and the mean cosine of the pairs."""
        return self.pair_stats(similarity.diagonal(), index, progress)

    def pair_stats(self, cosines: Tensor, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """As ``stats``, from the cosines of the pairs [B]."""
        bias = self.offset(cosines.shape[0])
        return {**self.temperature.stats(index, progress), "bias": bias, "positive_cosine": cosines.mean()}

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return [*self.temperature.param_groups(lr), undecayed_group("bias", [self.bias], lr)]

    def after_step(self) -> None:
        """Keep the scale in its range."""
        self.temperature.after_step()
