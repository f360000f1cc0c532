"""Audio files to waveforms: open, check, mix down, resample, and cut into windows.

Everything is decoded with libsndfile and resampled with soxr. Nothing is repaired: a file that does not hold what its
header says is an ``AudioError``, because a clip that is silently shorter, or half NaN, spoils an experiment unseen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from clapkit.data.truncation import missing_bytes
from clapkit.errors import AudioError

AUDIO_SUFFIXES = frozenset(".wav .wave .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .voc".split())
"""File name endings that are taken for audio, in lower case; all of them can be decoded."""

_BLOCK_FRAMES = 1 << 18
# MPEG files without a gapless tag announce whole frames of 1152 samples, and the decoder drops its start-up delay: the
# last frame may come short without anything being lost.
_MPEG_SLACK_FRAMES = 1152
# The largest value of 16-bit audio, 1 - 2**-15: what a sample that hit the ceiling reads as.
_FULL_SCALE = 32767 / 32768
# libsndfile's count where a FLAC header leaves the length open.
_UNKNOWN_FRAMES = 1 << 62


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What an audio file holds.

    Attributes:
        sample_rate: Hz.
        num_frames: samples of each channel.
        num_channels: 1 for mono.
    """

    sample_rate: int
    num_frames: int
    num_channels: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate


@dataclass(frozen=True, slots=True)
class AudioStatistics:
    """What the samples of a file look like, over all channels; 1 is full scale.

    Attributes:
        peak: largest absolute value.
        rms: root mean square around the DC offset.
        dc_offset: mean.
        clipped_share: share of samples at or above full scale.
    """

    peak: float
    rms: float
    dc_offset: float
    clipped_share: float


def probe(path: Path) -> AudioInfo:
    """Look at the header of a file; cheap, but a broken MP3 or FLAC passes.

    Raises:
        AudioError: if the file cannot be opened, is empty, or is shorter than its header says.
    """
    with _opened(path) as file:
        return AudioInfo(file.samplerate, file.frames, file.channels)


def check(path: Path) -> AudioInfo:
    """Decode a whole file and make sure that it holds what its header says.

    Raises:
        AudioError: if the file cannot be decoded, is empty, holds fewer or more frames than its header says, or holds
            samples that are not finite.
    """
    return examine(path)[0]


def examine(path: Path) -> tuple[AudioInfo, AudioStatistics]:
    """Like ``check``, with statistics of the samples; memory does not grow with the length of the file.

    Raises:
        AudioError: as ``check``.
    """
    peak = total = squares = 0.0
    num_frames = num_clipped = 0
    with _opened(path) as file:
        for block in _blocks(path, file, file.frames):  # [frames, channels]
            block_peak = max(float(block.max()), -float(block.min()))
            if not math.isfinite(block_peak):  # NaN and infinities both win
                first = num_frames + int(np.argmin(np.isfinite(block).all(axis=1)))
                raise _not_finite(path, first)
            peak = max(peak, block_peak)
            values = block.ravel().astype(np.float64)
            total += float(values.sum())
            # einsum, because dot would wake the thread pool of BLAS in every decoding process.
            squares += float(np.einsum("i,i->", values, values))
            if block_peak >= _FULL_SCALE:
                num_clipped += int(np.count_nonzero(np.abs(values) >= _FULL_SCALE))
            num_frames += len(block)
        _expect_frames(path, file, found=num_frames, expected=file.frames)
        info = AudioInfo(file.samplerate, num_frames, file.channels)
    num_values = num_frames * info.num_channels
    mean = total / num_values
    variance = max(squares / num_values - mean * mean, 0.0)
    return info, AudioStatistics(peak, variance**0.5, mean, num_clipped / num_values)


def load(path: Path, *, sample_rate: int, start_s: float | None = None, end_s: float | None = None) -> np.ndarray:
    """Decode a file, or a span of it, to a mono waveform.

    Channels are averaged; the span is cut before resampling, to the nearest sample of the file.

    Args:
        path: of the file.
        sample_rate: of the waveform that is wanted, in Hz.
        start_s: where to start; None is the start of the file.
        end_s: where to end; None is the end of the file.

    Returns:
        float32 [T].

    Raises:
        AudioError: if the file cannot be decoded as its header says, the span does not lie inside the file, or samples
            are not finite.
    """
    with _opened(path) as file:
        start, end = _span(path, file, start_s, end_s)
        if start:
            try:
                file.seek(start)
            except soundfile.SoundFileError as error:
                raise AudioError(f"{path}: cannot be read from {start_s} s on ({_reason(error)}); replace it") from error
        parts = [_mono(block) for block in _blocks(path, file, end - start)]
        waveform = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.float32)
        _expect_frames(path, file, found=len(waveform), expected=end - start)
        file_rate = file.samplerate
    if not np.isfinite(waveform).all():
        raise _not_finite(path, start + int(np.argmin(np.isfinite(waveform))))
    if file_rate != sample_rate:
        waveform = soxr.resample(waveform, file_rate, sample_rate, quality="HQ")
    if not len(waveform):
        raise AudioError(
            f"{path}: {end - start} samples at {file_rate} Hz are 0 at {sample_rate} Hz, expected at least 1; drop it"
        )
    return np.ascontiguousarray(waveform, dtype=np.float32)


