"""MoCHi, hard negative mixing: InfoNCE against negatives that are harder than those in the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.dcl import infonce_of
from clapkit.objectives.draws import Draws, by_row
from clapkit.objectives.infonce import DEFAULT_TAU
from clapkit.objectives.similarity import EPSILON, cosine
from clapkit.objectives.targets import further_positives, no_negatives
from clapkit.objectives.temperature import Temperature, TemperatureKind, make_temperature
from clapkit.types import LossOutput


def build(
    *,
    num_hardest: int | None = None,
    num_mixed: int | None = None,
    num_query_mixed: int | None = None,
    start: float = 0.2,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    schedule: nn.Module | None = None,
) -> MoCHi:
    """Make the objective.

    Args:
        num_hardest: how many of the hardest negatives of an anchor are mixed; a quarter of the batch.
        num_mixed: synthetic negatives of an anchor that are mixed from two of them; half of ``num_hardest``.
        num_query_mixed: synthetic negatives that are mixed from one of them and the anchor; half of ``num_hardest``.
        start: share of the training after which there are synthetic negatives.
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``.
        tau: the temperature, at the start where it is learned; 0.07.
        schedule: gives every anchor its temperature, instead of ``temperature`` and ``tau``.

    Raises:
        ConfigError: if an option is out of its range, or ``tau`` is given beside a schedule.
    """
    require(num_hardest is None or num_hardest >= 1, f"num_hardest={num_hardest}: expected at least 1 negative to mix")
    for name, count in (("num_mixed", num_mixed), ("num_query_mixed", num_query_mixed)):
        require(count is None or count >= 0, f"{name}={count}: expected a number of 0 or more")
    require(0 <= start <= 1, f"start={start}: expected a share of the training, from 0 to 1")
    scale = make_temperature(temperature, tau, schedule, default=DEFAULT_TAU)
    return MoCHi(scale, num_hardest, num_mixed, num_query_mixed, start)


class MoCHi(nn.Module):
    """InfoNCE with synthetic negatives in the denominator, averaged over both directions.

    Of the n hardest negatives of an anchor q, two at a time are mixed, ``h = norm(lam n_i + (1 - lam) n_j)`` with lam uniform
    in [0, 1], or one with the anchor, ``h = norm(b q + (1 - b) n_j)`` with b uniform in [0, 1/2], nearer to q than n_j is.
    ``L_i = -s_ii / tau + log( sum_j exp(s_ij / tau) + sum_h exp(q.h / tau) )``. Synthetic negatives are constants: they push
    the anchor, and nothing reaches what they were mixed from. Positives off the diagonal are masked and never mixed.

    Reference: Kalantidis et al., Hard negative mixing for contrastive learning, 2020, arXiv 2010.01028. Deviations: negatives
    of the batch, in both directions, instead of a queue; a share of the training as warm-up.

    Args:
        temperature: scales the similarities.
        num_hardest: n; None for a quarter of the batch.
        num_mixed: of the first kind; None for half of n.
        num_query_mixed: of the second kind; None for half of n.
        start: share of the training without synthetic negatives.
    """

    def __init__(
        self,
        temperature: Temperature,
        num_hardest: int | None,
        num_mixed: int | None,
        num_query_mixed: int | None,
        start: float,
    ) -> None:
        super().__init__()
        self.temperature = temperature
        self.num_hardest = num_hardest
        self.num_mixed = num_mixed
        self.num_query_mixed = num_query_mixed
        self.start = start
        self.draws = Draws()

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            scale = self.temperature.scale(index, progress, dtype=text.dtype)
            hardest, mixed, query_mixed = self.counts(len(text), progress)
            generator = self.draws.generator(index)
            terms, shares = {}, []
            for name, anchors, candidates, rows in (("t2a", text, audio, positives), ("a2t", audio, text, positives.T)):
                pairs = by_row(generator.random((len(text), mixed, 3)), index, like=text)
                singles = by_row(generator.random((len(text), query_mixed, 2)), index, like=text)
                constant = candidates.detach()
                similarity = cosine(anchors, constant)  # [B, B], with gradients to the anchors only
                hard = hardest_negatives(similarity, rows, hardest)
                cosines = [mixed_cosines(similarity, constant, hard, pairs)]
                cosines += [query_mixed_cosines(similarity, anchors, constant, hard, singles)]
                synthetic = scale * torch.cat(cosines, dim=1)  # [B, S]
                synthetic = synthetic.masked_fill(no_negatives(rows).all(dim=1)[:, None], -math.inf)
                terms[name], share = one_direction(cosine(anchors, candidates), synthetic, rows, scale)
                shares.append(share)
            similarity = cosine(text, audio).detach()  # [B, B], rows are texts
            stats = {
                **self.temperature.stats(index, progress),
                "positive_cosine": similarity.diagonal().mean(),
                "infonce": infonce_of(similarity, positives, scale),
                "synthetic_share": torch.stack(shares).mean(),
            }
            return loss_output((terms["t2a"] + terms["a2t"]) / 2, terms, stats)

    def counts(self, batch_size: int, progress: float) -> tuple[int, int, int]:
        """How many negatives are mixed, and into how many of the one and of the other kind."""
        hardest = min(batch_size - 1, max(1, batch_size // 4) if self.num_hardest is None else self.num_hardest)
        if progress < self.start:
            return hardest, 0, 0
        half = (hardest + 1) // 2
        mixed, query_mixed = (half if count is None else count for count in (self.num_mixed, self.num_query_mixed))
        return hardest, mixed, query_mixed

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.temperature.param_groups(lr)

    def after_step(self) -> None:
        """Keep the scale in its range, and draw something else next time."""
        self.temperature.after_step()
        self.draws.advance()


def one_direction(similarity: Tensor, synthetic: Tensor, positives: Tensor, scale: Tensor | float) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the rows, with further columns in the denominator.

    Args:
        similarity: [B, B], rows are anchors, the own partner on the diagonal.
        synthetic: logits [B, S].
        positives: bool [B, B], likewise.
        scale: 1 / tau, one number or [B, 1].

    Returns:
        Scalar, nats, and the share of the softmax that the synthetic columns have, on average.
    """
    logits = scale * similarity  # [B, B]
    columns = torch.cat([logits.masked_fill(further_positives(positives), -math.inf), synthetic], dim=1)  # [B, B + S]
    total = columns.logsumexp(dim=1)  # [B]
    share = (synthetic.detach() - total.detach()[:, None]).exp().sum(dim=1).mean()
    return (total - logits.diagonal()).mean(), share


