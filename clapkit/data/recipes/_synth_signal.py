"""Building blocks of procedural sound: oscillators, envelopes, filters by spectrum, scattered impulses, room, levels.

Waveforms are [T]; frequencies are Hz. Phases are float64, noise and spectra single precision, which 16 bit samples do not
need more than and which halves the time. Everything works on whole arrays: a filter is a gain per frequency bin, a
shower of droplets is a sparse impulse train convolved with one droplet.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Gain = Callable[[Array], Array]
"""Frequencies in Hz [F] to amplitude gains [F]."""


def seconds(num_samples: int, sample_rate: int) -> Array:
    """The time of every sample, from 0, [T]."""
    return np.arange(num_samples) / sample_rate


def glide(values: Sequence[float], num_samples: int) -> Array:
    """A curve through evenly spaced values, half a cosine from each to the next, [T]."""
    position = np.linspace(0, len(values) - 1, num_samples)
    left = np.minimum(position.astype(int), len(values) - 2)
    share = 0.5 - 0.5 * np.cos(np.pi * (position - left))
    points = np.asarray(values, dtype=float)
    return np.asarray(points[left] * (1 - share) + points[left + 1] * share)


def slow_noise(rng: np.random.Generator, num_samples: int, num_knots: int) -> Array:
    """A smooth random curve in [0, 1] that turns ``num_knots`` times and touches both ends of its range, [T]."""
    knots = rng.random(max(num_knots, 2))
    return glide((knots - knots.min()) / (knots.max() - knots.min()), num_samples)


def attack_decay(num_samples: int, sample_rate: int, *, attack_s: float, decay_s: float) -> Array:
    """An envelope that rises in ``attack_s`` and falls by 1/e every ``decay_s``, [T]."""
    time_s = seconds(num_samples, sample_rate)
    return np.asarray(np.minimum(time_s / attack_s, 1.0) * np.exp(-np.maximum(time_s - attack_s, 0) / decay_s))


def hump(num_samples: int, *, rise: float, power: float = 1.0) -> Array:
    """An envelope that rises over the share ``rise`` of its length and falls over the rest, both smooth, [T]."""
    position = np.linspace(0, 1, num_samples)
    up = np.sin(0.5 * np.pi * np.minimum(position / rise, 1)) ** 2
    down = np.cos(0.5 * np.pi * np.clip((position - rise) / (1 - rise), 0, 1)) ** 2
    return np.asarray((up * down) ** power)


def fade_edges(waveform: Array, sample_rate: int, *, rise_s: float = 0.005, fall_s: float = 0.03) -> Array:
    """The waveform with both ends at exactly zero."""
    faded = waveform.copy()
    rise, fall = (min(round(length_s * sample_rate), len(faded) // 2) for length_s in (rise_s, fall_s))
    faded[:rise] *= np.linspace(0, 1, rise)
    faded[len(faded) - fall :] *= np.linspace(1, 0, fall)
    return faded


def phase(frequency_hz: Array, sample_rate: int) -> Array:
    """The running phase in radians of an oscillator that follows ``frequency_hz`` [T]."""
    return 2 * np.pi * np.cumsum(frequency_hz) / sample_rate


def sine(frequency_hz: Array, sample_rate: int) -> Array:
    """A sine that follows ``frequency_hz`` [T]."""
    return np.asarray(np.sin(phase(frequency_hz, sample_rate)))


def buzz(frequency_hz: Array, sample_rate: int) -> Array:
    """A train of band-limited pulses that follows ``frequency_hz`` [T]: a voice before its formants.

    All harmonics below 45 % of the sample rate have the same amplitude; their sum has the closed form
    sum_{k=1..n} cos(k p) = sin((n + 1/2) p) / (2 sin(p / 2)) - 1/2, which costs two sines for any n.
    """
    num_harmonics = max(1, int(0.45 * sample_rate / frequency_hz.max()))
    half = 0.5 * phase(frequency_hz, sample_rate)
    sines = np.sin(half)
    at_pulse = np.abs(sines) < 1e-9
    ratio = np.sin((2 * num_harmonics + 1) * half) / np.where(at_pulse, 1.0, sines)
    return np.asarray((np.where(at_pulse, 2.0 * num_harmonics + 1, ratio) - 1) / (2 * np.sqrt(num_harmonics)))


def partials(frequencies_hz: Array, amplitudes: Array, decays_s: Array, num_samples: int, sample_rate: int) -> Array:
    """Sines that ring out, each with its own decay: bells, glass, wood.

    Args:
        frequencies_hz: [P]; partials above 45 % of the sample rate are left out.
        amplitudes: [P].
        decays_s: time in which each partial falls by 1/e, [P].
        num_samples: length of the result.
        sample_rate: Hz.
    """
    time_s = seconds(num_samples, sample_rate)
    ringing = np.zeros(num_samples)
    # A loop, not a matrix product: the order of a BLAS sum, and with it the last bit, depends on the number of threads.
    for frequency_hz, amplitude, decay_s in zip(frequencies_hz, amplitudes, decays_s, strict=True):
        if frequency_hz < 0.45 * sample_rate:
            ringing += amplitude * np.sin(2 * np.pi * frequency_hz * time_s) * np.exp(-time_s / decay_s)
    return ringing


@functools.cache
def _fast_lengths() -> list[int]:
    """Lengths below 2 ** 22 with no prime factor above 5, which an FFT does fast, sorted."""
    limit = 1 << 22
    products = [2**i * 3**j * 5**k for i in range(23) for j in range(14) for k in range(10)]
    return sorted(product for product in products if product <= limit)


def _fft_length(num_samples: int) -> int:
    lengths = _fast_lengths()
    return lengths[bisect.bisect_left(lengths, num_samples)]


@functools.lru_cache(maxsize=64)
def _bins_hz(length: int, sample_rate: int) -> Array:
    return np.fft.rfftfreq(length, 1 / sample_rate).astype(np.float32)


def shape(waveform: Array, gain: Gain, sample_rate: int) -> Array:
    """Filter by multiplying the spectrum with ``gain``; zero phase, 50 ms of padding against wrap-around."""
    length = _fft_length(len(waveform) + round(0.05 * sample_rate))
    spectrum = np.fft.rfft(waveform.astype(np.float32), length) * gain(_bins_hz(length, sample_rate))
    return np.fft.irfft(spectrum, length)[: len(waveform)]


def shaped_noise(rng: np.random.Generator, num_samples: int, gain: Gain, sample_rate: int) -> Array:
    """White noise of unit variance through ``gain``, [T]; drawn as a spectrum, so that one transform does."""
    length = _fft_length(num_samples)
    drawn = rng.standard_normal(2 * (length // 2 + 1), dtype=np.float32).view(np.complex64)
    spectrum = drawn * (gain(_bins_hz(length, sample_rate)) * np.float32(np.sqrt(length / 2)))
    return np.fft.irfft(spectrum, length)[:num_samples]


def convolve(waveform: Array, kernel: Array) -> Array:
    """The waveform through an impulse response, cut to the length of the waveform."""
    length = _fft_length(len(waveform) + len(kernel))
    spectrum = np.fft.rfft(waveform.astype(np.float32), length) * np.fft.rfft(kernel.astype(np.float32), length)
    return np.fft.irfft(spectrum, length)[: len(waveform)]


def band(low_hz: float, high_hz: float, *, order: int = 2) -> Gain:
    """A band pass with Butterworth slopes of 6 dB per octave and order."""

    def gain(f: Array) -> Array:
        below, above = (low_hz / np.maximum(f, 1e-3)) ** 2, (f / high_hz) ** 2
        return np.asarray(1 / np.sqrt((1 + _power(below, order)) * (1 + _power(above, order))))

    return gain


def _power(base: Array, exponent: int) -> Array:
    """Repeated multiplication, many times faster than ``**`` for small exponents above 2."""
    return functools.reduce(np.multiply, [base] * exponent)


def formants(centres_hz: Sequence[float], widths_hz: Sequence[float], amplitudes: Sequence[float]) -> Gain:
    """Resonances of a throat or a box: a peak of each amplitude at each centre."""

    def gain(f: Array) -> Array:
        peaks = [
            amplitude / (1 + ((f - centre) / (0.5 * width)) ** 2)
            for centre, width, amplitude in zip(centres_hz, widths_hz, amplitudes, strict=True)
        ]
        return np.asarray(np.sum(peaks, axis=0) + 0.003)

    return gain


def noise(rng: np.random.Generator, num_samples: int) -> Array:
    """White noise of unit variance, [T]."""
    return rng.standard_normal(num_samples, dtype=np.float32)


def onsets(rng: np.random.Generator, duration_s: float, period_s: float, *, jitter: float, first_s: float = 0.02) -> Array:
    """Times of a nearly regular beat, [E].

    Args:
        rng: draws the unevenness.
        duration_s: no onset lies behind this time.
        period_s: mean time between onsets.
        jitter: largest deviation of one onset, as a share of the period.
        first_s: time of the first onset.
    """
    regular = np.arange(first_s, duration_s, period_s)
    uneven = regular + period_s * jitter * rng.uniform(-1, 1, len(regular))
    uneven[0] = first_s
    return uneven[uneven < duration_s]


def place(parts: Sequence[Array], onsets_s: Array, num_samples: int, sample_rate: int) -> Array:
    """Add each part at its onset, [T]; what hangs over the end is cut."""
    mixture = np.zeros(num_samples)
    for part, onset_s in zip(parts, onsets_s, strict=True):
        start = round(onset_s * sample_rate)
        kept = part[: max(0, num_samples - start)]
        mixture[start : start + len(kept)] += kept
    return mixture


def scatter(positions: NDArray[np.int64], amplitudes: Array, kernel: Array, num_samples: int) -> Array:
    """Add one kernel at many samples at once, [T]: droplets, claps, crackles."""
    impulses = np.bincount(positions, weights=amplitudes, minlength=num_samples)[:num_samples]
    return convolve(impulses.astype(np.float32), kernel)


def far_away(waveform: Array, rng: np.random.Generator, sample_rate: int) -> Array:
    """The sound as from a long way off: highs swallowed by the air, the room louder than the source."""
    tail_s = 0.9
    time_s = seconds(round(tail_s * sample_rate), sample_rate)
    echoes = noise(rng, len(time_s)) * np.exp(-time_s / 0.22)
    echoes *= 1.5 / np.sqrt(np.sum(echoes**2))
    echoes[0] += 0.6
    return convolve(waveform, shape(echoes, band(60, 1100, order=3), sample_rate))


def loudness(waveform: Array, sample_rate: int) -> float:
    """Root mean square of the loud part.

    The 90th percentile of the power over frames of 50 ms, but at least a quarter of the loudest frame.
    """
    frame = round(0.05 * sample_rate)
    usable = max(len(waveform) // frame, 1) * frame
    frames = np.pad(waveform, (0, max(0, usable - len(waveform))))[:usable].reshape(-1, frame)  # [F, frame]
    powers = np.mean(frames**2, axis=1)  # [F]
    return float(np.sqrt(max(np.quantile(powers, 0.9), 0.25 * powers.max())))


def to_level(waveform: Array, sample_rate: int, *, level_rms: float, level_peak: float) -> Array:
    """Scale the loud part to ``level_rms``, and bend what exceeds half of ``level_peak`` so that nothing exceeds it.

    A knock has peaks ten times its root mean square: scaled by the peak it would be too quiet, unbent it would clip.
    """
    scaled = waveform * (level_rms / loudness(waveform, sample_rate))
    knee = 0.5 * level_peak
    is_above = np.abs(scaled) > knee
    above = np.abs(scaled[is_above]) - knee
    scaled[is_above] = np.sign(scaled[is_above]) * (knee + knee * np.tanh(above / knee))
    return scaled
