"""Manifests: the list of clips that ``prepare`` writes and every other command reads.

A manifest is a file of JSON lines. The first line is a header, ``{"clapkit_manifest": 1, "name": ..., "root": ...}``;
each other line is one clip. Audio paths are absolute or relative to the root; root ``"."`` is the folder of the
manifest, so that a corpus that lies beside its manifest can be moved. Loading is strict, because a key that is spelt
wrongly would otherwise be a caption or a split that is silently missing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from clapkit.data.language_tags import with_normal_tags
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip

FORMAT_VERSION = 1

_REQUIRED = ("id", "audio", "duration_s")
# Key -> (accepted Python types, how the message calls them). The order is that of the written line.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "id": ((str,), "a text"),
    "audio": ((str,), "a text"),
    "duration_s": ((int, float), "a number"),
    "sample_rate": ((int,), "a whole number"),
    "num_channels": ((int,), "a whole number"),
    "captions": ((list,), "a list"),
    "labels": ((list,), "a list"),
    "fold": ((int,), "a whole number"),
    "split": ((str,), "a text"),
    "source": ((str,), "a text"),
    "start_s": ((int, float), "a number"),
    "end_s": ((int, float), "a number"),
    "extra": ((dict,), "an object"),
}
_POSITIVE = frozenset({"duration_s", "sample_rate", "num_channels", "fold"})


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


# Made once: json.loads and json.dumps make a new one for every line.
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class Manifest:
    """Clips with the place where their audio lies.

    Attributes:
        clips: in the order of the file; the position is the row that an objective with a memory sees.
        root: folder that relative audio paths start from.
        name: of the corpus.
        fingerprint: SHA-256 of the clips in canonical form; the same wherever the root lies.
    """

    clips: tuple[Clip, ...]
    root: Path
    name: str
    fingerprint: str

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a manifest.

        Languages of captions come as ``language_tags`` writes them. The fingerprint is that of the file, whose tags may be
        written otherwise: runs that used it know it by that.

        Args:
            path: of the ``manifest.jsonl``.

        Raises:
            ManifestError: if the file is missing, empty or damaged, or a clip breaks a rule; names the line.
        """
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror}); name a manifest.jsonl of prepare") from error
        if lines[-1] == b"":
            lines.pop()
        if not lines:
            raise ManifestError(f"{path}: is empty, expected a header line and clips; run prepare again")
        name, root = _read_header(path, lines[0])
        clips = tuple(_read_clips(path, lines[1:]))
        if not clips:
            raise ManifestError(f"{path}: holds no clip, expected at least one; run prepare again")
        digest = fingerprint(clips)
        return cls(clips=tuple(with_normal_tags(clips)), root=path.parent / root, name=name, fingerprint=digest)

    @classmethod
    def write(cls, path: Path, clips: Iterable[Clip], *, root: Path, name: str) -> Manifest:
        """Write a manifest and give it back.

        Args:
            path: the file to write; relative roots are seen from its folder.
            clips: with their durations filled in.
            root: folder that relative audio paths start from.
            name: of the corpus.

        Raises:
            ManifestError: if two clips share an id.
        """
        clips = tuple(clips)
        counts = Counter(clip.id for clip in clips)
        repeated = next((id for id, count in counts.items() if count > 1), None)
        if repeated is not None:
            raise ManifestError(f"corpus {name}: clip {repeated}: id is used {counts[repeated]} times, expected once; rename")
        header = {"clapkit_manifest": FORMAT_VERSION, "name": name, "root": _portable(root, path.parent)}
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(header, ensure_ascii=False) + "\n")
            lines = [to_line(clip) + "\n" for clip in clips]
            file.writelines(lines)
        return cls(clips=clips, root=root, name=name, fingerprint=_hash(lines))

    def audio_path(self, clip: Clip) -> Path:
        """Absolute path of the audio of a clip."""
        return (self.root / clip.audio).absolute()

    @property
    def splits(self) -> dict[str, int]:
        """Number of clips of every split, by name; clips without one are not counted."""
        return dict(sorted(Counter(clip.split for clip in self.clips if clip.split is not None).items()))

    def split(self, name: str) -> Manifest:
        """The clips of one split, as a manifest of its own.

        Raises:
            ManifestError: if no clip is in that split; names the splits that exist.
        """
        clips = tuple(clip for clip in self.clips if clip.split == name)
        if not clips:
            found = ", ".join(f"{split} ({count} clips)" for split, count in self.splits.items()) or "none"
            raise ManifestError(
                f"manifest {self.name}: no clip in split {name!r}, splits found: {found}; name one of them or prepare more data"
            )
        return Manifest(clips=clips, root=self.root, name=self.name, fingerprint=fingerprint(clips))

    def __len__(self) -> int:
        return len(self.clips)

    def __iter__(self) -> Iterator[Clip]:
        return iter(self.clips)


