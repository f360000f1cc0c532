"""Plans to audio files: what the worker processes of the mixed corpus run, hence without torch and pandas."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from clapkit.data.audio import load
from clapkit.data.inspection import SILENT_RMS
from clapkit.data.recipes._mix_plan import MixPlan, Recording, sound_generator
from clapkit.data.sound_events import FRAME_S, Waveform, active_part, active_rms, faded, loudest_window
from clapkit.errors import AudioError

Span = tuple[float, float]

GAP_S = 0.1
"""Silence at least between the two events of ``then``."""

_FADE_S = 0.01
_LATEST_START_S = 0.3
_SHORTEST_PERIOD_S = 0.5  # shorter events are repeated with pauses: a click every 0.1 s would be a buzz
_LEVEL_DB, _LEVEL_SPREAD_DB = -24.0, 3.0
_PEAK_LIMITS = (0.8, 0.95)  # drawn between these, so that two clips of one loud recording are no copies
# Excerpts of 5 s at 16 kHz in 330 MB; a corpus with more recordings is decoded more than once.
_NUM_CACHED = 1024


@dataclass(frozen=True, slots=True)
class Sound:
    """How clips sound.

    Attributes:
        clip_s: length of every clip.
        sample_rate: Hz.
    """

    clip_s: float
    sample_rate: int

    @property
    def num_samples(self) -> int:
        """Length of every clip in samples."""
        return self.samples(self.clip_s)

    def samples(self, duration_s: float) -> int:
        """A duration in samples."""
        return round(duration_s * self.sample_rate)


def audio_name(plan: MixPlan) -> str:
    """Path of the audio file of a clip, relative to the run directory."""
    return f"audio/{plan.split}/{plan.index:05d}.wav"


def find_problems(recordings: Sequence[Recording], sound: Sound) -> list[str | None]:
    """Why each recording cannot be used; None if it can."""
    return [_problem(recording, sound) for recording in recordings]


def _problem(recording: Recording, sound: Sound) -> str | None:
    try:
        waveform = _loudest_part(recording.path, recording.start_s, recording.end_s, sound)
    except AudioError as error:
        return str(error)
    rms = float(np.sqrt(np.mean(np.square(waveform))))
    if rms < SILENT_RMS:
        return f"{recording.path}: is silent (RMS {rms:.2g}), expected at least {SILENT_RMS:g}; drop it"
    return None


def write_clips(plans: Sequence[MixPlan], output_dir: Path, seed: int, sound: Sound) -> list[list[Span]]:
    """Mix clips and write them as WAV, each under a temporary name first: a file with the final name is whole.

    Args:
        plans: what to mix.
        output_dir: the run directory; the folders of the splits must exist.
        seed: of the corpus.
        sound: length and rate.

    Returns:
        Start and end in seconds of every event of every clip.
    """
    spans = []
    for plan in plans:
        samples, found = mix(plan, seed=seed, sound=sound)
        path = output_dir / audio_name(plan)
        unfinished = path.with_suffix(".wav.part")
        soundfile.write(unfinished, samples, sound.sample_rate, "PCM_16", format="WAV")
        unfinished.replace(path)
        spans.append(found)
    return spans


def forget_recordings() -> None:
    """Free the memory of the recordings that were loaded in this process."""
    _loudest_part.cache_clear()


def mix(plan: MixPlan, *, seed: int, sound: Sound) -> tuple[NDArray[np.int16], list[Span]]:
    """The waveform of a clip, PCM samples int16 [T], and start and end in seconds of every event."""
    rng = sound_generator(seed, plan)
    mixture = np.zeros(sound.num_samples)
    spans = []
    for recording, (start, end) in zip(plan.recordings, _slots(rng, plan.composition, sound), strict=True):
        event = _event(recording, end - start, sound=sound, is_repeated=plan.composition == "while")
        level_db = _LEVEL_DB + rng.uniform(-_LEVEL_SPREAD_DB, _LEVEL_SPREAD_DB)
        mixture[start : start + len(event)] += 10 ** (level_db / 20) * event
        spans.append((start / sound.sample_rate, (start + len(event)) / sound.sample_rate))
    peak = float(np.abs(mixture).max())
    mixture *= min(1.0, rng.uniform(*_PEAK_LIMITS) / peak)
    return np.round(mixture * 32767).astype(np.int16), spans


def _slots(rng: np.random.Generator, composition: str, sound: Sound) -> list[tuple[int, int]]:
    """Room for each event, in samples: about a half each for ``then``, otherwise nearly the whole clip."""
    if composition == "single":
        return [(0, sound.num_samples)]
    if composition == "while":
        return [(sound.samples(rng.uniform(0, _LATEST_START_S)), sound.num_samples) for _ in range(2)]
    turn_s = sound.clip_s * rng.uniform(0.47, 0.53)
    return [(0, sound.samples(turn_s - GAP_S / 2)), (sound.samples(turn_s + GAP_S / 2), sound.num_samples)]


def _event(recording: Recording, num_samples: int, *, sound: Sound, is_repeated: bool) -> NDArray[np.float64]:
    """The active part of a recording with an RMS of 1, at most ``num_samples`` long; exactly as long if repeated."""
    part = _loudest_part(recording.path, recording.start_s, recording.end_s, sound)
    frame = sound.samples(FRAME_S)
    event = active_part(loudest_window(part, num_samples), frame).astype(np.float64)
    event /= active_rms(event, frame)
    fade = sound.samples(_FADE_S)
    if is_repeated:
        pause = max(sound.samples(_SHORTEST_PERIOD_S) - len(event), 0)
        event = repeated(event, num_samples, fade=fade, pause=pause)
    return faded(event, fade)


@functools.lru_cache(maxsize=_NUM_CACHED)
def _loudest_part(path: Path, start_s: float | None, end_s: float | None, sound: Sound) -> Waveform:
    """Load a recording and keep what at most fits into a clip; all excerpts are taken from there."""
    waveform = load(path, sample_rate=sound.sample_rate, start_s=start_s, end_s=end_s)
    part = loudest_window(waveform, sound.num_samples).copy()  # a view would keep the whole recording in memory
    part.flags.writeable = False
    return part


def repeated(waveform: NDArray[np.float64], num_samples: int, *, fade: int, pause: int) -> NDArray[np.float64]:
    """The waveform again and again, [num_samples]; crossfaded over ``fade`` samples, or after a pause if that is not 0."""
    piece = faded(waveform, fade)
    step = len(piece) + pause if pause else max(len(piece) - fade, 1)
    row = np.zeros(num_samples + len(piece))
    for start in range(0, num_samples, step):
        row[start : start + len(piece)] += piece
    return row[:num_samples]
