"""Robustness: retrieval and zero-shot classification of clips whose sound was changed, against the clips as they are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.decoded import decode_threads
from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.metrics.statistics import bootstrap_intervals, weighted_mean
from clapkit.steps.evaluation.clip_measures import Measure, measures_of
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.result import Task, TaskResult
from clapkit.steps.evaluation.sound_changes import (
    SHIFT_S,
    SoundChange,
    can_encode,
    change_sounds,
    chosen_rows,
    codecs,
    sound_changes,
)
from clapkit.types import Clip

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Clips of larger test sets that are changed, chosen by the hash of their ids.
MAX_CLIPS = 1_000
_MEAN = "mean"


def build() -> Task:
    """Robustness."""
    return Robustness()


@dataclass(frozen=True, slots=True)
class _Values:
    """A measure of the clips as they are [Q], and after each change [C, Q]."""

    measure: Measure
    clean: FloatArray
    changed: FloatArray


@dataclass(slots=True)
class _Heard:
    """What the waveforms turned out to be.

    Attributes:
        num_short: clips of which a shift takes half at most, as it would take more.
        num_silent: clips without any sound, to which noise adds nothing.
    """

    num_short: int = 0
    num_silent: int = 0


class Robustness:
    """Changed clips against the captions and the classes as they are."""

    needs = "captions or a single label"
    by_default = False
    needs_model = True

    def possible(self, split: Manifest) -> bool:
        """Whether a clip has a caption or exactly one label."""
        return any(_usable(clip) for clip in split)

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Change up to ``MAX_CLIPS`` clips in all ways; see ``clapkit.steps.evaluation.sound_changes``."""
        model, config = evaluated.needs_model("robustness"), evaluated.config
        usable = [row for row, clip in enumerate(evaluated.clips) if _usable(clip)]
        if not usable:
            raise ManifestError("no clip that could be embedded has a caption or a single label; see rejected.jsonl")
        chosen = chosen_rows((evaluated.clips[row].id for row in usable), limit=MAX_CLIPS)
        rows = np.array([usable[place] for place in chosen], dtype=np.int64)
        changes, heard = sound_changes(model.audio_spec.sample_rate), _Heard()
        threads = decode_threads(config.workers, is_model_on_cpu=evaluated.device.startswith("cpu"))
        vectors = evaluated.embed_waveforms(
            change_sounds(_sounds(evaluated, rows, heard), changes, seed=config.seed, threads=threads),
            total=len(rows) * len(changes),
            description="robustness",
        ).reshape(len(rows), len(changes), -1)  # [R, C, D]
        clean = evaluated.audio[rows]  # [R, D]
        found = [
            _Values(
                measure=measure,
                clean=measure.score(clean),
                changed=np.stack([measure.score(vectors[:, number]) for number in range(len(changes))]),
            )
            for measure in measures_of(evaluated, rows)
        ]
        result = _result(found, changes, evaluated)
        result.counts = {"num_clips": len(rows), "num_changes": len(changes)}
        result.protocol = _protocol(changes, seed=config.seed)
        result.warnings = _warnings(evaluated, num_usable=len(usable), num_clips=len(rows), heard=heard)
        return result


def _usable(clip: Clip) -> bool:
    return bool(clip.captions) or len(clip.labels) == 1


