"""Clotho 2.1: recordings of 15 to 30 seconds from Freesound, five sentences each by people who only heard them.

Origin: K. Drossos, S. Lipping and T. Virtanen, Clotho: an audio captioning dataset, ICASSP 2020. Licence: captions for
non-commercial research; every recording has a Creative Commons licence of its own (column ``license`` of the metadata).
Layout: ``clotho_captions_{development,validation,evaluation}.csv`` (``file_name,caption_1,...,caption_5``), optionally
``clotho_metadata_{...}.csv``, and folders with the audio that are named after the splits; tables called ``train.csv``,
``dev.csv``, ``eval.csv`` and so on are read as well. A single caption table can be given instead of the folder.
Counts: 3,839 development, 1,045 validation and 1,045 evaluation clips, 29,645 captions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._captioned import without_empty_captions
from clapkit.data.recipes._clotho_checks import OFFICIAL_CLIPS, caption_release, check_durations
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root
from clapkit.data.recipes._split_names import SPLIT_FOLDERS, SPLIT_OF
from clapkit.data.tables import Row, Table, read_table
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

_CAPTION_FILE = re.compile(r"(?:clotho_captions_|clotho_)?(.+)\.csv", re.IGNORECASE)
_METADATA_FILE = re.compile(r"clotho_metadata_(.+)\.csv", re.IGNORECASE)
_CAPTION_COLUMN = re.compile(r"caption_(\d+)")
_METADATA_KEPT = ("sound_link", "start_end_samples", "manufacturer", "license")


def build() -> Recipe:
    """Clotho."""
    return Clotho()


class Clotho:
    """Reads the caption tables; see the module for the layout."""

    needs_source = True
    makes_audio = False

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._releases: dict[str, dict[str, str]] = {}
        self._without_sound_id: Counter[str] = Counter()
        self._warnings: list[str] = []

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, split by split, in the order of the tables.

        Raises:
            ManifestError: if there is no caption table, two of one split, or one that is no such table.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        self._reset()
        tables = _caption_tables(request.source)
        files = AudioFiles.scan(audio_root(request))
        captions = {split: _read_captions(path) for split, path in tables.items()}
        in_splits = Counter(name for table in captions.values() for name in {_text(row, "file_name") for row in table.rows})
        for split, table in captions.items():
            self._releases[split] = caption_release(tables[split].name, tables[split].read_bytes(), split)
            metadata = self._metadata(request.source, split)
            shared = {name for name, count in in_splits.items() if count > 1}
            yield from self._split(tables[split], table, split, metadata, files, shared)

    def _split(
        self, path: Path, table: Table, split: str, metadata: dict[str, Row], files: AudioFiles, shared: set[str]
    ) -> Iterator[Clip | Rejection]:
        seen: set[str] = set()
        for row in table.rows:
            name = _text(row, "file_name")
            if row.problem is not None or not name.strip():
                reason = row.problem or "empty file_name, expected the name of a recording; fill it in"
                yield Rejection(f"{path.name} {row.place}", reason, split=split)
                continue
            clip_id = f"clotho/{split}/{_stem(name).strip()}"
            if clip_id in seen:
                yield Rejection(f"{path.name} {row.place}", f"{name!r} is listed twice, expected once; drop a row", split=split)
                continue
            seen.add(clip_id)
            sound_id, extra = _described(metadata.get(name) or metadata.get(name.strip()))
            source = clip_id if sound_id is None else f"freesound/{sound_id}"
            audio = files.find([name], folders=SPLIT_FOLDERS[split])
            # A name of two splits is another recording in each: that of the wrong folder would be the wrong sound.
            if audio is None or (name in shared and _is_of_other_split(audio, split)):
                yield files.missing(clip_id, [name], split=split, source=source)
                continue
            self._without_sound_id[split] += sound_id is None
            clip = Clip(
                id=clip_id,
                audio=audio,
                captions=tuple(Caption(_text(row, column)) for column in _caption_columns(table)),
                split=split,
                source=source,
                extra=extra,
            )
            yield from without_empty_captions(clip)

    def _metadata(self, source: Path, split: str) -> dict[str, Row]:
        """Rows of the metadata of a split by file name; none where there is no such file."""
        folder = source if source.is_dir() else source.parent
        paths = [path for path in _csv_files(folder) if _split_of(_METADATA_FILE, path) == split]
        rows: dict[str, Row] = {}
        for path in paths:
            table = _read_metadata(path)
            broken = [row for row in table.rows if row.problem is not None]
            if broken:
                first = f"{broken[0].place}: {broken[0].problem}"
                self._warnings.append(f"{path.name}: rows that cannot be read: {len(broken)}, first: {first}")
            for row in table.rows:
                if row.problem is None:
                    rows |= {_text(row, "file_name").strip(): row, _text(row, "file_name"): row}
        return rows

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Name the release of the captions, and compare the durations of each split with the published ones."""
        warnings = list(self._warnings)
        durations: dict[str, Any] = {}
        for split, release in self._releases.items():
            if release["split"] not in (split, "unknown"):
                warnings.append(
                    f"{release['file']} is read as {split}, but its content is the official {release['split']} captions; "
                    "rename the table and its audio folder"
                )
            seconds = [clip.duration_s for clip in clips if clip.split == split and clip.duration_s is not None]
            found, warning = check_durations(split, seconds)
            durations[split] = found
            if warning is not None:
                warnings.append(warning)
        is_confirmed = all(release["release"] == "2.1" for release in self._releases.values())
        facts = {
            "captions": "Clotho 2.1" if is_confirmed else "Clotho, not confirmed as 2.1",
            "caption_files": self._releases,
            "durations_s": durations,
            "without_sound_id": dict(self._without_sound_id),
        }
        return CorpusDescription({split: OFFICIAL_CLIPS[split] for split in self._releases}, facts, warnings)


