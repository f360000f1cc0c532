"""Procedural voices of animals.

Every sound of the built-in corpus is a function of one signature: ``voice`` draws the timbre and is seeded alike for
every clip of a voice, ``rng`` draws what differs from one event to the next, ``pitch`` and ``rate`` multiply the usual
frequency and speed. It gives a waveform of ``num_samples``, at any level.
"""

from __future__ import annotations

import numpy as np

from clapkit.data.recipes._synth_signal import (
    Array,
    attack_decay,
    band,
    buzz,
    fade_edges,
    formants,
    glide,
    hump,
    noise,
    onsets,
    place,
    shape,
    shaped_noise,
    sine,
)


def dog(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Barks in bouts of two to four: an arch of pitch, throat resonances, and a burst of breath."""
    top_hz = 620 * pitch * voice.uniform(0.93, 1.07)
    size = pitch**0.5 * voice.uniform(0.92, 1.08)
    throat = formants(
        np.array([650, 1350, 2700]) * size, np.array([350, 600, 1100]) * size, [1.0, voice.uniform(0.5, 0.9), 0.3]
    )
    roughness = voice.uniform(0.25, 0.5)
    bark_s = voice.uniform(0.13, 0.19) / np.sqrt(rate)
    times_s = _bouts(rng, num_samples / sample_rate, period_s=0.42 / rate)
    barks = [
        rng.uniform(0.8, 1.0)
        * _bark(rng, top_hz * rng.uniform(0.94, 1.06), bark_s * rng.uniform(0.9, 1.1), roughness, sample_rate)
        for _ in times_s
    ]
    return shape(place(barks, times_s, num_samples, sample_rate), throat, sample_rate)


def _bark(rng: np.random.Generator, top_hz: float, bark_s: float, roughness: float, sample_rate: int) -> Array:
    num_samples = round(bark_s * sample_rate)
    frequency_hz = top_hz * glide([0.5, 0.92, 1.0, 0.86, 0.5], num_samples)
    # A vocal fold at full force is not periodic: jitter of the frequency is heard as the hoarseness of a bark.
    frequency_hz *= 1 + 0.06 * shaped_noise(rng, num_samples, band(0, 400), sample_rate)
    voiced = buzz(frequency_hz, sample_rate)
    breath = noise(rng, num_samples) * attack_decay(num_samples, sample_rate, attack_s=0.004, decay_s=0.05)
    envelope = hump(num_samples, rise=0.18, power=0.8)
    return fade_edges((voiced + roughness * noise(rng, num_samples)) * envelope + 0.5 * breath, sample_rate)


def _bouts(rng: np.random.Generator, duration_s: float, *, period_s: float) -> Array:
    """Onsets in groups of two to four, with a pause of one more period or so between the groups."""
    times_s = [0.02]
    left = int(rng.integers(1, 4))
    while True:
        pause = 1.0 if left else rng.uniform(1.7, 2.2)
        left = left - 1 if left else int(rng.integers(1, 4))
        following_s = times_s[-1] + period_s * pause * rng.uniform(0.92, 1.08)
        if following_s > duration_s - 0.12:
            return np.array(times_s)
        times_s.append(following_s)


def cat(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Meows: a long, slowly arching voice whose mouth opens and closes."""
    top_hz = 640 * pitch * voice.uniform(0.94, 1.06)
    size = pitch**0.7 * voice.uniform(0.94, 1.06)
    meow_s = voice.uniform(0.65, 0.85) / np.sqrt(rate)
    closed = formants(np.array([500, 1100]) * size, [300, 500], [1.0, 0.15])
    wide_open = formants(np.array([1000, 2000, 3600]) * size, [400, 500, 900], [1.0, 0.9, 0.5])
    times_s = onsets(rng, num_samples / sample_rate - 0.3, 1.25 / rate, jitter=0.08)
    meows = []
    for _ in times_s:
        length = round(meow_s * rng.uniform(0.9, 1.1) * sample_rate)
        frequency_hz = top_hz * rng.uniform(0.96, 1.04) * glide([0.72, 0.95, 1.0, 0.93, 0.7], length)
        frequency_hz *= 1 + 0.01 * np.sin(2 * np.pi * 6 * np.arange(length) / sample_rate)
        voiced = buzz(frequency_hz, sample_rate) + 0.03 * noise(rng, length)
        opening = hump(length, rise=0.35)
        mouth = (1 - opening) * shape(voiced, closed, sample_rate) + opening * shape(voiced, wide_open, sample_rate)
        meows.append(fade_edges(mouth * hump(length, rise=0.25, power=0.6), sample_rate, rise_s=0.02))
    return place(meows, times_s, num_samples, sample_rate)


def rooster(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Crows of four syllables, short, short, long and falling, harsh and rich in overtones."""
    base_hz = 760 * pitch * voice.uniform(0.95, 1.05)
    throat = formants([1400 * voice.uniform(0.92, 1.08), 2700, 4000], [700, 900, 1200], [1.0, 0.9, 0.4])
    syllables = [
        (0.00, 0.16, [0.75, 0.9, 0.8]),
        (0.22, 0.18, [0.9, 1.1, 1.0]),
        (0.44, 0.22, [1.0, 1.2, 1.05]),
        (0.70, 0.85, [1.05, 1.3, 1.25, 1.1, 0.7]),
    ]
    stretch = voice.uniform(0.95, 1.1) / rate
    times_s = onsets(rng, num_samples / sample_rate - 0.8, 2.1 * stretch, jitter=0.05)
    crows = []
    for _ in times_s:
        crow = []
        for _, length_s, curve in syllables:
            length = round(length_s * stretch * sample_rate)
            frequency_hz = base_hz * rng.uniform(0.97, 1.03) * glide(curve, length)
            frequency_hz *= 1 + 0.03 * shaped_noise(rng, length, band(0, 120), sample_rate)
            crow.append(fade_edges(buzz(frequency_hz, sample_rate) * hump(length, rise=0.3, power=0.5), sample_rate))
        starts_s = np.array([start_s * stretch for start_s, _, _ in syllables])
        crows.append(place(crow, starts_s, round(1.7 * stretch * sample_rate), sample_rate))
    return shape(place(crows, times_s, num_samples, sample_rate), throat, sample_rate)


def bird(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Chirps: pure tones that sweep an octave within a tenth of a second, in groups."""
    base_hz = 3300 * pitch * voice.uniform(0.95, 1.05)
    curve = [voice.uniform(0.8, 0.9), voice.uniform(1.15, 1.3), voice.uniform(0.8, 1.0)]
    chirp_s = voice.uniform(0.07, 0.1) / np.sqrt(rate)
    times_s = _bouts(rng, num_samples / sample_rate, period_s=0.2 / rate)
    chirps = []
    for _ in times_s:
        length = round(chirp_s * rng.uniform(0.9, 1.1) * sample_rate)
        tone = sine(base_hz * rng.uniform(0.97, 1.03) * glide(curve, length), sample_rate)
        chirps.append(rng.uniform(0.7, 1.0) * tone * hump(length, rise=0.4))
    return place(chirps, times_s, num_samples, sample_rate)
