"""WAV files of whole and floating-point samples, the same bytes for the same samples.

libsndfile stamps floating-point WAV files with the time of writing; a shard that is written twice must not differ.
"""

from __future__ import annotations

import struct

import numpy as np

from clapkit.errors import AudioError

WAV_DTYPES = ("int16", "int32", "float32", "float64")
"""Sample types that a WAV file can hold as they are in memory."""

_PCM, _FLOAT = 1, 3
_MAX_DATA_BYTES = 0xFFFFFFFF - 1024


def wav_header(*, num_frames: int, num_channels: int, sample_rate: int, dtype: str) -> bytes:
    """What stands before the samples, which follow little-endian, frame by frame.

    Args:
        num_frames: samples of each channel.
        num_channels: 1 for mono.
        sample_rate: Hz.
        dtype: one of ``WAV_DTYPES``.

    Raises:
        AudioError: if the samples do not fit into a WAV file.
    """
    sample_bytes = np.dtype(dtype).itemsize
    data_bytes = num_frames * num_channels * sample_bytes
    if data_bytes > _MAX_DATA_BYTES or not 0 < sample_rate < 1 << 31 or not 0 < num_channels < 1 << 15:
        raise AudioError(
            f"{data_bytes} bytes, {num_channels} channels, {sample_rate} Hz: expected a WAV file below 4 GiB; cut the file"
        )
    is_float = dtype.startswith("float")
    block_bytes = num_channels * sample_bytes
    kind = _FLOAT if is_float else _PCM
    layout = struct.pack("<HHIIHH", kind, num_channels, sample_rate, sample_rate * block_bytes, block_bytes, 8 * sample_bytes)
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout
    if is_float:
        chunks += b"fact" + struct.pack("<II", 4, num_frames)
    chunks += b"data" + struct.pack("<I", data_bytes)
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + data_bytes) + b"WAVE" + chunks


def to_wav(samples: np.ndarray, sample_rate: int) -> bytes:
    """A whole WAV file.

    Args:
        samples: [frames, channels] of one of ``WAV_DTYPES``.
        sample_rate: Hz.

    Raises:
        AudioError: as ``wav_header``.
    """
    num_frames, num_channels = samples.shape
    dtype = samples.dtype.name
    header = wav_header(num_frames=num_frames, num_channels=num_channels, sample_rate=sample_rate, dtype=dtype)
    return header + to_bytes(samples)


def to_bytes(samples: np.ndarray) -> bytes:
    """Samples [frames, channels] as they stand in a WAV file."""
    return samples.astype(samples.dtype.newbyteorder("<"), copy=False).tobytes()
