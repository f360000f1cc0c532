"""A temperature for every training row, found by a rule of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clapkit.objectives.contract import require

BUDGET_SHARE = 0.4
"""Of the largest divergence that the negatives of a row can have, ln(number of negatives), where ``rho`` is not given."""

MAX_TAU_GRADIENT = 5.0
"""Of the original code."""


class IndividualTemperatures(nn.Module):
    """A temperature for every training row, texts and clips apart, each at the optimum of its own F under a budget.

    ``dF_i / dtau_i = log g_i + rho - mean_j w_ij h_ij / tau_i``, which is rho minus the divergence (KL) of the softmax over the
    negatives from an even one: a temperature rests where this is rho. At most it is ln(number of negatives), so that under a
    larger rho every temperature falls for ever.

    Reference: Qiu et al., iSogCLR, 2023, arXiv 2305.11965.

    Args:
        num_rows: of the training set.
        start: of all temperatures.
        rho: the budget, nats; None for 0.4 ln(number of negatives), row by row.
        lowest: limit.
        highest: limit.
        lr: step size.
        momentum: share of the present gradient in its average.
    """

    tau: Tensor
    gradient: Tensor

    def __init__(
        self, num_rows: int, start: float, rho: float | None, lowest: float, highest: float, lr: float, momentum: float
    ) -> None:
        super().__init__()
        self.rho, self.lowest, self.highest, self.lr, self.momentum = rho, lowest, highest, lr, momentum
        self.register_buffer("tau", torch.full((2, num_rows), start))  # texts, clips
        self.register_buffer("gradient", torch.zeros(2, num_rows))  # averaged

    def budget(self, num_negatives: Tensor, *, like: Tensor) -> Tensor:
        """The budget of every anchor, [B]."""
        if self.rho is not None:
            return torch.full_like(like, self.rho)
        return BUDGET_SHARE * num_negatives.to(like.dtype).clamp(min=1).log()

    def slack(self, log_normaliser: Tensor, pushes: Tensor, num_negatives: Tensor) -> Tensor:
        """The gradient dF / dtau of every anchor, [B].

        Args:
            log_normaliser: [B], log u.
            pushes: [B], ``mean_j w_ij h_ij / tau``.
            num_negatives: [B].
        """
        return log_normaliser + self.budget(num_negatives, like=log_normaliser) - pushes

    def moved(self, slack: Tensor, index: Tensor, side: int) -> dict[str, Tensor]:
        """What a step down the gradient ``slack`` [B] leads to, [B] each: buffer -> values."""
        clipped = slack.clamp(-MAX_TAU_GRADIENT, MAX_TAU_GRADIENT)
        gradient = torch.lerp(self.gradient[side, index].to(slack.dtype), clipped, self.momentum)
        tau = (self.tau[side, index].to(slack.dtype) - self.lr * gradient).clamp(self.lowest, self.highest)
        return {"gradient": gradient, "tau": tau}


def check_budget(rho: float | None, batch_size: int) -> None:
    """Refuse a budget that the negatives of a batch cannot reach.

    Raises:
        ConfigError: if they cannot, because their divergence from an even softmax is at most ln(B - 1).
    """
    most = math.log(batch_size - 1) if batch_size > 1 else 0.0
    require(
        rho is None or 0 <= rho < most,
        f"rho={rho}: expected 0 to less than {most:.2f}: negatives of a batch of {batch_size} have at most ln({batch_size}-1), "
        f"and every temperature would fall to its lowest; set rho={BUDGET_SHARE * most:.2f}, or a larger batch",
    )