def span_windows(num_samples: int, *, window: int, hop: int) -> list[tuple[int, int]]:
    """Windows that cover a waveform.

    All windows are full, because padding changes an embedding: the last one is moved back to end with the waveform.
    Only a waveform that is shorter than one window gives a shorter one.

    Args:
        num_samples: length of the waveform, > 0.
        window: length of a window in samples, > 0.
        hop: step between windows in samples, > 0 and at most ``window``, so that nothing is left out.

    Returns:
        (start, end) of every window, in samples.

    Raises:
        ValueError: if a length is out of range.
    """
    if num_samples < 1 or window < 1 or not 1 <= hop <= window:
        raise ValueError(f"{num_samples} samples, window {window}, hop {hop}: expected 1 <= hop <= window and 1 sample")
    if num_samples <= window:
        return [(0, num_samples)]
    starts = list(range(0, num_samples - window + 1, hop))
    if starts[-1] + window < num_samples:
        starts.append(num_samples - window)
    return [(start, start + window) for start in starts]


@contextmanager
def _opened(path: Path) -> Iterator[soundfile.SoundFile]:
    """Open a file and make sure that its header promises something that is there."""
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: raw samples without a header, expected a format with one; convert it to wav or flac")
    try:
        with path.open("rb") as stream:
            if not stream.read(1):
                raise AudioError(f"{path}: is empty (0 bytes), expected audio; replace or drop it")
            missing = missing_bytes(stream)
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); expected a readable audio file") from error
    try:
        file = soundfile.SoundFile(os.fsencode(path))
    except soundfile.SoundFileError as error:
        raise AudioError(
            f"{path}: cannot be read as audio ({_reason(error)}); expected wav, flac, ogg, mp3 or another format of "
            "libsndfile; convert or drop it"
        ) from error
    with file:
        if missing is not None:
            raise AudioError(
                f"{path}: truncated, {missing[0]} bytes of audio found, {missing[1]} expected from the header; "
                "copy or download it again"
            )
        if file.frames < 1:
            raise AudioError(f"{path}: holds 0 frames of audio, expected at least 1; drop it")
        if file.frames >= _UNKNOWN_FRAMES:
            raise AudioError(f"{path}: its header does not say how long it is, expected a count; encode it again")
        yield file


def _blocks(path: Path, file: soundfile.SoundFile, num_frames: int) -> Iterator[np.ndarray]:
    """Blocks of float32 [frames, channels], ``num_frames`` in all or as many as there are."""
    done = 0
    while done < num_frames:
        try:
            # In blocks, so that a header that promises terabytes cannot make us allocate them.
            block = file.read(min(_BLOCK_FRAMES, num_frames - done), dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise AudioError(
                f"{path}: decoding failed near frame {done} of {num_frames} ({_reason(error)}); "
                "it is truncated or damaged, replace or drop it"
            ) from error
        if not len(block):
            return
        done += len(block)
        yield block


def _expect_frames(path: Path, file: soundfile.SoundFile, *, found: int, expected: int) -> None:
    slack = _MPEG_SLACK_FRAMES if file.format == "MP3" or file.subtype.startswith("MPEG") else 0
    if expected - found > slack:
        raise AudioError(f"{path}: truncated, {found} frames decoded, {expected} expected from the header; replace or drop it")
    if not found:
        raise AudioError(f"{path}: holds 0 frames of audio, expected at least 1; drop it")


def _span(path: Path, file: soundfile.SoundFile, start_s: float | None, end_s: float | None) -> tuple[int, int]:
    start = 0 if start_s is None else round(start_s * file.samplerate)
    end = file.frames if end_s is None else round(end_s * file.samplerate)
    if not 0 <= start < end <= file.frames:
        until = "the end" if end_s is None else f"{end_s} s"
        raise AudioError(
            f"{path}: span from {start_s or 0} s to {until}, "
            f"expected a span inside its {file.frames / file.samplerate:.6g} s; correct start_s and end_s"
        )
    return start, end


def _mono(block: np.ndarray) -> np.ndarray:
    """Average the channels of [frames, channels]."""
    # Adding columns is forty times as fast as ``block.mean(axis=1)`` on interleaved samples.
    mono = block[:, 0].copy()
    for channel in range(1, block.shape[1]):
        mono += block[:, channel]
    if block.shape[1] > 1:
        mono *= np.float32(1 / block.shape[1])
    return mono  # [frames]


def _not_finite(path: Path, frame: int) -> AudioError:
    return AudioError(f"{path}: a sample that is NaN or infinite at frame {frame}, expected finite samples; replace or drop it")


def _reason(error: soundfile.SoundFileError) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".").removeprefix("Error : ")
