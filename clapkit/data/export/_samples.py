"""Clips as self-contained samples: a whole audio file, and a record that no longer needs the manifest.

Files that readers of shards know are taken byte for byte. Spans are cut, and other formats are encoded again, without loss:
samples of up to 24 bits become FLAC, all others WAV with the samples as they are decoded.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal

import numpy as np
import soundfile

from clapkit.data.audio import EXACT_SUBTYPES, probe
from clapkit.data.manifest import Manifest, to_line
from clapkit.data.members import audio_size, open_audio
from clapkit.data.safe_paths import is_safe_audio_path, safe_part, short_hash
from clapkit.data.wav import to_bytes, wav_header
from clapkit.errors import AudioError, ConfigError
from clapkit.types import Clip

# Suffix of a file that is copied -> suffix of the member. Opus and Ogg audio are Ogg files, whatever they are called.
_COPIED = {
    ".flac": "flac",
    ".wav": "wav",
    ".wave": "wav",
    ".mp3": "mp3",
    ".ogg": "ogg",
    ".oga": "ogg",
    ".opus": "ogg",
}
_FLAC_DTYPES = {"PCM_S8": "int16", "PCM_U8": "int16", "PCM_16": "int16", "ULAW": "int16", "ALAW": "int16", "PCM_24": "int32"}
_WAV_DTYPES = {"PCM_32": "int32", "DOUBLE": "float64"}
_MAX_FLAC_CHANNELS, _MAX_FLAC_RATE = 8, 655_350
_BLOCK_FRAMES = 1 << 18

Treatment = Literal["copied", "cut", "encoded"]


@dataclass(frozen=True, slots=True)
class Sample:
    """A clip with its audio.

    Attributes:
        clip: without a span, with the audio path that it has from now on.
        path: of the audio file, whole; or of a member of a shard.
        suffix: of the member, without its dot.
        treatment: what was done to the file.
    """

    clip: Clip
    path: Path
    suffix: str
    treatment: Treatment

    @property
    def num_bytes(self) -> int:
        """Size of the audio file."""
        return audio_size(self.path)

    def open(self) -> BinaryIO:
        """The audio file, open for reading."""
        return open_audio(self.path)

    @property
    def record(self) -> dict[str, Any]:
        """The manifest line, as an object."""
        record: dict[str, Any] = json.loads(to_line(self.clip))
        return record


class Tally:
    """Counts what became of the clips of an export."""

    def __init__(self) -> None:
        self.treatments: Counter[str] = Counter()
        self.encoded: Counter[str] = Counter()
        self.splits: dict[str, dict[str, int]] = {}
        self.num_without_captions = self.num_renamed = 0
        self.failed: list[dict[str, str]] = []
        self.paths: list[str] = []

    def add(self, clip: Clip, sample: Sample) -> None:
        """Count a clip that was written."""
        self.treatments[sample.treatment] += 1
        if sample.treatment == "encoded":
            self.encoded[f"{PurePosixPath(clip.audio).suffix.lower()} to {sample.suffix}"] += 1
        self.num_without_captions += not clip.captions
        self.num_renamed += sample.clip.audio != clip.audio

    def fail(self, clip: Clip, reason: str) -> None:
        """Count a clip that could not be written."""
        self.failed.append({"item": clip.id, "reason": reason})

    def summary(self) -> dict[str, Any]:
        """All counts, and the paths that were written, as JSON values."""
        return {
            "num_clips": self.treatments.total(),
            "num_files": len(self.paths),
            "splits": self.splits,
            **{f"num_{name}": self.treatments[name] for name in ("copied", "cut", "encoded")},
            "encoded": dict(sorted(self.encoded.items())),
            "num_renamed": self.num_renamed,
            "num_without_captions": self.num_without_captions,
            "num_failed": len(self.failed),
            "failed": self.failed,
            "paths": self.paths,
        }


def by_split(manifest: Manifest) -> dict[str, list[tuple[int, Clip]]]:
    """Clips of every split with their rows in the manifest, in their order; those without a split under ``all``."""
    splits: dict[str, list[tuple[int, Clip]]] = {}
    for row, clip in enumerate(manifest):
        splits.setdefault(clip.split or "all", []).append((row, clip))
    return dict(sorted(splits.items()))


def new_folder(folder: Path) -> Path:
    """Make a folder for an export.

    Raises:
        ConfigError: if it holds anything: files of another export would be read as part of this one.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: is not empty, expected a new folder; name another or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def open_sample(manifest: Manifest, clip: Clip, workspace: Path) -> Iterator[Sample]:
    """The sample of a clip; what had to be encoded is there until the block ends.

    Args:
        manifest: that the clip is from.
        clip: with its duration.
        workspace: folder for a temporary file.

    Raises:
        AudioError: if the file cannot be opened, or its span cannot be cut.
    """
    path = manifest.audio_path(clip)
    suffix = PurePosixPath(clip.audio).suffix.lower()
    is_span = clip.start_s is not None or clip.end_s is not None
    if suffix in _COPIED and not is_span:
        probe(path)
        yield Sample(replace(clip, audio=portable_audio(clip.audio)), path, _COPIED[suffix], "copied")
        return
    temporary = workspace / f".{short_hash(clip.id)}.tmp"
    try:
        encoded, num_frames, sample_rate = _encode(path, clip, temporary)
        # Behind the whole old name, so that a.aiff and a.flac stay two files.
        span = f"@{clip.start_s or 0.0!r}-{'' if clip.end_s is None else repr(clip.end_s)}" if is_span else ""
        name = portable_audio(f"{portable_audio(clip.audio)}{span}.{encoded}")
        duration_s = num_frames / sample_rate if is_span else clip.duration_s
        whole = replace(clip, audio=name, start_s=None, end_s=None, duration_s=duration_s)
        yield Sample(whole, temporary, encoded, "cut" if is_span else "encoded")
    finally:
        temporary.unlink(missing_ok=True)


