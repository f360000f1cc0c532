"""Procedural sounds of things that people make and use; the signature is that of ``_synth_animals``."""

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
    partials,
    place,
    scatter,
    seconds,
    shape,
    shaped_noise,
    sine,
    slow_noise,
)


def bell(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Strokes of a church bell: hum, prime, minor third, fifth, nominal and higher, each with its own decay."""
    prime_hz = 520 * pitch * voice.uniform(0.95, 1.05)
    ratios = np.array([0.5, 1.0, 1.2, 1.5, 2.0, 2.74, 3.0, 4.07]) * voice.uniform(0.995, 1.005, 8)
    amplitudes = np.array([0.35, 0.8, 0.7, 0.35, 1.0, 0.4, 0.3, 0.25]) * voice.uniform(0.7, 1.2, 8)
    decays_s = np.array([2.0, 1.4, 1.0, 0.7, 0.6, 0.35, 0.3, 0.2]) * voice.uniform(0.8, 1.1)
    stroke = fade_edges(
        partials(prime_hz * ratios, amplitudes, decays_s, min(num_samples, 3 * sample_rate), sample_rate),
        sample_rate,
        rise_s=0.002,
    )
    times_s = onsets(rng, num_samples / sample_rate - 0.15, 0.75 / rate, jitter=0.04)
    return place([stroke * rng.uniform(0.8, 1.0) for _ in times_s], times_s, num_samples, sample_rate)


def alarm(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Even beeps of one steady tone with two weak overtones, as of an alarm clock."""
    tone_hz = 1500 * pitch * voice.uniform(0.95, 1.05)
    period_s = voice.uniform(0.36, 0.42) / rate
    length = round(0.5 * period_s * sample_rate)
    odd = np.array([1.0, 2.0, 3.0])
    beep = partials(tone_hz * odd, np.array([1.0, 0.15, 0.3]), np.full(3, 1e3), length, sample_rate)
    times_s = onsets(rng, num_samples / sample_rate, period_s, jitter=0.0)
    return place([fade_edges(beep, sample_rate, fall_s=0.006)] * len(times_s), times_s, num_samples, sample_rate)


def siren(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """A tone with overtones that climbs and falls over more than an octave without a pause."""
    low_hz, high_hz = 520 * pitch * voice.uniform(0.95, 1.05), 1250 * pitch * voice.uniform(0.95, 1.05)
    cycle_s = voice.uniform(1.1, 1.3) / rate
    sweep = 0.5 - 0.5 * np.cos(2 * np.pi * (seconds(num_samples, sample_rate) / cycle_s + rng.random()))
    tone = buzz(low_hz * (high_hz / low_hz) ** sweep, sample_rate)
    return shape(tone, formants([1100 * pitch, 2600], [900, 1200], [1.0, 0.3]), sample_rate)


def car_horn(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Honks of two reedy horns a third apart, with straight pitch and hard edges."""
    lower_hz = 370 * pitch * voice.uniform(0.96, 1.04)
    length = round(voice.uniform(0.4, 0.5) / rate * sample_rate)
    honk = sum(
        (buzz(np.full(length, frequency_hz), sample_rate) for frequency_hz in (lower_hz, 1.25 * lower_hz)),
        start=np.zeros(length),
    )
    honk = shape(honk, formants(np.array([900, 2100, 3300]) * pitch**0.7, [900, 900, 900], [1.0, 0.8, 0.5]), sample_rate)
    honk = fade_edges(honk * hump(length, rise=0.06, power=0.25), sample_rate)
    times_s = onsets(rng, num_samples / sample_rate - 0.2, 0.72 / rate, jitter=0.1)
    return place([honk] * len(times_s), times_s, num_samples, sample_rate)


def engine(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """A combustion engine: a low train of strokes, one cylinder weaker than the next, through a muffler."""
    firing_hz = 55 * pitch * voice.uniform(0.95, 1.05)
    wander = 1 + 0.03 * (slow_noise(rng, num_samples, max(3, round(2 * num_samples / sample_rate))) - 0.5)
    turning = firing_hz * wander
    strokes = buzz(turning, sample_rate) * (1 + 0.35 * sine(turning / 4, sample_rate))
    clatter = noise(rng, num_samples) * (0.02 + 0.05 * np.maximum(sine(turning / 2, sample_rate), 0) ** 4)
    muffler = formants([120 * pitch**0.5, 330, 800 * voice.uniform(0.9, 1.1)], [120, 250, 500], [1.0, 0.55, 0.2])
    return shape(strokes + clatter, muffler, sample_rate)


def helicopter(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Blades that slap the air a dozen times a second, over the whine of a turbine."""
    slap_s = 1 / (12 * rate * voice.uniform(0.95, 1.05))
    length = round(0.05 * sample_rate)
    times_s = onsets(rng, num_samples / sample_rate, slap_s, jitter=0.02)
    slaps = [noise(rng, length) * attack_decay(length, sample_rate, attack_s=0.006, decay_s=0.012) for _ in times_s]
    air = place(slaps, times_s, num_samples, sample_rate) + 0.06 * noise(rng, num_samples)
    whine = sine(np.full(num_samples, 1900 * voice.uniform(0.9, 1.1)), sample_rate)
    return shape(air, band(90, 420, order=1), sample_rate) + 0.012 * whine


def clock(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Tick and tock: short clicks of a small wooden case, the second a little lower."""
    case_hz = 2400 * pitch * voice.uniform(0.95, 1.05)
    ratios = np.array([1.0, 1.62, 2.3]) * voice.uniform(0.97, 1.03, 3)
    length = round(0.06 * sample_rate)
    click = noise(rng, length) * attack_decay(length, sample_rate, attack_s=0.0005, decay_s=0.0015)
    tick, tock = (
        partials(case_hz * shift * ratios, np.array([1.0, 0.6, 0.4]), np.array([0.012, 0.008, 0.005]), length, sample_rate)
        + 0.25 * click
        for shift in (1.0, 0.85)
    )
    times_s = onsets(rng, num_samples / sample_rate - 0.02, 0.42 / rate, jitter=0.01)
    beats = [fade_edges(tock if beat % 2 else tick, sample_rate, rise_s=0.0005) for beat in range(len(times_s))]
    return place(beats, times_s, num_samples, sample_rate)


def footsteps(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Heel, then sole, on gravel: a dull thump and a crunch of grains, left and right unlike."""
    heel_hz = 95 * pitch * voice.uniform(0.9, 1.1)
    grit_hz = 2200 * voice.uniform(0.85, 1.15)
    length = round(0.2 * sample_rate)
    times_s = onsets(rng, num_samples / sample_rate - 0.1, 0.55 / rate, jitter=0.04)
    steps = []
    for foot in range(len(times_s)):
        thump = sine(heel_hz * glide([1.4, 0.8, 0.7], length), sample_rate)
        thump *= attack_decay(length, sample_rate, attack_s=0.004, decay_s=0.025)
        grains = np.sort(rng.integers(0, round(0.12 * sample_rate), 90))
        crackle = scatter(grains, rng.lognormal(0, 0.4, 90) * rng.choice([-1.0, 1.0], 90), np.ones(1), length)
        crunch = shape(crackle, band(700, grit_hz * (1.0 if foot % 2 else 1.15), order=1), sample_rate)
        steps.append(fade_edges(thump + 0.9 * crunch * hump(length, rise=0.25), sample_rate) * rng.uniform(0.8, 1.0))
    return place(steps, times_s, num_samples, sample_rate)


def knocking(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Knuckles on a door: three or four raps with the short, dull ring of a panel, a pause, and again."""
    panel_hz = 210 * pitch * voice.uniform(0.92, 1.08)
    ratios = np.array([1.0, 1.7, 2.6, 4.1]) * voice.uniform(0.96, 1.04, 4)
    length = round(0.16 * sample_rate)
    duration_s = num_samples / sample_rate
    group = int(rng.integers(3, 5))
    rap_s = 0.22 / rate
    starts_s = np.arange(0.02, duration_s - 0.1, rap_s * (group + 1.6))
    times_s = (starts_s[:, None] + rap_s * np.arange(group)).ravel()  # [groups * raps]
    times_s = times_s[times_s < duration_s - 0.1]
    raps = []
    for _ in times_s:
        ring = partials(
            panel_hz * ratios, np.array([1.0, 0.8, 0.5, 0.3]), np.array([0.03, 0.022, 0.015, 0.01]), length, sample_rate
        )
        rap = ring + 0.4 * noise(rng, length) * attack_decay(length, sample_rate, attack_s=0.0005, decay_s=0.003)
        raps.append(fade_edges(rap, sample_rate, rise_s=0.001) * rng.uniform(0.8, 1.0))
    return place(raps, times_s, num_samples, sample_rate)


def glass(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """A crash of noise, then shards that ring at their own high pitches as they fall, fewer and fewer."""
    lowest_hz = 2300 * pitch * voice.uniform(0.95, 1.05)
    length = round(0.18 * sample_rate)
    crash = shaped_noise(rng, num_samples, band(lowest_hz, 7000, order=1), sample_rate)
    crash *= attack_decay(num_samples, sample_rate, attack_s=0.002, decay_s=0.09)
    num_shards = int(voice.integers(24, 34))
    falls_s = np.sort(np.minimum(0.02 + rng.exponential(0.35, num_shards), num_samples / sample_rate - 0.05))
    shards = []
    for fall_s in falls_s:
        modes_hz = lowest_hz * rng.uniform(1.0, 2.2, 3)
        ring = partials(modes_hz, rng.uniform(0.3, 1.0, 3), rng.uniform(0.02, 0.06, 3), length, sample_rate)
        shards.append(fade_edges(ring, sample_rate, rise_s=0.001) * 0.5 * np.exp(-fall_s / 0.8))
    return 0.8 * crash + place(shards, falls_s, num_samples, sample_rate)


def telephone(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """The double gong of an old telephone, struck twenty times a second, ring and pause."""
    gong_hz = 1050 * pitch * voice.uniform(0.96, 1.04)
    ring_s, cycle_s = 0.62 / rate, 0.98 / rate
    strike_s = 1 / voice.uniform(21, 25)
    length = round(0.3 * sample_rate)
    gongs = [
        partials(
            gong_hz * tune * np.array([1.0, 2.32, 3.9]),
            np.array([1.0, 0.8, 0.35]),
            np.full(3, 0.06),
            length,
            sample_rate,
        )
        for tune in (1.0, 1.19)
    ]
    starts_s = onsets(rng, num_samples / sample_rate - 0.2, cycle_s, jitter=0.0)
    beats_s = np.arange(0, ring_s, strike_s)
    times_s = (starts_s[:, None] + beats_s).ravel()  # [rings * strikes]
    times_s = times_s[times_s < num_samples / sample_rate]
    strikes = [fade_edges(gongs[beat % 2], sample_rate, rise_s=0.001) for beat in range(len(times_s))]
    return place(strikes, times_s, num_samples, sample_rate)


def whistle(
    voice: np.random.Generator,
    rng: np.random.Generator,
    *,
    num_samples: int,
    sample_rate: int,
    pitch: float,
    rate: float,
) -> Array:
    """Someone whistles a tune: sustained pure tones that step along a scale, with vibrato and breath."""
    key_hz = 1250 * pitch * voice.uniform(0.96, 1.04)
    note_s = 0.36 / rate
    num_notes = max(2, int(np.ceil(num_samples / sample_rate / note_s)))
    scale = np.array([-5, -3, 0, 2, 4])
    steps = scale[rng.integers(0, len(scale), num_notes)]
    held = np.repeat(steps, int(np.ceil(num_samples / num_notes)))[:num_samples].astype(float)
    # A mouth slides from note to note within 40 ms; a running mean draws that line.
    width = round(0.04 * sample_rate)
    running = np.cumsum(np.pad(held, (width, 0), mode="edge"))
    slid = (running[width:] - running[:-width]) / width  # [T]
    vibrato = 0.15 * np.sin(2 * np.pi * 5.5 * seconds(num_samples, sample_rate))
    tone = sine(key_hz * 2 ** ((slid + vibrato) / 12), sample_rate)
    breath = shaped_noise(rng, num_samples, band(0.9 * key_hz, 1.5 * key_hz, order=2), sample_rate)
    position = np.arange(num_samples) / sample_rate % note_s / note_s
    return (tone + 0.08 * breath) * (0.55 + 0.45 * np.sin(np.pi * position) ** 0.5)
