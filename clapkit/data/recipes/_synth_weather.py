"""Procedural rain, wind, waves and thunder; the signature is that of ``_synth_animals``."""

from __future__ import annotations

import numpy as np

from clapkit.data.recipes._synth_signal import (
    Array,
    attack_decay,
    band,
    glide,
    hump,
    noise,
    onsets,
    partials,
    place,
    scatter,
    shape,
    shaped_noise,
    slow_noise,
)


def rain(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Several hundred droplets a second over the hiss of those too many to count."""
    bright_hz = 4500 * pitch * voice.uniform(0.9, 1.1)
    num_droplets = round(voice.uniform(250, 400) * rate * num_samples / sample_rate)
    plop_hz = bright_hz * np.array([0.45, 0.8])
    droplet = partials(plop_hz, np.ones(2), np.array([0.0006, 0.0004]), round(0.01 * sample_rate), sample_rate)
    droplets = scatter(
        rng.integers(0, num_samples, num_droplets),
        rng.lognormal(0, 0.45, num_droplets) * rng.choice([-1.0, 1.0], num_droplets),
        droplet,
        num_samples,
    )
    return shape(droplets + 0.2 * noise(rng, num_samples), band(900, bright_hz, order=1), sample_rate)


def wind(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Gusts: a broad rumble and a whistling band that grow and fade together, the band higher in the gust."""
    centre_hz = 420 * pitch * voice.uniform(0.93, 1.07)
    gusts = slow_noise(rng, num_samples, max(3, round(1.2 * num_samples / sample_rate)))
    calm, strong, rumble = (
        shaped_noise(rng, num_samples, band(low * centre_hz, high * centre_hz, order=order), sample_rate)
        for low, high, order in ((0.6, 0.9, 3), (1.0, 1.5, 3), (0.1, 0.5, 2))
    )
    return (calm * (1 - gusts) + 1.2 * strong * gusts) * (0.35 + 0.65 * gusts) + 0.25 * rumble * (0.5 + 0.5 * gusts)


def waves(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Breakers: a low swell that bursts into foam and draws back, one after the other."""
    foam_hz = 2600 * pitch * voice.uniform(0.9, 1.1)
    period_s = voice.uniform(1.5, 1.8) / rate
    times_s = onsets(rng, num_samples / sample_rate, period_s, jitter=0.1, first_s=0.0)
    swells, breaks = [], []
    for _ in times_s:
        length = round(1.15 * period_s * sample_rate)
        height = rng.uniform(0.8, 1.0)
        swells.append(height * hump(length, rise=0.35))
        breaks.append(height * hump(length, rise=0.45, power=2.5))
    swell, breaking = (place(parts, times_s, num_samples, sample_rate) for parts in (swells, breaks))
    low = shaped_noise(rng, num_samples, band(70, 500, order=1), sample_rate) * (0.05 + swell)
    return low + shaped_noise(rng, num_samples, band(350, foam_hz, order=1), sample_rate) * (0.02 + breaking)


def thunder(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """A crack and a long, uneven roll that dies away below 200 Hz."""
    roll_hz = 170 * pitch * voice.uniform(0.9, 1.1)
    duration_s = num_samples / sample_rate
    rolling = slow_noise(rng, num_samples, round(7 * duration_s)) ** 2
    dying = attack_decay(num_samples, sample_rate, attack_s=0.12, decay_s=0.4 * duration_s)
    roll = shaped_noise(rng, num_samples, band(35, roll_hz, order=2), sample_rate) * (0.25 + rolling) * dying
    claps = np.sort(rng.uniform(0.02, 0.35, 4))
    bursts = [
        rng.uniform(0.4, 1.0) * attack_decay(round(0.35 * sample_rate), sample_rate, attack_s=0.006, decay_s=0.09)
        for _ in claps
    ]
    crack = place(bursts, claps, num_samples, sample_rate) * noise(rng, num_samples)
    falling = glide([1.0, 0.3, 0.0, 0.0], num_samples)
    return roll + 0.35 * shape(crack, band(80, 1100, order=1), sample_rate) * falling