def _caption_tables(source: Path) -> dict[str, Path]:
    """Split -> its caption table, training data first."""
    paths = [source] if source.is_file() else _csv_files(source)
    tables: dict[str, Path] = {}
    for path in paths:
        split = _split_of(_CAPTION_FILE, path)
        if split is None:
            continue
        if split in tables:
            raise ManifestError(f"{tables[split]} and {path}: two caption tables of {split} found, expected one; remove one")
        tables[split] = path
    if not tables:
        raise ManifestError(
            f"{source}: no caption table of Clotho found, expected clotho_captions_development.csv, "
            "clotho_captions_validation.csv or clotho_captions_evaluation.csv; name the folder that holds them"
        )
    return {split: tables[split] for split in SPLIT_FOLDERS if split in tables}


def _csv_files(folder: Path) -> list[Path]:
    """Tables in a folder and in the folders in it, where the downloads of other tools put them."""
    return sorted(folder.glob("*.csv")) + sorted(folder.glob("[!.]*/*.csv"))


def _split_of(pattern: re.Pattern[str], path: Path) -> str | None:
    match = pattern.fullmatch(path.name)
    return None if match is None else SPLIT_OF.get(match[1].lower())


def _read_captions(path: Path) -> Table:
    table = read_table(path)
    if "file_name" not in table.columns or not _caption_columns(table):
        found = ", ".join(table.columns)
        raise ManifestError(f"{path}: columns {found} found, expected file_name, caption_1, ..., caption_5; name another file")
    return table


def _caption_columns(table: Table) -> list[str]:
    numbers = {name: int(match[1]) for name in table.columns if (match := _CAPTION_COLUMN.fullmatch(name))}
    return sorted(numbers, key=numbers.__getitem__)


def _read_metadata(path: Path) -> Table:
    """The metadata are ISO-8859-1, and one release separates the cells with semicolons."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "latin-1"
    header = content.partition(b"\n")[0]
    table = read_table(path, encoding=encoding, delimiter=";" if header.count(b";") > header.count(b",") else ",")
    if "file_name" not in table.columns:
        found = ", ".join(table.columns)
        raise ManifestError(f"{path}: columns {found} found, expected file_name among them; replace or remove the file")
    return table


def _described(row: Row | None) -> tuple[str | None, dict[str, Any]]:
    """Freesound id of a recording, None where nobody knows it, and what else the metadata say."""
    if row is None:
        return None, {}
    keywords = [keyword.strip() for keyword in _text(row, "keywords").split(";") if keyword.strip()]
    extra: dict[str, Any] = {"keywords": keywords} if keywords else {}
    kept = {name: _text(row, name).strip() for name in _METADATA_KEPT}
    extra |= {name: text for name, text in kept.items() if text not in ("", "NA")}
    sound_id = _text(row, "sound_id").strip()
    return (sound_id if sound_id.isdecimal() else None), extra


def _text(row: Row, column: str) -> str:
    return str(row.cells.get(column, ""))


def _stem(name: str) -> str:
    """A name without its audio suffix: ``KOOKABURRA..WAV.wav`` is ``KOOKABURRA..WAV``."""
    path = PurePosixPath(name.strip())
    return path.name.removesuffix(path.suffix) if path.suffix.lower() in AUDIO_SUFFIXES else path.name


def _is_of_other_split(audio: str, split: str) -> bool:
    folders = audio.split("/")[:-1]
    if any(folder in SPLIT_FOLDERS[split] for folder in folders):
        return False
    return any(folder.lower() in SPLIT_OF for folder in folders)
