"""Decoupled softmax: InfoNCE for several positives that do not compete with each other."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn.functional import softplus

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output
from clapkit.objectives.infonce import DEFAULT_TAU
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives, uniform_targets
from clapkit.objectives.temperature import Temperature, TemperatureKind, make_temperature
from clapkit.types import LossOutput


def build(
    *, temperature: TemperatureKind = "learnable", tau: float | None = None, schedule: nn.Module | None = None
) -> Decoupled:
    """Make the objective.

    Args:
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned; 0.07.
        schedule: gives every anchor its temperature, instead of ``temperature`` and ``tau``.

    Raises:
        ConfigError: if an option is out of its range, or ``tau`` is given beside a schedule.
    """
    return Decoupled(make_temperature(temperature, tau, schedule, default=DEFAULT_TAU))


class Decoupled(nn.Module):
    """Cross-entropy of each positive against the negatives alone, averaged over positives and both directions.

    ``L_i = mean_{p in Pos(i)} [ -s_ip / tau + log( exp(s_ip / tau) + sum_{n in Neg(i)} exp(s_in / tau) ) ]``
    ``    = mean_p softplus( logsumexp_n s_in / tau - s_ip / tau )``.

    A softmax with its target shared among positives also asks them to be equally similar, and each to lose to the others.
    Here the gradient of one positive does not depend on the scores of the others. With one positive it is InfoNCE.

    Reference: Gupta et al., Dual-encoders for extreme multi-label classification, 2024, arXiv 2310.10636; without its
    extension to the top k.

    Args:
        temperature: scales the similarities.
    """

    def __init__(self, temperature: Temperature) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            similarity = cosine(text, audio)  # [B, B], rows are texts
            total, terms = self.both_directions(
                similarity, positives, self.temperature.scale(index, progress, dtype=similarity.dtype)
            )
            num_positives = no_negatives(positives).sum(dim=1).to(similarity.dtype).mean()
            stats = self.stats(similarity, index, progress) | {"positives_per_anchor": num_positives}
            return loss_output(total, terms, stats)

    def both_directions(self, similarity: Tensor, positives: Tensor, scale: Tensor | float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, from similarities [B, B] with texts in rows."""
        text_to_audio = self.one_direction(similarity, positives, scale)
        audio_to_text = self.one_direction(similarity.T, positives.T, scale)
        return (text_to_audio + audio_to_text) / 2, {"t2a": text_to_audio, "a2t": audio_to_text}

    def one_direction(self, similarity: Tensor, positives: Tensor, scale: Tensor | float) -> Tensor:
        """Mean of ``L_i`` over the rows; a row without negatives has nothing to beat and counts 0.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal.
            positives: bool [B, B], likewise.
            scale: 1 / tau, one number or [B, 1].

        Returns:
            Scalar, nats.
        """
        logits = scale * similarity  # [B, B]
        negatives = logits.masked_fill(no_negatives(positives), -math.inf).logsumexp(dim=1, keepdim=True)  # [B, 1]
        losses = softplus(negatives - logits)  # [B, B], read at the positives only
        return (uniform_targets(positives, logits) * losses).sum(dim=1).mean()

    def stats(self, similarity: Tensor, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """The temperature and the mean cosine of the pairs."""
        return {**self.temperature.stats(index, progress), "positive_cosine": similarity.diagonal().mean()}

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.temperature.param_groups(lr)

    def after_step(self) -> None:
        """Keep the scale in its range."""
        self.temperature.after_step()
