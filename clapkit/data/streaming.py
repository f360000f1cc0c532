"""Audio files as streams: hashed, decoded, resampled and cut into windows in memory that does not grow with their length.

A file is opened once and read from front to back. What comes out is what ``clapkit.data.audio`` gives for the whole file:
``stream_samples`` the samples of ``load_window``, ``stream_windows`` the windows of ``span_windows``. A window is given as soon
as its last sample is decoded, so that a file that turns out to be bad at its end has given windows before the error.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import soundfile
import xxhash

from clapkit.data import audio
from clapkit.data.members import open_audio, split_member
from clapkit.data.resampling import BLOCK_S, frames_of_window, num_resampled, resample_window
from clapkit.errors import AudioError

FloatArray = npt.NDArray[np.float32]

_READ_BYTES = 1 << 20
# More frames than any file has: where a stream ends is known when it has ended.
_ENDLESS = 1 << 62


@dataclass(frozen=True, slots=True)
class FileContent:
    """The bytes of a file, or of a member of a tar file.

    Attributes:
        hash: XXH3-128, hexadecimal.
        num_bytes: how many there are.
        stamp: of the file when it was read; another one means that it was written since.
    """

    hash: str
    num_bytes: int
    stamp: tuple[int, ...]


def read_content(path: Path) -> FileContent:
    """Hash the bytes of a file, or of a member of a tar file.

    Raises:
        AudioError: if the file cannot be read.
    """
    digest = xxhash.xxh3_128()
    num_bytes = 0
    try:
        stamp = _stamp(path)
        with open_audio(path, buffering=0) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
                num_bytes += len(block)
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); expected a readable audio file") from error
    return FileContent(digest.hexdigest(), num_bytes, stamp)


def expect_unchanged(path: Path, content: FileContent) -> None:
    """Make sure that a file was not written since it was hashed.

    Raises:
        AudioError: if it was, or cannot be read any more.
    """
    try:
        is_same = _stamp(path) == content.stamp
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened any more ({error.strerror}); expected a file that stays") from error
    if not is_same:
        raise AudioError(f"{path}: was written while it was read, expected a file that stays; run again when it is finished")


def stream_samples(
    path: Path, *, sample_rate: int, start_s: float | None = None, end_s: float | None = None
) -> Generator[FloatArray, None, None]:
    """Decode a file, or a span of it, block by block, to a mono waveform.

    The blocks together are, bit for bit, what ``audio.load_window`` gives for the whole span.

    Args:
        path: of the file.
        sample_rate: of the waveform that is wanted, in Hz.
        start_s: where the span starts; None is the start of the file.
        end_s: where it ends; None is the end of the file.

    Yields:
        float32 [T], T >= 1, each an array of its own.

    Raises:
        AudioError: as ``audio.load``, some of them when blocks have been given already.
    """
    with audio._opened(path) as (file, _):
        start, end = audio._span(path, file, start_s, end_s)
        file_rate, num_samples = file.samplerate, 0
        with closing(_frames(path, file, start, end)) as frames:
            for block in _resampled(frames, file_rate=file_rate, sample_rate=sample_rate):
                num_samples += len(block)
                yield block
        if not num_samples:
            raise audio._vanished(path, end - start, file_rate, sample_rate)


def stream_windows(blocks: Iterable[FloatArray], *, window: int, hop: int) -> Iterator[tuple[int, FloatArray]]:
    """Cut a waveform that comes in blocks into the windows of ``audio.span_windows``.

    Args:
        blocks: float32 [T] each.
        window: length of a window in samples, > 0.
        hop: step between windows in samples, > 0 and at most ``window``.

    Yields:
        First sample of a window, and its samples, float32 [T] of its own; T is ``window``, or less where the whole waveform is
        shorter.
    """
    assert 1 <= hop <= window, (hop, window)
    held, place, start = np.zeros(0, np.float32), 0, 0  # samples, where they lie, and where the next window starts
    for block in blocks:
        held = np.concatenate((held, block)) if len(held) else block
        while start + window <= place + len(held):
            yield start, held[start - place :][:window].copy()
            start += hop
        # One window is kept: if the waveform ends in the next block, the last window is moved back.
        superfluous = max(len(held) - window, 0)
        held, place = held[superfluous:], place + superfluous
    length = place + len(held)
    if length and start == 0:
        yield 0, held.copy()
    elif start - hop + window < length:
        yield length - window, held[-window:].copy()


def _frames(path: Path, file: soundfile.SoundFile, start: int, end: int) -> Generator[FloatArray, None, None]:
    """Frames ``start`` to ``end`` with the channels averaged, block by block, checked as ``audio.load`` does."""
    done, found = _seek(path, file, start), 0
    dtype: Literal["int16", "float32"] = "int16" if file.subtype == "PCM_16" else "float32"
    for block in audio._blocks(path, file, end - done, dtype=dtype):  # [frames, channels]
        mono = audio._mono(block[max(start - done, 0) :])  # [frames]
        done += len(block)
        if not len(mono):
            continue
        if dtype == "float32" and not np.isfinite(mono).all():
            raise audio._not_finite(path, start + found + int(np.argmin(np.isfinite(mono))))
        found += len(mono)
        yield mono
    audio._expect_frames(path, file, found=found, expected=end - start)


def _seek(path: Path, file: soundfile.SoundFile, start: int) -> int:
    """Go to frame ``start``, or stay where a seek is not exact; gives the frame that is read next."""
    if not start or file.subtype not in audio.EXACT_SUBTYPES:
        return 0
    try:
        return int(file.seek(start))
    except soundfile.SoundFileError as error:
        raise AudioError(f"{path}: cannot be read from frame {start} on ({audio._reason(error)}); replace it") from error


def _resampled(frames: Iterable[FloatArray], *, file_rate: int, sample_rate: int) -> Iterator[FloatArray]:
    """Resample a waveform that comes in blocks by the blocks of ``clapkit.data.resampling``."""
    if file_rate == sample_rate:
        yield from frames
        return
    rates = {"file_rate": file_rate, "sample_rate": sample_rate}
    block_samples = BLOCK_S * sample_rate
    held, place, start = np.zeros(0, np.float32), 0, 0  # frames, where they lie, and the next sample
    _, needed = frames_of_window(0, block_samples, num_frames=_ENDLESS, **rates)
    for block in frames:
        held = np.concatenate((held, block)) if len(held) else block
        while place + len(held) >= needed:
            yield resample_window(held, start, start + block_samples, first_frame=place, **rates)
            start += block_samples
            first, needed = frames_of_window(start, start + block_samples, num_frames=_ENDLESS, **rates)
            held, place = held[first - place :], first
    length = num_resampled(place + len(held), **rates)
    if start < length:
        yield resample_window(held, start, length, first_frame=place, **rates)


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file, or the tar file of a member, is written."""
    try:
        status = os.stat(path)
    except NotADirectoryError:
        found = split_member(path)
        if found is None:
            raise
        status = os.stat(found[0])
    return status.st_ino, status.st_size, status.st_mtime_ns
