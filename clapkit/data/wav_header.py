"""The header of plain WAV files, read without opening a decoder.

Most corpora are plain WAV, and opening a decoder costs five times as much as the few bytes that it looks at. Anything out
of the ordinary is left to libsndfile.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

_PCM, _FLOAT = 1, 3
_MAX_CHANNELS = 1024  # of libsndfile
_SUBTYPES = {
    (_PCM, 8): "PCM_U8",
    (_PCM, 16): "PCM_16",
    (_PCM, 24): "PCM_24",
    (_PCM, 32): "PCM_32",
    (_FLOAT, 32): "FLOAT",
    (_FLOAT, 64): "DOUBLE",
}
# The head of a file, the format chunk and the head of the data: what nearly every writer begins with.
_HEAD = struct.Struct("<4sI4s4sIHHIIHH4sI")


@dataclass(frozen=True, slots=True)
class WavHeader:
    """What the header of a plain WAV file says.

    Attributes:
        sample_rate: Hz.
        num_frames: samples of each channel.
        num_channels: 1 for mono.
        subtype: how samples are coded, in the words of libsndfile.
    """

    sample_rate: int
    num_frames: int
    num_channels: int
    subtype: str


def read_wav_header(file: BinaryIO, size: int) -> WavHeader | None:
    """Read the header of a file, if it is a WAV file as plain as can be and holds exactly what it claims.

    Args:
        file: open for reading at its start.
        size: of the file, bytes.

    Returns:
        None if anything is not as usual: another format, other chunks in front of the data, a length that does not fit.
    """
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    riff, _, wave, fmt, fmt_bytes, code, channels, rate, _, block, bits, data, data_bytes = _HEAD.unpack(head)
    subtype = _SUBTYPES.get((code, bits))
    is_plain = (riff, wave, fmt, fmt_bytes, data) == (b"RIFF", b"WAVE", b"fmt ", 16, b"data")
    if not is_plain or subtype is None or not 0 < channels <= _MAX_CHANNELS or block * 8 != channels * bits:
        return None
    if data_bytes % block or _HEAD.size + data_bytes != size:
        return None
    return WavHeader(rate, data_bytes // block, channels, subtype)
