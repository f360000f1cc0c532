"""CompA-order and CompA-attribute: does a model hear which sound came first, and who made it?

Origin: S. Ghosh et al., CompA: Addressing the Gap in Compositional Reasoning in Audio-Language Models, ICLR 2024, arXiv
2310.08753; audio from AudioSet.
Licence: see the release of the authors; the audio comes from YouTube.
Layout: a CSV file with ``pair_file,reversed_pair_file,pair_caption,reversed_pair_caption`` and, for order, ``triplet_file``
and ``triplet_caption`` (``-`` where there is no third), and the audio beside or below it. The attribute file has the columns
``pair_file.1`` and ``reversed_pair_file.1``, too: there these name the files, and the plain ones the videos.
Counts: order: 400 items, 100 of them with a third clip in which both sounds are heard at once (900 clips); attribute: 200
items (400 clips). One caption a clip; the captions of an item hold the same words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from clapkit.data.recipes._captioned import without_empty_captions
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root
from clapkit.data.recipes._table_cells import RowError, read_text
from clapkit.data.recipes._youtube import parse_name
from clapkit.data.tables import Row, Table, read_table
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

ITEMS = {"order": 400, "attribute": 200}
"""Task -> items of the complete benchmark."""

CLIPS = {"order": 900, "attribute": 400}
"""Task -> clips of the complete benchmark."""

# Role -> column of the file, column of the caption.
_ROLES = {
    "pair": ("pair_file", "pair_caption"),
    "reversed": ("reversed_pair_file", "reversed_pair_caption"),
    "simultaneous": ("triplet_file", "triplet_caption"),
}
_REQUIRED = tuple(column for role in ("pair", "reversed") for column in _ROLES[role])
_NOTHING = ("", "-")

_Task = Literal["auto", "order", "attribute"]


def build(task: _Task = "auto") -> Recipe:
    """CompA.

    Args:
        task: ``order`` or ``attribute``: only this one, and what a file is whose name does not say it; ``auto``: what the
            names of the files say, both if both are there.
    """
    return CompA(task=task)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a clip stands in the benchmark."""

    task: str
    item: int
    role: str

    @property
    def id(self) -> str:
        return f"compa/{self.task}/{self.item}/{self.role}"


