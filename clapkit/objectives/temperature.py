"""The temperature of a softmax or sigmoid loss: fixed, or learned as a log scale."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from clapkit.objectives.contract import ParamGroup, require, require_choice, undecayed_group

Schedule = Literal["learnable", "fixed"]

MAX_LOG_SCALE = math.log(100.0)
"""CLIP's limit: a scale above 100 is a temperature below 0.01, where training became unstable."""


class Temperature(nn.Module):
    """The factor ``1 / tau`` on similarities; learned as ``exp(log_scale)`` with ``log_scale`` kept in [0, ln 100].

    Reference: CLIP, arXiv 2103.00020, section 2.5. Learning tau itself, as other audio-text code does, can reach 0.

    Args:
        tau: the temperature, at the start where it is learned.
        schedule: ``learnable`` or ``fixed``.

    Raises:
        ConfigError: if ``tau`` is not positive, or outside the range that a learnable temperature is kept in.
    """

    log_scale: nn.Parameter | None

    def __init__(self, tau: float, schedule: Schedule) -> None:
        super().__init__()
        require_choice("temperature", schedule, Schedule)
        require(0 < tau < math.inf, f"tau={tau}: expected a positive temperature, for example 0.07")
        if schedule == "learnable":
            require(0.01 <= tau <= 1, f"tau={tau}: a learnable temperature stays in [0.01, 1]; or set temperature=fixed")
        self.tau = tau
        learnable = schedule == "learnable"
        self.register_parameter("log_scale", nn.Parameter(torch.tensor(-math.log(tau))) if learnable else None)

    def scale(self) -> Tensor | float:
        """The factor that turns similarities into logits."""
        return 1.0 / self.tau if self.log_scale is None else self.log_scale.exp()

    def value(self) -> Tensor | float:
        """The temperature, for the log."""
        return self.tau if self.log_scale is None else (-self.log_scale.detach()).exp()

    def param_groups(self, lr: float) -> list[ParamGroup]:
        """The log scale, if it is learned, without weight decay."""
        return [] if self.log_scale is None else [undecayed_group("temperature", [self.log_scale], lr)]

    def after_step(self) -> None:
        """Clamp the log scale in place."""
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(0.0, MAX_LOG_SCALE)
