"""Audio files to waveforms: open, check, mix down, resample, and cut into windows.

Everything is decoded with libsndfile and resampled with soxr. Nothing is repaired: a file that does not hold what its
header says is an ``AudioError``, because a clip that is silently shorter, or half NaN, spoils an experiment unseen.
A path may also mean a member of a tar file, see ``clapkit.data.members``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile
import soxr

from clapkit.data.members import open_audio
from clapkit.data.resampling import frames_of_window, num_resampled, resample_window
from clapkit.data.sample_statistics import AudioStatistics as AudioStatistics
from clapkit.data.sample_statistics import RunningStatistics
from clapkit.data.truncation import flac_ends_early, look_at_length
from clapkit.data.wav_header import read_wav_header
from clapkit.errors import AudioError

AUDIO_SUFFIXES = frozenset(".wav .wave .flac .ogg .oga .opus .mp3 .mp2 .aif .aiff .aifc .au .snd .caf .w64 .rf64 .voc".split())
"""File name endings that are taken for audio, in lower case; all of them can be decoded."""

EXACT_SUBTYPES = frozenset("PCM_S8 PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW".split())
"""How samples are coded where a seek lands on the sample that was asked for, in the words of libsndfile.

In MPEG files of variable bit rate and in Ogg it does not always (libsndfile 1.2): there, what lies in front is decoded, too.
"""

# Values, not frames: 1,024 channels are possible. Small blocks are slow, because every read of soundfile seeks.
_BLOCK_VALUES = 1 << 20
# MPEG files without a gapless tag announce whole frames of 1152 samples, and the decoder drops its start-up delay: the
# last frame may come short without anything being lost.
_MPEG_SLACK_FRAMES = 1152
# From below seismometers to above the hydrophones that hear ultrasound; a header that says more is damaged.
_MIN_SAMPLE_RATE, _MAX_SAMPLE_RATE = 100, 10_000_000
# Most headers end before that.
_HEADER_BYTES = 1024
# libsndfile's count where a FLAC header leaves the length open.
_UNKNOWN_FRAMES = 1 << 62


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What an audio file holds.

    Attributes:
        sample_rate: Hz.
        num_frames: samples of each channel.
        num_channels: 1 for mono.
        format: of the file, as libsndfile calls it, such as ``WAV``.
        subtype: how its samples are coded, such as ``PCM_16``.
        length_problem: what is odd about the length that its header claims, a short phrase; empty if nothing is.
    """

    sample_rate: int
    num_frames: int
    num_channels: int
    format: str = field(default="", compare=False)
    subtype: str = field(default="", compare=False)
    length_problem: str = field(default="", compare=False)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.num_frames / self.sample_rate


def probe(path: Path | str) -> AudioInfo:
    """Look at the header of a file; cheap, but a broken MP3 or FLAC passes.

    Raises:
        AudioError: if the file cannot be opened, is empty, or is shorter than its header says.
    """
    try:
        with open_audio(path, buffering=_HEADER_BYTES) as stream:
            header = read_wav_header(stream, _num_bytes(stream))
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); expected a readable audio file") from error
    if header is not None and header.num_frames and _MIN_SAMPLE_RATE <= header.sample_rate <= _MAX_SAMPLE_RATE:
        return AudioInfo(header.sample_rate, header.num_frames, header.num_channels, "WAV", header.subtype)
    with _opened(path) as (file, problem):
        return _info(file, problem)


def check(path: Path) -> AudioInfo:
    """Decode a whole file and make sure that it holds what its header says.

    Raises:
        AudioError: if the file cannot be decoded, is empty, holds fewer or more frames than its header says, or holds
            samples that are not finite.
    """
    return examine(path)[0]


