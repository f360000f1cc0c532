"""Events in recordings: where something is heard, how loud it is, and how it starts and ends without a click."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Waveform = NDArray[np.float32]

FRAME_S = 0.01
"""Length of the frames whose energy says what is silence."""

# Frames this far below the loudest one are silence between and around the events of a recording.
_ACTIVE_RANGE_DB = 40.0


def loudest_window(waveform: Waveform, num_samples: int) -> Waveform:
    """The window of ``num_samples`` with the most energy; everything, if the waveform [T] is no longer than that."""
    if len(waveform) <= num_samples:
        return waveform
    energy = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])  # [T + 1]
    start = int(np.argmax(energy[num_samples:] - energy[:-num_samples]))
    return waveform[start : start + num_samples]


def active_part(waveform: Waveform, frame: int) -> Waveform:
    """The waveform [T] without the silence before its first and after its last active frame."""
    active = np.flatnonzero(_frame_energies(waveform, frame) > 0)
    return waveform[active[0] * frame : (active[-1] + 1) * frame]


def active_rms(waveform: NDArray[np.floating], frame: int) -> float:
    """Root mean square over the active frames of a waveform [T]."""
    energies = _frame_energies(waveform, frame)
    return float(np.sqrt(energies[energies > 0].mean()))


def _frame_energies(waveform: NDArray[np.floating], frame: int) -> NDArray[np.float64]:
    """Mean square of each frame [F], the last one maybe shorter; 0 for frames that are silent beside the loudest."""
    starts = np.arange(0, len(waveform), frame)
    lengths = np.minimum(len(waveform) - starts, frame)
    energies: NDArray[np.float64] = np.add.reduceat(np.square(waveform, dtype=np.float64), starts) / lengths
    energies[energies <= energies.max() * 10 ** (-_ACTIVE_RANGE_DB / 10)] = 0
    return energies


def faded(waveform: NDArray[np.float64], fade: int) -> NDArray[np.float64]:
    """The waveform [T] fading in and out over ``fade`` samples (a half of it at most), so that nothing clicks."""
    fade = min(fade, len(waveform) // 2)
    # The two ramps of a crossfade add up to 1: sin^2 + cos^2.
    ramp = np.sin(0.5 * np.pi * (np.arange(fade) + 0.5) / max(fade, 1)) ** 2
    envelope: NDArray[np.float64] = np.concatenate([ramp, np.ones(len(waveform) - 2 * fade), ramp[::-1]])
    return waveform * envelope
