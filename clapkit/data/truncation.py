"""Finds files that end before, or long after, their container says so.

libsndfile trusts the file size where it disagrees with the header: a WAV file that was cut in half opens and reads as a
file of half the length. What the header promised is read here, from a few bytes at either end of the file.
"""

from __future__ import annotations

import functools
import os
import struct
from typing import BinaryIO

# Writers to a pipe do not know the length and leave 0 or a number near 2 or 4 GiB (sox: 0x7FFFF000,
# ffmpeg: 0xFFFFFFFF).
_UNKNOWN_SIZE = 0x7FFFF000
_MAX_CHUNKS = 1000
_MAX_OGG_PAGE_BYTES = 27 + 255 + 255 * 255
_OGG_END_OF_STREAM = 4
# 65,535 samples of 8 channels are longer, but encoders write blocks of a few thousand.
_MAX_FLAC_FRAME_BYTES = 1 << 18
# More than tags that some writers hang behind the last chunk.
_STRAY_BYTES, _STRAY_SHARE = 512, 0.01
_W64_DATA = b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a")


def look_at_length(file: BinaryIO, size: int) -> tuple[tuple[int, int] | None, str]:
    """Hold the length that the header of an audio file claims against what is there.

    Covers WAV, RF64, W64, AIFF, AU, CAF and Ogg. FLAC and MPEG files show a cut when they are decoded.

    Args:
        file: open for reading at its start, seekable.
        size: of the file, bytes.

    Returns:
        First, (bytes of audio found, bytes of audio claimed) of a file that was cut (for Ogg, of its last page); None if
        everything is there or the header does not say. Second, what is odd about a file that was not cut, a short phrase: the
        header leaves the length open, so that a cut cannot be found; the file goes on behind the end that its header claims
        (WAV, AIFF), as when a recorder died; an Ogg stream does not end. Empty if nothing is odd.
    """
    magic = file.read(40)
    if magic[:4] == b"OggS":
        page = _last_page(file, size)
        is_last = len(page) > 5 and page[5] & _OGG_END_OF_STREAM
        return _cut_of_page(page), "" if is_last else "its last Ogg page is not marked as the last, it may be cut"
    claim = _claim(file, magic)
    if claim is None:
        return None, ""
    start, claimed = claim
    if start + claimed > size:
        if claimed < _UNKNOWN_SIZE:
            return (max(size - start, 0), claimed), ""
        return None, "its header leaves the length open, so that a cut would not show"
    if start + claimed == size or magic[:4] not in (b"RIFF", b"RIFX", b"FORM"):
        return None, ""
    stray = size - _end_of_chunks(file, start + claimed + claimed % 2, size, "<I" if magic[:4] == b"RIFF" else ">I")
    if stray <= max(_STRAY_BYTES, _STRAY_SHARE * claimed):
        return None, ""
    return None, f"its header claims {claimed} bytes of audio, {stray} bytes follow that belong to nothing"


def flac_ends_early(file: BinaryIO) -> bool:
    """Whether a FLAC file was cut, rather than damaged in the middle.

    The checksum of the last frame tells whether it is whole, and its number whether it is the last.

    Args:
        file: open for reading, seekable.
    """
    head = file.read(42)
    if head[:4] != b"fLaC" or len(head) < 42:
        return False
    max_block_frames = int.from_bytes(head[10:12])
    num_frames = int.from_bytes(head[21:26]) & ((1 << 36) - 1)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _MAX_FLAC_FRAME_BYTES, 0))
    tail = file.read()
    start = tail.rfind(b"\xff")
    while start >= 0:
        position = _flac_frame_start(tail[start : start + 16], max_block_frames)
        if position is not None and _crc(tail[start:], 0x8005, 16) == 0:
            return num_frames - position > max_block_frames
        start = tail.rfind(b"\xff", 0, start)
    return True


