"""The acoustic fingerprint of ``prepare``: what stays of a sound when it is coded, resampled, shifted or played softly.

A spectrogram is reduced to its peaks, the points that are louder than all around them, because peaks outlive noise and
coding. Three peaks that lie close together make a landmark: their frequencies and the time between them, 29 bits. Two files
that hold the same recording share many landmarks with one and the same time between them;
``clapkit.data.near_duplicates`` looks for that.

Reference: A. L.-C. Wang, An Industrial-Strength Audio Search Algorithm, ISMIR 2003. Deviations from it: three peaks instead
of two, which makes a landmark about a hundred times as rare; a steady tone gives no peaks, because it says nothing about
where in a recording one is; of landmarks that recur in a file, the first counts.

All files are brought near 6 kHz by halving their rate, which is faster than resampling to one rate, and every window is
80 ms long, so that the bins of the spectra are 12.5 Hz apart whatever the rate.
"""

from __future__ import annotations

import numpy as np

FRAME_S = 0.02
"""Time between spectra, the unit of the times of landmarks."""
NUM_FREQUENCIES = 128
"""Frequency bins that peaks are looked for in, from 200 Hz on, 12.5 Hz apart."""
MAX_LISTEN_S = 1800.0
"""Sound after this time is not heard, which bounds what is kept of a file."""

_FRAMES_PER_WINDOW = 4
_WINDOW_S = FRAME_S * _FRAMES_PER_WINDOW
_LOWEST_BIN = 16
# The rate is halved until it lies below this; half of that still holds the highest bin, 1.8 kHz.
_MAX_RATE = 10_000
# There is hardly anything above 18 kHz in a recording.
_MIN_RATE_FOR_SHORTEST = 40_000
_MAX_BLOCK = 1 << 16
_WINDOWS_PER_BATCH = 125
# What a peak is louder than, in frames and bins to either side: 60 ms and 62.5 Hz.
_NEAR_FRAMES, _NEAR_BINS = 3, 5
# Power over that of the frames at the edges of this neighbourhood; a steady tone has 1.
_MIN_RISE = 1.25
# A sine of -94 dB; what lies below is the rounding of 16-bit files.
_MIN_AMPLITUDE = 2e-5
# How far the second and third peak of a landmark may lie from the first, in peaks, bins and frames.
_NEXT_PEAKS, _LAST_GAP = 6, 2
_MAX_BINS, _MAX_FRAMES = 31, 63
# Waits are told apart by 40 ms, because a shift by half a frame moves peaks by one.
_WAIT_FRAMES = 2
_CHOICES = [(second, second + gap) for second in range(1, _NEXT_PEAKS + 1) for gap in range(1, _LAST_GAP + 1)]
_SECOND, _THIRD = (np.array(peaks) for peaks in zip(*_CHOICES, strict=True))
_LANDMARK = np.dtype([("hash", "<u4"), ("time", "<u4")])