def _sounds(evaluated: Evaluated, rows: IntArray, heard: _Heard) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Id and waveform of each clip; notes in ``heard`` what they are."""
    sample_rate = evaluated.needs_model("robustness").audio_spec.sample_rate
    for row, waveform in zip(rows, evaluated.waveforms(rows.tolist()), strict=True):
        heard.num_short += len(waveform) < 2 * max(SHIFT_S) * sample_rate
        heard.num_silent += not waveform.any()
        yield evaluated.clips[row].id, waveform.astype(np.float32, copy=False)


def _result(found: Sequence[_Values], changes: Sequence[SoundChange], evaluated: Evaluated) -> TaskResult:
    """Headline numbers, the table of all changes, and the values of single queries."""
    result = TaskResult(details={"clean": {}, "robustness": [_described(change) for change in changes]})
    families = {change.family: [c.family == change.family for c in changes] for change in changes}
    main = found[0].measure.name  # retrieval by text where there are captions
    for values in found:
        measure = values.measure
        by_family: dict[str, FloatArray] = {name: values.changed[mask].mean(axis=0) for name, mask in families.items()}  # [Q]
        by_family[_MEAN] = np.mean(list(by_family.values()), axis=0)
        ids = [evaluated.clips[row].id for row in measure.clip]
        table: dict[str, Any] = {"id": ids, "clip": measure.clip, **measure.columns, **by_family}
        result.per_query[measure.table] = table
        shown = by_family if measure.name == main else [_MEAN]
        metrics = {f"robustness_{name}_{measure.name}": name for name in shown}
        result.metrics |= {metric: float(by_family[name].mean()) for metric, name in metrics.items()}
        result.tested |= {metric: (measure.table, name) for metric, name in metrics.items()}
        result.details["clean"][measure.name] = float(values.clean.mean())
        for entry, changed in zip(result.details["robustness"], values.changed, strict=True):
            entry["metrics"][measure.name] = float(changed.mean())
            entry["drop"][measure.name] = float((values.clean - changed).mean())
        if evaluated.config.bootstrap:
            _add_intervals(result, values, {metric: by_family[name] for metric, name in metrics.items()}, evaluated)
    return result


def _add_intervals(result: TaskResult, values: _Values, headline: dict[str, FloatArray], evaluated: Evaluated) -> None:
    """Intervals of the headline numbers, and of what each change costs: the same clips with and without it."""
    clips, clip = np.unique(values.measure.clip, return_inverse=True)
    queries = headline | {str(number): values.clean - changed for number, changed in enumerate(values.changed)}
    intervals = bootstrap_intervals(
        {name: weighted_mean(given, clip, num_clips=len(clips)) for name, given in queries.items()},
        num_clips=len(clips),
        num_draws=evaluated.config.bootstrap,
        seed=evaluated.config.seed,
    )
    result.intervals |= {metric: intervals[metric] for metric in headline}
    for number, entry in enumerate(result.details["robustness"]):
        entry["drop_intervals"][values.measure.name] = list(intervals[str(number)])


def _described(change: SoundChange) -> dict[str, Any]:
    return {
        "change": change.name,
        "family": change.family,
        "severity": change.severity,
        "unit": change.unit,
        "metrics": {},
        "drop": {},
        "drop_intervals": {},
    }


def _protocol(changes: Sequence[SoundChange], *, seed: int) -> dict[str, Any]:
    return {
        "changes": [f"{change.name} {change.severity:g} {change.unit}" for change in changes],
        "seed": seed,
        "max_clips": MAX_CLIPS,
        "gallery": "of retrieval by text all clips are changed, captions and classes never",
        "mean": "over the severities of a family; robustness_mean is over the families",
        "gain": "louder sounds are clipped at -1 and 1",
        "shift": "silence in front, the end cut off, at most half of the clip",
        "speed": "by resampling, so that the pitch changes too",
        "codec": "libsndfile in memory, delay taken out; sounds of other rates than 8, 16, 24 and 48 kHz go through 48 kHz",
    }


def _warnings(evaluated: Evaluated, *, num_usable: int, num_clips: int, heard: _Heard) -> list[str]:
    warnings = []
    if num_usable < len(evaluated.clips):
        warnings.append(
            f"robustness: {len(evaluated.clips) - num_usable} clips without captions or a single label are left out"
        )
    if num_clips < num_usable:
        warnings.append(f"robustness: {num_clips} of {num_usable} clips are used, chosen by the hash of their ids")
    if heard.num_short:
        warnings.append(
            f"robustness: {heard.num_short} clips are shorter than {2 * max(SHIFT_S):g} s and shifted by half at most"
        )
    if heard.num_silent:
        warnings.append(f"robustness: {heard.num_silent} clips are silent, so that noise below their level is silent, too")
    missing = [name for name in codecs() if not can_encode(name)]
    if missing:
        warnings.append(f"robustness: libsndfile cannot write {', '.join(missing)} here, so the codec numbers leave them out")
    return warnings
