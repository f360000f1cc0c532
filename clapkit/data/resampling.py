"""Resampling in blocks, so that a window of a long clip is what it would be in the whole clip, bit for bit.

A resampler sees some milliseconds to either side of a sample. A window that was cut first and resampled then is wrong at its
ends, and one that was cut from the resampled clip costs the whole clip. Here a clip is resampled in blocks of five seconds,
each with what it needs of its neighbours: a window takes the blocks that it touches. Clips of up to one block are resampled at
once. Blocks begin at whole seconds, which are whole samples at every rate.
"""

from __future__ import annotations

import math

import numpy as np
import soxr

BLOCK_S = 5
"""Length of a block in seconds."""

# Samples of the slower rate to either side of a block: the filter of soxr's HQ reaches less than 128 far.
_CONTEXT_SAMPLES = 512


def num_resampled(num_frames: int, *, file_rate: int, sample_rate: int) -> int:
    """How many samples a clip has at another rate, as soxr rounds."""
    return (2 * num_frames * sample_rate + file_rate) // (2 * file_rate)


def frames_of_window(start: int, end: int, *, num_frames: int, file_rate: int, sample_rate: int) -> tuple[int, int]:
    """Which frames of a clip must be decoded for a window of it.

    Args:
        start: first sample of the window at ``sample_rate``.
        end: sample behind its last one, > ``start``.
        num_frames: of the clip at ``file_rate``.
        file_rate: Hz.
        sample_rate: of the window, Hz.

    Returns:
        First frame, and the frame behind the last one.
    """
    if file_rate == sample_rate:
        return min(start, num_frames), min(end, num_frames)
    first, last = start // (BLOCK_S * sample_rate), (end - 1) // (BLOCK_S * sample_rate)
    context = _context(file_rate, sample_rate)
    frames = BLOCK_S * file_rate
    return min(max(first * frames - context, 0), num_frames), min((last + 1) * frames + context, num_frames)


def resample_window(
    frames: np.ndarray, start: int, end: int, *, first_frame: int, file_rate: int, sample_rate: int
) -> np.ndarray:
    """A window of a resampled clip.

    Args:
        frames: the clip at ``file_rate``, mono float32, from ``first_frame`` to at least where ``frames_of_window`` says,
            or to the end of the clip.
        start: first sample of the window at ``sample_rate``.
        end: sample behind its last one.
        first_frame: place of ``frames`` in the clip.
        file_rate: Hz.
        sample_rate: of the window, Hz.

    Returns:
        float32 [T], shorter than the window where the clip ends inside it.
    """
    if file_rate == sample_rate:
        return frames[max(start - first_frame, 0) : max(end - first_frame, 0)]
    samples, context = BLOCK_S * sample_rate, _context(file_rate, sample_rate)
    length = num_resampled(first_frame + len(frames), file_rate=file_rate, sample_rate=sample_rate)
    parts: list[np.ndarray] = []
    for block in range(start // samples, -(-min(end, length) // samples)):
        first = max(block * BLOCK_S * file_rate - context, 0)
        last = (block + 1) * BLOCK_S * file_rate + context
        resampled: np.ndarray = soxr.resample(
            frames[first - first_frame : last - first_frame], file_rate, sample_rate, quality="HQ"
        )
        lead = first * sample_rate // file_rate  # exact: blocks and context are whole samples at both rates
        low, high = max(start, block * samples), min(end, (block + 1) * samples)
        parts.append(resampled[low - lead : high - lead])
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _context(file_rate: int, sample_rate: int) -> int:
    """Frames to either side of a block: a whole number of samples at the other rate, too."""
    period = file_rate // math.gcd(file_rate, sample_rate)
    return math.ceil(_CONTEXT_SAMPLES * max(1.0, file_rate / sample_rate) / period) * period
