"""NSynth: 305,979 single notes of 1,006 instruments.

Origin: J. Engel et al., Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders, ICML 2017, arXiv 1704.01279.
Licence: CC BY 4.0.
Layout: ``nsynth-{train,valid,test}/examples.json``, an object of note -> attributes, and ``audio/{note}.wav`` beside it.
Counts: 289,205 notes in train, 12,678 in valid, 4,096 in test; 4 s, 16 kHz mono; eleven families of instruments, of which
``synth_lead`` has no note in test. Train shares no instrument with the other two, but valid and test share theirs. The corpus
holds no captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clapkit.data.recipes._class_names import VERSION, class_name
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, read_json_object, repeated
from clapkit.errors import ManifestError
from clapkit.types import Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

OFFICIAL = {"train": 289205, "val": 12678, "test": 4096}

FAMILIES = tuple("bass brass flute guitar keyboard mallet organ reed string synth_lead vocal".split())
"""Families of instruments, in the order of ``instrument_family``."""

_FOLDERS = {"train": "nsynth-train", "val": "nsynth-valid", "test": "nsynth-test"}
# The numeric codes repeat these, and sample_rate is read from the file.
_EXTRA_KEYS = ("instrument_str", "instrument_source_str", "pitch", "velocity", "qualities_str")


def build() -> Recipe:
    """NSynth; it has no options."""
    return NSynth()


class NSynth:
    """Reads the lists of the splits and looks for the files."""

    needs_source = True
    makes_audio = False

    def __init__(self) -> None:
        self._absent: list[str] = []

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the notes, split by split, in the order of the lists.

        Raises:
            ManifestError: if the folder is no NSynth, or a list cannot be read.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        lists = _find_lists(request.source)
        self._absent = [folder for split, folder in _FOLDERS.items() if split not in lists]
        files = AudioFiles.scan(audio_root(request))
        first: dict[str, str] = {}
        for split, path in lists.items():
            for note, attributes in read_json_object(path).items():
                again = repeated(first, note, path.parent.name)
                if again is not None:
                    yield Rejection(f"nsynth/{note}", again, split=split)
                else:
                    yield _read_note(note, attributes, split, files)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how many notes there should be."""
        warnings = [
            f"{folder} is not there, so its notes are neither in the manifest nor among the missing ones."
            for folder in self._absent
        ]
        return CorpusDescription(official=OFFICIAL, facts={"class_names": VERSION}, warnings=warnings)


def _find_lists(source: Path) -> dict[str, Path]:
    """Split -> its list; the source may be the folder of one split."""
    inside = {split: source / folder / "examples.json" for split, folder in _FOLDERS.items()}
    itself = {split: source / "examples.json" for split, folder in _FOLDERS.items() if source.resolve().name == folder}
    found = {split: path for split, path in (inside | itself).items() if path.is_file()}
    if not found:
        raise ManifestError(
            f"{source}: is no NSynth, no nsynth-train/examples.json, nsynth-valid or nsynth-test found, expected at least one; "
            "name the folder that holds them"
        )
    return found


def _read_note(note: str, attributes: Any, split: str, files: AudioFiles) -> Clip | Rejection:
    id = f"nsynth/{note}"
    family = attributes.get("instrument_family_str") if isinstance(attributes, dict) else None
    instrument = attributes.get("instrument_str") if isinstance(attributes, dict) else None
    if family not in FAMILIES:
        return Rejection(id, f"instrument_family_str {family!r}, expected one of {', '.join(FAMILIES)}; correct examples.json")
    if not isinstance(instrument, str) or not instrument:
        return Rejection(id, f"instrument_str {instrument!r}, expected the name of an instrument; correct examples.json")
    names = [f"{note}.wav"]
    audio = files.find(names, folders=[_FOLDERS[split]])
    if audio is None:
        return files.missing(id, names, split=split)
    return Clip(
        id,
        audio,
        labels=(class_name(family),),
        split=split,
        source=f"nsynth/{instrument}",
        extra={key: attributes[key] for key in _EXTRA_KEYS if key in attributes},
    )
