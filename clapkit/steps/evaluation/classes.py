"""The classes of a classification: those of the data, or of a list, with the texts that stand for them in prompts."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.recordings import recording
from clapkit.errors import ConfigError, ManifestError
from clapkit.steps.evaluation.prompts import Spelling, read_lines, spell
from clapkit.types import Clip

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


def classes_of(clips: Iterable[Clip], *, spelling: Spelling = "blanks") -> dict[str, tuple[str, ...]]:
    """Every label of some clips, sorted, with the one text that goes into prompts."""
    return {label: (spell(label, spelling),) for label in sorted({label for clip in clips for label in clip.labels})}


def read_classes(path: Path, *, spelling: Spelling = "blanks") -> dict[str, tuple[str, ...]]:
    """A list of classes: one a line, ``label`` or ``label<TAB>text`` with the text that goes into prompts.

    Several lines of one label are several texts, whose embeddings are averaged. Lines that start with ``#`` say nothing. The
    order of the lines does not matter.

    Args:
        path: of the file.
        spelling: of labels without a text.

    Returns:
        Label -> texts, labels sorted.

    Raises:
        ConfigError: if the file cannot be read, or a line has no label, no text behind its tab, several tabs, or comes twice.
    """
    texts: dict[str, list[str]] = {}
    for place, line in read_lines(path, flag="--classes", expected="a text file with label or label<TAB>text on each line"):
        label, *given = (part.strip() for part in line.split("\t"))
        if not label or len(given) > 1 or given == [""]:
            raise ConfigError(f"{place}: {line.strip()!r}, expected label or label<TAB>text; correct the line")
        text = given[0] if given else spell(label, spelling)
        if text in texts.setdefault(label, []):
            raise ConfigError(f"{place}: {label!r} with {text!r} comes twice, expected each once; drop one of the lines")
        texts[label].append(text)
    return {label: tuple(texts[label]) for label in sorted(texts)}


def label_matrix(clips: Sequence[Clip], classes: Iterable[str], *, known_from: str = "the data") -> BoolArray:
    """Which clip has which class: bool [N, C].

    Args:
        clips: N.
        classes: C labels.
        known_from: where the classes are listed, for the message.

    Raises:
        ManifestError: if a clip has a label that is no class; names the first, how many there are, and the closest class.
    """
    column = {label: number for number, label in enumerate(classes)}
    unknown = Counter(label for clip in clips for label in dict.fromkeys(clip.labels) if label not in column)
    if unknown:
        _refuse(clips, unknown, known=column, known_from=known_from)
    matrix = np.zeros((len(clips), len(column)), dtype=bool)
    for row, clip in enumerate(clips):
        matrix[row, [column[label] for label in clip.labels]] = True
    return matrix


def source_numbers(clips: Sequence[Clip]) -> IntArray:
    """A number for the recording that each clip is from [N]; clips without a source are their own."""
    number: dict[str, int] = {}
    return np.array([number.setdefault(recording(clip), len(number)) for clip in clips], dtype=np.int64)


def fold_numbers(clips: Sequence[Clip]) -> IntArray | None:
    """The official fold of each clip [N]; None if a clip has none."""
    folds = [clip.fold for clip in clips if clip.fold is not None]
    return np.array(folds, dtype=np.int64) if len(folds) == len(clips) else None


def class_table(per_class: Mapping[str, npt.NDArray[Any]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """The columns of ``evaluate_classification`` as one row for each class, as JSON; null where a value is not defined."""
    rows = []
    for number, label in enumerate(classes):
        other = int(per_class["confused_with"][number])
        shares = {name: float(per_class[name][number]) for name in ("recall", "precision", "average_precision")}
        rows.append(
            {
                "class": label,
                "num_clips": int(per_class["num_clips"][number]),
                **{name: None if np.isnan(value) else value for name, value in shares.items()},
                "confused_with": classes[other] if other >= 0 else None,
                "num_confused": int(per_class["num_confused"][number]),
            }
        )
    return rows


def _refuse(clips: Sequence[Clip], unknown: Mapping[str, int], *, known: Iterable[str], known_from: str) -> None:
    clip, label = next((clip, label) for clip in clips for label in clip.labels if label in unknown)
    close = difflib.get_close_matches(label, list(known), n=1)
    offer = f" (closest: {close[0]!r})" if close else ""
    others = f" and {len(unknown) - 1} other labels" if len(unknown) > 1 else ""
    num_clips = sum(any(name in unknown for name in other.labels) for other in clips)
    raise ManifestError(
        f"clip {clip.id}: label {label!r} is no class of {known_from}{offer}; it{others} would leave {num_clips} of "
        f"{len(clips)} clips without their class; add it to the list, or correct the labels in the manifest"
    )