class CompA:
    """Reads the lists and looks for the files; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, task: _Task) -> None:
        self.task = task
        self._num_clips: dict[tuple[str, int], int] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, item by item.

        A file that several items use is one clip for each of them, because its caption differs.

        Raises:
            ManifestError: if there is no list, or its name does not say the task.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        lists = self._find_lists(request.source)
        files = AudioFiles.scan(audio_root(request))
        for task, (path, table) in lists.items():
            for number, row in enumerate(table.rows, start=1):
                yield from self._read_row(row, path, task, number, files)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many clips there should be, and which items lack one."""
        tasks = sorted({task for task, _ in self._num_clips}, key=list(ITEMS).index)
        usable = Counter((clip.extra["compa"]["task"], clip.extra["compa"]["item"]) for clip in clips)
        broken = [f"{task} {item}" for (task, item), size in self._num_clips.items() if usable[task, item] < size]
        warnings = []
        if broken:
            warnings.append(f"Items that lack a clip or a caption: {len(broken)}, first: {broken[0]}; they cannot be scored.")
        facts = {
            "items": {task: sum(found == task for found, _ in self._num_clips) for task in tasks},
            "official_items": {task: ITEMS[task] for task in tasks},
        }
        return CorpusDescription(official={"test": sum(CLIPS[task] for task in tasks)}, facts=facts, warnings=warnings)

    def _find_lists(self, source: Path) -> dict[str, tuple[Path, Table]]:
        """Task -> its list."""
        paths = [source] if source.is_file() else sorted(source.glob("*.csv")) + sorted(source.glob("*/*.csv"))
        tables = {path: read_table(path) for path in paths}
        tables = {path: table for path, table in tables.items() if all(name in table.columns for name in _REQUIRED)}
        if not tables:
            raise ManifestError(
                f"{source}: is no CompA, no CSV file with {', '.join(_REQUIRED)} found, expected one; "
                "name the file or its folder"
            )
        found: dict[str, tuple[Path, Table]] = {}
        for path, table in tables.items():
            task = self._task_of(path)
            if self.task not in ("auto", task):
                continue
            if task in found:
                raise ManifestError(f"{path}: is a second list of {task} beside {found[task][0]}, expected one; name the file")
            found[task] = (path, table)
        if not found:
            raise ManifestError(f"{source}: no list of {self.task} found, expected one; name the file or leave out -O task")
        return {task: found[task] for task in ITEMS if task in found}

    def _task_of(self, path: Path) -> str:
        """The task of a list: what its name says, then what that of its folder says, then what the user said."""
        for name in (path.stem.lower(), path.resolve().parent.name.lower()):
            said = [task for task in ITEMS if task in name]
            if len(said) == 1:
                return said[0]
        if self.task == "auto":
            raise ManifestError(
                f"{path}: its name says neither order nor attribute; expected one; pass -O task=order or attribute"
            )
        return self.task

    def _read_row(self, row: Row, path: Path, task: str, number: int, files: AudioFiles) -> Iterator[Clip | Rejection]:
        roles = ["pair", "reversed"]
        if row.problem is None and _is_given(row.cells, "simultaneous"):
            roles.append("simultaneous")
        self._num_clips[task, number] = len(roles)
        if row.problem is not None:
            yield Rejection(f"{path.name} {row.place}", row.problem)
            return
        for role in roles:
            yield from _read_clip(row.cells, _Place(task, number, role), path, row.place, files)


def _is_given(cells: Mapping[str, object], role: str) -> bool:
    """Whether a row has a clip in this role: a file or a caption."""
    return any(str(cells.get(column) or "").strip() not in _NOTHING for column in _ROLES[role])


def _read_clip(
    cells: Mapping[str, object], place: _Place, path: Path, line: str, files: AudioFiles
) -> Iterator[Clip | Rejection]:
    """One clip, or why it cannot be used."""
    file_column, caption_column = _ROLES[place.role]
    try:
        # Where there is a second column, it names the file, and the first the video.
        given = [read_text(cells.get(column)).strip() for column in (f"{file_column}.1", file_column)]
        text = read_text(cells.get(caption_column)).strip()
    except RowError as error:
        yield Rejection(place.id, f"{path.name} {line}: {error}")
        return
    names = [name for name in given if name not in _NOTHING]
    if not names:
        yield Rejection(place.id, f"{path.name} {line}: no {file_column}, expected the name of a file; fill it in")
        return
    audio = files.find(names, folders=[path.parent.name, f"CompA_{place.task}_files", f"CompA_{place.task}"])
    if audio is None or _is_of_other_task(audio, place.task):
        yield files.missing(place.id, names, split="test")
        return
    clip = Clip(
        id=place.id,
        audio=audio,
        captions=(Caption("" if text in _NOTHING else text),),
        split="test",
        source=_source(given, audio),
        extra={"compa": {"task": place.task, "item": place.item, "role": place.role}},
    )
    yield from without_empty_captions(clip)


def _is_of_other_task(audio: str, task: str) -> bool:
    """Whether a file lies with the other task, whose files may have the same names."""
    folders = audio.lower().rpartition("/")[0]
    return task not in folders and any(other in folders for other in ITEMS)


def _source(given: Sequence[str], audio: str) -> str:
    """The video that a clip is from, where the list names both a file and a video; otherwise the file."""
    file, video = given
    name = parse_name(video) if file not in _NOTHING else None
    return f"compa/{PurePosixPath(audio).stem}" if name is None else f"youtube/{name.youtube_id}"
