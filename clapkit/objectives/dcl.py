"""DCL, decoupled contrastive learning: InfoNCE whose pair does not compete with itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.infonce import DEFAULT_TAU
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives
from clapkit.objectives.temperature import Temperature, TemperatureKind, make_temperature
from clapkit.types import LossOutput

DEFAULT_SIGMA = 0.5
"""Of the paper."""


def build(
    *,
    weighted: bool = False,
    sigma: float = DEFAULT_SIGMA,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    schedule: nn.Module | None = None,
) -> DCL:
    """Make the objective.

    Args:
        weighted: let pairs that are less similar than the others pull harder (DCLW).
        sigma: how much similarity makes how much of a difference to the weights; small is steep.
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned; 0.07.
        schedule: gives every anchor its temperature, instead of ``temperature`` and ``tau``.

    Raises:
        ConfigError: if an option is out of its range, or ``tau`` is given beside a schedule.
    """
    require(0 < sigma < math.inf, f"sigma={sigma}: expected more than 0, for example {DEFAULT_SIGMA}")
    require(weighted or sigma == DEFAULT_SIGMA, f"sigma={sigma}: without weighted=true there are no weights; leave it out")
    return DCL(make_temperature(temperature, tau, schedule, default=DEFAULT_TAU), sigma if weighted else None)


class DCL(nn.Module):
    """InfoNCE without the pair in its own denominator, averaged over both directions.

    ``L_i = -w_i s_ii / tau + logsumexp_{j != i} s_ij / tau`` with ``w_i = 1``, or for DCLW
    ``w_i = 2 - B softmax_i(s_ii / sigma)``, 1 on average. InfoNCE is ``softplus(L_i)``, so its gradient is that of DCL times
    ``1 - P_ii``: a factor that starves small batches, whose negatives are soon beaten.

    Positives off the diagonal are no negatives. A row without negatives only pulls its pair, which is what remains of the
    gradient when negatives become ever more dissimilar: the pull of DCL never depends on them.

    Reference: Yeh et al., Decoupled contrastive learning, 2022, arXiv 2110.06848. Deviations: cross-modal negatives only;
    a learned temperature; w carries no gradient, so that no pair lowers the loss by changing what another one counts (the
    paper does not say; public code lets the gradient through).

    Args:
        temperature: scales the similarities.
        sigma: of the weights; None for weights 1.
    """

    def __init__(self, temperature: Temperature, sigma: float | None) -> None:
        super().__init__()
        self.temperature = temperature
        self.sigma = sigma

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            similarity = cosine(text, audio)  # [B, B], rows are texts
            scale = self.temperature.scale(index, progress, dtype=similarity.dtype)
            total, terms = self.both_directions(similarity, positives, scale)
            stats = self.stats(similarity, index, progress) | {"infonce": infonce_of(similarity, positives, scale)}
            return loss_output(total, terms, stats)

    def both_directions(self, similarity: Tensor, positives: Tensor, scale: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, from similarities [B, B] with texts in rows."""
        text_to_audio = self.one_direction(similarity, positives, scale)
        audio_to_text = self.one_direction(similarity.T, positives.T, scale)
        return (text_to_audio + audio_to_text) / 2, {"t2a": text_to_audio, "a2t": audio_to_text}

    def one_direction(self, similarity: Tensor, positives: Tensor, scale: Tensor | float) -> Tensor:
        """Mean of ``L_i`` over the rows; below 0 where pairs are far ahead of their negatives.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal.
            positives: bool [B, B], likewise.
            scale: 1 / tau, one number or [B, 1].

        Returns:
            Scalar, nats.
        """
        pull, push = pull_and_push(similarity, positives, scale)  # [B], [B]
        push = torch.where(push > -math.inf, push, 0.0)
        return (push - self.weights(similarity) * pull).mean()

    def weights(self, similarity: Tensor) -> Tensor | float:
        """The weights w of the pairs: [B], no gradient.

        A pair whose share of the softmax is more than 2 / B has a negative weight and is pushed apart.
        """
        if self.sigma is None:
            return 1.0
        pairs = similarity.diagonal().detach()  # [B]
        return 2.0 - pairs.shape[0] * (pairs / self.sigma).softmax(dim=0)

    def stats(self, similarity: Tensor, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """The temperature, the mean cosine of the pairs and, for DCLW, the lowest weight."""
        stats = {**self.temperature.stats(index, progress), "positive_cosine": similarity.diagonal().mean()}
        weights = self.weights(similarity)
        return stats | {"lowest_weight": weights.min()} if isinstance(weights, Tensor) else stats

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.temperature.param_groups(lr)

    def after_step(self) -> None:
        """Keep the scale in its range."""
        self.temperature.after_step()


def pull_and_push(similarity: Tensor, positives: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """What pulls every anchor to its pair and what pushes it from its negatives.

    Args:
        similarity: [B, B], rows are anchors.
        positives: bool [B, B], likewise.
        scale: 1 / tau, one number or [B, 1].

    Returns:
        ``s_ii / tau`` [B] and ``logsumexp_j s_ij / tau`` over the negatives j [B], minus infinity where there are none.
    """
    logits = scale * similarity  # [B, B]
    return logits.diagonal(), logits.masked_fill(no_negatives(positives), -math.inf).logsumexp(dim=1)


@torch.no_grad()
def infonce_of(similarity: Tensor, positives: Tensor, scale: Tensor | float) -> Tensor:
    """InfoNCE of both directions, for the log: unlike DCL it ends at 0, so that runs can be compared.

    Args:
        similarity: [B, B], rows are texts.
        positives: bool [B, B], likewise.
        scale: 1 / tau, one number or [B, 1].

    Returns:
        Scalar, nats.
    """
    directions = [pull_and_push(s, p, scale) for s, p in ((similarity, positives), (similarity.T, positives.T))]
    return torch.stack([softplus(push - pull).mean() for pull, push in directions]).mean()