def to_line(clip: Clip) -> str:
    """A clip as one line of canonical JSON: fixed order of keys, nothing that is empty."""
    record: dict[str, Any] = {"id": clip.id, "audio": clip.audio}
    # Spelt out, because a corpus has a hundred thousand lines, and a loop over names takes twice as long.
    if clip.duration_s is not None:
        record["duration_s"] = clip.duration_s
    if clip.sample_rate is not None:
        record["sample_rate"] = clip.sample_rate
    if clip.num_channels is not None:
        record["num_channels"] = clip.num_channels
    if clip.captions:
        record["captions"] = [{"text": caption.text, "lang": caption.lang} for caption in clip.captions]
    if clip.labels:
        record["labels"] = list(clip.labels)
    if clip.fold is not None:
        record["fold"] = clip.fold
    if clip.split is not None:
        record["split"] = clip.split
    if clip.source is not None:
        record["source"] = clip.source
    if clip.start_s is not None:
        record["start_s"] = clip.start_s
    if clip.end_s is not None:
        record["end_s"] = clip.end_s
    if clip.extra:
        record["extra"] = dict(clip.extra)
    return _ENCODER.encode(record)


def fingerprint(clips: Iterable[Clip]) -> str:
    """SHA-256 over the canonical lines of clips, hexadecimal."""
    return _hash(to_line(clip) + "\n" for clip in clips)


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def _portable(root: Path, folder: Path) -> str:
    root, folder = root.absolute(), folder.absolute()
    return root.relative_to(folder).as_posix() if root.is_relative_to(folder) else root.as_posix()


def _read_header(path: Path, line: bytes) -> tuple[str, str]:
    header = _read_object(path, 1, line)
    version = header.get("clapkit_manifest")
    if version is None:
        raise ManifestError(
            f'{path} line 1: no header, expected {{"clapkit_manifest": {FORMAT_VERSION}, "name": ..., "root": "."}}; '
            "add that line, or run `clapkit prepare` on the file to make a manifest of it"
        )
    if version != FORMAT_VERSION:
        raise ManifestError(f"{path} line 1: clapkit_manifest {version!r}, expected {FORMAT_VERSION}; run prepare again")
    unknown = header.keys() - {"clapkit_manifest", "name", "root"}
    if unknown:
        raise ManifestError(f"{path} line 1: unknown key {min(unknown)!r}, expected name and root; remove it")
    name, root = header.get("name"), header.get("root")
    if not isinstance(name, str) or not isinstance(root, str):
        raise ManifestError(f"{path} line 1: name {name!r} and root {root!r}, expected two texts; run prepare again")
    return name, root


def _read_clips(path: Path, lines: list[bytes]) -> Iterator[Clip]:
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=2):
        clip = read_clip(_read_object(path, number, line), f"{path} line {number}")
        first = seen.setdefault(clip.id, number)
        if first != number:
            _refuse(f"{path} line {number}", clip.id, f"id is already used on line {first}, expected unique ids", "rename one")
        yield clip


def _read_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = _DECODER.decode(line.decode())
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} line {number}: not JSON ({error}); correct the line or run prepare again") from error
    if not isinstance(record, dict):
        raise ManifestError(f"{path} line {number}: holds a {type(record).__name__}, expected an object; run prepare again")
    return record


def _refuse(place: str, id: Any, found: str, remedy: str = "drop the row or run prepare again") -> NoReturn:
    raise ManifestError(f"{place}: clip {id}: {found}; {remedy}")


def read_clip(record: dict[str, Any], place: str) -> Clip:
    """Make a clip of the object on one line of a manifest.

    Args:
        record: the object; it is used up.
        place: where it stands, for messages.

    Raises:
        ManifestError: if it breaks a rule of manifests.
    """
    id = record.get("id", "without id")
    for key, value in record.items():
        if key not in _TYPES:
            _refuse(place, id, f"unknown key {key!r}, expected some of {', '.join(_TYPES)}", "put it under extra")
        types, expected = _TYPES[key]
        if type(value) not in types:  # exact, because True is an instance of int
            _refuse(place, id, f"{key} {value!r}, expected {expected}")
        if key in _POSITIVE and not 0 < value < math.inf:
            _refuse(place, id, f"{key} {value}, expected more than 0")
    for key in _REQUIRED:
        if record.get(key, "") == "":
            _refuse(place, id, f"{key} is missing, expected {_TYPES[key][1]}")
    start_s, end_s = record.get("start_s", 0), record.get("end_s", math.inf)
    if not 0 <= start_s < end_s:
        _refuse(place, id, f"span from {start_s} s to {end_s} s, expected 0 <= start_s < end_s")
    for label in record.get("labels", ()):
        if type(label) is not str or not label:
            _refuse(place, id, f"label {label!r}, expected a text that is not empty")
    record["labels"] = tuple(record.get("labels", ()))
    record["captions"] = tuple([_read_caption(place, id, value) for value in record.get("captions", ())])
    return Clip(**record)


def _read_caption(place: str, id: str, value: Any) -> Caption:
    if type(value) is dict:
        text, lang = value.get("text"), value.get("lang", "en")
        known = ("text" in value) + ("lang" in value)
        if type(text) is str and type(lang) is str and text and lang and len(value) == known:
            return Caption(text, lang)
    return _refuse(place, id, f'caption {value!r}, expected {{"text": ..., "lang": ...}} with texts that are not empty')