def _claim(file: BinaryIO, magic: bytes) -> tuple[int, int] | None:
    """Where the audio starts and how many bytes of it the header claims."""
    kind = magic[:4]
    if kind in (b"RIFF", b"RIFX"):
        return _chunk(file, 12, b"data", "<I" if kind == b"RIFF" else ">I")
    if kind in (b"RF64", b"BW64"):
        return _rf64_data(file)
    if kind == b"riff":
        return _w64_data(file)
    if kind == b"FORM":
        return _chunk(file, 12, b"SSND", ">I")
    if kind == b"caff":
        return _caf_data(file)
    if kind == b".snd" and len(magic) >= 12:
        start, claimed = struct.unpack(">II", magic[4:12])
        return start, claimed
    return None


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
        head = _read_at(file, position, 24)
        if len(head) < 24:
            return None
        (length,) = struct.unpack("<Q", head[16:])  # counts the 24 bytes of the head
        if head[:16] == _W64_DATA:
            return position + 24, max(length - 24, 0)
        position += max(length + -length % 8, 24)
    return None


def _caf_data(file: BinaryIO) -> tuple[int, int] | None:
    position = 8
    for _ in range(_MAX_CHUNKS):
        head = _read_at(file, position, 12)
        if len(head) < 12:
            return None
        (length,) = struct.unpack(">q", head[4:])
        if head[:4] == b"data":
            return position + 12, length if length >= 0 else _UNKNOWN_SIZE  # -1 is not known
        position += 12 + max(length, 0)
    return None


def _read_at(file: BinaryIO, position: int, num_bytes: int) -> bytes:
    """Bytes from a position on; none where no file reaches, because seeking there fails."""
    if position >= 1 << 48:
        return b""
    file.seek(position)
    return file.read(num_bytes)


def _end_of_chunks(file: BinaryIO, position: int, size: int, size_format: str) -> int:
    """Where the last chunk ends that starts at ``position`` or behind it."""
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or not (head[:4].isascii() and head[:4].decode().isprintable()):
            break
        (length,) = struct.unpack(size_format, head[4:])
        if position + 8 + length > size:
            break
        position += 8 + length + length % 2
    return min(position, size)


def _cut_of_page(page: bytes) -> tuple[int, int] | None:
    """Bytes found and claimed of an Ogg page that was cut; None if it is whole."""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return len(page), 27 + (page[26] if len(page) > 26 else 0)
    claimed = 27 + page[26] + sum(page[27 : 27 + page[26]])
    return (len(page), claimed) if len(page) < claimed else None


def _last_page(file: BinaryIO, size: int) -> bytes:
    file.seek(max(size - _MAX_OGG_PAGE_BYTES, 0))
    tail = file.read()
    start = tail.rfind(b"OggS\0")
    return tail[start:] if start >= 0 else b""


def _flac_frame_start(head: bytes, max_block_frames: int) -> int | None:
    """First sample of the FLAC frame that starts with ``head``; None if none does."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return None
    ones = f"{head[4]:08b}".index("0") if head[4] != 0xFF else 8
    if ones in (1, 8):
        return None
    number_bytes = max(ones, 1)
    # Block sizes and rates that have no code follow the number.
    extra = {6: 1, 7: 2}.get(head[2] >> 4, 0) + {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    length = 4 + number_bytes + extra
    if len(head) <= length or _crc(head[: length + 1], 0x07, 8):
        return None
    number = head[4] & (0x7F >> ones)
    for byte in head[5 : 4 + number_bytes]:
        number = number << 6 | byte & 0x3F
    return number if head[1] & 1 else number * max_block_frames


def _crc(content: bytes, polynomial: int, num_bits: int) -> int:
    """Cyclic redundancy check; 0 over content that ends with its own."""
    table = _crc_table(polynomial, num_bits)
    crc, mask = 0, (1 << num_bits) - 1
    for byte in content:
        crc = (crc << 8 & mask) ^ table[(crc >> num_bits - 8) ^ byte]
    return crc


@functools.cache
def _crc_table(polynomial: int, num_bits: int) -> tuple[int, ...]:
    top = 1 << num_bits - 1
    table = []
    for byte in range(256):
        crc = byte << num_bits - 8
        for _ in range(8):
            crc = (crc << 1 ^ polynomial if crc & top else crc << 1) & ((1 << num_bits) - 1)
        table.append(crc)
    return tuple(table)
