"""The temperature of a softmax or sigmoid loss: fixed, learned as a log scale, or given for every anchor by a schedule."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from clapkit.objectives.contract import ParamGroup, require, require_choice, undecayed_group

TemperatureKind = Literal["learnable", "fixed"]

MAX_LOG_SCALE = math.log(100.0)
"""CLIP's limit: a scale above 100 is a temperature below 0.01, where training became unstable."""


class Temperature(nn.Module):
    """The factor ``1 / tau`` on similarities; learned as ``exp(log_scale)`` with ``log_scale`` kept in [0, ln 100].

    With a schedule the factor belongs to the anchor: one per row of the similarities, whichever side the rows are.

    Reference: CLIP, arXiv 2103.00020, section 2.5. Learning tau itself, as other audio-text code does, can reach 0.

    Args:
        tau: the temperature, at the start where it is learned; a schedule gives its own instead.
        kind: ``learnable``, ``fixed``, or a schedule ``(index [B], progress) -> [B]`` (clapkit.objectives.schedules).

    Raises:
        ConfigError: if ``tau`` is not positive, or outside the range that a learnable temperature is kept in.
    """

    log_scale: nn.Parameter | None

    def __init__(self, tau: float, kind: TemperatureKind | nn.Module) -> None:
        super().__init__()
        self.schedule = kind if isinstance(kind, nn.Module) else None
        learnable = kind == "learnable"
        if not isinstance(kind, nn.Module):
            require_choice("temperature", kind, TemperatureKind)
            require(0 < tau < math.inf, f"tau={tau}: expected a positive temperature, for example 0.07")
        if learnable:
            require(0.01 <= tau <= 1, f"tau={tau}: a learnable temperature stays in [0.01, 1]; or set temperature=fixed")
        self.tau = tau
        self.register_parameter("log_scale", nn.Parameter(torch.tensor(-math.log(tau))) if learnable else None)

    def scale(self, index: Tensor, progress: float, *, dtype: torch.dtype = torch.float32) -> Tensor | float:
        """The factor that turns similarities into logits.

        Args:
            index: int64 [B], training rows of the anchors.
            progress: share of the training that is done.
            dtype: of the similarities, for a schedule.

        Returns:
            A scalar; with a schedule [B, 1], the factor of each anchor row.
        """
        if self.schedule is not None:
            # Inverted before it is rounded: the very same factor as that of a fixed temperature of this value.
            return self.per_anchor(index, progress).reciprocal().to(dtype)[:, None]
        return 1.0 / self.tau if self.log_scale is None else self.log_scale.exp()

    def per_anchor(self, index: Tensor, progress: float) -> Tensor:
        """The temperature of each anchor, [B], where there is a schedule."""
        assert self.schedule is not None
        values: Tensor = self.schedule(index, progress)
        return values

    def value(self, index: Tensor, progress: float) -> Tensor | float:
        """The temperature, with a schedule its mean over the batch, for the log."""
        if self.schedule is not None:
            return self.per_anchor(index, progress).mean()
        return self.tau if self.log_scale is None else (-self.log_scale.detach()).exp()

    def stats(self, index: Tensor, progress: float) -> dict[str, Tensor | float]:
        """The numbers of the log: ``temperature``, with a schedule its smallest and largest in the batch too."""
        if self.schedule is None:
            return {"temperature": self.value(index, progress)}
        values = self.per_anchor(index, progress)  # [B]
        return {"temperature": values.mean(), "temperature_min": values.min(), "temperature_max": values.max()}

    def param_groups(self, lr: float) -> list[ParamGroup]:
        """The log scale, if it is learned, without weight decay."""
        return [] if self.log_scale is None else [undecayed_group("temperature", [self.log_scale], lr)]

    def after_step(self) -> None:
        """Clamp the log scale in place."""
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(0.0, MAX_LOG_SCALE)


def make_temperature(kind: TemperatureKind, tau: float | None, schedule: nn.Module | None, *, default: float) -> Temperature:
    """The temperature that the options of a loss describe.

    Args:
        kind: ``learnable`` or ``fixed``; without meaning beside a schedule.
        tau: the temperature; None for ``default``.
        schedule: gives the temperature of every anchor instead.
        default: the loss's own temperature.

    Raises:
        ConfigError: if ``tau`` is given beside a schedule, or out of its range.
    """
    if schedule is None:
        return Temperature(default if tau is None else tau, kind)
    require(tau is None, f"tau={tau}: the schedule gives every anchor its temperature; leave tau out")
    return Temperature(default, schedule)
