"""The Song Describer dataset: two-minute pieces of music with one or more sentences by volunteers.

Origin: I. Manco et al., The Song Describer dataset: a corpus of audio captions for music-and-language evaluation, 2023; audio
of MTG-Jamendo. Licence: CC BY-SA 4.0, recordings under Creative Commons licences of their own.
Layout: ``song_describer.csv`` (``caption_id,track_id,caption,is_valid_subset,familiarity,artist_id,album_id,path,duration``,
one row per caption) and ``audio/{last two digits}/{track}.2min.mp3``; the ``path`` column lacks the ``.2min``.
Counts: 706 tracks, 1,106 captions; checked subset 546 tracks, 746 captions. The corpus is made for evaluation: every clip is
``test``; ``--split`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Literal

from clapkit.data.recipes._captioned import without_empty_captions
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, find_list, require_columns
from clapkit.data.tables import Row, read_table
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

OFFICIAL_CLIPS = {"all": 706, "valid": 546}
SPLIT = "test"

_Subset = Literal["all", "valid"]


def build(subset: _Subset = "all") -> Recipe:
    """The Song Describer dataset.

    Args:
        subset: ``valid`` leaves out the captions that nobody has checked.
    """
    return SongDescriber(subset=subset)


class SongDescriber:
    """Reads the table; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, subset: _Subset) -> None:
        self.subset = subset

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield a clip for every track, in the order of their first captions.

        Raises:
            ManifestError: if the table is not there or lacks a column.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        path = find_list(request.source, ["song_describer.csv"], corpus="Song Describer dataset")
        table = read_table(path)
        require_columns(path, table, ["track_id", "caption", "is_valid_subset", "path"])
        files = AudioFiles.scan(audio_root(request))
        tracks: dict[str, list[Row]] = {}
        for row in table.rows:
            problem = row.problem or _problem(row, tracks)
            if problem is not None:
                yield Rejection(f"{path.name} {row.place}", problem, split=SPLIT)
            else:
                tracks.setdefault(row.cells["track_id"].strip(), []).append(row)
        for track, rows in tracks.items():
            yield from self._track(track, rows, files)

    def _track(self, track: str, rows: Sequence[Row], files: AudioFiles) -> Iterator[Clip | Rejection]:
        clip_id = f"song_describer/{track}"
        is_chosen = [self.subset == "all" or _is_valid(row) for row in rows]
        if not any(is_chosen):
            yield Rejection(clip_id, "no caption of it is in the valid subset", "excluded", split=SPLIT)
            return
        path = rows[0].cells["path"].strip()
        names = [str(PurePosixPath(path).with_suffix(suffix)) for suffix in (".2min.mp3", ".mp3")] if path else []
        names += [f"{track}.2min.mp3", f"{track}.mp3"]
        audio = files.find(names)
        if audio is None:
            yield files.missing(clip_id, names, split=SPLIT)
            return
        for number, is_in in enumerate(is_chosen, start=1):
            if not is_in:
                yield Rejection(f"{clip_id} caption {number}", "not in the valid subset", "excluded", split=SPLIT)
        kept = [row for row, is_in in zip(rows, is_chosen, strict=True) if is_in]
        named = {"artist": rows[0].cells.get("artist_id", ""), "album": rows[0].cells.get("album_id", "")}
        clip = Clip(
            id=clip_id,
            audio=audio,
            captions=tuple(Caption(row.cells["caption"]) for row in kept),
            split=SPLIT,
            source=clip_id,
            extra={name: text.strip() for name, text in named.items() if text.strip()},
        )
        yield from without_empty_captions(clip)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Name the subset."""
        facts = {"captions": "Song Describer", "subset": self.subset}
        return CorpusDescription({SPLIT: OFFICIAL_CLIPS[self.subset]}, facts)


def _problem(row: Row, tracks: dict[str, list[Row]]) -> str | None:
    """Why a row cannot be used; None if it can."""
    track = row.cells["track_id"].strip()
    if not track:
        return "empty track_id, expected a number; fill it in or drop the row"
    if row.cells["is_valid_subset"].strip().lower() not in ("true", "false"):
        return f"is_valid_subset {row.cells['is_valid_subset']!r}, expected True or False; correct it"
    first = tracks.get(track, [row])[0]
    if first.cells["path"] != row.cells["path"]:
        return f"path {row.cells['path']!r}, but {first.cells['path']!r} on {first.place}, expected one for a track; correct it"
    return None


def _is_valid(row: Row) -> bool:
    return str(row.cells["is_valid_subset"]).strip().lower() == "true"
