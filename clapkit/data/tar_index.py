"""Where the members of a tar file lie: read from its headers once in a process, and remembered.

Contents are passed over, so that an index costs a few microseconds a member, however large these are.
"""

from __future__ import annotations

import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from clapkit.errors import AudioError

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLOCK_BYTES = tarfile.BLOCKSIZE
# A text and the header behind it are read at once.
_WINDOW_BYTES = 1 << 12
# 24 bytes a member: the indexes of a corpus of four million clips with their texts take 200 MB.
_MAX_INDEXED_MEMBERS = 8_000_000
_Key = tuple[str, int, int]


@dataclass(frozen=True, slots=True)
class TarIndex:
    """Where the members of a tar file lie, sorted by the hashes of their names.

    Attributes:
        names: XXH3 hashes of 64 bits, uint64 [N], ascending.
        offsets: where the contents start, int64 [N].
        sizes: of the contents in bytes, int64 [N].
        num_bytes: size of the tar file.
        damage: why nothing behind the last member could be read; None if the archive ends as it should.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    num_bytes: int
    damage: str | None

    def find(self, member: str) -> tuple[int, int] | None:
        """Offset and size of a member."""
        name = np.uint64(_hash(member))
        place = int(np.searchsorted(self.names, name))
        if place == len(self.names) or self.names[place] != name:
            return None
        return int(self.offsets[place]), int(self.sizes[place])


_indexes: OrderedDict[_Key, Future[TarIndex]] = OrderedDict()
_lock = threading.Lock()


def tar_index(archive: str) -> TarIndex:
    """The index of a tar file, made by the first thread that asks.

    Args:
        archive: path of a plain tar file.

    Raises:
        AudioError: if it cannot be read, or is compressed.
    """
    try:
        status = os.stat(archive)
    except OSError as error:
        raise AudioError(f"{archive}: cannot be opened ({error.strerror}); expected a readable tar file") from error
    key = (archive, status.st_size, status.st_mtime_ns)
    with _lock:
        future = _indexes.get(key)
        is_mine = future is None
        if future is None:
            future = _indexes[key] = Future()
        _indexes.move_to_end(key)
    if is_mine:
        try:
            future.set_result(_scan(archive))
            _drop_oldest()
        except BaseException as error:
            with _lock:
                del _indexes[key]
            future.set_exception(error)
    return future.result()


def _drop_oldest() -> None:
    """Forget the indexes that were not used for longest, so that memory stays bounded; one always stays."""
    with _lock:
        done = [(key, len(future.result().names)) for key, future in _indexes.items() if future.done()]
        total = sum(size for _, size in done)
        for key, size in done[:-1]:
            if total <= _MAX_INDEXED_MEMBERS:
                break
            del _indexes[key]
            total -= size


def _scan(archive: str) -> TarIndex:
    """Read all headers of a tar file; the contents are passed over."""
    kind = compression(archive)
    if kind is not None:
        raise AudioError(
            f"{archive}: is compressed ({kind}), its members cannot be read in place; unpack it, or pack a plain .tar"
        )
    places: dict[int, tuple[int, int]] = {}
    damage = None
    try:
        with open(archive, "rb", buffering=0) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            try:
                for name, offset, size in _headers(file):
                    # Of two members with one name the first counts, as for the recipe ``webdataset``.
                    places.setdefault(_hash(normal_name(name)), (offset, size))
            except tarfile.TarError as error:
                damage = str(error)
    except OSError as error:
        raise AudioError(f"{archive}: cannot be read ({error.strerror}); expected a readable tar file") from error
    names = np.fromiter(places, dtype=np.uint64, count=len(places))
    order = np.argsort(names)
    lies = np.array(list(places.values()), dtype=np.int64).reshape(-1, 2)[order]
    return TarIndex(names[order], np.ascontiguousarray(lies[:, 0]), np.ascontiguousarray(lies[:, 1]), num_bytes, damage)


def compression(path: Path | str) -> str | None:
    """How a file is compressed, by its first bytes; None if it is not, or cannot be opened."""
    try:
        with open(path, "rb", buffering=0) as file:
            magic = read_at(file.fileno(), 0, 8)
    except OSError:
        return None  # whoever reads it gets the reason
    return next((kind for start, kind in _MAGIC.items() if magic.startswith(start)), None)


def _headers(file: BinaryIO) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of every regular file of an archive.

    Plain headers, which is nearly all of them, are read here: Python's reader takes ten times as long. All others (long names,
    attributes, links, damage) are left to it.
    """
    archive = tarfile.TarFile(fileobj=file, mode="r", errorlevel=1) if _starts_like_tar(file) else None
    if archive is None:
        raise tarfile.ReadError("no tar header at its start")
    offset = start = 0
    window = b""
    while True:
        if not start <= offset <= start + len(window) - _BLOCK_BYTES:
            start, window = offset, read_at(file.fileno(), offset, _WINDOW_BYTES)
        plain = _plain(window[offset - start : offset - start + _BLOCK_BYTES])
        if plain is not None:
            name, size = plain
            yield name, offset + _BLOCK_BYTES, size
            offset += _BLOCK_BYTES + -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
            continue
        file.seek(offset)
        archive.offset = offset
        try:
            header = tarfile.TarInfo.fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            return
        if header.isreg() and not header.issparse():
            yield header.name, header.offset_data, header.size
        offset = archive.offset


def _starts_like_tar(file: BinaryIO) -> bool:
    head = read_at(file.fileno(), 0, _BLOCK_BYTES)
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        return True
    except tarfile.HeaderError:
        return False
    return True


def _plain(head: bytes) -> tuple[str, int] | None:
    """Name and size in the header of a regular file with a short name; None for any other block."""
    # Type 0, no prefix, and a size in octal digits.
    if len(head) < _BLOCK_BYTES or head[156] not in b"0\0" or head[345] or head[124] & 0x80:
        return None
    try:
        checksum, size = _octal(head[148:156]), _octal(head[124:136])
    except ValueError:
        return None
    # The checksum is taken with blanks in its own place.
    if checksum != sum(head) - sum(head[148:156]) + 8 * 32:
        return None
    name = head[:100].split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
    return None if not name or name.endswith("/") else (name, size)


def _octal(digits: bytes) -> int:
    return int(digits.split(b"\0", 1)[0].strip() or b"0", 8)


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """Bytes from a place on, fewer where the file ends; does not move the position that threads share."""
    content = os.pread(descriptor, size, offset)
    if len(content) == size or not content:
        return content
    parts = [content]
    done = len(content)
    while done < size and (content := os.pread(descriptor, size - done, offset + done)):  # Linux gives 2 GiB at once
        parts.append(content)
        done += len(content)
    return b"".join(parts)


def normal_name(member: str) -> str:
    """A name as it stands in a path: without ``./`` and doubled slashes."""
    return "/".join(part for part in member.split("/") if part not in ("", "."))


def _hash(member: str) -> int:
    return xxhash.xxh3_64_intdigest(member.encode("utf-8", "surrogateescape"))
