"""Who learns on what when a probe is judged: another split, or every official fold on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest, fingerprint
from clapkit.errors import AudioError, ConfigError, ManifestError
from clapkit.steps.evaluation.classes import classes_of, label_matrix
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.features import Features, embed_features
from clapkit.types import Clip

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

# Ending of metrics -> what the features are.
PROJECTION, TOWER = "", "_tower"


@dataclass(frozen=True, slots=True)
class Round:
    """One fit: rows of the clips that are learned on, and of those that are judged; ``fold`` is theirs."""

    training: IntArray
    judged: IntArray
    fold: int | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """Who learns on what.

    Attributes:
        clips: P, all that take part.
        classes: C labels of these clips, sorted.
        labels: bool [P, C].
        features: ending of the metrics -> [P, D].
        rounds: fits; every judged clip is in one of them.
        row: int64 [P], of the evaluated clips; -1 for clips that are learned on only.
        trained_on: for the protocol.
        warnings: sentences for people.
    """

    clips: list[Clip]
    classes: list[str]
    labels: BoolArray
    features: dict[str, FloatArray]
    rounds: list[Round]
    row: IntArray
    trained_on: str
    warnings: list[str] = field(default_factory=list)

    @property
    def judged(self) -> IntArray:
        """Rows of the judged clips [N], ascending."""
        return np.sort(np.concatenate([part.judged for part in self.rounds]))

    @property
    def is_multi_label(self) -> bool:
        """Whether a clip has another number of labels than one."""
        return bool((self.labels.sum(axis=1) != 1).any())

    @property
    def folds(self) -> IntArray | None:
        """Fold of each judged clip, if every fold is a round [N]."""
        if len(self.rounds) < 2:
            return None
        return np.array([self.clips[row].fold for row in self.judged], dtype=np.int64)


def by_splits(evaluated: Evaluated) -> Setting:
    """Learn on ``--probe-split``, judge on the evaluated split."""
    config = evaluated.config
    if config.probe_split == config.split:
        raise ConfigError(
            f"--probe-split {config.probe_split}: is the split that is evaluated, expected another; name one to learn on"
        )
    if evaluated.model is None:
        raise ConfigError(
            f"--tasks probe: needs vectors of split {config.probe_split} to learn on, and --embeddings gives those of "
            f"{config.split}; name a model, or --split all where clips have folds"
        )
    training = evaluated.manifest.split(config.probe_split)
    labelled = _labelled(training, range(len(training)), of=f"--probe-split {config.probe_split}")
    judged = _labelled(evaluated.split, range(len(evaluated.clips)), of=f"split {config.split}")
    learned, own = _features(evaluated, training, labelled), _features(evaluated, evaluated.split, judged)
    if own.rejected:
        raise AudioError(f"clip {own.rejected[0].item}: {own.rejected[0].reason}")
    labelled = labelled[learned.clip]
    warnings = _left_out(len(training) - len(labelled) - len(learned.rejected), f"of split {config.probe_split} without labels")
    warnings += _left_out(len(learned.rejected), f"of split {config.probe_split} that could not be embedded")
    warnings += _left_out(len(evaluated.clips) - len(judged), "without labels")
    clips = [training.clips[row] for row in labelled] + [evaluated.clips[row] for row in judged]
    parts = np.split(np.arange(len(clips)), [len(labelled)])
    return _setting(
        clips,
        features={
            PROJECTION: np.concatenate([learned.projection, evaluated.audio[judged]]),
            TOWER: np.concatenate([learned.tower, own.tower]),
        },
        rounds=[Round(parts[0], parts[1])],
        row=np.concatenate([np.full(len(labelled), -1), judged]),
        trained_on=f"{len(labelled)} clips of split {config.probe_split}",
        warnings=warnings,
    )


def by_folds(evaluated: Evaluated) -> Setting:
    """Judge each official fold by what is learned on the others."""
    rows = _labelled(evaluated.split, range(len(evaluated.clips)), of="--split all")
    kept = np.array([row for row in rows if evaluated.clips[row].fold is not None], dtype=np.int64)
    clips = [evaluated.clips[row] for row in kept]
    fold = np.array([clip.fold for clip in clips], dtype=np.int64)
    names = np.unique(fold)
    if len(names) < 2:
        raise ConfigError(
            f"--tasks probe --split all: labelled clips lie in {len(names)} official folds, expected 2 or more; "
            "name a --split to evaluate, and a --probe-split to learn on"
        )
    warnings = _left_out(len(evaluated.clips) - len(rows), "without labels")
    warnings += _left_out(len(rows) - len(kept), "without a fold")
    features = {PROJECTION: evaluated.audio[kept]}
    if evaluated.model is None:
        warnings.append("probe: embeddings alone say nothing of the audio tower; only what is after the projection is given")
    else:
        own = _features(evaluated, evaluated.split, kept)
        if own.rejected:
            raise AudioError(f"clip {own.rejected[0].item}: {own.rejected[0].reason}")
        features[TOWER] = own.tower
    return _setting(
        clips,
        features=features,
        rounds=[Round(np.flatnonzero(fold != name), np.flatnonzero(fold == name), int(name)) for name in names],
        row=kept,
        trained_on=f"the other folds of {', '.join(str(name) for name in names)}, each in turn",
        warnings=warnings,
    )


def _setting(clips: list[Clip], **given: Any) -> Setting:
    classes = list(classes_of(clips))
    return Setting(clips, classes, label_matrix(clips, classes), **given)


def _labelled(manifest: Manifest, rows: Sequence[int], *, of: str) -> IntArray:
    """Rows of the clips with labels."""
    found = np.array([row for row in rows if manifest.clips[row].labels], dtype=np.int64)
    if not len(found):
        raise ManifestError(f"{of}: none of {len(rows)} clips has a label, which probe needs; name another split")
    return found


def _features(evaluated: Evaluated, manifest: Manifest, rows: IntArray) -> Features:
    """Of some clips; ``clip`` counts among ``rows``."""
    config, clips = evaluated.config, tuple(manifest.clips[row] for row in rows)
    return embed_features(
        evaluated.needs_model("probe"),
        replace(manifest, clips=clips, fingerprint=fingerprint(clips)),
        reporter=evaluated.reporter,
        batch_size=config.batch_size,
        precision=config.precision,
        device=evaluated.device,
        workers=config.workers,
    )


def _left_out(count: int, which: str) -> list[str]:
    return [f"probe: {count} clips {which} are left out"] if count else []
