"""Which tar files are meant: folders, files, globs and braces, joined with ``::``; and the split that their names give."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clapkit.data.recipes.folder import SPLIT_FOLDERS
from clapkit.errors import ManifestError

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""Endings of tar files, in lower case."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_SHARDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Shard:
    """One tar file.

    Attributes:
        path: of the file, which need not be there.
        label: path without its suffix, relative to what all shards share; unique.
        split: that a folder around it or its name gives.
    """

    path: Path
    label: str
    split: str | None


def find_shards(source: str) -> list[Shard]:
    """The tar files of a source, in the order of its parts and then by name.

    Args:
        source: folders, files and patterns, joined with ``::``. Numbers of a range in braces that are not there are listed all
            the same, because they are missing.

    Raises:
        ManifestError: if a part holds no tar file.
    """
    found: dict[str, str | None] = {}  # path -> split
    for part in source.split("::"):
        part = os.path.expanduser(part.strip())
        paths = list(_expand(part)) if part else []
        if not any(os.path.isfile(path) for path in paths):
            raise ManifestError(f"{part or source!r}: no {' or '.join(SHARD_SUFFIXES)} file found, expected shards; correct it")
        base = _base(part)
        for path in paths:
            found.setdefault(os.path.abspath(path), _split(os.path.abspath(path), base))
    stems = {path: _stem(path) for path in found}
    common = os.path.commonpath([os.path.dirname(path) for path in found])
    labels = {path: os.path.relpath(stem, common).replace(os.sep, "/") for path, stem in stems.items()}
    values = list(labels.values())
    # x.tar beside x.tar.gz: then the suffix is part of the name.
    return [
        Shard(Path(path), label if values.count(label) == 1 else os.path.relpath(path, common), found[path])
        for path, label in labels.items()
    ]


def is_pattern(source: str) -> bool:
    """Whether a source is more than the path of one file or folder."""
    return "::" in source or bool(re.search(r"[*?\[{]", source))


def _expand(part: str) -> Iterator[str]:
    if os.path.isdir(part):
        yield from _walk(part)
        return
    if os.path.exists(part):
        yield part
        return
    for path in _expand_braces(part):
        if glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))
            yield from (match for match in matches if match.lower().endswith(SHARD_SUFFIXES) and os.path.isfile(match))
        elif os.path.isdir(path):
            yield from _walk(path)
        else:
            yield path


def _expand_braces(text: str) -> list[str]:
    """All texts that a pattern with ``{a,b}`` and ``{000..012}`` stands for."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    numbers = _RANGE.fullmatch(match[1])
    if numbers is None:
        choices = match[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if not first <= last < first + _MAX_SHARDS:
            raise ManifestError(f"{text}: range {match[0]}, expected it to count up, by at most {_MAX_SHARDS}; correct it")
        choices = [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]
    return [path for choice in choices for path in _expand_braces(text[: match.start()] + choice + text[match.end() :])]


def _walk(folder: str) -> Iterator[str]:
    """Tar files below a folder, by path; hidden ones are passed over and linked folders not followed."""
    found = []
    for parent, folders, files in os.walk(folder, onerror=_refuse_folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(parent, name) for name in files if not name.startswith(".")]
    yield from sorted(path for path in found if path.lower().endswith(SHARD_SUFFIXES))


def _refuse_folder(error: OSError) -> None:
    raise ManifestError(f"{error.filename}: cannot be read ({error.strerror}); make it readable or name another") from error


def _base(part: str) -> str:
    """The folder that the user named, above everything that a pattern leaves open."""
    if os.path.isdir(part):
        return os.path.abspath(part)
    fixed = part if os.path.exists(part) else re.split(r"[*?\[{]", part, maxsplit=1)[0]
    return os.path.abspath(os.path.dirname(fixed) or ".")


def _split(path: str, base: str) -> str | None:
    """The innermost folder that is called like a split, or the only such word of the file name.

    Folders above the one that the user named say nothing about the corpus.
    """
    folders = [os.path.basename(base), *PurePosixPath(os.path.relpath(os.path.dirname(path), base)).parts]
    for name in reversed(folders):
        if name.lower() in SPLIT_FOLDERS:
            return SPLIT_FOLDERS[name.lower()]
    words = re.split(r"[^a-z]+", os.path.basename(_stem(path)).lower())
    named = {SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS}
    return named.pop() if len(named) == 1 else None


def _stem(path: str) -> str:
    suffix = next((suffix for suffix in SHARD_SUFFIXES if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(suffix)]
