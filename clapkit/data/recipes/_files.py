"""Audio files below a folder, found by the names that tables and lists give them.

The folder is walked once, so that a list of four hundred thousand clips costs no question to the disk for each. What a list
calls a file and what it is called on disk differ in known ways: another suffix after a conversion, blanks at the ends that
were stripped, HTML entities that were resolved. The name as it stands always comes first, because names on disk hold blanks
and entities, too.
"""

from __future__ import annotations

import html
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.errors import ManifestError
from clapkit.types import Rejection

# Of several files that differ only in the suffix, the first of these is taken; others follow by name.
_PREFERRED_SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")


class AudioFiles:
    """The audio files below a folder.

    Args:
        root: the folder.
        paths: of the files, relative to it, with ``/`` between the parts.
    """

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        self.root = root
        self._exact: set[str] = set()
        self._by_name: dict[str, list[str]] = defaultdict(list)
        self._by_stem: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            name = path.rpartition("/")[2]
            self._exact.add(path)
            self._by_name[name].append(path)
            self._by_stem[_stem(name)].append(path)

    @classmethod
    def scan(cls, root: Path) -> AudioFiles:
        """Walk a folder; hidden entries, links to folders and links that leave it are passed over.

        Raises:
            ManifestError: if a folder cannot be read.
        """
        return cls(root, _walk(root))

    def __len__(self) -> int:
        return len(self._exact)

    def __contains__(self, path: str) -> bool:
        return path in self._exact

    def find(self, names: Sequence[str], *, folders: Sequence[str] = ()) -> str | None:
        """The file that goes by one of some names.

        A name is looked for as it stands, then with HTML entities resolved and blanks stripped, then with another audio
        suffix. The first name that leads to a file counts.

        Args:
            names: file names or paths relative to the root, best first; with or without suffix.
            folders: folder names, best first. Where files in several folders go by the name, the one below the first of these
                is meant.

        Returns:
            Path relative to the root, None if there is no such file.

        Raises:
            ManifestError: if several files go by the name and ``folders`` does not tell which is meant.
        """
        by_stem: tuple[str, list[str]] | None = None  # the first name that leads to a file with another suffix
        for variant in (variant for name in names if name.strip() for variant in _variants(name)):
            if variant in self._exact and not folders:
                return variant
            base = _base(variant)
            if found := self._by_name.get(base):
                return self._choose(variant, found, folders)
            if by_stem is None and (found := self._by_stem.get(_stem(base))):
                by_stem = variant, found
        return None if by_stem is None else self._choose(*by_stem, folders)

    def missing(self, item: str, names: Sequence[str], *, split: str | None, source: str | None = None) -> Rejection:
        """Say that a clip of the corpus is not there.

        Args:
            item: id of the clip.
            names: under which it was looked for.
            split: that the corpus gives it.
            source: recording that it is from.
        """
        looked = " or ".join(dict.fromkeys(names))
        reason = f"no audio {looked} below {self.root}; get the file, or set --audio-dir"
        return Rejection(item, reason, "missing", split=split, source=source)

    def _choose(self, name: str, found: list[str], folders: Sequence[str]) -> str:
        """The file that a name means, of some that go by its last part."""
        if len(found) == 1:
            return found[0]
        own_folder = name.rpartition("/")[0]
        if own_folder:
            found = [path for path in found if f"/{path}".rpartition("/")[0].endswith(f"/{own_folder}")] or found
        for folder in folders:
            inside = [path for path in found if folder in path.split("/")[:-1]]
            if inside:
                found = inside
                break
        if len({path.rpartition("/")[0] for path in found}) > 1:
            raise ManifestError(
                f"{self.root}: {name!r} is there as {found[0]} and as {found[1]}, expected it once; "
                "remove one, or name the folder that is meant with --audio-dir"
            )
        return min(found, key=_preference)


def _variants(name: str) -> list[str]:
    folder, slash, base = name.rpartition("/")
    if "&" not in base and base.split() == [base]:
        return [name]  # nothing to resolve or strip: the way of nearly all names, and there are millions
    bases = [base, html.unescape(base), _stripped(base), _stripped(html.unescape(base))]
    return list(dict.fromkeys(folder + slash + variant for variant in bases))


def _base(path: str) -> str:
    return path.rpartition("/")[2] if "/" in path else path


def _stripped(name: str) -> str:
    """A file name without blanks at either end of it and of its stem."""
    stem = _stem(name)
    return stem.strip() + name[len(stem) :].strip()


def _stem(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in AUDIO_SUFFIXES else name


def _preference(path: str) -> tuple[int, str]:
    suffix = PurePosixPath(path).suffix.lower()
    rank = _PREFERRED_SUFFIXES.index(suffix) if suffix in _PREFERRED_SUFFIXES else len(_PREFERRED_SUFFIXES)
    return rank, path


def _walk(folder: Path) -> Iterator[str]:
    root = os.path.realpath(folder)
    waiting = _entries(folder, "")
    while waiting:  # no recursion: folders may lie a thousand deep
        path, entry = waiting.pop()
        is_link = entry.is_symlink()
        # An entry that links to itself cannot be asked whether it is a folder.
        if os.path.isdir(entry.path) if is_link else entry.is_dir():
            if not is_link:
                waiting += _entries(entry.path, f"{path}/")
        elif os.path.splitext(entry.name)[1].lower() in AUDIO_SUFFIXES:
            if not is_link or Path(os.path.realpath(entry.path)).is_relative_to(root):
                yield path


def _entries(folder: str | Path, prefix: str) -> list[tuple[str, os.DirEntry[str]]]:
    """What is visible in a folder and has a name in UTF-8, with its path, the last one first."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be read ({error.strerror}); make it readable or name another folder") from error
    # A name that is not UTF-8 stands in no list.
    return [
        (prefix + entry.name, entry)
        for entry in entries
        if not entry.name.startswith(".") and not any("\ud800" <= character <= "\udfff" for character in entry.name)
    ]
