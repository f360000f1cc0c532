"""A table of audio files and captions: CSV, TSV, JSON lines, JSON in the manner of WavCaps and ML-CLAP, or Parquet.

Origin and licence: the user's. Layout: a header that names the columns (below) and one row per caption or per clip; audio
paths are relative to ``--audio-dir`` or to the folder of the table, or absolute. Counts: one clip for every file (and
span), with the captions of all its rows.

Columns found by themselves, in any case of letters: audio ``audio path filepath file_path file_name filename wav file``;
captions ``caption captions caption_1 caption_2 ...``, without those ``text``, without that ``title``; ``label labels``
(several separated by semicolons, because names such as "Speech, male" hold commas); ``split fold lang start_s end_s id``.
In JSON of WavCaps the ``audio`` field is a path of its authors: ``wav`` and ``id`` are tried first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.recipes._table_cells import (
    RowError,
    locate,
    read_captions,
    read_fold,
    read_labels,
    read_number,
    read_text,
    wavcaps_names,
)
from clapkit.data.splits import Shares, read_shares
from clapkit.data.tables import Row, Table, read_table
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, Recipe, RecipeRequest, Rejection

AUDIO_COLUMNS = ("audio", "path", "filepath", "file_path", "file_name", "filename", "wav", "file")
LABEL_COLUMNS = ("label", "labels")

# Best first; without columns of the first kind those of the next are captions.
_CAPTIONS = (re.compile(r"captions?|caption_\d+"), re.compile("text"), re.compile("title"))


def build(
    audio: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    split: str | None = None,
    fold: str | None = None,
    lang: str | None = None,
    start_s: str | None = None,
    end_s: str | None = None,
    id: str | None = None,
    source: str | None = None,
    language: str = "en",
    encoding: str = "utf-8",
    delimiter: str | None = None,
    val_share: float | None = None,
    test_share: float | None = None,
) -> Recipe:
    """A table of audio files and captions.

    Args:
        audio: column with the path of the file.
        caption: column, or several separated by commas, with captions.
        label: column with class names, separated by semicolons.
        split: column with ``train``, ``val``, ``test`` or another name.
        fold: column with a whole number.
        lang: column with the language of the captions.
        start_s: column with the start of a span, seconds.
        end_s: column with the end of a span, seconds.
        id: column with the id of the clip. Default: ``id``, or the path without its suffix.
        source: column with the recording that a clip was cut from; clips with one source share a split.
        language: of captions for which no column says it.
        encoding: of the file.
        delimiter: of a CSV or TSV file. Default: comma or tab.
        val_share: share of the clips for ``val``, where no column says it. Default: 0.1.
        test_share: share of the clips for ``test``, where no column says it. Default: 0.1.

    Raises:
        ConfigError: if the shares leave nothing to train.
    """
    given = {"audio": audio, "label": label, "split": split, "fold": fold, "lang": lang, "id": id, "source": source}
    given |= {"start_s": start_s, "end_s": end_s}
    return TableRecipe(
        given={key: name for key, name in given.items() if name is not None},
        captions=() if caption is None else tuple(name.strip() for name in caption.split(",")),
        language=language,
        encoding=encoding,
        delimiter=delimiter,
        shares=read_shares(val_share, test_share),
    )


@dataclass
class _Entry:
    """A clip that is being put together from its rows."""

    row: Row
    id: str
    values: dict[str, Any]
    captions: dict[Caption, None] = field(default_factory=dict)
    labels: dict[str, None] = field(default_factory=dict)


_Key = tuple[str, float | None, float | None]


@dataclass
class TableRecipe:
    """Reads the table.

    Attributes:
        given: what a column holds -> its name, as chosen by the user.
        captions: caption columns, as chosen by the user.
        language: of captions for which no column says it.
        encoding: of the file.
        delimiter: of a CSV or TSV file.
        shares: of ``val`` and ``test``.
    """

    given: Mapping[str, str]
    captions: tuple[str, ...]
    language: str
    encoding: str
    delimiter: str | None
    shares: Shares
    needs_source: bool = True
    makes_audio: bool = False

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, in the order of their first rows.

        Raises:
            ManifestError: if the table cannot be read, a column is missing, or rows contradict each other.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        path = request.source
        table = read_table(path, encoding=self.encoding, delimiter=self.delimiter)
        columns = self._columns(path, table)
        caption_columns = self._caption_columns(path, table, is_chosen=columns.values())
        if not caption_columns:
            request.reporter.say(f"{path}: no caption column, so the clips get no captions")
        folder = request.audio_dir or path.parent
        entries: dict[_Key, _Entry] = {}
        items: list[_Key | Rejection] = []
        for row in table.rows:
            found = self._read(row, columns, caption_columns, folder, is_wavcaps=table.is_wavcaps)
            if isinstance(found, str):
                items.append(Rejection(f"{path.name} {row.place}", found))
                continue
            key = (found.values["audio"], found.values["start_s"], found.values["end_s"])
            if key in entries:
                _merge(path, entries[key], found)
            else:
                entries[key] = found
                items.append(key)
        _name(path, list(entries.values()))
        for item in items:
            yield item if isinstance(item, Rejection) else _to_clip(entries[item])

    def _columns(self, path: Path, table: Table) -> dict[str, str]:
        """What a column holds -> its name, for the columns that exist."""
        by_lower = {name.lower(): name for name in reversed(table.columns)}
        known = {key: (key,) for key in ("split", "fold", "lang", "start_s", "end_s", "id")}
        found = {}
        for key, names in (known | {"audio": AUDIO_COLUMNS, "label": LABEL_COLUMNS}).items():
            name = next((by_lower[name] for name in names if name in by_lower), None)
            if name is not None:
                found[key] = name
        for key, name in self.given.items():
            found[key] = _existing(path, table, key, name)
        if "audio" not in found and not (table.is_wavcaps and "id" in found):
            raise ManifestError(
                f"{path}: no audio column, columns found: {', '.join(table.columns)}; expected one of "
                f"{', '.join(AUDIO_COLUMNS)}; name it with -O audio=COLUMN"
            )
        return found

    def _caption_columns(self, path: Path, table: Table, is_chosen: Iterable[str]) -> list[str]:
        if self.captions:
            return [_existing(path, table, "caption", name) for name in self.captions]
        chosen = set(is_chosen)
        return caption_columns([name for name in table.columns if name not in chosen])

    def _read(
        self, row: Row, columns: Mapping[str, str], caption_columns: list[str], folder: Path, *, is_wavcaps: bool
    ) -> _Entry | str:
        """One row, or why it cannot be used."""
        if row.problem is not None:
            return row.problem
        cells = {key: row.cells.get(name) for key, name in columns.items()}
        try:
            audio = locate(wavcaps_names(row, cells) if is_wavcaps else [read_text(cells.get("audio"))], folder)
            values: dict[str, Any] = {
                "audio": audio,
                "start_s": read_number("start_s", cells.get("start_s")),
                "end_s": read_number("end_s", cells.get("end_s")),
                "fold": read_fold(cells.get("fold")),
                "split": read_text(cells.get("split")) or None,
                "source": read_text(cells.get("source")) or None,
            }
            if not 0 <= (values["start_s"] or 0.0) < (math.inf if values["end_s"] is None else values["end_s"]):
                raise RowError(f"span from {values['start_s']} s to {values['end_s']} s, expected 0 <= start_s < end_s")
            lang = read_text(cells.get("lang")) or self.language
            captions = [caption for name in caption_columns for caption in read_captions(row.cells.get(name), lang)]
            if caption_columns and not captions:
                raise RowError(f"empty caption in {', '.join(caption_columns)}, expected a sentence; fill it or drop the row")
            entry = _Entry(row, read_text(cells.get("id")), values)
            entry.captions = dict.fromkeys(captions)
            entry.labels = dict.fromkeys(read_labels(cells.get("label")))
        except RowError as error:
            return str(error)
        return entry


def caption_columns(names: Iterable[str]) -> list[str]:
    """The columns that hold captions, of those that hold nothing else.

    Args:
        names: of the columns that are left.
    """
    left = list(names)
    for pattern in _CAPTIONS:
        matching = [name for name in left if pattern.fullmatch(name.lower())]
        if matching:
            return matching
    return []


def _existing(path: Path, table: Table, key: str, name: str) -> str:
    if name not in table.columns:
        found = ", ".join(table.columns)
        raise ManifestError(f"{path}: no column {name!r}, columns found: {found}; correct -O {key}={name}")
    return name


def _merge(path: Path, entry: _Entry, other: _Entry) -> None:
    """Add the captions and labels of another row of the same clip."""
    for key in ("split", "fold", "source"):
        if entry.values[key] != other.values[key]:
            raise ManifestError(
                f"{path} {other.row.place}: {entry.values['audio']} has {key} {other.values[key]}, but "
                f"{entry.values[key]} on {entry.row.place}; expected one {key} for a clip; correct one of the rows"
            )
    entry.captions |= other.captions
    entry.labels |= other.labels


def _name(path: Path, entries: list[_Entry]) -> None:
    """Make sure that ids are unique, and give one to clips without."""
    by_id: dict[str, _Entry] = {}
    for entry in entries:
        if entry.id:
            first = by_id.setdefault(entry.id, entry)
            if first is not entry:
                raise ManifestError(
                    f"{path} {entry.row.place}: id {entry.id!r} is used for {entry.values['audio']}, but on "
                    f"{first.row.place} for {first.values['audio']}; expected unique ids; correct one, "
                    "or name another column with -O id=COLUMN"
                )
    unnamed = [entry for entry in entries if not entry.id]
    counts = Counter(_stem_id(entry) for entry in unnamed)
    for entry in unnamed:
        stem = _stem_id(entry)
        # dog.wav beside dog.flac: then the suffix is part of the id.
        is_free = counts[stem] == 1 and stem not in by_id
        entry.id = stem if is_free else entry.values["audio"] + _span_id(entry)


def _stem_id(entry: _Entry) -> str:
    audio = PurePosixPath(entry.values["audio"])
    stem = audio.with_suffix("") if audio.suffix.lower() in AUDIO_SUFFIXES else audio
    return str(stem) + _span_id(entry)


def _span_id(entry: _Entry) -> str:
    start_s, end_s = entry.values["start_s"], entry.values["end_s"]
    return "" if start_s is None and end_s is None else f"@{start_s or 0:g}-{'' if end_s is None else f'{end_s:g}'}"


def _to_clip(entry: _Entry) -> Clip:
    values = dict(entry.values)
    if values["source"] is None and (values["start_s"] is not None or values["end_s"] is not None):
        values["source"] = values["audio"]  # spans of one recording share a split
    return Clip(id=entry.id, captions=tuple(entry.captions), labels=tuple(entry.labels), **values)
