"""Cosine: one temperature or margin for all anchors that oscillates during training."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from clapkit.objectives.contract import require, require_choice
from clapkit.objectives.schedules._periodic import Quantity, check_oscillations, check_range, phase, value_dtype

Unit = Literal["step", "epoch"]


def build(
    *,
    tau_min: float = 0.05,
    tau_max: float = 0.2,
    oscillations: int = 5,
    unit: Unit = "step",
    total_steps: int | None = None,
    steps_per_epoch: int | None = None,
    quantity: Quantity = "temperature",
) -> CosineSchedule:
    """Make the schedule.

    Args:
        tau_min: the lowest value (of the margin too).
        tau_max: the highest value, where training starts.
        oscillations: full periods of the training.
        unit: the value changes with every ``step``, or is constant within an ``epoch``.
        total_steps: steps of the training, so that a period has a whole number of them.
        steps_per_epoch: steps of one pass, for ``unit=epoch``.
        quantity: what the values are.

    Raises:
        ConfigError: if a value would not be a temperature or margin, or a period is too short.
    """
    require_choice("quantity", quantity, Quantity)
    require_choice("unit", unit, Unit)
    check_oscillations(oscillations, total_steps)
    require(tau_max >= tau_min, f"tau_max={tau_max}: expected at least tau_min={tau_min}")
    check_range(tau_min, tau_max, quantity=quantity, remedy="change tau_min or tau_max")
    hold_steps = 1 if unit == "step" else _checked_epoch(steps_per_epoch, total_steps, oscillations)
    return CosineSchedule(tau_min, tau_max, oscillations=oscillations, total_steps=total_steps, hold_steps=hold_steps)


class CosineSchedule(nn.Module):
    """``tau(e) = tau_min + (tau_max - tau_min) / 2 (1 + cos(pi e / t_max))`` with a full period of ``2 t_max``.

    ``e`` counts steps (or epochs) and ``2 t_max = floor(total_steps / oscillations)`` steps. It has no state: the value
    depends on ``progress`` only, so that a resumed run is in the same phase.

    Reference: Kukleva et al., Temperature schedules for self-supervised contrastive methods on long-tail data, ICLR 2023,
    arXiv 2303.13664. Deviation: the period is given as a share of the training, not as t_max epochs.

    Args:
        tau_min: the lowest value.
        tau_max: the highest value.
        oscillations: full periods of the training.
        total_steps: steps of the training, if they are known.
        hold_steps: steps during which the value stands still.
    """

    def __init__(
        self, tau_min: float, tau_max: float, *, oscillations: int, total_steps: int | None, hold_steps: int = 1
    ) -> None:
        super().__init__()
        self.tau_min = tau_min
        self.tau_max = tau_max
        self.oscillations = oscillations
        self.total_steps = total_steps
        self.hold_steps = hold_steps

    def forward(self, index: Tensor, progress: float) -> Tensor:
        """The value of every anchor, the same for all.

        Args:
            index: int64 [B], training rows.
            progress: share of the training that is done, in [0, 1].

        Returns:
            [B], float64 (float32 on mps).
        """
        turn = phase(progress, oscillations=self.oscillations, total_steps=self.total_steps, hold_steps=self.hold_steps)
        value = self.tau_min + (self.tau_max - self.tau_min) / 2 * (1 + math.cos(2 * math.pi * turn))
        return torch.full(index.shape, value, dtype=value_dtype(index.device), device=index.device)


def _checked_epoch(steps_per_epoch: int | None, total_steps: int | None, oscillations: int) -> int:
    require(
        steps_per_epoch is not None and total_steps is not None,
        "unit=epoch: needs steps_per_epoch and total_steps, which clapkit train supplies; or use unit=step",
    )
    assert steps_per_epoch is not None
    assert total_steps is not None
    require(steps_per_epoch >= 1, f"steps_per_epoch={steps_per_epoch}: expected at least 1")
    # With one epoch in a period the value would be looked at in the same phase every time, and never change.
    require(
        total_steps // oscillations >= 2 * steps_per_epoch,
        f"unit=epoch with oscillations={oscillations}: {total_steps / steps_per_epoch:g} epochs are less than 2 for each; "
        f"lower oscillations, train longer, or use unit=step",
    )
    return steps_per_epoch
