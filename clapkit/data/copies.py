"""Decoded copies of audio files: made once, so that training does not decode and resample in every epoch.

A copy is mono, because every audio tower is: channels are averaged as ``clapkit.data.audio.load`` does.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import soundfile
import soxr
import xxhash

from clapkit.data.audio import AudioInfo
from clapkit.errors import AudioError, RunDirError

CopyFormat = Literal["flac", "wav"]

_SUBTYPES = {"flac": "PCM_16", "wav": "FLOAT"}
# File systems allow 255 bytes in a name; the copy adds a suffix, and one more while it is written.
_MAX_NAME_BYTES = 240


@dataclass(frozen=True, slots=True)
class CopyPolicy:
    """How copies are made.

    Attributes:
        format: ``flac`` holds 16 bits and clips what lies beyond full scale, ``wav`` holds 32-bit floats as they are.
        sample_rate: Hz; None keeps that of each file.
    """

    format: CopyFormat
    sample_rate: int | None


def copy_name(audio: str, format: CopyFormat) -> str:
    """Where the copy of a file goes, below the folder of the copies.

    Args:
        audio: path of the file, as the manifest names it.
        format: of the copy; it is added to the name, because ``a.wav`` may lie beside ``a.mp3``.
    """
    parts = PurePosixPath(audio).parts
    # A folder that is called like a copy could stand in the way of one.
    is_plain = not audio.startswith("/") and ".." not in parts and not any(part.endswith(f".{format}") for part in parts[:-1])
    if is_plain and all(len(os.fsencode(part)) <= _MAX_NAME_BYTES for part in parts):
        return f"{PurePosixPath(audio)}.{format}"
    return f"{xxhash.xxh3_128_hexdigest(os.fsencode(audio))}.{format}"


class CopyWriter:
    """Writes one copy, block by block; it appears under its name when it is finished.

    Args:
        path: of the copy.
        sample_rate: of the waveform that is written, Hz.
        policy: how copies are made.

    Raises:
        AudioError: if the copy cannot be written.
    """

    def __init__(self, path: Path, sample_rate: int, *, policy: CopyPolicy) -> None:
        self._path = path
        # One fixed name, so that what a killed process left is overwritten by the next one.
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._rate = policy.sample_rate or sample_rate
        self._stream = None if self._rate == sample_rate else soxr.ResampleStream(sample_rate, self._rate, 1, quality="HQ")
        self._num_frames = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = soundfile.SoundFile(
                self._temporary,
                "w",
                samplerate=self._rate,
                channels=1,
                format=policy.format.upper(),
                subtype=_SUBTYPES[policy.format],
            )
        except soundfile.SoundFileError as error:
            self._temporary.unlink(missing_ok=True)
            raise AudioError(f"{path}: the copy cannot be written at {self._rate} Hz ({error}); choose --cache-rate") from error

    def write(self, mono: np.ndarray) -> None:
        """Add samples, float32 [T] at the rate of the source.

        Raises:
            RunDirError: if the disk is full.
        """
        self._write(mono if self._stream is None else self._stream.resample_chunk(mono))

    def finish(self) -> AudioInfo:
        """Close the copy and give it its name.

        Returns:
            What it holds.

        Raises:
            AudioError: if nothing is left of the sound at that rate.
            RunDirError: if the disk is full.
        """
        if self._stream is not None:
            self._write(self._stream.resample_chunk(np.zeros(0, np.float32), last=True))
        info = AudioInfo(self._rate, self._num_frames, 1, self._file.format, self._file.subtype)
        self._file.close()
        if not self._num_frames:
            raise AudioError(f"{self._path}: the copy at {self._rate} Hz is empty, expected at least 1 sample; drop the file")
        self._temporary.replace(self._path)
        return info

    def close(self) -> None:
        """Drop what was not finished; nothing happens after ``finish``."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _write(self, samples: np.ndarray) -> None:
        if len(samples):
            try:
                self._file.write(samples)
            except soundfile.SoundFileError as error:
                # The fault of the disk, not of the file: every later one would look bad.
                raise RunDirError(
                    f"{self._path}: the copy cannot be written ({error}); make room on the disk and go on with --resume"
                ) from error
            self._num_frames += len(samples)
