"""Pictures and sounds of the clips that a report shows."""

from __future__ import annotations

from collections.abc import Mapping

from clapkit.data.audio import load_window
from clapkit.errors import AudioError
from clapkit.report.cards import Media
from clapkit.report.sound import MAX_S, SAMPLE_RATE, encode_sound
from clapkit.report.spectrogram import thumbnail
from clapkit.steps.evaluation.evidence import ClipSource

MAX_SOUNDS = 24
"""Clips that can be heard; the others have a picture only."""

MAX_BYTES = 4 * 2**20
"""Of all sounds together, before they are written as text, which takes a third more."""


def make_media(sources: Mapping[int, ClipSource], *, max_sounds: int = MAX_SOUNDS, max_bytes: int = MAX_BYTES) -> Media:
    """Decode the clips and make their pictures, and the sounds of the first of them.

    A clip that cannot be decoded any more has neither, and the page says so.

    Args:
        sources: row of a clip -> where it is; those that matter most first.
        max_sounds: how many get a sound.
        max_bytes: of all sounds.
    """
    thumbnails: dict[int, bytes] = {}
    sounds: dict[int, bytes] = {}
    num_cut = num_unreadable = size = 0
    for row, source in sources.items():
        try:
            waveform = load_window(
                source.path,
                sample_rate=SAMPLE_RATE,
                offset=0,
                num_samples=round(MAX_S * SAMPLE_RATE) + 1,
                start_s=source.start_s,
                end_s=source.end_s,
            )
        except AudioError:
            num_unreadable += 1
            continue
        is_cut = len(waveform) > round(MAX_S * SAMPLE_RATE)
        waveform = waveform[: round(MAX_S * SAMPLE_RATE)]
        thumbnails[row] = thumbnail(waveform, SAMPLE_RATE, width=256, height=112)
        num_cut += is_cut
        if len(sounds) < max_sounds and size < max_bytes:
            mp3 = encode_sound(waveform)
            if size + len(mp3) <= max_bytes:
                sounds[row] = mp3
                size += len(mp3)
    return Media(thumbnails, sounds, _note(len(sources), len(sounds), num_cut=num_cut, num_unreadable=num_unreadable))


def _note(num_clips: int, num_sounds: int, *, num_cut: int, num_unreadable: int) -> str:
    """What of the clips is not on the page."""
    said = [f"Sounds are mono MP3 at {SAMPLE_RATE / 1000:g} kHz"]
    if num_sounds < num_clips:
        said.append(f"{num_sounds} of the {num_clips} clips have one")
    if num_cut:
        said.append(f"{num_cut} longer than {MAX_S:g} s are cut there")
    if num_unreadable:
        said.append(f"{num_unreadable} cannot be decoded")
    return ", ".join(said) + "."
