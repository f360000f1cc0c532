"""AudioSet: ten-second clips of YouTube videos with the classes of sound that are heard in them.

Origin: J. F. Gemmeke et al., Audio Set: An ontology and human-labeled dataset for audio events, ICASSP 2017; strong labels:
S. Hershey et al., The Benefit of Temporally-Strong Labels in Audio Event Classification, ICASSP 2021.
Licence: CC BY 4.0 for the lists; the videos are not part of them.
Layout: ``balanced_train_segments.csv``, ``unbalanced_train_segments.csv`` and ``eval_segments.csv``, each with three comment
lines, then ``YTID, start, end, "mid,mid"`` with a blank behind each comma; ``class_labels_indices.csv`` (``index,mid,
display_name``) names the classes. Strong labels: ``audioset_train_strong.tsv`` and ``audioset_eval_strong.tsv``, one event a
row, whose segments are ``{id}_{start in ms}``, with ``mid_to_display_name.tsv``.
Counts: 22,160 balanced, 2,041,789 unbalanced, 20,371 eval, 527 classes; strong 103,463 train, 16,996 eval. Much is gone from
YouTube.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from clapkit.data.recipes import _class_names
from clapkit.data.recipes._class_names import class_name
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, find_lists, require_columns
from clapkit.data.recipes._table_cells import RowError, read_number
from clapkit.data.recipes._youtube import candidate_names, is_youtube_id, parse_name, single_clip_ids
from clapkit.data.tables import Row, read_table
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

_SEGMENT_COLUMNS = ("YTID", "start_seconds", "end_seconds", "positive_labels")
_EVENT_COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")


@dataclass(frozen=True, slots=True)
class _Listing:
    """A list of AudioSet: its file, its split, its number of clips, and folders that hold its audio."""

    file_name: str
    split: str
    num_clips: int
    folders: tuple[str, ...]
    is_strong: bool = False


_LISTINGS = {
    "balanced": _Listing(
        "balanced_train_segments.csv", "train", 22_160, ("balanced_train_segments", "balanced_train", "balanced", "train")
    ),
    "unbalanced": _Listing(
        "unbalanced_train_segments.csv",
        "train",
        2_041_789,
        ("unbalanced_train_segments", "unbalanced_train", "unbalanced", "train"),
    ),
    "eval": _Listing("eval_segments.csv", "test", 20_371, ("eval_segments", "eval", "evaluation", "test")),
    "strong train": _Listing("audioset_train_strong.tsv", "train", 103_463, ("train",), is_strong=True),
    "strong eval": _Listing("audioset_eval_strong.tsv", "test", 16_996, ("eval", "evaluation", "test"), is_strong=True),
}
_SUBSETS = {
    "balanced": ("balanced", "eval"),
    "unbalanced": ("unbalanced", "eval"),
    "all": ("balanced", "unbalanced", "eval"),
    "strong": ("strong train", "strong eval"),
}
# Files that name the classes -> their columns where they have no header.
_CLASS_FILES = {"class_labels_indices.csv": None, "mid_to_display_name.tsv": ("mid", "display_name")}


def build(subset: Literal["balanced", "unbalanced", "all", "strong"] | None = None) -> Recipe:
    """AudioSet.

    Args:
        subset: which training part goes with the evaluation part; ``strong`` reads the lists of events with times. None is
            ``balanced`` for a folder, and the list itself where the source is one.
    """
    return AudioSet(subset=subset)


@dataclass(slots=True)
class _Entry:
    """A clip with its classes."""

    youtube_id: str
    start_s: float
    end_s: float | None
    labels: list[str]
    events: list[list[Any]] = field(default_factory=list)


class AudioSet:
    """Reads the lists; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, subset: Literal["balanced", "unbalanced", "all", "strong"] | None) -> None:
        self.subset = subset
        self._read_lists: list[str] = []

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, list by list.

        Raises:
            ConfigError: if a subset is asked for and the source is one list.
            ManifestError: if no list of the subset, or no list of classes, is there.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        source = request.source
        folder = source if source.is_dir() else source.parent
        paths = self._paths(source)
        classes = _classes(folder)
        self._read_lists = list(paths)
        files = AudioFiles.scan(audio_root(request))
        seen: dict[tuple[str, float], str] = {}
        for key, path in paths.items():
            listing = _LISTINGS[key]
            read = _read_events if listing.is_strong else _read_segments
            items = list(read(path, classes))
            singles = single_clip_ids((item.youtube_id, item.start_s) for item in items if isinstance(item, _Entry))
            for item in items:
                if isinstance(item, Rejection):
                    yield item
                elif (known := seen.setdefault((item.youtube_id, item.start_s), key)) != key:
                    reason = f"is listed in {_LISTINGS[known].file_name} already; drop it from one list"
                    yield Rejection(f"{path.name} {_name(item)}", reason, split=listing.split)
                else:
                    yield _clip(item, listing, files, is_only_clip=item.youtube_id in singles)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Official counts of the lists that were read, and which they are."""
        official: Counter[str] = Counter()
        for key in self._read_lists:
            official[_LISTINGS[key].split] += _LISTINGS[key].num_clips
        facts = {
            "lists": [_LISTINGS[key].file_name for key in self._read_lists],
            "class_names": _class_names.VERSION,
            "num_classes": len({label for clip in clips for label in clip.labels}),
        }
        return CorpusDescription(official=dict(official), facts=facts)

    def _paths(self, source: Path) -> dict[str, Path]:
        """Key of a list -> its path, in the order of the subset."""
        if source.is_file():
            key = next((key for key, listing in _LISTINGS.items() if listing.file_name == source.name), None)
            if key is None:
                expected = ", ".join(listing.file_name for listing in _LISTINGS.values())
                raise ManifestError(f"{source}: is no list of AudioSet, expected one of {expected}; name one or their folder")
            if self.subset is not None:
                raise ConfigError(f"option subset={self.subset}: the source is one list, {source.name}; leave it out")
            return {key: source}
        keys = _SUBSETS[self.subset or "balanced"]
        found = find_lists(source, {key: [_LISTINGS[key].file_name] for key in keys})
        if not found:
            raise ManifestError(
                f"{source}: no list of AudioSet found, expected {' or '.join(_LISTINGS[key].file_name for key in keys)} in it "
                "or in a folder right below; name their folder, or another -O subset (balanced, unbalanced, all, strong)"
            )
        return found


def _classes(folder: Path) -> dict[str, str]:
    """Class id (mid) -> name."""
    found = find_lists(folder, {name: [name] for name in _CLASS_FILES})
    if not found:
        raise ManifestError(
            f"{folder}: no names of the classes found, expected {' or '.join(_CLASS_FILES)} beside the lists; get the file"
        )
    names: dict[str, str] = {}
    for key, path in found.items():
        table = read_table(path, columns=_CLASS_FILES[key])
        require_columns(path, table, ("mid", "display_name"))
        for row in table.rows:
            if row.problem is not None:
                raise ManifestError(f"{path} {row.place}: {row.problem}")
            names.setdefault(row.cells["mid"].strip(), class_name(row.cells["display_name"]))
    return names


def _read_segments(path: Path, classes: dict[str, str]) -> Iterator[_Entry | Rejection]:
    table = read_table(path, columns=_SEGMENT_COLUMNS, comment="#", skip_initial_space=True)
    first: dict[tuple[str, float], str] = {}
    for row in table.rows:
        try:
            entry = _segment(row, classes)
            known = first.setdefault((entry.youtube_id, entry.start_s), row.place)
            if known != row.place:
                raise RowError(f"{_name(entry)} is listed on {known} already; drop one row")
        except RowError as error:
            yield Rejection(f"{path.name} {row.place}", str(error))
        else:
            yield entry


def _segment(row: Row, classes: dict[str, str]) -> _Entry:
    if row.problem is not None:
        raise RowError(row.problem)
    youtube_id = row.cells["YTID"].strip()
    if not is_youtube_id(youtube_id):
        raise RowError(f"id {youtube_id!r}, expected 11 letters, digits, - or _; restore it from the original list")
    start_s, end_s = _span(row, "start_seconds", "end_seconds")
    labels = [_label(mid, classes) for mid in row.cells["positive_labels"].split(",")]
    return _Entry(youtube_id, start_s, end_s, list(dict.fromkeys(labels)))


def _read_events(path: Path, classes: dict[str, str]) -> Iterator[_Entry | Rejection]:
    table = read_table(path)
    require_columns(path, table, _EVENT_COLUMNS)
    entries: dict[str, _Entry] = {}
    for row in table.rows:
        try:
            if row.problem is not None:
                raise RowError(row.problem)
            segment = row.cells["segment_id"].strip()
            name = parse_name(segment, unit="ms")
            if name is None or name.start_s is None:
                raise RowError(f"segment_id {segment!r}, expected id_milliseconds such as b0RFKhbpFJA_30000")
            start_s, end_s = _span(row, "start_time_seconds", "end_time_seconds")
            label = _label(row.cells["label"], classes)
        except RowError as error:
            yield Rejection(f"{path.name} {row.place}", str(error))
            continue
        entry = entries.setdefault(segment, _Entry(name.youtube_id, name.start_s, None, []))
        entry.events.append([start_s, end_s, label])
        if label not in entry.labels:
            entry.labels.append(label)
    yield from entries.values()


def _span(row: Row, start_key: str, end_key: str) -> tuple[float, float]:
    start_s, end_s = read_number(start_key, row.cells[start_key]), read_number(end_key, row.cells[end_key])
    if start_s is None or end_s is None or not 0 <= start_s < end_s:
        raise RowError(f"span from {start_s} s to {end_s} s, expected 0 <= {start_key} < {end_key}; correct it")
    return start_s, end_s


def _label(mid: str, classes: dict[str, str]) -> str:
    mid = mid.strip()
    if mid not in classes:
        raise RowError(f"class {mid!r} has no name, expected it in {' or '.join(_CLASS_FILES)}; get the complete file")
    return classes[mid]


def _name(entry: _Entry) -> str:
    return f"{entry.youtube_id}_{entry.start_s:g}"


def _clip(entry: _Entry, listing: _Listing, files: AudioFiles, *, is_only_clip: bool) -> Clip | Rejection:
    id, source = f"audioset/{_name(entry)}", f"youtube/{entry.youtube_id}"
    names = candidate_names(entry.youtube_id, entry.start_s, entry.end_s, is_only_clip=is_only_clip)
    audio = files.find(names, folders=listing.folders)
    if audio is None:
        return files.missing(id, [*names[:2], names[-1]], split=listing.split, source=source)
    extra: dict[str, Any] = {"video_start_s": entry.start_s}
    if entry.end_s is not None:
        extra["video_end_s"] = entry.end_s
    if entry.events:
        extra["events"] = entry.events
    return Clip(
        id=id,
        audio=audio,
        labels=tuple(entry.labels),
        split=listing.split,
        source=source,
        extra=extra,
    )