def examine(path: Path, *, listen: Callable[[AudioInfo, np.ndarray], None] | None = None) -> tuple[AudioInfo, AudioStatistics]:
    """Like ``check``, with statistics of the samples; memory does not grow with the length of the file.

    Args:
        path: of the file.
        listen: is given what the header says and the channels averaged, float32 [frames], block by block. A file may
            turn out to be bad after it was heard.

    Raises:
        AudioError: as ``check``.
    """
    with _opened(path) as (file, problem):
        info = _info(file, problem)
        statistics = RunningStatistics(info.num_channels)
        num_frames = 0
        for block in _blocks(path, file, file.frames):  # [frames, channels]
            if not math.isfinite(statistics.add(block)):
                raise _not_finite(path, num_frames + int(np.argmin(np.isfinite(block).all(axis=1))))
            num_frames += len(block)
            if listen is not None:
                listen(info, _mono(block))
        _expect_frames(path, file, found=num_frames, expected=file.frames)
    return replace(info, num_frames=num_frames), statistics.result()


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
    with _opened(path) as (file, _):
        start, end = _span(path, file, start_s, end_s)
        waveform = _decode(path, file, start, end)
        file_rate = file.samplerate
    if file_rate != sample_rate:
        waveform = soxr.resample(waveform, file_rate, sample_rate, quality="HQ")
    if not len(waveform):
        raise _vanished(path, end - start, file_rate, sample_rate)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def load_window(
    path: Path,
    *,
    sample_rate: int,
    offset: int,
    num_samples: int | None,
    start_s: float | None = None,
    end_s: float | None = None,
) -> np.ndarray:
    """Decode a window of a file, or of a span of it, and little more than that.

    The samples are those of the whole, resampled in blocks (``clapkit.data.resampling``), whatever window is asked for.

    Args:
        path: of the file.
        sample_rate: of the waveform that is wanted, in Hz.
        offset: first sample of the window at that rate, from the start of the span.
        num_samples: length of the window; None is up to the end.
        start_s: where the span starts; None is the start of the file.
        end_s: where it ends; None is the end of the file.

    Returns:
        float32 [T], T <= ``num_samples``; shorter where the span ends.

    Raises:
        AudioError: as ``load``.
    """
    with _opened(path) as (file, _):
        start, end = _span(path, file, start_s, end_s)
        rates = {"file_rate": file.samplerate, "sample_rate": sample_rate}
        length = num_resampled(end - start, **rates)
        if not length:
            raise _vanished(path, end - start, file.samplerate, sample_rate)
        stop = length if num_samples is None else min(length, offset + num_samples)
        if stop <= offset:
            return np.zeros(0, np.float32)
        first, last = frames_of_window(offset, stop, num_frames=end - start, **rates)
        frames = _decode(path, file, start + first, start + last)
    return resample_window(frames, offset, stop, first_frame=first, **rates)


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
def _opened(path: Path | str) -> Iterator[tuple[soundfile.SoundFile, str]]:
    """Open a file and make sure that its header promises something that is there; also gives what is odd about the length."""
    name = os.fspath(path)
    if name.lower().endswith(".raw"):
        raise AudioError(f"{path}: raw samples without a header, expected a format with one; convert it to wav or flac")
    try:
        stream = open_audio(name, buffering=_HEADER_BYTES)
        with nullcontext() if isinstance(stream, BytesIO) else stream:
            size = _num_bytes(stream)
            if not size:
                raise AudioError(f"{path}: is empty (0 bytes), expected audio; replace or drop it", check="empty")
            missing, problem = look_at_length(stream, size)
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror}); expected a readable audio file") from error
    try:
        stream_or_name = stream if isinstance(stream, BytesIO) else os.fsencode(name)
        if isinstance(stream, BytesIO):
            stream.seek(0)
        file = soundfile.SoundFile(stream_or_name)
    except soundfile.SoundFileError as error:
        if missing is not None:
            raise _cut_short(path, *missing) from error
        raise AudioError(
            f"{path}: cannot be read as audio ({_reason(error)}); expected wav, flac, ogg, mp3 or another format of "
            "libsndfile; convert or drop it"
        ) from error
    with file:
        if missing is not None:
            raise _cut_short(path, *missing)
        if file.frames < 1:
            raise AudioError(f"{path}: holds 0 frames of audio, expected at least 1; drop it", check="empty")
        if file.frames >= _UNKNOWN_FRAMES:
            raise AudioError(f"{path}: its header does not say how long it is, expected a count; encode it again")
        if not _MIN_SAMPLE_RATE <= file.samplerate <= _MAX_SAMPLE_RATE:
            expected = f"{_MIN_SAMPLE_RATE} to {_MAX_SAMPLE_RATE} Hz"
            raise AudioError(f"{path}: its header says {file.samplerate} Hz, expected {expected}; encode it again")
        yield file, problem


def _num_bytes(stream: BinaryIO) -> int:
    return stream.getbuffer().nbytes if isinstance(stream, BytesIO) else os.fstat(stream.fileno()).st_size


def _info(file: soundfile.SoundFile, problem: str) -> AudioInfo:
    """What the header says."""
    return AudioInfo(file.samplerate, file.frames, file.channels, file.format, file.subtype, problem)


