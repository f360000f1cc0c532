"""ESC-50: 2,000 short recordings of fifty kinds of sound, in five folds.

Origin: K. J. Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015; recordings from Freesound.
Licence: CC BY-NC 3.0, the ESC-10 part CC BY; attributions for each clip in the LICENSE file of the corpus.
Layout: ``meta/esc50.csv`` with ``filename,fold,target,category,esc10,src_file,take`` and
``audio/{fold}-{clip id}-{take}-{target}.wav``; the clip id is the id of the sound on Freesound, and takes of one recording
lie in one fold.
Counts: 2,000 clips of 5 s, 44.1 kHz mono; 40 for each class, 400 in each fold. The corpus holds no captions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from clapkit.data.recipes._class_names import VERSION, Names, spell
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._folds import check_val_share, split_by_fold
from clapkit.data.recipes._lists import audio_root, find_list, repeated, require_columns, warn_of_torn_sources
from clapkit.data.recipes._table_cells import RowError, read_text
from clapkit.data.tables import Row, read_table
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

CLASSES = (
    *("dog", "rooster", "pig", "cow", "frog", "cat", "hen", "insects", "sheep", "crow"),
    *("rain", "sea_waves", "crackling_fire", "crickets", "chirping_birds"),
    *("water_drops", "wind", "pouring_water", "toilet_flush", "thunderstorm"),
    *("crying_baby", "sneezing", "clapping", "breathing", "coughing"),
    *("footsteps", "laughing", "brushing_teeth", "snoring", "drinking_sipping"),
    *("door_wood_knock", "mouse_click", "keyboard_typing", "door_wood_creaks", "can_opening"),
    *("washing_machine", "vacuum_cleaner", "clock_alarm", "clock_tick", "glass_breaking"),
    *("helicopter", "chainsaw", "siren", "car_horn", "engine", "train", "church_bells", "airplane", "fireworks", "hand_saw"),
)
"""Categories in the order of ``target``."""

WORDS = {
    "crackling_fire": "fire crackling",
    "chirping_birds": "birds chirping",
    "water_drops": "water dripping",
    "pouring_water": "water being poured",
    "toilet_flush": "toilet flushing",
    "crying_baby": "baby crying",
    "drinking_sipping": "drinking, sipping",
    "door_wood_knock": "knocking on a wooden door",
    "mouse_click": "computer mouse clicking",
    "keyboard_typing": "typing on a keyboard",
    "door_wood_creaks": "wooden door creaking",
    "can_opening": "opening a can",
    "clock_alarm": "alarm clock ringing",
    "clock_tick": "clock ticking",
    "church_bells": "church bells ringing",
}
"""Categories that do not read well with blanks for underscores -> words."""

# ESC-10 is the same choice of recordings, but its own release has other names and Ogg files.
_NUM_CLIPS = {"all": 2000, "esc10": 400}
_COLUMNS = ("filename", "fold", "target", "category", "esc10")
_FILE = re.compile(r"([1-9]\d*)-([^-]+)-([A-Z]+)-(\d+)")

_Subset = Literal["all", "esc10"]


def build(subset: _Subset = "all", test_fold: int | None = None, val_share: float = 0.5, names: Names = "words") -> Recipe:
    """ESC-50.

    Args:
        subset: ``all``, or ``esc10``: only the 400 clips of ten classes that are marked so.
        test_fold: fold that becomes ``test``; None is the last one.
        val_share: share of the fold before it (before the first comes the last) that becomes ``val``, class by class, whole
            recordings; the rest of that fold is trained on.
        names: how classes are spelled: ``words`` (``baby crying``), ``blanks`` (``crying baby``) or ``raw``
            (``crying_baby``).

    Raises:
        ConfigError: if the share is not between 0 and 1.
    """
    check_val_share(val_share)
    return Esc50(subset=subset, test_fold=test_fold, val_share=val_share, names=names)


@dataclass(frozen=True, slots=True)
class FileName:
    """What a file name of ESC-50 says."""

    fold: int
    clip_id: str
    take: str
    target: int


def parse_name(name: str) -> FileName | None:
    """Take a file name such as ``1-100032-A-0.wav`` apart; None if it is none of ESC-50."""
    match = _FILE.fullmatch(name.rpartition(".")[0] or name)
    return None if match is None else FileName(int(match[1]), match[2], match[3], int(match[4]))


class Esc50:
    """Reads the list and looks for the files; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, subset: _Subset, test_fold: int | None, val_share: float, names: Names) -> None:
        self.subset, self.test_fold, self.val_share, self.names = subset, test_fold, val_share, names
        self._official: dict[str, int] = {}
        self._warnings: list[str] = []
        self._num_listed = 0

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, in the order of the list.

        Clips without audio take part in the draw of ``val``, so that a partial copy has the splits of the whole one.

        Raises:
            ManifestError: if the list is not there, is no list of ESC-50, or lacks the fold.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        path = find_list(request.source, ("meta/esc50.csv", "esc50.csv"), corpus="ESC-50")
        items = list(self._read(path))
        listed = [item for item in items if isinstance(item, Clip)]
        clips = split_by_fold(
            listed, test_fold=self.test_fold, val_share=self.val_share, seed=request.seed, corpus=request.source
        )
        self._num_listed = len(clips)
        self._official = {name: sum(clip.split == name for clip in clips) for name in ("train", "val", "test")}
        self._warnings = warn_of_torn_sources(clips)
        files = AudioFiles.scan(audio_root(request))
        in_order = iter(clips)
        for item in items:
            yield _with_audio(next(in_order), files) if isinstance(item, Clip) else item

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many clips there should be, and how classes are spelled."""
        expected = _NUM_CLIPS[self.subset]
        warnings = list(self._warnings)
        if self._num_listed != expected:
            warnings.append(f"The list holds {self._num_listed} usable rows, expected {expected}: it is not the official one.")
        facts = {"class_names": VERSION, "names": self.names, "subset": self.subset, "official_clips": expected}
        return CorpusDescription(official=self._official, facts=facts, warnings=warnings)

    def _read(self, path: Path) -> Iterator[Clip | Rejection]:
        table = read_table(path)
        require_columns(path, table, _COLUMNS)
        first: dict[str, str] = {}
        for row in table.rows:
            try:
                found = self._read_row(row)
            except RowError as error:
                yield Rejection(f"{path.name} {row.place}", str(error))
                continue
            again = repeated(first, found.id, row.place)
            if again is not None:
                yield Rejection(found.id, again)
            elif self.subset == "esc10" and not found.extra["esc10"]:
                yield Rejection(found.id, "no clip of ESC-10; leave out -O subset=esc10 to have it", "excluded")
            else:
                yield found

    def _read_row(self, row: Row) -> Clip:
        if row.problem is not None:
            raise RowError(row.problem)
        cells = {key: read_text(value).strip() for key, value in row.cells.items() if key in (*_COLUMNS, "src_file", "take")}
        name = parse_name(cells["filename"])
        if name is None:
            raise RowError(f"filename {cells['filename']!r}, expected fold-clip_id-take-target such as 1-100032-A-0.wav")
        said = {"fold": name.fold, "target": name.target, "src_file": name.clip_id, "take": name.take}
        for key, value in said.items():
            if key in cells and cells[key] != str(value):
                raise RowError(f"{cells['filename']} has {key} {cells[key]!r}, but {value} in its name; correct the row")
        if name.target >= len(CLASSES) or CLASSES[name.target] != cells["category"]:
            expected = CLASSES[name.target] if name.target < len(CLASSES) else f"a target below {len(CLASSES)}"
            found = f"category {cells['category']!r} with target {name.target}"
            raise RowError(f"{cells['filename']} has {found}, expected {expected}; correct the row")
        if cells["esc10"] not in ("True", "False"):
            raise RowError(f"{cells['filename']} has esc10 {cells['esc10']!r}, expected True or False; correct the row")
        return Clip(
            id=f"esc50/{cells['filename'].removesuffix('.wav')}",
            audio=cells["filename"],
            labels=(spell(cells["category"], self.names, WORDS),),
            fold=name.fold,
            source=f"freesound/{name.clip_id}",
            extra={"class_id": name.target, "category": cells["category"], "esc10": cells["esc10"] == "True"},
        )


def _with_audio(clip: Clip, files: AudioFiles) -> Clip | Rejection:
    """A clip with the place of its file, or that it is missing."""
    audio = files.find([clip.audio], folders=["audio"])
    if audio is None:
        return files.missing(clip.id, [clip.audio], split=clip.split, source=clip.source)
    return replace(clip, audio=audio)
