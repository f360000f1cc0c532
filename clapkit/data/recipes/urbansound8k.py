"""UrbanSound8K: 8,732 slices of ten kinds of city sound, in ten folds.

Origin: J. Salamon, C. Jacoby and J. P. Bello, A Dataset and Taxonomy for Urban Sound Research, ACM Multimedia 2014; recordings
from Freesound.
Licence: CC BY-NC 3.0, attributions in FREESOUNDCREDITS.txt of the corpus.
Layout: ``metadata/UrbanSound8K.csv`` with ``slice_file_name,fsID,start,end,salience,fold,classID,class`` and
``audio/fold{1..10}/{fsID}-{classID}-{occurrence}-{slice}.wav``. ``start`` and ``end`` are seconds in the recording that the
slice was cut from, not in the file. Slices of one recording lie in one fold.
Counts: 8,732 clips of at most 4 s, of mixed sample rates, bit depths and channels; folds of unequal size. The corpus holds no
captions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clapkit.data.recipes._class_names import VERSION, Names, spell
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._folds import check_val_share, split_by_fold
from clapkit.data.recipes._lists import audio_root, find_list, repeated, require_columns, warn_of_torn_sources
from clapkit.data.recipes._table_cells import RowError, read_fold, read_number, read_text
from clapkit.data.tables import Row, read_table
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

CLASSES = (
    *("air_conditioner", "car_horn", "children_playing", "dog_bark", "drilling"),
    *("engine_idling", "gun_shot", "jackhammer", "siren", "street_music"),
)
"""Classes in the order of ``classID``."""

WORDS = {"dog_bark": "dog barking", "gun_shot": "gunshot"}
"""Classes that do not read well with blanks for underscores -> words."""

FOLD_SIZES = {1: 873, 2: 888, 3: 925, 4: 990, 5: 936, 6: 823, 7: 838, 8: 806, 9: 816, 10: 837}
"""Fold -> clips in the complete corpus."""

SALIENCES = {"1": "foreground", "2": "background"}

_COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
_FILE = re.compile(r"(\d+)-(\d+)-(\d+)-(\d+)")
_FOLD_FOLDER = re.compile(r"fold(\d+)")


def build(test_fold: int | None = None, val_share: float = 0.5, names: Names = "words") -> Recipe:
    """UrbanSound8K.

    Args:
        test_fold: fold that becomes ``test``; None is the last one.
        val_share: share of the fold before it (before the first comes the last) that becomes ``val``, class by class, whole
            recordings; the rest of that fold is trained on.
        names: how classes are spelled: ``words`` (``dog barking``), ``blanks`` (``dog bark``) or ``raw`` (``dog_bark``).

    Raises:
        ConfigError: if the share is not between 0 and 1.
    """
    check_val_share(val_share)
    return UrbanSound8K(test_fold=test_fold, val_share=val_share, names=names)


@dataclass(frozen=True, slots=True)
class FileName:
    """What a file name of UrbanSound8K says."""

    freesound_id: str
    class_id: int
    occurrence: int
    slice: int


def parse_name(name: str) -> FileName | None:
    """Take a file name such as ``100032-3-0-0.wav`` apart; None if it is none of UrbanSound8K."""
    match = _FILE.fullmatch(name.rpartition(".")[0] or name)
    return None if match is None else FileName(match[1], int(match[2]), int(match[3]), int(match[4]))


class UrbanSound8K:
    """Reads the list and looks for the files; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, test_fold: int | None, val_share: float, names: Names) -> None:
        self.test_fold, self.val_share, self.names = test_fold, val_share, names
        self._official: dict[str, int] = {}
        self._warnings: list[str] = []
        self._fold_sizes: dict[int, int] = {}

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, in the order of the list.

        Clips without audio take part in the draw of ``val``, so that a partial copy has the splits of the whole one.

        Raises:
            ManifestError: if the list is not there, is no list of UrbanSound8K, or lacks the fold.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        path = find_list(request.source, ("metadata/UrbanSound8K.csv", "UrbanSound8K.csv"), corpus="UrbanSound8K")
        items = list(self._read(path))
        listed = [item for item in items if isinstance(item, Clip)]
        clips = split_by_fold(
            listed, test_fold=self.test_fold, val_share=self.val_share, seed=request.seed, corpus=request.source
        )
        self._official = {name: sum(clip.split == name for clip in clips) for name in ("train", "val", "test")}
        self._fold_sizes = dict(sorted(Counter(clip.fold for clip in clips if clip.fold is not None).items()))
        self._warnings = warn_of_torn_sources(clips)
        files = AudioFiles.scan(audio_root(request))
        in_order = iter(clips)
        for item in items:
            yield _with_audio(next(in_order), files) if isinstance(item, Clip) else item

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many clips there should be in each fold, and how classes are spelled."""
        warnings = list(self._warnings)
        if self._fold_sizes != FOLD_SIZES:
            num_listed, num_official = sum(self._fold_sizes.values()), sum(FOLD_SIZES.values())
            warnings.append(
                f"The list holds {num_listed} usable rows, expected {num_official} in ten folds: it is not the official one."
            )
        facts = {
            "class_names": VERSION,
            "names": self.names,
            "official_clips": sum(FOLD_SIZES.values()),
            "official_clips_of_folds": {str(fold): size for fold, size in FOLD_SIZES.items()},
        }
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
            yield found if again is None else Rejection(found.id, again)

    def _read_row(self, row: Row) -> Clip:
        if row.problem is not None:
            raise RowError(row.problem)
        cells = {key: read_text(row.cells[key]).strip() for key in _COLUMNS}
        file_name = cells["slice_file_name"]
        name = parse_name(file_name)
        if name is None:
            raise RowError(f"slice_file_name {file_name!r}, expected fsID-classID-occurrence-slice such as 100032-3-0-0.wav")
        for key, value in (("fsID", name.freesound_id), ("classID", str(name.class_id))):
            if cells[key] != value:
                raise RowError(f"{file_name} has {key} {cells[key]!r}, but {value} in its name; correct the row")
        if name.class_id >= len(CLASSES) or CLASSES[name.class_id] != cells["class"]:
            expected = CLASSES[name.class_id] if name.class_id < len(CLASSES) else f"a classID below {len(CLASSES)}"
            found = f"class {cells['class']!r} with classID {name.class_id}"
            raise RowError(f"{file_name} has {found}, expected {expected}; correct the row")
        fold = read_fold(cells["fold"])
        if fold is None:
            raise RowError(f"{file_name} has no fold, expected a whole number; fill it in")
        if cells["salience"] not in SALIENCES:
            raise RowError(f"{file_name} has salience {cells['salience']!r}, expected 1 or 2; correct the row")
        return Clip(
            id=f"urbansound8k/{file_name.removesuffix('.wav')}",
            audio=file_name,
            labels=(spell(cells["class"], self.names, WORDS),),
            fold=fold,
            source=f"freesound/{name.freesound_id}",
            # Seconds of the recording on Freesound: the file holds the slice alone, so this is no span of it.
            extra={
                "class_id": name.class_id,
                "class": cells["class"],
                "salience": SALIENCES[cells["salience"]],
                "recording_start_s": read_number("start", cells["start"]),
                "recording_end_s": read_number("end", cells["end"]),
            },
        )


def _with_audio(clip: Clip, files: AudioFiles) -> Clip | Rejection:
    """A clip with the place of its file, or why there is none."""
    folder = f"fold{clip.fold}"
    audio = files.find([clip.audio], folders=[folder])
    if audio is None:
        return files.missing(clip.id, [f"{folder}/{clip.audio}"], split=clip.split, source=clip.source)
    elsewhere = [part for part in audio.split("/")[:-1] if _FOLD_FOLDER.fullmatch(part) and part != folder]
    if elsewhere:
        return Rejection(
            clip.id, f"lies in {elsewhere[0]}, but the list says fold {clip.fold}; move the file or correct the row"
        )
    return replace(clip, audio=audio)
