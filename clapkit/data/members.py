"""Audio inside tar shards, read in place: ``shards/000000.tar/key.flac`` is the member ``key.flac`` of a tar file.

Shards are made so that a corpus too large to unpack can be kept as a few large files. The headers of a tar are read once in
a process; from then on a member is one read at a known place. Where ``x.tar`` is a folder, paths below it are files as ever.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from clapkit.data.tar_index import TarIndex, normal_name, read_at, tar_index
from clapkit.errors import AudioError

PLAIN_SUFFIX = ".tar"
"""Ending of tar files whose members can be read in place, in lower case."""

COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
"""Endings of tar files that must be unpacked first."""


def split_member(path: Path | str) -> tuple[str, str] | None:
    """The tar file and the name of the member that a path means; None for the path of anything else.

    Costs next to nothing for a path in which no folder is called like a tar file.

    Args:
        path: of a file, or of a tar file with the name of a member behind it.
    """
    name = os.fspath(path)
    lowered = name.lower()
    if ".t" not in lowered:
        return None
    end = lowered.find("/", 1)
    while end >= 0:
        if lowered.endswith((PLAIN_SUFFIX, *COMPRESSED_SUFFIXES), 0, end) and os.path.isfile(name[:end]):
            return name[:end], normal_name(name[end + 1 :])
        end = lowered.find("/", end + 1)
    return None


def open_member(path: Path | str) -> BytesIO:
    """The bytes of a member, read at once, as a file.

    Raises:
        AudioError: if the tar file cannot be read in place, holds no such member, or was cut inside it.
    """
    archive, member = _expect_member(path)
    offset, size, num_bytes = _locate(archive, member)
    try:
        with open(archive, "rb", buffering=0) as file:
            content = read_at(file.fileno(), offset, size)
    except OSError as error:
        raise AudioError(f"{archive}: cannot be read ({error.strerror}); expected a readable tar file") from error
    if len(content) < size:
        raise _cut_short(archive, member, len(content), size, num_bytes)
    return BytesIO(content)


def member_size(path: Path | str) -> int | None:
    """How many bytes a member holds; None if the path means no member, or one that cannot be read.

    Looks at the headers of the tar file once in a process, at its size and time of change on every call.
    """
    found = split_member(path)
    if found is None:
        return None
    try:
        return _locate(*found)[1]
    except AudioError:
        return None  # whoever reads it gets the reason


def audio_sizes(paths: Iterable[str]) -> Iterator[int | None]:
    """How many bytes each of many files and members holds; None for those that are not there.

    Looks at every tar file once, which takes a tenth of the time of ``member_size`` for each of its members.

    Args:
        paths: of files and members.
    """
    indexes: dict[str, TarIndex | None] = {}
    for path in paths:
        lowered = path.lower()
        end = lowered.rfind(f"{PLAIN_SUFFIX}/")
        archive = path[: end + len(PLAIN_SUFFIX)] if end >= 0 else None
        if archive is not None and archive not in indexes:
            indexes[archive] = _index_or_none(archive)
        index = indexes[archive] if archive is not None else None
        if archive is None or index is None:
            yield _size_or_none(path)
            continue
        place = index.find(normal_name(path[len(archive) + 1 :]))
        yield place[1] if place is not None and sum(place) <= index.num_bytes else None


def open_audio(path: Path | str, *, buffering: int = -1) -> BinaryIO:
    """Open a file or a member of a tar file for reading.

    Args:
        path: of the file or member.
        buffering: as for the built-in ``open``; members are in memory as a whole.

    Raises:
        OSError: if the file cannot be opened.
        AudioError: as ``open_member``.
    """
    try:
        return open(path, "rb", buffering=buffering)
    except NotADirectoryError:
        if split_member(path) is None:
            raise
        return open_member(path)


def audio_size(path: Path | str) -> int:
    """How many bytes a file or a member of a tar file holds.

    Raises:
        OSError: if there is no such file.
        AudioError: as ``open_member``, and if the path leads to a folder, a pipe or a device, which never ends.
    """
    try:
        status = os.stat(path)
    except NotADirectoryError:
        found = split_member(path)
        if found is None:
            raise
        return _locate(*found)[1]
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path}: is no regular file, expected audio; drop it")
    return status.st_size


def _index_or_none(archive: str) -> TarIndex | None:
    try:
        return tar_index(archive) if os.path.isfile(archive) else None
    except AudioError:
        return None


def _size_or_none(path: str) -> int | None:
    try:
        return audio_size(path)
    except (OSError, AudioError):
        return None


def _expect_member(path: Path | str) -> tuple[str, str]:
    found = split_member(path)
    if found is None:
        raise AudioError(f"{path}: is no member of a tar file, expected <shard>.tar/<member>; correct the path")
    return found


def _locate(archive: str, member: str) -> tuple[int, int, int]:
    """Offset and size of a member that is there as a whole, and the size of its tar file."""
    index = tar_index(archive)
    place = index.find(member)
    if place is None:
        cut = "" if index.damage is None else f" before the place where it cannot be read any further ({index.damage})"
        raise AudioError(f"{archive}: holds no member {member!a}{cut}; correct the path or get the shard again")
    offset, size = place
    if offset + size > index.num_bytes:
        raise _cut_short(archive, member, max(index.num_bytes - offset, 0), size, index.num_bytes)
    return offset, size, index.num_bytes


def _cut_short(archive: str, member: str, found: int, size: int, num_bytes: int) -> AudioError:
    return AudioError(
        f"{archive}: truncated at {num_bytes} bytes inside member {member!a}, {found} of its {size} bytes found; "
        "get the shard again",
        check="truncated",
    )
