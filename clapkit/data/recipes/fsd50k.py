"""FSD50K: 51,197 recordings of 200 kinds of sound from the AudioSet ontology, several labels a clip.

Origin: E. Fonseca, X. Favory, J. Pons, F. Font and X. Serra, FSD50K: an Open Dataset of Human-Labeled Sound Events, IEEE/ACM
TASLP 2022, arXiv 2010.00475; recordings from Freesound.
Licence: CC BY for the corpus; each clip has its own Creative Commons licence, in the clip information (kept in ``extra``).
Layout: ``FSD50K.ground_truth/{dev,eval}.csv`` with ``fname,labels,mids`` (and ``split`` in dev), ``vocabulary.csv`` beside
them without a header (index, label, mid), ``FSD50K.dev_audio/{fname}.wav`` and ``FSD50K.eval_audio/{fname}.wav``, and, if
wanted, ``FSD50K.metadata/{dev,eval}_clips_info_FSD50K.json``. ``fname`` is the id of the sound on Freesound.
Counts: 36,796 clips in train, 4,170 in val (both of dev), 10,231 in test (eval), 0.3 to 30 s, 44.1 kHz mono.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from clapkit.data.recipes._class_names import VERSION, Names, spell
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, read_json_object, repeated, require_columns
from clapkit.data.recipes._table_cells import RowError, read_text
from clapkit.data.tables import Row, read_table
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

OFFICIAL = {"train": 36796, "val": 4170, "test": 10231}

WORDS = {
    "Accelerating_and_revving_and_vroom": "Accelerating, revving, vroom",
    "Bird_vocalization_and_bird_call_and_bird_song": "Bird vocalization, bird call, bird song",
    "Boat_and_Water_vehicle": "Boat, Water vehicle",
    "Burping_and_eructation": "Burping, eructation",
    "Chewing_and_mastication": "Chewing, mastication",
    "Chicken_and_rooster": "Chicken, rooster",
    "Child_speech_and_kid_speaking": "Child speech, kid speaking",
    "Chink_and_clink": "Chink, clink",
    "Chirp_and_tweet": "Chirp, tweet",
    "Chuckle_and_chortle": "Chuckle, chortle",
    "Crumpling_and_crinkling": "Crumpling, crinkling",
    "Crying_and_sobbing": "Crying, sobbing",
    "Cutlery_and_silverware": "Cutlery, silverware",
    "Dishes_and_pots_and_pans": "Dishes, pots, and pans",
    "Domestic_animals_and_pets": "Domestic animals, pets",
    "Domestic_sounds_and_home_sounds": "Domestic sounds, home sounds",
    "Female_speech_and_woman_speaking": "Female speech, woman speaking",
    "Fixed-wing_aircraft_and_airplane": "Fixed-wing aircraft, airplane",
    "Gull_and_seagull": "Gull, seagull",
    "Gunshot_and_gunfire": "Gunshot, gunfire",
    "Livestock_and_farm_animals_and_working_animals": "Livestock, farm animals, working animals",
    "Male_speech_and_man_speaking": "Male speech, man speaking",
    "Marimba_and_xylophone": "Marimba, xylophone",
    "Packing_tape_and_duct_tape": "Packing tape, duct tape",
    "Race_car_and_auto_racing": "Race car, auto racing",
    "Ratchet_and_pawl": "Ratchet, pawl",
    "Splash_and_splatter": "Splash, splatter",
    "Subway_and_metro_and_underground": "Subway, metro, underground",
    "Thump_and_thud": "Thump, thud",
    "Traffic_noise_and_roadway_noise": "Traffic noise, roadway noise",
    "Trickle_and_dribble": "Trickle, dribble",
    "Vehicle_horn_and_car_horn_and_honking": "Vehicle horn, car horn, honking",
    "Walk_and_footsteps": "Walk, footsteps",
    "Water_tap_and_faucet": "Water tap, faucet",
    "Waves_and_surf": "Waves, surf",
    "Whoosh_and_swoosh_and_swish": "Whoosh, swoosh, swish",
    "Wind_instrument_and_woodwind_instrument": "Wind instrument, woodwind instrument",
}
"""Labels whose ``_and_`` stands for a comma, as AudioSet spells them; the others follow the rule."""

_LIST_FOLDERS = ("FSD50K.ground_truth", "ground_truth", "labels", ".")
_INFO_FOLDERS = ("FSD50K.metadata", "metadata", ".")
_DEV_SPLITS = {"train": "train", "val": "val"}
_INFO_KEYS = ("title", "description", "tags", "license", "uploader")

_Captions = Literal["none", "title", "description"]


def build(captions: _Captions = "none", names: Names = "words") -> Recipe:
    """FSD50K.

    Args:
        captions: what becomes the caption: ``none``, or the ``title`` or ``description`` that the uploader wrote, from the
            clip information. These were not written as captions: titles are often file names.
        names: how labels are spelled: ``words`` (``Gunshot, gunfire``), ``blanks`` (``Gunshot and gunfire``) or ``raw``
            (``Gunshot_and_gunfire``).
    """
    return Fsd50k(captions=captions, names=names)


class Fsd50k:
    """Reads both lists and looks for the files; see ``build`` for the arguments."""

    needs_source = True
    makes_audio = False

    def __init__(self, *, captions: _Captions, names: Names) -> None:
        self.captions, self.names = captions, names
        self._vocabulary: dict[str, str] | None = None
        self._lists: list[str] = []

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips, dev before eval, in the order of the lists.

        Raises:
            ManifestError: if the folder is no FSD50K, or captions are wanted and there is no clip information.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        lists = {part: path for part in ("dev", "eval") if (path := _find(request.source, _LIST_FOLDERS, f"{part}.csv"))}
        if not lists:
            raise ManifestError(
                f"{request.source}: is no FSD50K, no FSD50K.ground_truth/dev.csv or eval.csv found, expected them below the "
                "folder; name the folder that holds FSD50K.ground_truth"
            )
        self._lists = sorted(lists)
        vocabulary = _find(request.source, _LIST_FOLDERS, "vocabulary.csv")
        self._vocabulary = None if vocabulary is None else _read_vocabulary(vocabulary)
        files = AudioFiles.scan(audio_root(request))
        first: dict[str, str] = {}
        for part, path in lists.items():
            info = self._read_info(request.source, part)
            table = read_table(path)
            require_columns(path, table, ("fname", "labels", "mids") + (("split",) if part == "dev" else ()))
            for row in table.rows:
                yield from self._read_row(row, part, path, files, info, first)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many clips there should be, how labels are spelled, and whether they were checked."""
        warnings = [
            f"{part}.csv is not there, so its clips are neither in the manifest nor among the missing ones."
            for part in ("dev", "eval")
            if part not in self._lists
        ]
        if self._vocabulary is None:
            warnings.append("vocabulary.csv is not there, so labels were not checked against it.")
        facts = {
            "class_names": VERSION,
            "names": self.names,
            "captions": self.captions,
            "classes_in_vocabulary": None if self._vocabulary is None else len(self._vocabulary),
        }
        return CorpusDescription(official=OFFICIAL, facts=facts, warnings=warnings)

    def _read_info(self, source: Path, part: str) -> Mapping[str, Any]:
        """Clip information of one part: fname -> what the uploader wrote; nothing if the file is not there."""
        path = _find(source, _INFO_FOLDERS, f"{part}_clips_info_FSD50K.json")
        if path is None:
            if self.captions != "none":
                raise ManifestError(
                    f"{source}: no FSD50K.metadata/{part}_clips_info_FSD50K.json found, expected it for "
                    f"captions={self.captions}; get FSD50K.metadata, or leave out -O captions"
                )
            return {}
        return read_json_object(path)

    def _read_row(
        self, row: Row, part: str, path: Path, files: AudioFiles, info: Mapping[str, Any], first: dict[str, str]
    ) -> Iterator[Clip | Rejection]:
        """One clip, and that its caption is empty if it is."""
        place = f"{path.name} {row.place}"
        try:
            clip = self._to_clip(row, part, info)
        except RowError as error:
            yield Rejection(place, str(error))
            return
        again = repeated(first, clip.id, place)
        if again is not None:
            yield Rejection(clip.id, again)
            return
        names = [f"{clip.id.rpartition('/')[2]}.wav"]
        audio = files.find(names, folders=[f"FSD50K.{part}_audio", f"{part}_audio", part])
        if audio is None:
            yield files.missing(clip.id, names, split=clip.split, source=clip.source)
            return
        if self.captions != "none" and not clip.captions:
            reason = f"no {self.captions} in the clip information, expected a sentence; the clip stays without it"
            yield Rejection(f"{clip.id} caption 1", reason, check="empty_caption")
        yield replace(clip, audio=audio)

    def _to_clip(self, row: Row, part: str, info: Mapping[str, Any]) -> Clip:
        if row.problem is not None:
            raise RowError(row.problem)
        fname = read_text(row.cells["fname"]).strip()
        if not fname.isdecimal():
            raise RowError(f"fname {fname!r}, expected the number of a sound on Freesound; correct the row")
        labels = self._read_labels(row)
        split = "test" if part == "eval" else _DEV_SPLITS.get(read_text(row.cells["split"]).strip())
        if split is None:
            raise RowError(f"fname {fname} has split {row.cells['split']!r}, expected train or val; correct the row")
        said = info.get(fname)
        said = said if isinstance(said, dict) else {}
        text = read_text(said.get(self.captions)).strip() if self.captions != "none" else ""
        return Clip(
            id=f"fsd50k/{fname}",
            audio="",
            captions=(Caption(text),) if text else (),
            labels=tuple(spell(label, self.names, WORDS) for label in labels),
            split=split,
            source=f"freesound/{fname}",
            extra={"mids": _split_cell(row.cells["mids"])} | {key: said[key] for key in _INFO_KEYS if key in said},
        )

    def _read_labels(self, row: Row) -> list[str]:
        """Labels of a row, in the order of the list, parents included, checked against the vocabulary."""
        labels = _split_cell(row.cells["labels"])
        mids = _split_cell(row.cells["mids"])
        if not labels:
            raise RowError("no label, expected at least one; fill it in or drop the row")
        if len(labels) != len(mids):
            raise RowError(f"{len(labels)} labels but {len(mids)} mids, expected one mid for each label; correct the row")
        for label, mid in zip(labels, mids, strict=True):
            if self._vocabulary is None:
                break
            if label not in self._vocabulary:
                raise RowError(f"label {label!r} is not in vocabulary.csv, expected one of its names; correct the row")
            if self._vocabulary[label] != mid:
                raise RowError(f"label {label!r} has mid {mid}, but {self._vocabulary[label]} in vocabulary.csv; correct one")
        return labels


def _split_cell(value: Any) -> list[str]:
    # No label holds a comma of its own: FSD50K writes "_and_" for it.
    return [part.strip() for part in read_text(value).split(",") if part.strip()]


def _find(source: Path, folders: Sequence[str], name: str) -> Path | None:
    return next((source / folder / name for folder in folders if (source / folder / name).is_file()), None)


def _read_vocabulary(path: Path) -> dict[str, str]:
    """Label -> mid."""
    table = read_table(path, columns=("index", "label", "mid"))
    broken = next((row for row in table.rows if row.problem is not None), None)
    if broken is not None:
        raise ManifestError(f"{path} {broken.place}: {broken.problem}, expected index,label,mid; get the file again")
    return {read_text(row.cells["label"]).strip(): read_text(row.cells["mid"]).strip() for row in table.rows}
