"""M3CoL, mixup contrast: mixtures of two embeddings have two partners, each to its share."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.cwcl import effective_positives, soft_cross_entropy
from clapkit.objectives.dcl import infonce_of
from clapkit.objectives.draws import Draws, by_row
from clapkit.objectives.similarity import cosine, smooth_norm
from clapkit.objectives.targets import no_negatives, uniform_targets
from clapkit.objectives.temperature import Temperature, TemperatureKind, make_temperature
from clapkit.types import LossOutput

DEFAULT_TAU = 0.1
"""Of the paper."""


def build(
    *,
    beta: float = 0.15,
    mix_share: float = 0.5,
    mix_until: float = 0.33,
    target_temperature: float = 0.125,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    schedule: nn.Module | None = None,
) -> M3CoL:
    """Make the objective.

    Args:
        beta: shares are drawn from Beta(beta, beta); small leaves most mixtures close to one of the two.
        mix_share: of the rows that are mixed; 0 for none.
        mix_until: share of the training that mixes; behind it, targets are soft.
        target_temperature: of the soft targets; small is close to one partner each.
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned; 0.1.
        schedule: gives every anchor its temperature, instead of ``temperature`` and ``tau``.

    Raises:
        ConfigError: if an option is out of its range, or ``tau`` is given beside a schedule.
    """
    for name, value, example in (("beta", beta, 0.15), ("target_temperature", target_temperature, 0.125)):
        require(0 < value < math.inf, f"{name}={value}: expected more than 0, for example {example}")
    for name, value in (("mix_share", mix_share), ("mix_until", mix_until)):
        require(0 <= value <= 1, f"{name}={value}: expected a share from 0 to 1")
    scale = make_temperature(temperature, tau, schedule, default=DEFAULT_TAU)
    return M3CoL(scale, beta, mix_share, mix_until, target_temperature)


class M3CoL(nn.Module):
    """Cross-entropy of mixtures with two partners each, later of pairs with soft targets.

    First, clips are mixed, ``a~_i = norm(lam_i a_i + (1 - lam_i) a_pi(i))`` with a random permutation pi, and have the targets
    ``Y = lam_i U_i + (1 - lam_i) U_pi(i)`` among the texts, U the targets of infonce with ``targets=soft``: the identity
    without further positives. The loss is the mean over both directions of the cross-entropy with Y and Y^T, and over mixed
    clips against texts and mixed texts against clips. Later, both directions of the plain cosines have the targets
    ``softmax_j(t_i.t_j / target_temperature)``, in which further positives have cosine 1, without gradient.

    Rows of Y sum to 1 also where pi(i) = i. Those of Y^T do not: a text counts as much as there is of its clip.

    Reference: Kumar et al., Harnessing shared relations via multimodal mixup contrastive learning, 2024, arXiv 2409.17777.
    Deviations: embeddings are mixed instead of inputs; no classifier, and so no weight beside its loss; a learned temperature.

    Args:
        temperature: scales the similarities.
        beta: of the shares.
        mix_share: of the rows.
        mix_until: share of the training.
        target_temperature: of the soft targets.
    """

    def __init__(
        self, temperature: Temperature, beta: float, mix_share: float, mix_until: float, target_temperature: float
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.beta = beta
        self.mix_share = mix_share
        self.mix_until = mix_until
        self.target_temperature = target_temperature
        self.draws = Draws()

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            scale = self.temperature.scale(index, progress, dtype=text.dtype)
            if progress < self.mix_until:
                terms, targets = self.mixed(audio, text, positives, index, scale)
            else:
                terms, targets = self.soft(audio, text, positives, scale)
            similarity = cosine(text, audio).detach()  # [B, B], rows are texts
            stats = {
                **self.temperature.stats(index, progress),
                "positive_cosine": similarity.diagonal().mean(),
                "infonce": infonce_of(similarity, positives, scale),
                "effective_positives": effective_positives(targets),
            }
            return loss_output(torch.stack(list(terms.values())).mean(), terms, stats)

    def mixed(
        self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, scale: Tensor | float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the first phase, and targets [B, B] of the texts."""
        generator, terms = self.draws.generator(index), {}
        for name, mixing, others, rows in (("mixed_audio", audio, text, positives.T), ("mixed_text", text, audio, positives)):
            partner, share = draw_mixture(generator, index, beta=self.beta, mix_share=self.mix_share, like=text)
            targets = mixed_targets(uniform_targets(rows, text), partner, share)  # [B, B], rows are mixtures
            similarity = cosine(mix(mixing, partner, share), others)  # [B, B], likewise
            there = soft_cross_entropy(scale * similarity, targets)
            terms[name] = (there + soft_cross_entropy(scale * similarity.T, targets.T)) / 2
        return terms, targets

    def soft(self, audio: Tensor, text: Tensor, positives: Tensor, scale: Tensor | float) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the second phase, and targets [B, B]."""
        similarity = cosine(text, audio)  # [B, B], rows are texts
        targets = soft_targets(text, positives, self.target_temperature)
        terms = {
            "t2a": soft_cross_entropy(scale * similarity, targets),
            "a2t": soft_cross_entropy(scale * similarity.T, targets),
        }
        return terms, targets

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.temperature.param_groups(lr)

    def after_step(self) -> None:
        """Keep the scale in its range, and draw something else next time."""
        self.temperature.after_step()
        self.draws.advance()


def draw_mixture(
    generator: np.random.Generator, index: Tensor, *, beta: float, mix_share: float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Who is mixed with whom, and how much of it is left.

    Args:
        generator: draws.
        index: int64 [B], training rows.
        beta: of the shares.
        mix_share: of the rows that are mixed; the others have share 1.
        like: a tensor of the wanted type and device.

    Returns:
        A permutation int64 [B], which may leave rows where they are, and shares [B] in [0, 1].
    """
    batch_size = len(index)
    order = index.argsort(stable=True)  # [B]
    sorted_partner = torch.from_numpy(generator.permutation(batch_size)).to(index.device)
    partner = torch.empty_like(order)
    partner[order] = order[sorted_partner]
    share = np.where(generator.random(batch_size) < mix_share, generator.beta(beta, beta, batch_size), 1.0)
    return partner, by_row(share, index, like=like)


def mix(vectors: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Unit-norm mixtures [B, D] of every vector with its partner's; vectors with share 1 stay as they are."""
    mixture = share[:, None] * vectors + (1 - share[:, None]) * vectors[partner]  # [B, D]
    length = torch.where(share < 1, smooth_norm(mixture), 1.0)
    return mixture / length[:, None]


def mixed_targets(targets: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Targets [B, B] of mixtures from those of what was mixed.

    Rows are added, not written over each other, so that they sum to 1 where a row is its own partner.
    """
    return share[:, None] * targets + (1 - share[:, None]) * targets[partner]


@torch.no_grad()
def soft_targets(text: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """Targets by how similar the texts are, [B, B]; rows sum to 1, positives have cosine 1, no gradient."""
    return (cosine(text, text).masked_fill(no_negatives(positives), 1.0) / temperature).softmax(dim=1)
