"""AudioCaps: ten-second clips of AudioSet, each described by people in one (train) or five (val, test) sentences.

Origin: C. D. Kim, B. Kim, H. Lee, G. Kim, AudioCaps: Generating Captions for Audios in The Wild, NAACL 2019. Audio:
YouTube.
Licence: the lists are MIT, for academic use; the audio is not part of them.
Layout: ``train.csv``, ``val.csv`` and ``test.csv`` with the columns ``audiocap_id,youtube_id,start_time,caption``, one caption
a row; the rows of one clip are not adjacent. ``start_time`` is a place in the video, not in the file.
Counts: version 1 has 49,838 + 2,475 + 4,875 rows and 49,838 + 495 + 975 clips; version 2.0 (2025) has 91,256 rows for train,
and for val and test the same clips with other text. Nearly all papers report the 957 clips of test that others could still get.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, find_lists, require_columns
from clapkit.data.recipes._youtube import candidate_names, is_youtube_id, single_clip_ids
from clapkit.data.tables import Row, read_table
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
# Our name of a split -> what lists and folders call it.
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_OFFICIAL = {"val": 495, "test": 975}
_TRAIN_CLIPS = {"v1": 49_838}
_TRAIN_ROWS = {49_838: "v1", 91_256: "2.0"}

# What the copy that WavCaps used, and nearly every paper since, does not have of val and test.
NOT_IN_957: Mapping[str, frozenset[str]] = {
    "val": frozenset({"xC8kbrKJmco"}),
    "test": frozenset(
        "0UJtGcoPYa0 1oOYqBroWoA 2GehEKSOgc8 2j8pxiFvElM 40cuHrYfaqA 4lv9aLXtud0 7D7xgd4WJ50 ITP7tMt1BDg Lh0UmwRgA7s "
        "XP1L5k-Zxro baThGFuiYys dvY_HUaRgW8 g0l8ArPOTvA hhSqQN1Ou68 jPayI-MTnag jso1tv-zG-E kOYg4ZtKcAs sCzRVvu9XeY".split()
    ),
}

_START = re.compile(r"([0-9]+)(\.0+)?")


def build(clips: Literal["official", "957"] = "official", language: str = "en") -> Recipe:
    """AudioCaps, version 1 or 2.0.

    Args:
        clips: ``957`` leaves out the 18 clips of test, and the one of val, that nearly all papers do without.
        language: of the captions, for translated lists with the same columns.
    """
    return AudioCaps(clips=clips, language=language)


@dataclass(slots=True)
class _Entry:
    """A clip with the rows that describe it."""

    youtube_id: str
    start_s: int
    audiocap_ids: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)


class AudioCaps:
    """Reads the lists; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, clips: Literal["official", "957"], language: str) -> None:
        self.clip_set, self.language = clips, language
        self._versions: dict[str | None, str | None] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips of train, val and test, in the order of their first rows.

        Raises:
            ManifestError: if there is no list, a list is there twice, or a column is missing.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        source = request.source
        lists = {split: _read(path, split) for split, path in _lists(source).items()}
        entries = {split: [item for item in items if isinstance(item, _Entry)] for split, items in lists.items()}
        self._versions = {split: _version(split, found) for split, found in entries.items()}
        singles = single_clip_ids((entry.youtube_id, entry.start_s) for found in entries.values() for entry in found)
        files = AudioFiles.scan(audio_root(request))
        for split, items in lists.items():
            for item in items:
                if isinstance(item, Rejection):
                    yield item
                else:
                    yield from self._clip(item, split, files, is_only_clip=item.youtube_id in singles)

    def _clip(self, entry: _Entry, split: str | None, files: AudioFiles, *, is_only_clip: bool) -> Iterator[Clip | Rejection]:
        """One clip, with its empty captions; or why there is none."""
        id = "/".join(part for part in ("audiocaps", split, f"{entry.youtube_id}_{entry.start_s}") if part)
        if self.clip_set == "957" and entry.youtube_id in NOT_IN_957.get(split or "", ()):
            yield Rejection(id, "not among the clips of most papers, left out by -O clips=957", "excluded", split=split)
            return
        source = f"youtube/{entry.youtube_id}"
        names = candidate_names(entry.youtube_id, entry.start_s, entry.start_s + 10, is_only_clip=is_only_clip)
        audio = files.find([*names, *entry.audiocap_ids], folders=_SPLIT_NAMES.get(split or "", ()))
        if audio is None:
            yield files.missing(id, [*names[:2], names[-1]], split=split, source=source)
            return
        for k, text in enumerate(entry.captions, start=1):
            if not text:
                reason = "empty caption, expected a sentence; fill it or drop the row"
                yield Rejection(f"{id} caption {k}", reason, check="empty_caption", split=split)
        captions = tuple(Caption(text, self.language) for text in entry.captions if text)
        if not captions:
            yield Rejection(id, "no caption left, expected at least one", check="empty_caption", split=split)
            return
        yield Clip(
            id=id,
            audio=audio,
            captions=captions,
            split=split,
            source=source,
            extra={"audiocap_ids": entry.audiocap_ids, "video_start_s": entry.start_s},
        )

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Official counts, version of the captions, test set in use, and a hash of the clips of each split."""
        ids: dict[str | None, list[str]] = defaultdict(list)
        for clip in clips:
            _, *split, name = clip.id.split("/")
            ids[split[0] if split else None].append(name)
        warnings = []
        if len({version for version in self._versions.values() if version}) > 1:
            warnings.append(f"the lists are of several versions of AudioCaps ({self._captions()}): take all from one release")
        if None in self._versions:
            warnings.append(
                "the name of the list says no split (train, val or test): rename it, or put all into one with --split"
            )
        test_set = _test_set(ids["test"]) if "test" in self._versions else None
        beyond = sum(name[:11] in NOT_IN_957["test"] for name in ids["test"])
        if beyond:
            warnings.append(
                f"test holds {beyond} of the {len(NOT_IN_957['test'])} clips that nearly all papers, which report 957, do "
                "without; prepare with -O clips=957 to compare"
            )
        by_split = {split or "all": ids[split] for split in self._versions}
        facts = {
            "captions": self._captions(),
            "clips": self.clip_set,
            "test_set": test_set,
            "num_clips": {split: len(found) for split, found in by_split.items()},
            "clip_ids_sha256": {
                split: hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() for split, found in by_split.items()
            },
        }
        return CorpusDescription(official=self._official(), facts=facts, warnings=warnings)

    def _official(self) -> dict[str, int]:
        """Clips of the splits whose lists were read, where their number is known."""
        known = _OFFICIAL | {"train": _TRAIN_CLIPS.get(self._versions.get("train") or "")}
        left_out = NOT_IN_957 if self.clip_set == "957" else {}
        return {
            split: number - len(left_out.get(split, ()))
            for split, number in known.items()
            if split in self._versions and number is not None
        }

    def _captions(self) -> str:
        """Name of the release, for the facts."""
        names = {split or "all": version or "of unknown version" for split, version in self._versions.items()}
        if len(set(names.values())) == 1:
            return f"AudioCaps {next(iter(names.values()))}"
        return "AudioCaps " + ", ".join(f"{split} {name}" for split, name in names.items())


def _lists(source: Path) -> dict[str | None, Path]:
    """Split -> its list; None where the name of a single list does not say the split."""
    if source.is_file():
        if source.suffix.lower() not in (".csv", ".tsv"):
            raise ManifestError(
                f"{source}: is no CSV file, expected a list such as test.csv; name one, or the folder with them"
            )
        return {_split_in(source.stem): source}
    stems = {split: [prefix + name for name in names for prefix in ("", "audiocaps_")] for split, names in _SPLIT_NAMES.items()}
    names = {split: [f"{stem}.csv" for stem in of_split] for split, of_split in stems.items()}
    found = find_lists(source, names)
    if not found:
        raise ManifestError(
            f"{source}: no list of AudioCaps found, expected train.csv, val.csv or test.csv in it or in a folder right below; "
            "name the folder with them, and set --audio-dir if the audio lies elsewhere"
        )
    return {split: path for split, path in found.items()}


def _split_in(stem: str) -> str | None:
    words = set(re.split(r"[^a-z0-9]+", stem.lower()))
    splits = [split for split, names in _SPLIT_NAMES.items() if words.intersection(names)]
    return splits[0] if len(splits) == 1 else None


def _read(path: Path, split: str | None) -> list[_Entry | Rejection]:
    """Clips and unusable rows, in the order of the file."""
    table = read_table(path)
    require_columns(path, table, _COLUMNS)
    entries: dict[tuple[str, int], _Entry] = {}
    items: list[_Entry | Rejection] = []
    for row in table.rows:
        problem = _problem(row)
        if problem is not None:
            items.append(Rejection(f"{path.name} {row.place}", problem, split=split))
            continue
        key = (row.cells["youtube_id"].strip(), int(float(row.cells["start_time"])))
        if key not in entries:
            entries[key] = _Entry(*key)
            items.append(entries[key])
        entries[key].audiocap_ids.append(row.cells["audiocap_id"].strip())
        entries[key].captions.append(row.cells["caption"].strip())
    return items


def _problem(row: Row) -> str | None:
    if row.problem is not None:
        return row.problem
    youtube_id, start = row.cells["youtube_id"].strip(), row.cells["start_time"].strip()
    if not is_youtube_id(youtube_id):
        return f"youtube_id {youtube_id!r}, expected 11 letters, digits, - or _; restore it from the original list"
    if not _START.fullmatch(start):
        return f"start_time {start!r}, expected whole seconds; restore it from the original list"
    return None


def _version(split: str | None, entries: Sequence[_Entry]) -> str | None:
    """Release that a list is from, None if that cannot be told.

    Version 1 keeps the case that people wrote in; 2.0 is lower case but for a few captions. Without one capital it may also be
    a version 1 that somebody lowered.
    """
    captions = [caption for entry in entries for caption in entry.captions]
    if split == "train" and len(captions) in _TRAIN_ROWS:
        return _TRAIN_ROWS[len(captions)]
    cased = [caption[0] for caption in captions if caption[:1].lower() != caption[:1].upper()]
    share = sum(letter.isupper() for letter in cased) / max(1, len(cased))
    if share >= 0.9:  # 0.999 or more in all lists of version 1
        return "v1"
    return "2.0" if 0 < share <= 0.1 else None  # 0.04 in test of version 2.0, 0.01 in val


def _test_set(names: Sequence[str]) -> str:
    """Which of the test sets in use the clips are."""
    if len(names) == _OFFICIAL["test"]:
        return "975"
    is_957 = len(names) == 957 and not {name[:11] for name in names} & NOT_IN_957["test"]
    return "957" if is_957 else f"other ({len(names)})"