def _decode(path: Path, file: soundfile.SoundFile, start: int, end: int) -> np.ndarray:
    """Frames ``start`` to ``end`` with the channels averaged, float32; fewer only where MPEG claims too many."""
    skipped = 0 if file.subtype in EXACT_SUBTYPES else start
    if start and not skipped:
        try:
            file.seek(start)
        except soundfile.SoundFileError as error:
            raise AudioError(f"{path}: cannot be read from frame {start} on ({_reason(error)}); replace it") from error
    parts: list[np.ndarray] = []
    done = start - skipped
    # Of 16 bits as they are: libsndfile takes four times as long to make floats of them, and ours are the same.
    dtype: Literal["int16", "float32"] = "int16" if file.subtype == "PCM_16" else "float32"
    for block in _blocks(path, file, end - done, dtype=dtype):
        if done + len(block) > start:
            # A single block is overwritten by no other, and need not be copied.
            is_all = done == start and len(block) == end - start and file.channels == 1 and dtype == "float32"
            parts.append(block[:, 0] if is_all else _mono(block[max(start - done, 0) :]))
        done += len(block)
    waveform = parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0, np.float32)
    _expect_frames(path, file, found=len(waveform), expected=end - start)
    if not np.isfinite(waveform).all():
        raise _not_finite(path, start + int(np.argmin(np.isfinite(waveform))))
    return waveform


def _blocks(
    path: Path, file: soundfile.SoundFile, num_frames: int, *, dtype: Literal["int16", "float32"] = "float32"
) -> Iterator[np.ndarray]:
    """Blocks of [frames, channels], ``num_frames`` in all or as many as there are.

    All are views of one array: a block is overwritten by the next.
    """
    # Bounded, so that a header that promises terabytes cannot make us allocate them.
    size = min(max(_BLOCK_VALUES // file.channels, 1), num_frames)
    buffer = np.empty((size, file.channels), dtype=dtype)
    done = 0
    while done < num_frames:
        try:
            block = file.read(out=buffer[: num_frames - done])
        except soundfile.SoundFileError as error:
            raise _decoding_failed(path, done, num_frames, error) from error
        if not len(block):
            return
        done += len(block)
        yield block


def _expect_frames(path: Path, file: soundfile.SoundFile, *, found: int, expected: int) -> None:
    slack = _MPEG_SLACK_FRAMES if file.format == "MP3" or file.subtype.startswith("MPEG") else 0
    if expected - found > slack:
        raise AudioError(
            f"{path}: truncated, {found} frames decoded, {expected} expected from the header; replace or drop it",
            check="truncated",
        )
    if not found:
        raise AudioError(f"{path}: holds 0 frames of audio, expected at least 1; drop it", check="empty")


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
    """Average the channels of [frames, channels], float32 or int16 (then in units of 2^-15): float32 [frames]."""
    if block.dtype == np.int16:
        mono: np.ndarray = block[:, 0].astype(np.float32)
        for channel in range(1, block.shape[1]):
            mono += block[:, channel]
        mono *= np.float32(2**-15 / block.shape[1])
        return mono
    if block.shape[1] == 1:
        return block[:, 0].copy()
    # Adding columns is forty times as fast as ``block.mean(axis=1)`` on interleaved samples.
    mono = block[:, 0] + block[:, 1]
    for channel in range(2, block.shape[1]):
        mono += block[:, channel]
    mono *= np.float32(1 / block.shape[1])
    return mono  # [frames]


def _not_finite(path: Path, frame: int) -> AudioError:
    return AudioError(
        f"{path}: a sample that is NaN or infinite at frame {frame}, expected finite samples; replace or drop it",
        check="not_finite",
    )


def _vanished(path: Path, num_frames: int, file_rate: int, sample_rate: int) -> AudioError:
    return AudioError(f"{path}: {num_frames} samples at {file_rate} Hz are 0 at {sample_rate} Hz, expected at least 1; drop it")


def _cut_short(path: Path | str, found: int, claimed: int) -> AudioError:
    return AudioError(
        f"{path}: truncated, {found} bytes of audio found, {claimed} expected from the header; copy or download it again",
        check="truncated",
    )


def _decoding_failed(path: Path, done: int, num_frames: int, error: soundfile.SoundFileError) -> AudioError:
    with open_audio(path) as stream:
        check = "truncated" if flac_ends_early(stream) else "unreadable"
    return AudioError(
        f"{path}: decoding failed near frame {done} of {num_frames} ({_reason(error)}); "
        "it is truncated or damaged, replace or drop it",
        check=check,
    )


def _reason(error: soundfile.SoundFileError) -> str:
    return str(getattr(error, "error_string", error)).rstrip(".").removeprefix("Error : ")