class HardNegatives:
    """The hardest negatives of every anchor.

    Args:
        rows: int64 [B, n], candidates, hardest first; negatives come before all others.
        available: int64 [B, 1], how many of them are negatives, at least 1 so that it can be counted with: a row without any
            is masked by the caller.
    """

    def __init__(self, rows: Tensor, available: Tensor) -> None:
        self.rows = rows
        self.available = available

    def at(self, place: Tensor) -> Tensor:
        """The candidates at some places [B, S] of the ranking."""
        return self.rows.gather(1, place)


@torch.no_grad()
def hardest_negatives(similarity: Tensor, positives: Tensor, count: int) -> HardNegatives:
    """Rank the negatives of every anchor.

    Args:
        similarity: [B, B], rows are anchors.
        positives: bool [B, B], likewise.
        count: n, at most B - 1.
    """
    excluded = no_negatives(positives)
    rows = similarity.masked_fill(excluded, -math.inf).topk(count, dim=1).indices  # [B, n]
    available = (~excluded).sum(dim=1, keepdim=True).clamp(1, count)
    return HardNegatives(rows, available)


def mixed_cosines(similarity: Tensor, candidates: Tensor, hard: HardNegatives, drawn: Tensor) -> Tensor:
    """Cosines of anchors with mixtures of two hard negatives.

    The mixtures [B, S, D] are never formed: their products and norms follow from B x B matrices.

    Args:
        similarity: [B, B], of anchors with ``candidates``.
        candidates: [B, D], without a graph.
        hard: what is mixed.
        drawn: [B, S, 3], uniform in [0, 1): which one, which other one, and lam.

    Returns:
        [B, S], with the gradients of ``similarity``.
    """
    first = pick(drawn[..., 0], hard.available)  # [B, S]
    # Another one, where there is another one.
    second = (first + 1 + pick(drawn[..., 1], (hard.available - 1).clamp(min=1))) % hard.available
    rows, others, share = hard.at(first), hard.at(second), drawn[..., 2]
    within = cosine(candidates, candidates)  # [B, B]
    product = share * similarity.gather(1, rows) + (1 - share) * similarity.gather(1, others)
    return product / mixture_norm(share, within.diagonal()[rows], within.diagonal()[others], within[rows, others])


def query_mixed_cosines(similarity: Tensor, anchors: Tensor, candidates: Tensor, hard: HardNegatives, drawn: Tensor) -> Tensor:
    """Cosines of anchors with mixtures of themselves and a hard negative.

    Args:
        similarity: [B, B], of anchors with ``candidates``.
        anchors: [B, D].
        candidates: [B, D], without a graph.
        hard: what is mixed.
        drawn: [B, S, 2], uniform in [0, 1): which one, and twice b.

    Returns:
        [B, S], with gradients to the anchors, and not to those in the mixtures.
    """
    rows, share = hard.at(pick(drawn[..., 0], hard.available)), drawn[..., 1] / 2
    picked = similarity.gather(1, rows)  # [B, S]
    own = (anchors * anchors.detach()).sum(dim=1, keepdim=True)  # [B, 1]
    length = candidates.square().sum(dim=1)[rows]  # [B, S]
    product = share * own + (1 - share) * picked
    return product / mixture_norm(share, own.detach(), length, picked.detach())


def pick(drawn: Tensor, count: Tensor) -> Tensor:
    """Whole numbers below ``count`` [B, 1] from numbers [B, S] in [0, 1], which may have been rounded to 1."""
    return torch.minimum((drawn * count).long(), count - 1)


def mixture_norm(share: Tensor, first: Tensor, second: Tensor, product: Tensor) -> Tensor:
    """Length of ``share x + (1 - share) y`` from ``x.x``, ``y.y`` and ``x.y``; opposite vectors may cancel out."""
    square = share**2 * first + (1 - share) ** 2 * second + 2 * share * (1 - share) * product
    return (square.clamp(min=0) + EPSILON**2).sqrt()
