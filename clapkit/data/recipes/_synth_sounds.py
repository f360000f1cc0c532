"""The sound classes of the built-in corpus, what can be said of each, and one event of it.

An attribute that is named is drawn from a range that keeps clear of the ordinary one; an attribute that is not named is
ordinary. At least half an octave lies between ordinary and high or low, and 8 dB between ordinary and loud or quiet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clapkit.data.recipes import _synth_animals as animals
from clapkit.data.recipes import _synth_things as things
from clapkit.data.recipes import _synth_weather as weather
from clapkit.data.recipes._synth_signal import Array, fade_edges, far_away, to_level


class Render(Protocol):
    """A procedural sound; see ``_synth_animals``."""

    def __call__(
        self,
        voice: np.random.Generator,
        rng: np.random.Generator,
        *,
        num_samples: int,
        sample_rate: int,
        pitch: float,
        rate: float,
    ) -> Array:
        """Give a waveform [num_samples] at any level."""
        ...


@dataclass(frozen=True, slots=True)
class Sound:
    """A class of sounds.

    Attributes:
        render: makes the waveform.
        axes: what can be heard to vary: pitch, rate, loudness, distance.
        is_continuous: True for sounds without pauses, which would drown out what sounds with them at the same level.
    """

    render: Render
    axes: tuple[str, ...]
    is_continuous: bool = False


VALUES: dict[str, tuple[str, ...]] = {
    "pitch": ("high", "low"),
    "rate": ("fast", "slow"),
    "loudness": ("loud", "quiet"),
    "distance": ("far",),
}
"""The values of each axis that captions name."""

SOUNDS: dict[str, Sound] = {
    "dog barking": Sound(animals.dog, ("pitch", "rate", "loudness", "distance")),
    "cat meowing": Sound(animals.cat, ("pitch", "loudness", "distance")),
    "rooster crowing": Sound(animals.rooster, ("loudness", "distance")),
    "bird chirping": Sound(animals.bird, ("pitch", "rate", "loudness")),
    "rain falling": Sound(weather.rain, ("loudness",), is_continuous=True),
    "wind blowing": Sound(weather.wind, ("pitch", "loudness"), is_continuous=True),
    "waves crashing": Sound(weather.waves, ("loudness", "distance"), is_continuous=True),
    "thunder rumbling": Sound(weather.thunder, ("loudness", "distance")),
    "bell ringing": Sound(things.bell, ("pitch", "rate", "loudness", "distance")),
    "alarm beeping": Sound(things.alarm, ("pitch", "rate", "loudness")),
    "siren wailing": Sound(things.siren, ("rate", "loudness", "distance"), is_continuous=True),
    "car honking": Sound(things.car_horn, ("pitch", "loudness", "distance")),
    "engine running": Sound(things.engine, ("pitch", "loudness"), is_continuous=True),
    "helicopter flying": Sound(things.helicopter, ("loudness", "distance"), is_continuous=True),
    "clock ticking": Sound(things.clock, ("pitch", "rate", "loudness")),
    "person walking": Sound(things.footsteps, ("rate", "loudness")),
    "knocking on a door": Sound(things.knocking, ("rate", "loudness", "distance")),
    "glass breaking": Sound(things.glass, ("pitch", "loudness")),
    "telephone ringing": Sound(things.telephone, ("pitch", "loudness", "distance")),
    "person whistling": Sound(things.whistle, ("pitch", "loudness")),
}

# Octaves above the ordinary pitch or rate.
_OCTAVES = {
    ("pitch", "high"): (0.62, 0.82),
    ("pitch", "low"): (-0.82, -0.62),
    ("pitch", None): (-0.08, 0.08),
    ("rate", "fast"): (0.8, 1.0),
    ("rate", "slow"): (-1.0, -0.8),
    ("rate", None): (-0.1, 0.1),
}
# Root mean square and peak relative to full scale; the peak bounds clicks.
_LEVELS = {"loud": (0.22, 0.85), None: (0.07, 0.32), "quiet": (0.02, 0.1)}
_FAR_LEVEL = (0.035, 0.16)
_BEHIND = 0.55  # a continuous sound under another one
_LEVEL_SPREAD_DB = 1.0


def event(
    sound: str,
    attributes: Mapping[str, str],
    *,
    voice: np.random.Generator,
    rng: np.random.Generator,
    duration_s: float,
    sample_rate: int,
    is_accompanied: bool,
) -> Array:
    """One event of a class, at its final level, silent at both ends.

    Args:
        sound: a key of ``SOUNDS``.
        attributes: axis -> value, for the axes that are named.
        voice: draws the timbre; the same seed gives the same individual.
        rng: draws everything else.
        duration_s: length of the event.
        sample_rate: Hz.
        is_accompanied: True if another event sounds at the same time.

    Returns:
        Waveform [T].
    """
    kind = SOUNDS[sound]
    pitch, rate = (2 ** rng.uniform(*_OCTAVES[axis, attributes.get(axis)]) for axis in ("pitch", "rate"))
    waveform = kind.render(
        voice, rng, num_samples=round(duration_s * sample_rate), sample_rate=sample_rate, pitch=pitch, rate=rate
    )
    is_far = "distance" in attributes
    if is_far:
        waveform = far_away(waveform, rng, sample_rate)
    level_rms, level_peak = _FAR_LEVEL if is_far else _LEVELS[attributes.get("loudness")]
    factor = 10 ** (rng.uniform(-_LEVEL_SPREAD_DB, _LEVEL_SPREAD_DB) / 20)
    if is_accompanied and kind.is_continuous:
        factor *= _BEHIND
    levelled = to_level(waveform, sample_rate, level_rms=factor * level_rms, level_peak=factor * level_peak)
    if kind.is_continuous:
        levelled -= levelled.mean()  # bending the lopsided strokes of an engine leaves an offset
    return fade_edges(levelled, sample_rate, fall_s=0.06)
