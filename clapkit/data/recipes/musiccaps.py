"""MusicCaps: ten-second clips of music from AudioSet, each described by a musician.

Origin: A. Agostinelli et al., MusicLM: Generating Music From Text, arXiv 2301.11325; audio from YouTube.
Licence: CC BY-SA 4.0 for the table; the audio is not part of it.
Layout: one table, ``musiccaps-public.csv``, with the columns ``ytid,start_s,end_s,audioset_positive_labels,aspect_list,caption,
author_id,is_balanced_subset,is_audioset_eval``; ``aspect_list`` is a list as Python prints it. ``start_s`` and ``end_s`` are
places in the video, not in the file.
Counts: 5,521 clips with one caption each: 2,858 from the evaluation part of AudioSet, 2,663 from its training part.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, find_lists, require_columns
from clapkit.data.recipes._table_cells import RowError, read_number
from clapkit.data.recipes._youtube import candidate_names, is_youtube_id, single_clip_ids
from clapkit.data.tables import Row, read_table
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

_COLUMNS = ("ytid", "start_s", "end_s", "aspect_list", "caption", "is_audioset_eval")
_NAMES = ("musiccaps-public.csv", "musiccaps.csv")
_OFFICIAL = {"train": 2663, "test": 2858}
_KEPT = ("audioset_positive_labels", "author_id", "is_balanced_subset", "is_audioset_eval")
_SPLITS = {"true": "test", "false": "train"}  # by is_audioset_eval


def build(language: str = "en") -> Recipe:
    """MusicCaps.

    Args:
        language: of the captions, for translated tables with the same columns.
    """
    return MusicCaps(language=language)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row that can be used."""

    youtube_id: str
    start_s: float
    end_s: float
    split: str
    row: Row


class MusicCaps:
    """Reads the table; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, language: str) -> None:
        self.language = language

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, in the order of the table.

        Raises:
            ManifestError: if there is no table, or a column is missing.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        source = request.source
        items = _read(_table_path(source))
        singles = single_clip_ids((item.youtube_id, item.start_s) for item in items if isinstance(item, _Entry))
        files = AudioFiles.scan(audio_root(request))
        for item in items:
            if isinstance(item, Rejection):
                yield item
            else:
                yield from self._clip(item, files, is_only_clip=item.youtube_id in singles)

    def _clip(self, entry: _Entry, files: AudioFiles, *, is_only_clip: bool) -> Iterator[Clip | Rejection]:
        """One clip, with what is wrong with its aspects; or why there is none."""
        id = f"musiccaps/{entry.youtube_id}_{entry.start_s:g}"
        names = candidate_names(entry.youtube_id, entry.start_s, entry.end_s, is_only_clip=is_only_clip)
        source = f"youtube/{entry.youtube_id}"
        bracketed = f"[{entry.youtube_id}]-[{entry.start_s:g}-{entry.end_s:g}]"
        audio = files.find([bracketed, *names])
        if audio is None:
            yield files.missing(id, [bracketed, names[0], names[-1]], split=entry.split, source=source)
            return
        text = entry.row.cells["caption"].strip()
        if not text:
            yield Rejection(id, "empty caption, expected a sentence; fill it", check="empty_caption", split=entry.split)
            return
        extra: dict[str, Any] = {"video_start_s": entry.start_s, "video_end_s": entry.end_s}
        aspects = _aspects(entry.row.cells["aspect_list"])
        if aspects is None:
            found = entry.row.cells["aspect_list"]
            yield Rejection(f"{id} aspect_list", f"{found!r}, expected a list of texts as Python prints it", split=entry.split)
        else:
            extra["aspects"] = aspects
        extra |= {key: value for key in _KEPT if (value := entry.row.cells.get(key))}
        yield Clip(
            id=id,
            audio=audio,
            captions=(Caption(text, self.language),),
            split=entry.split,
            source=source,
            extra=extra,
        )

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Official counts, and where the splits are from."""
        return CorpusDescription(official=_OFFICIAL, facts={"captions": "MusicCaps", "splits": "is_audioset_eval"})


def _table_path(source: Path) -> Path:
    if source.is_file():
        if source.suffix.lower() not in (".csv", ".tsv"):
            raise ManifestError(f"{source}: is no CSV file, expected {_NAMES[0]}; name it, or the folder with it")
        return source
    found = find_lists(source, {"clips": _NAMES})
    if not found:
        raise ManifestError(
            f"{source}: no table of MusicCaps found, expected {' or '.join(_NAMES)} in it or in a folder right below; "
            "name the table, and set --audio-dir if the audio lies elsewhere"
        )
    return found["clips"]


def _read(path: Path) -> list[_Entry | Rejection]:
    table = read_table(path)
    require_columns(path, table, _COLUMNS)
    first: dict[tuple[str, float], Row] = {}
    items: list[_Entry | Rejection] = []
    for row in table.rows:
        try:
            entry = _entry(row)
            known = first.setdefault((entry.youtube_id, entry.start_s), row)
            if known is not row:
                raise RowError(f"{entry.youtube_id} from {entry.start_s:g} s is listed on {known.place} already; drop one row")
        except RowError as error:
            items.append(Rejection(f"{path.name} {row.place}", str(error)))
        else:
            items.append(entry)
    return items


def _entry(row: Row) -> _Entry:
    if row.problem is not None:
        raise RowError(row.problem)
    youtube_id = row.cells["ytid"].strip()
    if not is_youtube_id(youtube_id):
        raise RowError(f"ytid {youtube_id!r}, expected 11 letters, digits, - or _; restore it from the original table")
    start_s, end_s = (read_number(key, row.cells[key]) for key in ("start_s", "end_s"))
    if start_s is None or end_s is None or not 0 <= start_s < end_s:
        raise RowError(f"span from {start_s} s to {end_s} s, expected 0 <= start_s < end_s; correct it")
    split = _SPLITS.get(row.cells["is_audioset_eval"].strip().lower())
    if split is None:
        raise RowError(f"is_audioset_eval {row.cells['is_audioset_eval']!r}, expected True or False; correct it")
    return _Entry(youtube_id, start_s, end_s, split, row)


def _aspects(printed: str) -> list[str] | None:
    """The texts of a printed Python list; None if it is no such list."""
    try:
        aspects = ast.literal_eval(printed.strip())
    except (SyntaxError, ValueError):
        return None
    is_list = isinstance(aspects, list) and all(isinstance(aspect, str) for aspect in aspects)
    return aspects if is_list else None