class Listener:
    """Takes in one file block by block and gives its landmarks; how it was cut into blocks does not matter.

    Args:
        sample_rate: of the file, in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        halvings = 0
        while sample_rate / 2**halvings >= _MAX_RATE:
            halvings += 1
        self._rate: float = sample_rate / 2**halvings
        # Only what the last stage folds comes close to the band that is looked at.
        self._stages = [_Halving(_taps(sample_rate / 2**stage, is_last=stage == halvings - 1)) for stage in range(halvings)]
        self._samples_left = int(MAX_LISTEN_S * sample_rate)
        self._window = np.hanning(max(round(self._rate * _WINDOW_S), 2) + 1)[:-1].astype(np.float32)
        self._pending = np.zeros(0, np.float32)
        self._num_batches = 0
        self._spectra = np.zeros((_NEAR_FRAMES, NUM_FREQUENCIES), np.float32)
        self._peaks = [_no_peaks()]

    def hear(self, mono: np.ndarray) -> None:
        """Take in the next block.

        Args:
            mono: float32 [F], at the rate of the file.
        """
        mono = mono[: self._samples_left]
        self._samples_left -= len(mono)
        parts = [self._pending]
        # In pieces that stay in the cache of the processor.
        for start in range(0, len(mono), _MAX_BLOCK):
            piece = mono[start : start + _MAX_BLOCK]
            for stage in self._stages:
                piece = stage(piece)
            parts.append(piece)
        self._pending = np.concatenate(parts)
        num_samples = (_WINDOWS_PER_BATCH + 1) * len(self._window)
        while len(self._pending) >= max(num_samples, self._batch_step()):
            spectra = np.concatenate([self._spectra, self._powers(self._pending[:num_samples])])
            self._peaks.append(self._find_peaks(spectra))
            self._spectra = spectra[-2 * _NEAR_FRAMES :]
            self._pending = self._pending[self._batch_step() :]
            self._num_batches += 1

    def landmarks(self) -> bytes:
        """What was heard so far, packed; the same sound gives the same bytes.

        Returns:
            Nothing where nothing can be heard, or too little.
        """
        num_windows = -(-len(self._pending) // len(self._window))
        rest = np.zeros((num_windows + 1) * len(self._window), np.float32)
        rest[: len(self._pending)] = self._pending
        silence = np.zeros((_NEAR_FRAMES, NUM_FREQUENCIES), np.float32)
        last = self._find_peaks(np.concatenate([self._spectra, self._powers(rest), silence]))
        frame, frequency = np.concatenate([*self._peaks, last], axis=1)
        return _combine(frame, frequency)

    def _batch_step(self) -> int:
        """Samples from the start of this batch to that of the next; rates that are no whole number do not drift."""
        batch_samples = _WINDOWS_PER_BATCH * _WINDOW_S * self._rate
        return round((self._num_batches + 1) * batch_samples) - round(self._num_batches * batch_samples)

    def _powers(self, samples: np.ndarray) -> np.ndarray:
        """Power spectra, float32 [frames, NUM_FREQUENCIES], of whole windows and one more."""
        width = len(self._window)
        num_windows = len(samples) // width - 1
        frames = np.empty((num_windows, _FRAMES_PER_WINDOW, width), np.float32)
        for quarter in range(_FRAMES_PER_WINDOW):
            first = round(quarter * width / _FRAMES_PER_WINDOW)
            part = samples[first : first + num_windows * width].reshape(num_windows, width)
            np.multiply(part, self._window, out=frames[:, quarter])
        spectra = np.fft.rfft(frames.reshape(-1, width))[:, _LOWEST_BIN : _LOWEST_BIN + NUM_FREQUENCIES]
        powers = np.zeros((len(spectra), NUM_FREQUENCIES), np.float32)
        # Rates below 3.6 kHz have fewer bins.
        powers[:, : spectra.shape[1]] = spectra.real**2 + spectra.imag**2
        return powers  # [frames, NUM_FREQUENCIES]

    def _find_peaks(self, powers: np.ndarray) -> np.ndarray:
        """Peaks of all frames but the first and last few, int64 [2, peaks]: frame in the file and bin, sorted."""
        inner = powers[_NEAR_FRAMES : len(powers) - _NEAR_FRAMES]
        if not len(inner):
            return _no_peaks()
        padded = np.zeros((len(powers), NUM_FREQUENCIES + 2 * _NEAR_BINS), np.float32)
        padded[:, _NEAR_BINS:-_NEAR_BINS] = powers
        loudest = _running_maximum(_running_maximum(padded.T, 2 * _NEAR_BINS + 1).T, 2 * _NEAR_FRAMES + 1)
        frame, frequency = np.divmod(np.flatnonzero(inner == loudest), NUM_FREQUENCIES)
        power = inner[frame, frequency]
        around = np.maximum(powers[frame, frequency], powers[frame + 2 * _NEAR_FRAMES, frequency])
        floor = (_MIN_AMPLITUDE * len(self._window) / 4) ** 2  # a sine of amplitude 1 has (width / 4) ** 2
        kept = (power > floor) & (power > _MIN_RISE * around)
        # The first batch has only half the context in front, which stands for frames that do not exist.
        first = self._num_batches * _WINDOWS_PER_BATCH * _FRAMES_PER_WINDOW - (_NEAR_FRAMES if self._num_batches else 0)
        return np.stack([frame[kept] + first, frequency[kept]])


class _Halving:
    """Low-pass filters a stream and drops every second sample."""

    def __init__(self, taps: np.ndarray) -> None:
        self._taps = taps
        self._rest = np.zeros(0, np.float32)

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """Filter the next block; what is left over waits for the one after it."""
        samples = np.concatenate([self._rest, block]) if len(self._rest) else block
        num_taps = len(self._taps)
        count = max((len(samples) - num_taps) // 2 + 1, 0)
        self._rest = samples[2 * count :].copy()
        halves = samples[0::2], samples[1::2]
        if num_taps > 4:
            halves = halves[0].copy(), halves[1].copy()  # pays where they are read often
        # Sums of whole arrays round alike wherever a block begins, which a product of matrices would not.
        total: np.ndarray | None = None
        for tap in range(num_taps // 2):
            if self._taps[tap]:
                mirrored = num_taps - 1 - tap
                first = halves[tap % 2][tap // 2 : tap // 2 + count]
                pair = first + halves[mirrored % 2][mirrored // 2 : mirrored // 2 + count]
                pair *= self._taps[tap]
                total = pair if total is None else np.add(total, pair, out=total)
        assert total is not None, "a filter has a tap that is not 0"
        if num_taps % 2:
            middle = num_taps // 2
            total += self._taps[middle] * halves[middle % 2][middle // 2 : middle // 2 + count]
        return total


# From 44 kHz to 22 kHz, what is folded into the band lies above 20 kHz and is 18 dB down.
_SHORTEST = np.array([1, 1], np.float32) / 2
# Binomial: from 22 kHz to 11 kHz, what is folded into the band is 30 dB down.
_SHORT = np.array([1, 3, 3, 1], np.float32) / 8
# Half-band filter of least maximal error from 0.318 of the rate on, 32 dB down; 1.8 kHz is 0.18 at most.
_SHARP = np.array([0.0351, 0, -0.0835, 0, 0.3102, 0.5, 0.3102, 0, -0.0835, 0, 0.0351], np.float32)


def _taps(rate: float, *, is_last: bool) -> np.ndarray:
    """The filter that halves a rate; the closer what it folds comes to the band that is looked at, the better."""
    if is_last:
        return _SHARP
    return _SHORTEST if rate >= _MIN_RATE_FOR_SHORTEST else _SHORT


def unpack(landmarks: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Read packed landmarks.

    Returns:
        Hashes uint32 [n], all different, and the frames of their first peaks, uint32 [n].
    """
    rows = np.frombuffer(landmarks, _LANDMARK)
    return rows["hash"].astype(np.uint32), rows["time"].astype(np.uint32)


