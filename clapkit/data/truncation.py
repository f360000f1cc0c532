"""Finds files that end before their container says so.

libsndfile trusts the file size where it disagrees with the header: a WAV file that was cut in half opens and reads as a
file of half the length. What the header promised is read here, from a few bytes at either end of the file.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

# Writers to a pipe do not know the length and leave 0 or a number near 2 or 4 GiB (sox: 0x7FFFF000,
# ffmpeg: 0xFFFFFFFF).
_UNKNOWN_SIZE = 0x7FFFF000
_MAX_CHUNKS = 1000
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


def missing_bytes(file: BinaryIO) -> tuple[int, int] | None:
    """What is missing at the end of an audio file.

    Covers WAV, RF64, W64, AIFF, AU and Ogg. FLAC, CAF and MPEG files show it when they are decoded. An Ogg file that
    was cut exactly between two pages is not found.

    Args:
        file: open for reading, seekable.

    Returns:
        (bytes of audio found, bytes of audio claimed) of a file that was cut (for Ogg, of its last page); None if
        everything is there or the header does not say.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    magic = file.read(40)
    if magic[:4] == b"OggS":
        return _last_ogg_page(file, size)
    if magic[:4] in (b"RIFF", b"RIFX"):
        claim = _chunk(file, 12, b"data", "<I" if magic[:4] == b"RIFF" else ">I")
    elif magic[:4] in (b"RF64", b"BW64"):
        claim = _rf64_data(file)
    elif magic[:4] == b"riff":
        claim = _w64_data(file)
    elif magic[:4] == b"FORM":
        claim = _chunk(file, 12, b"SSND", ">I")
    elif magic[:4] == b".snd" and len(magic) >= 12:
        claim = struct.unpack(">II", magic[4:12])
    else:
        return None
    if claim is None:
        return None
    start, claimed = claim
    return (max(size - start, 0), claimed) if claimed < _UNKNOWN_SIZE and start + claimed > size else None


def _chunk(file: BinaryIO, position: int, name: bytes, size_format: str) -> tuple[int, int] | None:
    """Where a chunk's content starts and how long it claims to be."""
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return None
        (length,) = struct.unpack(size_format, head[4:])
        if head[:4] == name:
            return position + 8, length
        position += 8 + length + length % 2
    return None


def _rf64_data(file: BinaryIO) -> tuple[int, int] | None:
    sizes = _chunk(file, 12, b"ds64", "<I")
    data = _chunk(file, 12, b"data", "<I")
    if sizes is None or data is None:
        return None
    file.seek(sizes[0] + 8)
    long_size = file.read(8)
    return (data[0], struct.unpack("<Q", long_size)[0]) if len(long_size) == 8 else None


def _w64_data(file: BinaryIO) -> tuple[int, int] | None:
    position = 40
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(24)
        if len(head) < 24:
            return None
        (length,) = struct.unpack("<Q", head[16:])  # counts the 24 bytes of the head
        if head[:16] == _W64_DATA:
            return position + 24, max(length - 24, 0)
        position += max(length + -length % 8, 24)
    return None


def _last_ogg_page(file: BinaryIO, size: int) -> tuple[int, int] | None:
    file.seek(max(size - _MAX_OGG_PAGE_BYTES, 0))
    tail = file.read()
    start = tail.rfind(b"OggS\0")
    page = tail[start:] if start >= 0 else b""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return len(page), 27 + (page[26] if len(page) > 26 else 0)
    claimed = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return (len(page), claimed) if len(page) < claimed else None
