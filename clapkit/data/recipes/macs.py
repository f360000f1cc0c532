"""MACS: ten seconds of city sound each, with two to five sentences by annotators whose competence was estimated.

Origin: I. Martin-Morato and A. Mesaros, What is the ground truth? Reliability of multi-annotator data for audio tagging,
EUSIPCO 2021; audio of TAU Urban Acoustic Scenes 2019, development. Licence: non-commercial, see the licence files of both.
Layout: ``MACS.yaml`` (``files: [{filename, annotations: [{annotator_id, sentence, tags: [...]}]}]``), optionally
``MACS_competence.csv`` (tab separated: ``annotator_id``, ``competence``) and ``meta.csv`` of TAU (tab separated: ``filename``
with ``audio/`` in front, ``scene_label``, ``identifier``, ``source_label``), and the audio anywhere below the folder.
Counts: 3,930 clips, 17,275 captions, three scenes, 48 kHz stereo. There is no official split: ``prepare`` draws one in which
a place (the ``identifier``) never falls in two splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from clapkit.data.recipes import _class_names
from clapkit.data.recipes._captioned import without_empty_captions
from clapkit.data.recipes._files import AudioFiles
from clapkit.data.recipes._lists import audio_root, repeated, require_columns
from clapkit.data.tables import read_table
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip, CorpusDescription, Recipe, RecipeRequest, Rejection

NUM_CLIPS, NUM_CAPTIONS = 3930, 17275

# Names of TAU 2019: airport-barcelona-0-0-a.wav is scene, city, location, segment, device.
_TAU_NAME = re.compile(r"([a-z_]+)-([a-z]+-\d+)-\d+-[a-z]")

# Every scalar stays text: the usual safe loader would read the sentence "no" as False. Neither builds objects.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def build() -> Recipe:
    """MACS."""
    return Macs()


@dataclass(frozen=True, slots=True)
class _Scene:
    """Where a file was recorded."""

    label: str
    identifier: str


class Macs:
    """Reads the annotations; see the module for the layout."""

    needs_source = True
    makes_audio = False

    def __init__(self) -> None:
        self._scenes_from = ""

    def clips(self, request: RecipeRequest) -> Iterable[Clip | Rejection]:
        """Yield the clips in the order of the annotations.

        Raises:
            ManifestError: if the annotations are not there or are no such file.
        """
        assert request.source is not None, "prepare gives a source to recipes that need one"
        path = _find_annotations(request.source)
        entries = _read_yaml(path)
        files = AudioFiles.scan(audio_root(request))
        competences = _read_competences(path.parent / "MACS_competence.csv")
        meta_path = _find_meta(path.parent, files.root)
        scenes = {} if meta_path is None else _read_scenes(meta_path)
        self._scenes_from = "file names" if meta_path is None else meta_path.name
        first: dict[str, str] = {}
        for number, entry in enumerate(entries, start=1):
            place = f"{path.name} file {number}"
            name = str(entry.get("filename", "")).strip() if isinstance(entry, dict) else ""
            annotations = entry.get("annotations") if isinstance(entry, dict) else None
            problem = repeated(first, name, place) if name else "no filename, expected one; correct it"
            if problem is None and not _are_annotations(annotations):
                problem = "annotations are no list of {annotator_id, sentence, tags}; correct them"
            if problem is not None:
                yield Rejection(place, problem)
                continue
            yield from _read_clip(name, annotations or [], scenes, competences, files)

    def describe(self, clips: Sequence[Clip]) -> CorpusDescription:
        """Say how much the complete corpus holds; it has no official split."""
        facts = {
            "captions": "MACS",
            "complete": {"clips": NUM_CLIPS, "captions": NUM_CAPTIONS},
            "scenes_from": self._scenes_from,
            "class_names": _class_names.VERSION,
        }
        without = [clip.id for clip in clips if not clip.labels]
        warnings = []
        if without:
            warnings.append(
                f"clips without a scene, so without the place that keeps splits apart: {len(without)}, first: {without[0]}; "
                "put meta.csv of TAU Urban Acoustic Scenes 2019 beside MACS.yaml"
            )
        return CorpusDescription(facts=facts, warnings=warnings)


def _read_clip(
    name: str,
    annotations: Sequence[Mapping[str, Any]],
    scenes: Mapping[str, _Scene],
    competences: Mapping[str, float],
    files: AudioFiles,
) -> Iterator[Clip | Rejection]:
    stem = PurePosixPath(name).stem
    clip_id = f"macs/{stem}"
    audio = files.find([name])
    if audio is None:
        yield files.missing(clip_id, [name], split=None)
        return
    scene = scenes.get(PurePosixPath(name).name) or _scene_of_name(stem)
    # Listed in the order of the captions, so without those that are refused because they are empty.
    kept = [annotation for annotation in annotations if str(annotation.get("sentence", "")).strip()]
    annotators = [str(annotation.get("annotator_id", "")).strip() for annotation in kept]
    extra: dict[str, Any] = {
        "annotators": annotators,
        "tags": [[_class_names.class_name(tag) for tag in annotation.get("tags") or ()] for annotation in kept],
    }
    if competences:
        extra["competences"] = [competences.get(annotator) for annotator in annotators]
    clip = Clip(
        id=clip_id,
        audio=audio,
        captions=tuple(Caption(str(annotation.get("sentence", ""))) for annotation in annotations),
        labels=() if scene is None else (_class_names.class_name(scene.label),),
        source=clip_id if scene is None else f"tau/{scene.identifier}",
        extra=extra,
    )
    yield from without_empty_captions(clip)


def _are_annotations(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, dict) and (not item.get("tags") or isinstance(item["tags"], list)) for item in value
    )


def _find_annotations(source: Path) -> Path:
    if source.is_file():
        return source
    found = sorted(source.glob("MACS.yaml")) + sorted(source.glob("[!.]*/MACS.yaml"))
    if not found:
        raise ManifestError(f"{source}: no MACS.yaml found, expected it in the folder; name the folder that holds it")
    return found[0]


def _read_yaml(path: Path) -> list[Any]:
    try:
        content = yaml.load(path.read_bytes(), Loader=_LOADER)
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); make it readable or name another") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ManifestError(f"{path}: not YAML ({reason}); get the file again") from error
    entries = content.get("files") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise ManifestError(f"{path}: no list of files found, expected files: [{{filename, annotations}}]; name MACS.yaml")
    return entries


def _find_meta(*folders: Path) -> Path | None:
    """``meta.csv`` of TAU, beside the annotations or with the audio, also in a folder of its own."""
    for folder in folders:
        found = sorted(folder.glob("meta.csv")) + sorted(folder.glob("[!.]*/meta.csv"))
        if found:
            return found[0]
    return None


def _read_scenes(path: Path) -> dict[str, _Scene]:
    table = read_table(path, delimiter="\t")
    require_columns(path, table, ["filename", "scene_label", "identifier"])
    return {
        PurePosixPath(row.cells["filename"]).name: _Scene(row.cells["scene_label"], row.cells["identifier"])
        for row in table.rows
        if row.problem is None
    }


def _scene_of_name(stem: str) -> _Scene | None:
    match = _TAU_NAME.fullmatch(stem)
    return None if match is None else _Scene(match[1], match[2])


def _read_competences(path: Path) -> dict[str, float]:
    if not path.exists():
        return {}
    table = read_table(path, delimiter="\t")
    require_columns(path, table, ["annotator_id", "competence"])
    competences = {}
    for row in table.rows:
        try:
            competences[str(row.cells["annotator_id"]).strip()] = float(row.cells["competence"])
        except (KeyError, ValueError) as error:
            raise ManifestError(f"{path} {row.place}: no annotator with a number, expected both; correct the row") from error
    return competences
