"""Plans to audio files: what the worker processes of the built-in corpus run, hence without torch and pandas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from clapkit.data.recipes._synth_plan import ClipPlan, event_generator, voice_generator
from clapkit.data.recipes._synth_signal import noise
from clapkit.data.recipes._synth_sounds import event

_ROOM_NOISE_RMS = 0.0003  # -70 dBFS: no recording is silent between its sounds


def audio_name(plan: ClipPlan) -> str:
    """Path of the audio file of a clip, relative to the run directory."""
    return f"audio/{plan.split}/{plan.index:05d}.wav"


def render(plan: ClipPlan, *, seed: int, sample_rate: int) -> NDArray[np.int16]:
    """The waveform of a clip.

    Args:
        plan: what to render.
        seed: of the corpus.
        sample_rate: Hz.

    Returns:
        PCM samples, int16 [T].
    """
    num_samples = round(plan.duration_s * sample_rate)
    room = event_generator(seed, plan.split, plan.index, len(plan.events))
    mixture = _ROOM_NOISE_RMS * noise(room, num_samples)
    for position, planned in enumerate(plan.events):
        start = round(planned.start_s * sample_rate)
        waveform = event(
            planned.sound,
            planned.attributes,
            voice=voice_generator(seed, plan.split, planned.sound, planned.voice),
            rng=event_generator(seed, plan.split, plan.index, position),
            duration_s=planned.end_s - planned.start_s,
            sample_rate=sample_rate,
            is_accompanied=plan.composition == "while",
        )[: num_samples - start]
        mixture[start : start + len(waveform)] += waveform
    peak = float(np.abs(mixture).max())
    assert peak < 1, f"clip {plan.split}/{plan.index} has a peak of {peak}"
    return np.round(mixture * 32767).astype(np.int16)


def write_clips(plans: Sequence[ClipPlan], output_dir: Path, seed: int, sample_rate: int) -> None:
    """Render clips and write them as WAV, each under a temporary name first: a file with the final name is whole.

    Args:
        plans: what to render.
        output_dir: the run directory; the folders of the splits must exist.
        seed: of the corpus.
        sample_rate: Hz.
    """
    for plan in plans:
        path = output_dir / audio_name(plan)
        unfinished = path.with_suffix(".wav.part")
        soundfile.write(unfinished, render(plan, seed=seed, sample_rate=sample_rate), sample_rate, "PCM_16", format="WAV")
        unfinished.replace(path)