def portable_audio(audio: str) -> str:
    """An audio path as it stands, where it can be made below any folder; otherwise a name with a hash of the path."""
    if not os.path.isabs(audio) and is_safe_audio_path(audio):
        return audio
    path = PurePosixPath(audio)
    return f"elsewhere/{short_hash(audio)}/{safe_part(path.stem)}{path.suffix.lower()}"


def _encode(path: Path, clip: Clip, target: Path) -> tuple[str, int, int]:
    """Write the span of a clip, or the whole file, without loss.

    Returns:
        Suffix of the new format, number of frames, sample rate.
    """
    info = probe(path)
    start = round((clip.start_s or 0.0) * info.sample_rate)
    end = info.num_frames if clip.end_s is None else round(clip.end_s * info.sample_rate)
    if not 0 <= start < end <= info.num_frames:
        raise AudioError(
            f"{path}: span from {clip.start_s} s to {clip.end_s} s, expected it inside its {info.duration_s:g} s; prepare again"
        )
    try:
        with open_audio(path) as stream, soundfile.SoundFile(stream) as file:
            if file.subtype in EXACT_SUBTYPES:
                file.seek(start)
            else:
                for _ in _blocks(path, file, start, "float32"):
                    pass
            fits_flac = info.num_channels <= _MAX_FLAC_CHANNELS and info.sample_rate <= _MAX_FLAC_RATE
            if file.subtype in _FLAC_DTYPES and fits_flac:
                _write_flac(path, file, target, end - start)
                return "flac", end - start, info.sample_rate
            _write_wav(path, file, target, end - start)
            return "wav", end - start, info.sample_rate
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: cannot be encoded ({error}); replace or drop it") from error


def _write_flac(path: Path, file: soundfile.SoundFile, target: Path, num_frames: int) -> None:
    subtype = "PCM_24" if file.subtype == "PCM_24" else "PCM_16"
    with soundfile.SoundFile(
        os.fsencode(target), "w", samplerate=file.samplerate, channels=file.channels, format="FLAC", subtype=subtype
    ) as encoder:
        for block in _blocks(path, file, num_frames, _FLAC_DTYPES[file.subtype]):
            encoder.write(block)


def _write_wav(path: Path, file: soundfile.SoundFile, target: Path, num_frames: int) -> None:
    dtype = _WAV_DTYPES.get(file.subtype) or _FLAC_DTYPES.get(file.subtype, "float32")
    with target.open("wb") as stream:
        header = wav_header(num_frames=num_frames, num_channels=file.channels, sample_rate=file.samplerate, dtype=dtype)
        stream.write(header)
        for block in _blocks(path, file, num_frames, dtype):
            stream.write(to_bytes(block))


def _blocks(path: Path, file: soundfile.SoundFile, num_frames: int, dtype: str) -> Iterator[np.ndarray]:
    """Blocks [frames, channels] of exactly ``num_frames`` in all."""
    left = num_frames
    while left:
        block: np.ndarray = file.read(min(_BLOCK_FRAMES, left), dtype=dtype, always_2d=True)
        if not len(block):
            raise AudioError(f"{path}: truncated, {left} of {num_frames} frames missing; replace or drop it")
        left -= len(block)
        yield block
