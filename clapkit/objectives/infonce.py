"""InfoNCE: the symmetric softmax loss of CLIP and CLAP."""

from __future__ import annotations

import math

from torch import Tensor, nn

from clapkit.errors import ShapeError
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require_choice
from clapkit.objectives.row_blocks import MOST_ROWS, mean_over_rows, needs_blocks, pair_cosines, weighted_mean
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import SoftmaxPolicy, further_positives, uniform_targets
from clapkit.objectives.temperature import Temperature, TemperatureKind, make_temperature
from clapkit.objectives.transport import Rectification, make_rectification, transport_plan
from clapkit.types import LossOutput

DEFAULT_TAU = 0.07


def build(
    *,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    targets: SoftmaxPolicy = "ignore",
    ot_share: float | None = None,
    ot_eps: float | None = None,
    schedule: nn.Module | None = None,
) -> InfoNCE:
    """Make the objective.

    Args:
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned; 0.07.
        targets: what happens to further positives of a row: ``ignore`` masks them, ``soft`` shares the target evenly, ``ot``
            does so too and then takes a share of the target to where an optimal transport plan of the batch puts it.
        ot_share: with ``ot``, that share; 0.3.
        ot_eps: with ``ot``, how much the plan is spread; 0.05.
        schedule: gives every anchor its temperature, instead of ``temperature`` and ``tau``.

    Raises:
        ConfigError: if an option is out of its range, or has no meaning beside the others.
    """
    require_choice("targets", targets, SoftmaxPolicy)
    scaling = make_temperature(temperature, tau, schedule, default=DEFAULT_TAU)
    return InfoNCE(scaling, targets, make_rectification(targets, ot_share, ot_eps))


class InfoNCE(nn.Module):
    """Cross-entropy of picking the own partner out of the batch, averaged over both directions.

    ``L = (L_t2a + L_a2t) / 2`` with ``L_t2a = mean_i [ -s_ii / tau + logsumexp_j s_ij / tau ]``.

    Reference: van den Oord et al., Representation learning with contrastive predictive coding, 2018, arXiv 1807.03748;
    symmetric form with a learned scale: Radford et al., CLIP, 2021, arXiv 2103.00020.

    Args:
        temperature: scales the similarities.
        targets: the policy for further positives.
        rectification: of the targets, for the policy ``ot``.
    """

    def __init__(self, temperature: Temperature, targets: SoftmaxPolicy, rectification: Rectification | None = None) -> None:
        super().__init__()
        assert (targets == "ot") == (rectification is not None), targets
        self.temperature = temperature
        self.targets = targets
        self.rectification = rectification

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        weights: Tensor | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``weights`` [B]: how much each pair counts, in both directions.

        Raises:
            ShapeError: if the shapes differ, B < 2, or B is too large for the policy ``ot``.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            scale = self.temperature.scale(index, progress, dtype=text.dtype)
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
        """The loss and its terms, from similarities [B, B] with texts in rows; see ``one_direction``.

        A ``scale`` [B, 1] and ``weights`` [B] are those of the rows in both directions: a pair has one temperature and one
        weight, whichever side is its anchor. The policy ``ot`` has one ``plan`` for both, made here unless it is given.
        """
        plan = self.plan(similarity) if plan is None else plan
        text_to_audio = self.one_direction(similarity, positives, scale, weights, plan)
        audio_to_text = self.one_direction(similarity.T, positives.T, scale, weights, None if plan is None else plan.T)
        return (text_to_audio + audio_to_text) / 2, {"t2a": text_to_audio, "a2t": audio_to_text}

    def both_in_blocks(
        self, text: Tensor, audio: Tensor, positives: Tensor, scale: Tensor | float, weights: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As ``both_directions``, from the embeddings of a large batch, [B, D] each.

        Raises:
            ShapeError: for the policy ``ot``, whose plan is one of all pairs.
        """
        if self.rectification is not None:
            raise ShapeError(
                f"targets=ot: a batch of {len(text)} pairs is scored in blocks of rows, its plan needs the whole matrix; "
                f"expected at most {MOST_ROWS} pairs, lower --batch-size or choose other targets"
            )
        text_to_audio = mean_over_rows(self.one_direction, text, audio, positives, scale, weights)
        audio_to_text = mean_over_rows(self.one_direction, audio, text, positives.T, scale, weights)
        return (text_to_audio + audio_to_text) / 2, {"t2a": text_to_audio, "a2t": audio_to_text}

    def plan(self, similarity: Tensor) -> Tensor | None:
        """For the policy ``ot``, where the batch [B, B] would put the targets: [B, B], no gradient; else None."""
        rectification = self.rectification
        return None if rectification is None else transport_plan(similarity.detach(), eps=rectification.eps)

    def one_direction(
        self,
        similarity: Tensor,
        positives: Tensor,
        scale: Tensor | float,
        weights: Tensor | None = None,
        plan: Tensor | None = None,
    ) -> Tensor:
        """Mean cross-entropy of the rows.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal; or [R, B], a block of rows.
            positives: bool, likewise.
            scale: 1 / tau, a scalar or [B, 1] with that of each anchor; from ``temperature.scale``.
            weights: [B], how much each row counts; 1 unless given.
            plan: [B, B] of the policy ``ot``, rows are anchors; that of ``similarity`` unless given.

        Returns:
            Scalar, nats.
        """
        logits = scale * similarity  # [B, B]
        if self.rectification is not None:
            plan = self.plan(similarity) if plan is None else plan
            assert plan is not None
            wanted = (self.rectification.targets(positives, plan) * logits).sum(dim=1)  # [B]
        elif self.targets == "soft":
            wanted = (uniform_targets(positives, logits) * logits).sum(dim=1)  # [B]
        else:
            wanted = logits.diagonal().clone()  # [B], its own memory: the mask is written into the logits
            # Minus infinity before the normalisation: a mask behind the softmax leaves the masked mass in the sum.
            logits.masked_fill_(further_positives(positives), -math.inf)
        return weighted_mean(logits.logsumexp(dim=1) - wanted, weights)

    def stats(self, similarity: Tensor, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """The temperature and the mean cosine of the pairs."""
        return self.pair_stats(similarity.diagonal(), index, progress)

    def pair_stats(self, cosines: Tensor, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """As ``stats``, from the cosines of the pairs [B]."""
        return {**self.temperature.stats(index, progress), "positive_cosine": cosines.mean()}

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.temperature.param_groups(lr)

    def after_step(self) -> None:
        """Keep the scale in its range."""
        self.temperature.after_step()
