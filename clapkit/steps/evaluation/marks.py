"""What a reader must know before believing a number: the model saw the clips, was selected on them, or some are missing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np

from clapkit.data.manifest import Manifest
from clapkit.steps.evaluation.result import Mark
from clapkit.steps.inputs import DataSource
from clapkit.steps.lineage import Lineage, Role, keys_of, known_files

REFUSED = ("seen_clips", "selected_on_test", "incomplete_split", "other_protocol")
"""Kinds that ``--strict`` turns into errors; what is merely not known cannot be put right."""

_REJECTED = "rejected.jsonl"
_ROLES: dict[Role, tuple[str, str]] = {
    "trained": ("seen_clips", "was trained on"),
    "selected": ("selected_on_test", "was chosen among its checkpoints by"),
}


def lineage_marks(lineage: Lineage, data: DataSource, split: Manifest) -> list[Mark]:
    """Whether a model knows the clips that it is evaluated on.

    Args:
        lineage: of the model.
        data: where the clips are from.
        split: the clips.
    """
    files = known_files(data.path)
    keys = [keys_of(clip, files) for clip in split]
    marks = []
    for role, (kind, did) in _ROLES.items():
        known = _known(keys, lineage, role)
        if known.any():
            first, where = split.clips[int(np.argmax(known))].id, ", ".join(lineage.data[role])
            found = f"{known.sum()} of the {len(split)} clips (same recording or file, in {where}), first {first}"
            marks.append(Mark(kind, f"the model {did} {found}"))
    if lineage.unknown:
        names = ", ".join(lineage.unknown)
        marks.append(Mark("unknown_training", f"what {names} was trained on is not known: it may have been these clips"))
    return marks


def split_marks(data: DataSource, split_name: str, split: Manifest) -> list[Mark]:
    """Whether clips were lost when the data were prepared, without which the task is easier.

    Args:
        data: where the clips are from.
        split_name: of the split; ``all`` is all of them.
        split: the clips that ``prepare`` left.
    """
    lost = sum(1 for found in _lost(data) if split_name == "all" or found in (None, split_name))
    if not lost:
        return []
    text = f"{lost} clips of the corpus were missing or damaged when it was prepared; {len(split)} are left"
    return [Mark("incomplete_split", text)]


def _lost(data: DataSource) -> Iterator[str | None]:
    """The splits of the clips that ``prepare`` listed and had no use for; None where it did not know the split."""
    path = data.path.parent / _REJECTED
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record.get("kind", "bad") != "excluded" and record.get("check") != "empty_caption":
            yield record.get("split")


def _known(keys: list[list[int]], lineage: Lineage, role: Role) -> np.ndarray:
    """Whether each clip has a key of a role: bool [N]."""
    flat = np.array([key for found in keys for key in found], dtype=np.uint64)
    row = np.repeat(np.arange(len(keys)), [len(found) for found in keys])
    return np.bincount(row, weights=np.isin(flat, lineage.keys[role]), minlength=len(keys)) > 0
