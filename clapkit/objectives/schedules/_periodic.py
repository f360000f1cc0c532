"""What periodic schedules share: where in its period the training is, and which values make sense."""

from __future__ import annotations

import math
from typing import Literal

import torch

from clapkit.objectives.contract import require

Quantity = Literal["temperature", "margin"]

MAX_MARGIN = 2.0
"""Cosines lie in [-1, 1], so that no pair can ever win by 2."""


def check_range(lowest: float, highest: float, *, quantity: Quantity, remedy: str) -> None:
    """Refuse a schedule that leaves the values which a temperature or margin can have.

    Args:
        lowest: smallest value of the schedule.
        highest: largest value.
        quantity: what the values are.
        remedy: what to change, for the message.

    Raises:
        ConfigError: if a value is 0 or less, not finite, or a margin of 2 or more.
    """
    found = f"the {quantity} would go from {lowest:g} to {highest:g}"
    require(math.isfinite(lowest) and math.isfinite(highest), f"{found}: expected finite numbers; {remedy}")
    require(lowest > 0, f"{found}: expected more than 0 everywhere; {remedy}")
    require(quantity == "temperature" or highest < MAX_MARGIN, f"{found}: expected less than 2 everywhere; {remedy}")


def check_oscillations(oscillations: int, total_steps: int | None) -> None:
    """Refuse periods that the training is too short for.

    Args:
        oscillations: full periods of the training.
        total_steps: steps of the training, if they are known.

    Raises:
        ConfigError: if there is no period, or one of less than two steps, which never leaves its start.
    """
    require(oscillations >= 1, f"oscillations={oscillations}: expected at least 1")
    fits = total_steps is None or total_steps >= 2 * oscillations
    require(
        fits,
        f"oscillations={oscillations}: a training of {total_steps} steps has less than 2 for each; "
        f"lower oscillations or train longer",
    )


def phase(progress: float, *, oscillations: int, total_steps: int | None, hold_steps: int = 1) -> float:
    """Where in its period the training is.

    Args:
        progress: share of the training that is done.
        oscillations: full periods of the training.
        total_steps: steps of the training; a period has a whole number of them, ``floor(total_steps / oscillations)``,
            and what is left at the end begins another one. None: a period is exactly ``1 / oscillations``.
        hold_steps: steps during which the phase stands still.

    Returns:
        A number in [0, 1).
    """
    if total_steps is None:
        return progress * oscillations % 1.0
    step = round(progress * total_steps)
    period = total_steps // oscillations
    return (step - step % hold_steps) % period / period


def value_dtype(device: torch.device) -> torch.dtype:
    """The type of scheduled values: float64, so that a loss rounds once, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
