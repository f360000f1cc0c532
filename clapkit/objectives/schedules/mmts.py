"""MM-TS: a temperature or margin that oscillates during training, higher for anchors from large clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from clapkit.errors import ShapeError
from clapkit.objectives.contract import require, require_choice
from clapkit.objectives.schedules._periodic import Quantity, check_oscillations, check_range, phase, value_dtype

ShiftScale = Literal["linear", "log", "rank"]

DEFAULTS: dict[Quantity, tuple[float, float, float]] = {"temperature": (0.08, 0.05, 0.20), "margin": (0.2, 0.17, 0.30)}
"""Amplitude, smallest and largest shift: those of the authors' training script, and of their EPIC-KITCHENS command."""


def build(
    *,
    amplitude: float | None = None,
    shift_min: float | None = None,
    shift_max: float | None = None,
    oscillations: int = 5,
    shift_scale: ShiftScale = "linear",
    total_steps: int | None = None,
    cluster_sizes: Tensor | None = None,
    quantity: Quantity = "temperature",
) -> MultiModalSchedule:
    """Make the schedule.

    Args:
        amplitude: from the lowest to the highest point of the oscillation; 0.08 (margin: 0.2).
        shift_min: middle of the oscillation for anchors of the smallest cluster; 0.05 (margin: 0.17).
        shift_max: the same for the largest cluster; 0.2 (margin: 0.3).
        oscillations: full periods of the training.
        shift_scale: how sizes in between are placed: ``linear`` in the size (the paper), by its ``log``, or by the
            ``rank`` of the size among all that occur. Under ``linear`` one giant cluster puts all others near shift_min.
        total_steps: steps of the training, so that a period has a whole number of them.
        cluster_sizes: int64 [num_rows], for each training row the size of its cluster.
        quantity: what the values are.

    Raises:
        ConfigError: if a value would not be a temperature or margin, a period is too short, or sizes are missing or bad.
    """
    require_choice("quantity", quantity, Quantity)
    require_choice("shift_scale", shift_scale, ShiftScale)
    check_oscillations(oscillations, total_steps)
    given = (amplitude, shift_min, shift_max)
    swing, lowest, highest = (
        default if value is None else value for value, default in zip(given, DEFAULTS[quantity], strict=True)
    )
    require(swing >= 0, f"amplitude={swing}: expected 0 or more")
    require(highest >= lowest, f"shift_max={highest}: expected at least shift_min={lowest}")
    remedy = "raise shift_min above half the amplitude" if lowest <= swing / 2 else "lower shift_max or amplitude"
    check_range(lowest - swing / 2, highest + swing / 2, quantity=quantity, remedy=remedy)
    return MultiModalSchedule(
        _checked_sizes(cluster_sizes),
        amplitude=swing,
        shift_range=(lowest, highest),
        shift_scale=shift_scale,
        oscillations=oscillations,
        total_steps=total_steps,
    )


class MultiModalSchedule(nn.Module):
    """``tau_i(k) = (alpha / 2) cos(2 pi k / T) + sh(c_i)`` at step k, for an anchor from a cluster of c_i training rows.

    ``alpha`` is the amplitude, ``T = floor(total_steps / oscillations)``, and ``sh`` goes from ``shift_min`` at the
    smallest cluster to ``shift_max`` at the largest; if all have one size, it is halfway. Training starts at the high
    end, where groups are told apart, and goes back and forth to the low end, where single instances are.

    It has no state: the value depends on the row and on ``progress`` only, so that a resumed run is in the same phase.

    Reference: Sheludzko et al., MM-TS: multi-modal temperature and margin schedules, WACV 2026, arXiv 2603.08202.
    Deviation: none for ``shift_scale="linear"``; ``log`` and ``rank`` are ours.

    Args:
        cluster_sizes: int64 [num_rows], all at least 1.
        amplitude: alpha.
        shift_range: smallest and largest shift.
        shift_scale: how sizes in between are placed.
        oscillations: full periods of the training.
        total_steps: steps of the training, if they are known.
    """

    size_rank: Tensor

    def __init__(
        self,
        cluster_sizes: Tensor,
        *,
        amplitude: float,
        shift_range: tuple[float, float],
        shift_scale: ShiftScale,
        oscillations: int,
        total_steps: int | None,
    ) -> None:
        super().__init__()
        self.amplitude = amplitude
        self.oscillations = oscillations
        self.total_steps = total_steps
        sizes = sorted(set(cluster_sizes.tolist()))
        self.shifts = size_shifts(sizes, shift_range, shift_scale)
        # Not in the checkpoint: it comes from the cluster file again. [num_rows]
        self.register_buffer("size_rank", torch.searchsorted(torch.tensor(sizes), cluster_sizes.cpu()), persistent=False)

    def forward(self, index: Tensor, progress: float) -> Tensor:
        """The value of every anchor.

        Args:
            index: int64 [B], training rows.
            progress: share of the training that is done, in [0, 1].

        Returns:
            [B], float64 (float32 on mps).

        Raises:
            ShapeError: if a row has no cluster size.
        """
        num_rows = self.size_rank.shape[0]
        if bool(((index < 0) | (index >= num_rows)).any()):
            found = f"rows {int(index.min())} to {int(index.max())}"
            raise ShapeError(f"mmts: the batch has {found}, but only rows 0 to {num_rows - 1} have a cluster size")
        shifts = torch.tensor(self.shifts, dtype=value_dtype(index.device), device=index.device)  # [number of sizes]
        return shifts[self.size_rank[index]] + self.oscillation(progress)  # [B]

    def oscillation(self, progress: float) -> float:
        """What all values have in common: between plus and minus half the amplitude, 0 in the mean over a period."""
        turn = phase(progress, oscillations=self.oscillations, total_steps=self.total_steps)
        return self.amplitude / 2 * math.cos(2 * math.pi * turn)


def size_shifts(sizes: Sequence[int], shift_range: tuple[float, float], shift_scale: ShiftScale) -> list[float]:
    """The shift of each cluster size.

    Args:
        sizes: those that occur, ascending, without repetition.
        shift_range: shift of the first and of the last one.
        shift_scale: how those in between are placed.

    Returns:
        One shift for each size, ascending; halfway if there is only one size.
    """
    lowest, highest = shift_range
    if len(sizes) == 1:
        return [lowest + (highest - lowest) / 2]
    if shift_scale == "rank":
        places = [float(rank) for rank in range(len(sizes))]
    else:
        places = [math.log(size) if shift_scale == "log" else float(size) for size in sizes]
    extent = places[-1] - places[0]
    inner = [lowest + (place - places[0]) / extent * (highest - lowest) for place in places[1:-1]]
    return [lowest, *inner, highest]


def _checked_sizes(cluster_sizes: Tensor | None) -> Tensor:
    require(
        cluster_sizes is not None,
        "cluster_sizes: mmts needs the size of the cluster of every training row; clapkit train supplies it",
    )
    assert cluster_sizes is not None
    is_list = cluster_sizes.ndim == 1 and cluster_sizes.numel() > 0 and cluster_sizes.dtype == torch.int64
    found = f"{cluster_sizes.dtype} {list(cluster_sizes.shape)}"
    require(is_list, f"cluster_sizes is {found}: expected torch.int64 [num_rows] with at least one row")
    smallest = int(cluster_sizes.min())
    require(smallest >= 1, f"cluster_sizes: found a size of {smallest}, expected at least 1, the row itself")
    return cluster_sizes
