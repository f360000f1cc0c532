"""DBPM, dynamic bad pair mining: pairs that stand out by their losses so far count less."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.contract import require
from clapkit.objectives.pair_weights import WeightedPairs, pair_losses

DEFAULT_WARMUP = 0.6
DEFAULT_C1 = 2.0
DEFAULT_C2 = 2.0
FIRST_SHARE = 0.01
"""What a loss at the very start counts in the history; later ones count with the share of the training that is done."""


def build(
    *,
    wrapped: nn.Module | None = None,
    num_rows: int | None = None,
    warmup: float = DEFAULT_WARMUP,
    c1: float = DEFAULT_C1,
    c2: float = DEFAULT_C2,
) -> DBPM:
    """Make the objective.

    Args:
        wrapped: the loss whose pairs are weighed, ``infonce``, ``siglip``, ``svr`` or ``reweighted``; ``infonce`` unless
            given. ``clapkit train`` makes it for ``--base``.
        num_rows: training rows; from ``clapkit train``.
        warmup: share of the training during which losses are only collected.
        c1: standard deviations below the mean from which on a pair counts as trivial.
        c2: standard deviations above the mean from which on a pair counts as faulty.

    Raises:
        ConfigError: if an option is out of its range, the number of rows is missing, or the loss takes no weights.
    """
    require(0 <= warmup <= 1, f"warmup={warmup}: expected a share of the training from 0 to 1, for example {DEFAULT_WARMUP}")
    for name, value, default in (("c1", c1, DEFAULT_C1), ("c2", c2, DEFAULT_C2)):
        require(0 < value < math.inf, f"{name}={value}: expected more than 0 standard deviations, for example {default}")
    if num_rows is None:
        raise ConfigError("dbpm: keeps a history of every training row; clapkit train supplies num_rows, else pass it")
    require(num_rows >= 1, f"num_rows={num_rows}: expected at least 1")
    return DBPM(wrapped, num_rows, warmup=warmup, below=c1, above=c2)


@dataclass(frozen=True, slots=True)
class History:
    """What the losses of the training rows were like.

    Attributes:
        mean_loss: [num_rows], nats, later losses counting more; NaN for rows that were never seen.
        score: [num_rows], standard deviations of that above the mean of all rows seen; NaN likewise.
        faulty: bool [num_rows], harder than nearly all others.
        trivial: bool [num_rows], easier than nearly all others.
        weight: [num_rows], what the row counts by its last loss; 1 for rows that were never seen.
    """

    mean_loss: Tensor
    score: Tensor
    faulty: Tensor
    trivial: Tensor
    weight: Tensor


class DBPM(WeightedPairs):
    """A loss in which pairs with an odd history of losses are weighed down by how odd their loss is now.

    With m_i the mean of all losses of row i so far, mu and sigma mean and standard deviation of m over the training rows, a
    pair with ``m_i >= mu + c2 sigma`` (faulty: caption and sound do not belong together) or ``m_i <= mu - c1 sigma``
    (trivial) has weight ``w_i = exp(-(l_i - mu)^2 / (2 sigma^2))``, l_i being its loss in the batch; others have 1.

    Losses are cross-entropies of the pair in its batch, the mean of both directions, whatever the wrapped loss is. A row is a
    clip: of a clip with several captions the history mixes those that were drawn.

    Reference: Lan et al., Towards enhancing time series contrastive learning: a dynamic bad pair mining approach, 2023,
    arXiv 2302.03357. Deviations: the density is divided by its peak, so that weights stay in (0, 1] whatever sigma is (their
    code has the bare density, which is above 1 for every sigma below 0.4); the mean in which later losses count more is
    divided by the sum of what they count, so that a row that was seen less often is not thought easier; weights work on the
    pair in both directions.

    Args:
        wrapped: the loss.
        num_rows: training rows.
        warmup: share of the training before which all weights are 1.
        below: c1.
        above: c2.
    """

    counted: Tensor
    loss_sum: Tensor
    last_loss: Tensor

    def __init__(self, wrapped: nn.Module | None, num_rows: int, *, warmup: float, below: float, above: float) -> None:
        super().__init__(wrapped)
        self.warmup, self.below, self.above = warmup, below, above
        for name in ("counted", "loss_sum", "last_loss"):
            self.register_buffer(name, torch.zeros(num_rows))

    def weigh(
        self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float
    ) -> tuple[Tensor | None, Mapping[str, Tensor], tuple[Tensor, Tensor, float]]:
        """Weights from the history, and the losses that will be added to it; see ``WeightedPairs``.

        Raises:
            ShapeError: if a row is none of the training set.
        """
        num_rows = len(self.counted)
        if bool(((index < 0) | (index >= num_rows)).any()):
            found = f"rows {int(index.min())} to {int(index.max())}"
            raise ShapeError(f"dbpm: the batch has {found}, but only rows 0 to {num_rows - 1} have a history")
        losses = pair_losses(audio, text, positives, self.temperature.scale(index, progress, dtype=text.dtype))  # [B]
        noted = (index, losses, max(FIRST_SHARE, progress))
        if progress < self.warmup:
            nothing = losses.new_zeros(())
            return None, {"mean_weight": nothing + 1, "faulty_share": nothing, "trivial_share": nothing}, noted
        mean_loss, mean, deviation = self._statistics()
        faulty, trivial = self._odd(mean_loss[index], mean, deviation)
        weights = odd_weights(losses, faulty | trivial, mean.to(losses.dtype), deviation.to(losses.dtype))
        shares = {"faulty_share": faulty.float().mean(), "trivial_share": trivial.float().mean()}
        return weights, {"mean_weight": weights.mean(), **shares}, noted

    def remember(self, noted: list[tuple[Tensor, Tensor, float]]) -> None:
        """Add the losses of a step to the history; a row that came more than once in it has the mean as its last loss."""
        sums, times = torch.zeros_like(self.loss_sum), torch.zeros_like(self.counted)
        for index, losses, share in noted:
            losses = losses.to(sums.dtype)
            self.loss_sum.index_add_(0, index, share * losses)
            self.counted.index_add_(0, index, torch.full_like(losses, share))
            sums.index_add_(0, index, losses)
            times.index_add_(0, index, torch.ones_like(losses))
        self.last_loss.copy_(torch.where(times > 0, sums / times.clamp(min=1), self.last_loss))

    @torch.no_grad()
    def history(self) -> History:
        """What is known of every training row."""
        mean_loss, mean, deviation = self._statistics()
        faulty, trivial = self._odd(mean_loss, mean, deviation)
        score = (mean_loss - mean) / torch.where(deviation > 0, deviation, 1.0)
        weight = odd_weights(self.last_loss, faulty | trivial, mean, deviation)
        return History(mean_loss, score, faulty, trivial, weight)

    def _statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss of every row [num_rows], NaN where there is none, and mean and standard deviation over those seen."""
        mean_loss = self.loss_sum / self.counted  # 0 / 0 is NaN
        seen = mean_loss[self.counted > 0]
        if not len(seen):
            return mean_loss, mean_loss.new_zeros(()), mean_loss.new_zeros(())
        return mean_loss, seen.mean(), seen.std(correction=0)

    def _odd(self, mean_loss: Tensor, mean: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
        """Which rows are faulty and which are trivial, bool like ``mean_loss``; none where all are alike."""
        differ = deviation > 0
        faulty = differ & (mean_loss >= mean + self.above * deviation)  # NaN is neither
        return faulty, differ & (mean_loss <= mean - self.below * deviation)


def odd_weights(losses: Tensor, odd: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Weight of every loss: a normal density divided by its peak where it is odd, else 1.

    Args:
        losses: [B].
        odd: bool [B].
        mean: scalar.
        deviation: scalar, 0 or more.

    Returns:
        [B], in (0, 1].
    """
    spread = torch.where(deviation > 0, deviation, 1.0)
    # A loss that is far out has a density that rounds to 0; the smallest number keeps the promise that none is given up.
    density = (-((losses - mean) / spread).square() / 2).exp().clamp(min=torch.finfo(losses.dtype).tiny)
    return torch.where(odd & (deviation > 0), density, torch.ones_like(losses))


def history_of(objective: nn.Module) -> History | None:
    """The history that an objective keeps, however it is wrapped; None if it keeps none."""
    found = next((module for module in objective.modules() if isinstance(module, DBPM)), None)
    return None if found is None else found.history()
