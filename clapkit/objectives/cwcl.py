"""CWCL, continuously weighted contrastive loss: soft targets from the geometry of frozen features."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from clapkit.errors import ConfigError
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require, require_choice
from clapkit.objectives.infonce import DEFAULT_TAU, InfoNCE
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives
from clapkit.objectives.temperature import TemperatureKind, make_temperature
from clapkit.types import LossOutput

Kernel = Literal["affine", "exp"]
Side = Literal["text", "audio"]

DEFAULT_KERNEL_TEMPERATURE = 0.1


def build(
    *,
    kernel: Kernel = "affine",
    kernel_temperature: float = DEFAULT_KERNEL_TEMPERATURE,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    schedule: nn.Module | None = None,
    features: Tensor | None = None,
    side: Side = "text",
) -> CWCL:
    """Make the objective.

    Args:
        kernel: from the cosine c of two frozen features to a weight: ``affine``, (1 + c) / 2 (the paper), or ``exp``,
            exp((c - 1) / kernel_temperature).
        kernel_temperature: of the kernel ``exp``; small keeps the weight of all but the closest rows near 0.
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned; 0.07.
        schedule: gives every anchor its temperature, instead of ``temperature`` and ``tau``.
        features: frozen features [num_rows, d], one unit-norm row for each training row; from ``clapkit train``.
        side: what the features describe, ``text`` or ``audio``; anchors of this side have soft targets.

    Raises:
        ConfigError: if an option is out of its range, ``tau`` is given beside a schedule, or there are no features.
    """
    require_choice("kernel", kernel, Kernel)
    require_choice("side", side, Side)
    given = f"kernel_temperature={kernel_temperature}"
    require(0 < kernel_temperature < math.inf, f"{given}: expected more than 0, for example {DEFAULT_KERNEL_TEMPERATURE}")
    is_default = kernel_temperature == DEFAULT_KERNEL_TEMPERATURE
    require(kernel == "exp" or is_default, f"{given}: kernel={kernel} has no temperature; set kernel=exp or leave it out")
    if features is None:
        raise ConfigError(
            "cwcl: no features to take targets from; clapkit train supplies them, else pass features=[num_rows, d]"
        )
    infonce = InfoNCE(make_temperature(temperature, tau, schedule, default=DEFAULT_TAU), "ignore")
    return CWCL(infonce, checked_features(features), side, kernel, kernel_temperature)


def checked_features(features: Tensor) -> Tensor:
    """Give back detached features whose rows have unit norm, or norm 0: a caption without a known word is like no other.

    Raises:
        ConfigError: if they are something else.
    """
    is_table = features.ndim == 2 and features.is_floating_point() and features.shape[0] > 0
    require(is_table, f"features is {features.dtype} {list(features.shape)}; expected floats [num_rows, d]")
    norm = features.detach().float().norm(dim=1)  # [num_rows]
    fits = ((norm - 1).abs() < 1e-2) | (norm == 0)  # half precision is good to 1e-3
    if not fits.all():
        row = int(fits.to(torch.uint8).argmin())
        raise ConfigError(f"features: row {row} has norm {float(norm[row]):.4g}; expected 1, divide each row by its norm")
    return features.detach()


class CWCL(nn.Module):
    """Cross-entropy with targets as similar to each other as the anchors are in a frozen embedding space.

    With p_i the frozen features of anchor i, ``w_ij = (1 + cos(p_i, p_j)) / 2`` and ``w_ii = 1``, anchors of the frozen
    side have ``L = -mean_i (1 / sum_j w_ij) sum_j w_ij log softmax_j(s_ij / tau)``; the other direction is InfoNCE. The
    loss is the mean of both. Further positives have ``w_ij = 1`` too; in the direction of InfoNCE they are masked.

    Reference: Srinivasa et al., CWCL: cross-modal transfer with continuously weighted contrastive loss, 2023,
    arXiv 2309.14580. Deviations: mean over directions where the paper has the sum; the kernel ``exp``. The features need
    not be those of the tower that is trained.

    Args:
        infonce: the loss of the other direction, with the temperature of both.
        features: [num_rows, d], unit norm or 0; not in the state dict, because they come from the training set.
        side: whose anchors have soft targets.
        kernel: from cosine to weight.
        kernel_temperature: of the kernel ``exp``.
    """

    features: Tensor

    def __init__(self, infonce: InfoNCE, features: Tensor, side: Side, kernel: Kernel, kernel_temperature: float) -> None:
        super().__init__()
        self.infonce = infonce
        self.register_buffer("features", features, persistent=False)
        self.side = side
        self.kernel = kernel
        self.kernel_temperature = kernel_temperature

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            soft, hard = ("t2a", "a2t") if self.side == "text" else ("a2t", "t2a")
            anchors, candidates = (text, audio) if self.side == "text" else (audio, text)
            similarity = cosine(anchors, candidates)  # [B, B], rows are anchors of the frozen side
            rows = positives if self.side == "text" else positives.T
            scale = self.infonce.temperature.scale(index, progress, dtype=similarity.dtype)
            targets = self.targets(index, rows, similarity)
            terms = {
                soft: soft_cross_entropy(scale * similarity, targets),
                hard: self.infonce.one_direction(similarity.T, rows.T, scale),
            }
            stats = self.infonce.stats(similarity, index, progress) | {"effective_positives": effective_positives(targets)}
            return loss_output((terms["t2a"] + terms["a2t"]) / 2, terms, stats)

    @torch.no_grad()
    def targets(self, index: Tensor, positives: Tensor, like: Tensor) -> Tensor:
        """Soft targets of the anchors on the frozen side.

        Args:
            index: int64 [B], training rows.
            positives: bool [B, B], anchors in rows.
            like: a tensor of the wanted type.

        Returns:
            [B, B], rows sum to 1, no gradient.
        """
        frozen = self.features[index].to(like.dtype)  # [B, d]
        weights = kernel_weights(cosine(frozen, frozen), self.kernel, self.kernel_temperature)  # [B, B]
        weights = weights.masked_fill(no_negatives(positives), 1.0)
        return weights / weights.sum(dim=1, keepdim=True)

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.infonce.param_groups(lr, weight_decay)

    def after_step(self) -> None:
        """Keep the scale in its range."""
        self.infonce.after_step()


def kernel_weights(cosines: Tensor, kernel: Kernel, kernel_temperature: float) -> Tensor:
    """Weights in [0, 1] from cosines, 1 for equal features.

    ``affine`` is soft: unrelated rows weigh 0.5, so that a pair in a batch of 24 keeps 1 / (1 + 23 / 2) = 8 % of its
    target. Under ``exp`` with temperature 0.1 unrelated rows weigh exp(-10).

    Args:
        cosines: any shape; rounding may carry them a little beyond [-1, 1].
        kernel: which one.
        kernel_temperature: of ``exp``.

    Returns:
        As ``cosines``.
    """
    cosines = cosines.clamp(-1.0, 1.0)
    return (1.0 + cosines) / 2.0 if kernel == "affine" else ((cosines - 1.0) / kernel_temperature).exp()


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of rows of logits [B, B] under rows of targets [B, B] that sum to 1: a scalar, nats."""
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


def effective_positives(targets: Tensor) -> Tensor:
    """How many positives the targets [B, B] amount to, ``exp(entropy)``, on average: 1 for one, B for an even spread."""
    entropy: Tensor = torch.special.entr(targets).sum(dim=1)  # [B]
    return entropy.exp().mean()
