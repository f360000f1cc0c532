"""What the samples of a file look like: level, offset and clipping, channel by channel, counted block by block.

``prepare`` counts every sample of a corpus once, so this runs beside the decoder and must cost little. Passes are made
in float32, over rows that are short enough to lose nothing, and the rows are added up in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The largest value of 16-bit audio, 1 - 2**-15: what a sample that hit the ceiling reads as.
FULL_SCALE = 32767 / 32768
# Values of a row. A block has a few dozen rows, so that no float32 sum has more than a few dozen terms.
_ROW_VALUES = 4096
_NUM_PROBES = 16


@dataclass(frozen=True, slots=True)
class AudioStatistics:
    """What the samples of a file look like; 1 is full scale.

    Attributes:
        peak: largest absolute value of all channels.
        rms: root mean square over all channels, each around its own DC offset.
        dc_offset: mean over all channels.
        clipped_share: share of samples at or above full scale.
        channel_rms: root mean square of every channel around its DC offset.
        channel_dc_offsets: mean of every channel.
        is_constant: whether all samples of each channel are equal, so that nothing sounds.
    """

    peak: float
    rms: float
    dc_offset: float
    clipped_share: float
    channel_rms: tuple[float, ...] = ()
    channel_dc_offsets: tuple[float, ...] = ()
    is_constant: bool = False


class RunningStatistics:
    """Statistics of a file that comes in blocks."""

    def __init__(self, num_channels: int) -> None:
        self._peak = 0.0
        self._num_frames = self._num_clipped = 0
        self._totals = np.zeros(num_channels)
        self._squares = np.zeros(num_channels)
        self._first: np.ndarray | None = None
        self._is_constant = True

    def add(self, block: np.ndarray) -> float:
        """Count a block.

        Args:
            block: float32 [frames, channels], at least one frame, contiguous.

        Returns:
            Its largest absolute value. If that is not finite, nothing was counted.
        """
        peak = max(float(block.max()), -float(block.min()))
        if not np.isfinite(peak):  # NaN and infinities both win
            return peak
        totals, squares = _sums(block)
        if _loses_digits(totals, squares, len(block)):
            totals, squares = _sums(block.astype(np.float64))
        self._totals += totals
        self._squares += squares
        self._num_frames += len(block)
        self._peak = max(self._peak, peak)
        if peak >= FULL_SCALE:
            self._num_clipped += int(np.count_nonzero(block >= FULL_SCALE) + np.count_nonzero(block <= -FULL_SCALE))
        if self._first is None:
            self._first = block[0].copy()
        if self._is_constant:
            # A few frames decide it for nearly every file.
            probes = block[:: max(len(block) // _NUM_PROBES, 1)]
            self._is_constant = bool((probes == self._first).all() and (block == self._first).all())
        return peak

    def result(self) -> AudioStatistics:
        """Statistics of all blocks, of which there must be one."""
        means = self._totals / self._num_frames
        variances = np.maximum(self._squares / self._num_frames - means**2, 0.0)
        if self._is_constant:
            variances[:] = 0.0  # what is left is rounding
        return AudioStatistics(
            peak=self._peak,
            rms=float(variances.mean() ** 0.5),
            dc_offset=float(means.mean()),
            clipped_share=self._num_clipped / (self._num_frames * len(means)),
            channel_rms=tuple(np.sqrt(variances).tolist()),
            channel_dc_offsets=tuple(means.tolist()),
            is_constant=self._is_constant,
        )


def _sums(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the values and of their squares over [frames, channels]; both float64 [channels]."""
    num_channels = block.shape[1]
    row_frames = max(_ROW_VALUES // num_channels, 1)
    whole = len(block) // row_frames * row_frames
    # Summing interleaved channels over the frames is a hundred times as slow as adding up long rows of whole frames.
    rows = block[:whole].reshape(-1, row_frames * num_channels)
    # einsum, because dot would wake the thread pool of BLAS in every decoding process.
    totals = _over_frames(rows.sum(axis=0).reshape(-1, num_channels))
    squares = _over_frames(np.einsum("ij,ij->j", rows, rows).reshape(-1, num_channels))
    if whole < len(block):
        rest = block[whole:].astype(np.float64)
        totals, squares = totals + _over_frames(rest), squares + _over_frames(rest * rest)
    return totals, squares


def _over_frames(values: np.ndarray) -> np.ndarray:
    """Sum [frames, channels] to float64 [channels]."""
    return np.array([channel.sum() for channel in values.astype(np.float64).T])


def _loses_digits(totals: np.ndarray, squares: np.ndarray, num_frames: int) -> bool:
    """Whether float32 is too coarse: sound that is small beside its DC offset, or squares that overflow."""
    return bool((totals**2 / num_frames > 0.5 * squares).any() or not np.isfinite(squares).all())
