"""InfoNCE: the symmetric softmax loss of CLIP and CLAP."""

from __future__ import annotations

import math

from torch import Tensor, nn

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import Policy, check_policy, further_positives, uniform_targets
from clapkit.objectives.temperature import Schedule, Temperature
from clapkit.types import LossOutput


def build(*, temperature: Schedule = "learnable", tau: float = 0.07, targets: Policy = "ignore") -> InfoNCE:
    """Make the objective.

    Args:
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned.
        targets: what happens to further positives of a row: ``ignore`` masks them, ``soft`` shares the target evenly.

    Raises:
        ConfigError: if an option is out of its range.
    """
    return InfoNCE(Temperature(tau, temperature), check_policy(targets))


class InfoNCE(nn.Module):
    """Cross-entropy of picking the own partner out of the batch, averaged over both directions.

    ``L = (L_t2a + L_a2t) / 2`` with ``L_t2a = mean_i [ -s_ii / tau + logsumexp_j s_ij / tau ]``.

    Reference: van den Oord et al., Representation learning with contrastive predictive coding, 2018, arXiv 1807.03748;
    symmetric form with a learned scale: Radford et al., CLIP, 2021, arXiv 2103.00020.

    Args:
        temperature: scales the similarities.
        targets: the policy for further positives.
    """

    def __init__(self, temperature: Temperature, targets: Policy) -> None:
        super().__init__()
        self.temperature = temperature
        self.targets = targets

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            similarity = cosine(text, audio)  # [B, B], rows are texts
            total, terms = self.both_directions(similarity, positives)
            return loss_output(total, terms, self.stats(similarity))

    def both_directions(self, similarity: Tensor, positives: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, from similarities [B, B] with texts in rows."""
        text_to_audio = self.one_direction(similarity, positives)
        audio_to_text = self.one_direction(similarity.T, positives.T)
        return (text_to_audio + audio_to_text) / 2, {"t2a": text_to_audio, "a2t": audio_to_text}

    def one_direction(self, similarity: Tensor, positives: Tensor) -> Tensor:
        """Mean cross-entropy of the rows.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal.
            positives: bool [B, B], likewise.

        Returns:
            Scalar, nats.
        """
        logits = self.temperature.scale() * similarity  # [B, B]
        if self.targets == "soft":
            wanted = (uniform_targets(positives, logits) * logits).sum(dim=1)  # [B]
        else:
            wanted = logits.diagonal().clone()  # [B], its own memory: the mask is written into the logits
            # Minus infinity before the normalisation: a mask behind the softmax leaves the masked mass in the sum.
            logits.masked_fill_(further_positives(positives), -math.inf)
        return (logits.logsumexp(dim=1) - wanted).mean()

    def stats(self, similarity: Tensor) -> dict[str, Tensor | float]:
        """The temperature and the mean cosine of the pairs."""
        return {"temperature": self.temperature.value(), "positive_cosine": similarity.diagonal().mean()}

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.temperature.param_groups(lr)

    def after_step(self) -> None:
        """Keep the scale in its range."""
        self.temperature.after_step()
