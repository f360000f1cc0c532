"""Audio cells of a Hugging Face data set: stored bytes, a path, or samples that somebody decoded."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pyarrow

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.wav import WAV_DTYPES, to_wav

_MAGIC = ((b"fLaC", ".flac"), (b"OggS", ".ogg"), (b"RIFF", ".wav"), (b"RF64", ".wav"), (b"FORM", ".aiff"), (b"ID3", ".mp3"))
_FRAME_SYNC = 0xFF, 0xE0  # of an MPEG frame: eleven bits


class CellError(Exception):
    """Why a cell holds no audio; becomes the reason of a rejection."""


class MissingAudioError(CellError):
    """A cell names a file that is not there."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What an audio cell holds: content to write, or a file that is there.

    Attributes:
        name: what the data set calls the sound, without folders and suffix; may be empty.
        suffix: of the audio file, with its dot.
        content: bytes of the audio file; None for a file.
        file: the file, absolute; None for content.
    """

    name: str
    suffix: str
    content: bytes | None
    file: Path | None


def is_audio_type(kind: pyarrow.DataType) -> bool:
    """Whether a column of that type can hold sound: ``{bytes, path}`` or ``{array, sampling_rate}``."""
    if not pyarrow.types.is_struct(kind):
        return False
    names = {kind.field(i).name for i in range(kind.num_fields)}
    return "bytes" in names or {"array", "sampling_rate"} <= names


def read_cell(scalar: pyarrow.Scalar, folder: Path) -> Cell:
    """The audio of one row.

    Args:
        scalar: the cell: a struct, bytes, or the path of a file.
        folder: that paths are relative to; nothing outside is read.

    Raises:
        MissingAudioError: if the file that is named is not there.
        CellError: if there is no audio.
    """
    if not scalar.is_valid:
        raise CellError("no audio (null), expected stored bytes or a path; drop the row")
    if not pyarrow.types.is_struct(scalar.type):
        value = scalar.as_py()
        return _stored(value, None) if isinstance(value, bytes) else _file(str(value), folder)
    fields = {scalar.type.field(i).name for i in range(scalar.type.num_fields)}
    path = scalar["path"].as_py() if "path" in fields else None
    content = scalar["bytes"].as_py() if "bytes" in fields else None
    if content is not None:
        return _stored(content, path)
    if "array" in fields and scalar["array"].is_valid:
        return Cell(_name(path), ".wav", _decoded(scalar["array"], scalar["sampling_rate"].as_py()), None)
    if not path:
        raise CellError("neither bytes nor a path, expected one of them; drop the row")
    return _file(path, folder)


def _stored(content: bytes, path: str | None) -> Cell:
    if not content:
        raise CellError("audio is empty (0 bytes), expected a whole file; drop the row")
    suffix = PurePosixPath(path or "").suffix.lower()
    if suffix not in AUDIO_SUFFIXES:
        suffix = next((found for magic, found in _MAGIC if content.startswith(magic)), "")
    if not suffix and len(content) > 1 and content[0] == _FRAME_SYNC[0] and content[1] & _FRAME_SYNC[1] == _FRAME_SYNC[1]:
        suffix = ".mp3"
    if not suffix:
        raise CellError(f"audio begins with {content[:8]!r}, expected flac, wav, ogg or mp3; convert it")
    return Cell(_name(path), suffix, content, None)


def _name(path: Any) -> str:
    """The last part of a path, of whatever system, without its suffix."""
    name = PureWindowsPath(path).name if isinstance(path, str) else ""
    return name[: -len(PurePosixPath(name).suffix)] if PurePosixPath(name).suffix.lower() in AUDIO_SUFFIXES else name


def _file(path: str, folder: Path) -> Cell:
    """A file below the folder: as the path says, or, for paths of another machine, by its name."""
    folder = folder.absolute()
    for candidate in (folder / path, folder / PureWindowsPath(path).name):
        target = Path(os.path.normpath(candidate))
        if target.is_relative_to(folder) and target.is_file():
            return Cell(_name(path), target.suffix.lower(), None, target)
    raise MissingAudioError(f"no audio {path} below {folder}; get the file, or set --audio-dir")


def _decoded(array: pyarrow.Scalar, sample_rate: Any) -> bytes:
    """A WAV file that holds exactly the samples: 32-bit float, or what the array needs."""
    if not isinstance(sample_rate, int | float) or not 0 < sample_rate == int(sample_rate):
        raise CellError(f"decoded audio at sampling_rate {sample_rate!r}, expected a positive whole number; drop the row")
    samples = _to_numpy(array)
    if not samples.size:
        raise CellError("decoded audio holds 0 samples, expected at least 1; drop the row")
    if samples.dtype == np.float16:
        samples = samples.astype(np.float32)
    if samples.dtype == np.float64 and np.array_equal(samples.astype(np.float32), samples, equal_nan=True):
        samples = samples.astype(np.float32)
    if samples.dtype.name not in WAV_DTYPES:
        raise CellError(f"decoded audio of type {samples.dtype}, expected floating-point samples; convert it")
    return to_wav(samples, int(sample_rate))


def _to_numpy(array: pyarrow.Scalar) -> np.ndarray:
    """Samples [frames, channels] of a list, or of a list for each channel."""
    values = array.values
    if not pyarrow.types.is_list(values.type) and not pyarrow.types.is_large_list(values.type):
        samples: np.ndarray = values.to_numpy(zero_copy_only=False)
        return samples[:, None]
    channels = [channel.values.to_numpy(zero_copy_only=False) for channel in values if channel.is_valid]
    if not channels or len({len(channel) for channel in channels}) != 1:
        raise CellError("decoded audio whose channels differ in length, expected equal ones; drop the row")
    return np.stack(channels, axis=1)


def plain(value: Any) -> Any:
    """A cell as JSON value; what JSON lacks (dates, decimals) becomes text, NaN and infinities null."""
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)