def frequencies(hashes: np.ndarray) -> np.ndarray:
    """Bins of the three peaks of landmarks uint32 [n], int64 [3, n]."""
    first = (hashes >> 24).astype(np.int64)
    second, third = (first + (hashes >> shift & 63).astype(np.int64) - _MAX_BINS for shift in (18, 12))
    return np.stack([first, second, third])


def _combine(frame: np.ndarray, frequency: np.ndarray) -> bytes:
    """Pack the landmarks that peaks make, in the order of their hashes; of equal hashes the first in time stays."""
    # [combinations, peaks]: every peak with all choices of the two that follow; what lies behind the end is far away.
    num_peaks = len(frame)
    padded_frame = np.concatenate([frame, np.full(_NEXT_PEAKS + _LAST_GAP, np.iinfo(np.int64).max // 2)])
    padded_frequency = np.concatenate([frequency, np.zeros(_NEXT_PEAKS + _LAST_GAP, np.int64)])
    start = np.arange(num_peaks)
    second, third = start + _SECOND[:, None], start + _THIRD[:, None]
    rise, rise_last = (padded_frequency[end] - frequency + _MAX_BINS for end in (second, third))
    wait, wait_last = (padded_frame[end] - frame for end in (second, third))
    near = wait_last <= _MAX_FRAMES
    for bins in (rise, rise_last):
        near &= (bins >= 0) & (bins <= 2 * _MAX_BINS)
    waits = wait // _WAIT_FRAMES << 6 | wait_last // _WAIT_FRAMES
    hashed = frequency << 24 | rise << 18 | rise_last << 12 | waits
    rows = hashed[near] << 32 | np.broadcast_to(frame, near.shape)[near]
    rows.sort()
    hash_, time = rows >> 32, rows & 0xFFFFFFFF
    is_first = np.ones(len(rows), bool)
    is_first[1:] = hash_[1:] != hash_[:-1]
    packed = np.empty(np.count_nonzero(is_first), _LANDMARK)
    packed["hash"], packed["time"] = hash_[is_first], time[is_first]
    return packed.tobytes()


def _running_maximum(values: np.ndarray, width: int) -> np.ndarray:
    """Maxima of ``width`` neighbours along the first axis, [rows - width + 1, columns]."""
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        values = np.maximum(values[:-step], values[step:])
        reach += step
    return values


def _no_peaks() -> np.ndarray:
    return np.zeros((2, 0), np.int64)
