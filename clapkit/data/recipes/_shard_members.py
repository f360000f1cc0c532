"""Tar files as a stream of members: one after the other, nothing is unpacked, and an early end is said.

Python's reader takes a header that is cut off or damaged for the end of the archive. Here it is told apart, because what
follows it is lost.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

_BUFFER_BYTES = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_HeaderError = tarfile.HeaderError  # an argument below hides the module
_DAMAGE = (tarfile.TarError, EOFError, zlib.error, OSError)


@dataclass(slots=True)
class Member:
    """A regular file in a shard.

    Attributes:
        name: path inside the archive, as it stands there.
        size: in bytes.
        stream: of its content; ends with the next member.
        problem: why it must not be used; None if it may.
    """

    name: str
    size: int
    stream: IO[bytes] | None
    problem: str | None = None


class ShardError(Exception):
    """Why a shard cannot be read (any further); becomes the reason of a rejection."""


class _Content(io.RawIOBase):
    """The content of a member, whose damage is the damage of the shard, not of what is written from it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            return self._stream.read(size)
        except _DAMAGE as error:
            raise ShardError(f"its content cannot be read to the end ({_reason(error)}); get the shard again") from error


class _Unpacked(gzip.GzipFile):
    """Gives what it has before it says what is wrong: a full block at a time would lose what was good in the last one."""

    def read(self, size: int | None = -1) -> bytes:
        return self.read1(_BUFFER_BYTES if size is None else size)


class _Header(tarfile.TarInfo):
    """Keeps why there was no further header, which the reader swallows."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(tarfile)
        except _HeaderError as error:
            cast(_Archive, tarfile).stopped_by = error
            raise


class _Archive(tarfile.TarFile):
    tarinfo = _Header
    stopped_by: tarfile.HeaderError | None = None


def read_members(path: Path, *, in_place: bool = False) -> Iterator[Member]:
    """The files of a shard, in their order; folders are passed over.

    Args:
        path: of a tar file, plain or compressed with gzip, whatever its suffix says.
        in_place: pass over contents that nobody reads; only plain files can be read like that.

    Raises:
        ShardError: where the archive cannot be read any further.
    """
    num_members = 0
    try:
        with path.open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            if not magic:
                raise ShardError("is empty (0 bytes), expected a tar file; get it again")
            file = cast(IO[bytes], _Unpacked(fileobj=raw)) if magic == _GZIP_MAGIC else raw
            with closing(_open(file, in_place)) as archive:
                while (header := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # or all headers stay in memory
                    if not header.isdir():
                        yield _member(archive, header)
                        num_members += 1
                _expect_end(archive)
    except _DAMAGE as error:
        raise ShardError(
            f"cannot be read after {num_members} files ({_reason(error)}); what follows is lost, get the shard again"
        ) from error


def _reason(error: BaseException) -> str:
    return (str(getattr(error, "strerror", None) or error).splitlines() or [type(error).__name__])[0]


def _open(file: IO[bytes], in_place: bool) -> _Archive:
    if in_place:
        return _Archive.open(mode="r:", fileobj=file, encoding="utf-8", errors="surrogateescape")
    return _Archive.open(mode="r|", fileobj=file, bufsize=_BUFFER_BYTES, encoding="utf-8", errors="surrogateescape")


def _member(archive: tarfile.TarFile, header: tarfile.TarInfo) -> Member:
    problem = _problem(header)
    stream = None if problem else archive.extractfile(header)
    return Member(header.name, header.size, None if stream is None else cast(IO[bytes], _Content(stream)), problem)


def _problem(header: tarfile.TarInfo) -> str | None:
    if header.islnk() or header.issym():
        return f"is a link to {header.linkname!a}, expected a file; pack what it points to"
    if not header.isreg() or header.issparse():
        return "is no plain file (a device, pipe or sparse file), expected audio or text; pack it as a file"
    parts = header.name.removeprefix("./").split("/")
    if header.name.startswith("/") or ".." in parts or "\\" in header.name:
        return "is an absolute path or leaves the archive, expected a relative one; pack it again"
    if any(part.startswith(".") for part in parts):
        return "is hidden, expected visible files; pack without it"
    return None


def _expect_end(archive: _Archive) -> None:
    """Make sure that the archive ended because it says so."""
    if not isinstance(archive.stopped_by, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
        raise tarfile.ReadError(f"{archive.stopped_by or 'no header'}, expected another file or the end marker")
    assert archive.fileobj is not None, "the archive is open"
    while block := archive.fileobj.read(_BUFFER_BYTES):  # to its end, where gzip keeps its checksum
        if block.strip(b"\0"):
            raise tarfile.ReadError("data found behind the end marker, expected none: two archives in one file, or damage")
