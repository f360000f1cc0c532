"""VGGSound: ten-second clips of YouTube videos, each with one of 309 classes of sound whose source is seen.

Origin: H. Chen, W. Xie, A. Vedaldi, A. Zisserman, VGGSound: A Large-scale Audio-Visual Dataset, ICASSP 2020.
Licence: CC BY 4.0 for the lists; the videos are not part of them.
Layout: ``vggsound.csv`` without a header, ``id,start,label,split``; or ``train.csv`` and ``test.csv`` without a header,
``{id}_{start:06d}.mp4,label``. Labels with a comma are quoted. Audio goes by the name of the video, in any format.
Counts: 199,176 clips: 183,730 train, 15,446 test; many are gone from YouTube. A video may give several clips (the 15,446 of
test are from 14,851 videos), so that a file named by the id alone is taken only where the lists have one clip of the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clapkit.data.recipes import _class_names
from clapkit.data.recipes._class_names import class_name
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, find_lists
from clapkit.data.recipes._table_cells import RowError
from clapkit.data.recipes._youtube import candidate_names, is_youtube_id, parse_name, single_clip_ids
from clapkit.data.tables import Row, Table, read_table
from clapkit.errors import ManifestError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

_ALL_COLUMNS = ("id", "start", "label", "split")
_SPLIT_COLUMNS = ("file_name", "label")
_OFFICIAL = {"train": 183_730, "test": 15_446}
_NUM_CLASSES = 309


def build() -> Recipe:
    """VGGSound."""
    return VggSound()


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row that can be used."""

    youtube_id: str
    start_s: float
    label: str
    split: str


class VggSound:
    """Reads the lists."""

    needs_source = True
    makes_audio = False

    def __init__(self) -> None:
        self._splits: set[str] = set()

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, in the order of the lists.

        Raises:
            ManifestError: if there is no list, or the name of one does not say the split that its rows are silent about.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        source = request.source
        items = _read(_lists(source))
        entries = [item for item in items if isinstance(item, _Entry)]
        self._splits = {entry.split for entry in entries}
        singles = single_clip_ids((entry.youtube_id, entry.start_s) for entry in entries)
        files = AudioFiles.scan(audio_root(request))
        for item in items:
            yield item if isinstance(item, Rejection) else _clip(item, files, is_only_clip=item.youtube_id in singles)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Official counts of the listed splits, and how many of the classes are there."""
        num_classes = len({label for clip in clips for label in clip.labels})
        warnings = []
        if num_classes > _NUM_CLASSES:
            warnings.append(f"{num_classes} labels found, VGGSound has {_NUM_CLASSES}: look for misspelt ones")
        return CorpusDescription(
            official={split: number for split, number in _OFFICIAL.items() if split in self._splits},
            facts={"class_names": _class_names.VERSION, "num_classes": num_classes},
            warnings=warnings,
        )


def _lists(source: Path) -> list[Path]:
    if source.is_file():
        if source.suffix.lower() != ".csv":
            raise ManifestError(f"{source}: is no CSV file, expected vggsound.csv; name it, or the folder with it")
        return [source]
    found = find_lists(source, {"all": ["vggsound.csv"]})
    found = found or find_lists(source, {split: [f"{split}.csv", f"vggsound_{split}.csv"] for split in _OFFICIAL})
    if not found:
        raise ManifestError(
            f"{source}: no list of VGGSound found, expected vggsound.csv, or train.csv and test.csv, in it or in a folder "
            "right below; name the list, and set --audio-dir if the audio lies elsewhere"
        )
    return list(found.values())


def _read(paths: Sequence[Path]) -> list[_Entry | Rejection]:
    """Clips and unusable rows, in the order of the lists; a clip that is listed again is unusable there."""
    first: dict[tuple[str, float], str] = {}
    items: list[_Entry | Rejection] = []
    for path in paths:
        table, split = _table(path)
        for row in table.rows:
            place = f"{path.name} {row.place}"
            try:
                entry = _entry(row, split)
                known = first.setdefault((entry.youtube_id, entry.start_s), place)
                if known != place:
                    raise RowError(f"{entry.youtube_id} from {entry.start_s:g} s is listed on {known} already; drop one row")
            except RowError as error:
                if not _is_header(row):
                    items.append(Rejection(place, str(error), split=split))
            else:
                items.append(entry)
    return items


def _table(path: Path) -> tuple[Table, str | None]:
    """Rows of a list, and the split of all of them where they do not say it."""
    table = read_table(path, columns=_ALL_COLUMNS)
    if not all(row.problem for row in table.rows):
        return table, None
    split = next((split for split in _OFFICIAL if split in path.stem.lower()), None)
    if split is None:
        raise ManifestError(
            f"{path}: no row has the four cells id,start,label,split, and the file name says neither train nor test; "
            "name vggsound.csv, or a list such as test.csv"
        )
    return read_table(path, columns=_SPLIT_COLUMNS), split


def _is_header(row: Row) -> bool:
    """Whether the first line names the columns, as some copies have it."""
    texts = [row.cells.get(key, "") for key in ("start", "split")]
    return row.place == "line 1" and "start" in texts[0].lower() and "split" in texts[1].lower()


def _entry(row: Row, split: str | None) -> _Entry:
    if row.problem is not None:
        raise RowError(row.problem)
    if split is None:
        youtube_id, start, split = (row.cells[key].strip() for key in ("id", "start", "split"))
        if not is_youtube_id(youtube_id) or not start.isascii() or not start.isdecimal():
            raise RowError(f"id {youtube_id!r} from {start!r} s, expected 11 letters, digits, - or _, and whole seconds")
        start_s = float(start)
    else:
        name = parse_name(row.cells["file_name"])
        if name is None or name.start_s is None:
            raise RowError(f"file name {row.cells['file_name']!r}, expected id_start.mp4 such as -Tok_g_jgE0_000268.mp4")
        youtube_id, start_s = name.youtube_id, name.start_s
    if split not in _OFFICIAL:
        raise RowError(f"split {split!r}, expected train or test; correct it")
    label = class_name(row.cells["label"])
    if not label:
        raise RowError("empty label, expected one of the 309 classes; fill it")
    return _Entry(youtube_id, start_s, label, split)


def _clip(entry: _Entry, files: AudioFiles, *, is_only_clip: bool) -> Clip | Rejection:
    id, source = f"vggsound/{entry.youtube_id}_{entry.start_s:g}", f"youtube/{entry.youtube_id}"
    names = candidate_names(entry.youtube_id, entry.start_s, entry.start_s + 10, is_only_clip=is_only_clip)
    audio = files.find(names, folders=[entry.split])
    if audio is None:
        return files.missing(id, [names[2], names[0], names[-1]], split=entry.split, source=source)
    return Clip(
        id=id,
        audio=audio,
        labels=(entry.label,),
        split=entry.split,
        source=source,
        extra={"video_start_s": entry.start_s},
    )
