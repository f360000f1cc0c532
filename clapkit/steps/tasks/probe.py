"""Linear probe and nearest neighbours on frozen embeddings, before and after the projection head."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest
from clapkit.data.recordings import recording
from clapkit.metrics.classification import classification_intervals, evaluate_classification
from clapkit.metrics.neighbours import neighbour_scores
from clapkit.metrics.probe import STRENGTHS, choose_strength, fit_probe
from clapkit.steps.evaluation.classes import class_table, source_numbers
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.probe_setting import TOWER, Setting, by_folds, by_splits
from clapkit.steps.evaluation.result import Task, TaskResult
from clapkit.steps.evaluation.training_clips import held_out_clips, leaked_clips

FloatArray = npt.NDArray[np.floating[Any]]

_ALL = "all"
_NEIGHBOURS = (1, 10)
# Where no recording can be held out to choose the penalty.
_FALLBACK_STRENGTH = 1e-2


def build() -> Task:
    """Linear probe and nearest neighbours."""
    return Probe()


class Probe:
    """Labelled clips, classified by what is learned on the clips of ``--probe-split``, or on the other official folds."""

    needs = "labels"
    by_default = False
    needs_model = False  # vectors alone are enough where the evaluated clips have folds

    def possible(self, split: Manifest) -> bool:
        """Whether a clip has a label."""
        return any(clip.labels for clip in split)

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Fit and judge; see ``clapkit.metrics.probe`` and ``clapkit.metrics.neighbours``."""
        setting = by_folds(evaluated) if evaluated.config.split == _ALL else by_splits(evaluated)
        result = TaskResult(warnings=setting.warnings, counts=_counts(setting), protocol=_protocol(setting))
        _warn_of_training(setting, result)
        result.details |= {"leakage": _leakage(setting, result.warnings), "probe": {}, "per_class": {}, "confusion": {}}
        for ending, features in setting.features.items():
            scores, fits = _probe_scores(setting, features, seed=evaluated.config.seed, warnings=result.warnings)
            judged = _judge(setting, scores, name="probe", ending=ending, evaluated=evaluated, result=result)
            of = "tower" if ending == TOWER else "projection"
            result.details["probe"][of] = {"width": features.shape[1], "fits": fits, "folds": judged["folds"]}
            result.details["per_class"][of] = class_table(judged["per_class"], setting.classes)
            result.details["confusion"][of] = _confusion(judged, len(setting.classes))
            for k in _NEIGHBOURS:
                scores = _neighbour_scores(setting, features, k=k)
                _judge(setting, scores, name=f"knn{k}", ending=ending, evaluated=evaluated, result=result)
        result.warnings = list(dict.fromkeys(result.warnings))  # both features meet the same clips
        return result


def _probe_scores(
    setting: Setting, features: FloatArray, *, seed: int, warnings: list[str]
) -> tuple[FloatArray, list[dict[str, Any]]]:
    """Scores [P, C] of the linear probe for the judged clips, and how each fit went."""
    scores, fits = np.zeros(setting.labels.shape), []
    for part in setting.rounds:
        x, truth = features[part.training], setting.labels[part.training]
        held_out = held_out_clips([setting.clips[row] for row in part.training], seed=seed)
        fit: dict[str, Any] = {"fold": part.fold, "num_training": len(x), "num_judged": len(part.judged)}
        fit |= {"num_held_out": int(held_out.sum()), "strength": _FALLBACK_STRENGTH}
        if held_out.any():
            choice = choose_strength(x, truth, held_out=held_out, strengths=STRENGTHS, is_multi_label=setting.is_multi_label)
            fit |= {"strength": choice.strength, "is_at_edge": choice.is_at_edge}
            fit["held_out_loss"] = {f"{strength:g}": loss for strength, loss in choice.losses.items()}
        else:
            warnings.append(f"probe: every class has one recording; the penalty is {_FALLBACK_STRENGTH:g} and was not chosen")
        probe = fit_probe(x, truth, strength=fit["strength"], is_multi_label=setting.is_multi_label)
        scores[part.judged] = probe.scores(features[part.judged])
        fits.append(fit | {"has_converged": probe.has_converged})
    stuck = sum(not fit["has_converged"] for fit in fits)
    if stuck:
        warnings.append(f"probe: {stuck} of {len(fits)} fits ended before they had converged; see fits")
    return scores, fits


def _neighbour_scores(setting: Setting, features: FloatArray, *, k: int) -> FloatArray:
    """Scores [P, C] of the nearest training clips for the judged clips."""
    scores = np.zeros(setting.labels.shape)
    for part in setting.rounds:
        x, truth = features[part.training], setting.labels[part.training]
        scores[part.judged] = neighbour_scores(features[part.judged], x, labels=truth, k=k)
    return scores


def _judge(
    setting: Setting, scores: FloatArray, *, name: str, ending: str, evaluated: Evaluated, result: TaskResult
) -> dict[str, Any]:
    """Add what one classifier got to the result."""
    rows, config = setting.judged, evaluated.config
    judged, labels = scores[rows], setting.labels[rows]
    found = evaluate_classification(judged, labels, fold=setting.folds)
    wanted = ("mAP",) if setting.is_multi_label else ("accuracy", "accuracy_folds")
    intervals = {}
    if config.bootstrap:
        source = source_numbers([setting.clips[row] for row in rows])
        intervals = classification_intervals(
            judged, labels, fold=setting.folds, source=source, num_draws=config.bootstrap, seed=config.seed
        )
    for metric in wanted:
        if metric in found["metrics"]:
            full = f"{name}_{metric}{ending}"
            result.metrics[full] = found["metrics"][metric]
            result.chance[full] = found["chance"][metric]
            if metric in intervals:
                result.intervals[full] = intervals[metric]
    if not setting.is_multi_label:
        _add_columns(setting, found["per_query"], name=name, ending=ending, result=result)
    return found


def _add_columns(setting: Setting, columns: dict[str, Any], *, name: str, ending: str, result: TaskResult) -> None:
    rows = setting.judged
    table: dict[str, Any] = dict(result.per_query.get("probe", {}))
    if not table:
        table["id"] = [setting.clips[row].id for row in rows]
        table["clip"] = setting.row[rows]
        table["source"] = [recording(setting.clips[row]) for row in rows]
        table["target"] = [setting.classes[number] for number in columns["target"]]
    table[f"{name}{ending}_predicted"] = [setting.classes[number] for number in columns["predicted"]]
    table[f"{name}{ending}_correct"] = columns["correct"]
    result.per_query["probe"] = table
    result.tested[f"{name}_accuracy{ending}"] = ("probe", f"{name}{ending}_correct")


def _confusion(judged: dict[str, Any], num_classes: int) -> list[list[int]]:
    """Counts [C, C], rows are targets."""
    counts, pairs = np.zeros((num_classes, num_classes), dtype=np.int64), judged["confusion"]
    counts[pairs["target"], pairs["predicted"]] = pairs["count"]
    listed: list[list[int]] = counts.tolist()
    return listed


def _leakage(setting: Setting, warnings: list[str]) -> dict[str, Any]:
    """Judged clips from recordings that were learned on, which makes results too good."""
    leaked = [
        clip
        for part in setting.rounds
        for clip in leaked_clips([setting.clips[n] for n in part.judged], [setting.clips[n] for n in part.training])
    ]
    if leaked:
        warnings.append(
            f"probe: RESULTS ARE TOO GOOD: {len(leaked)} of {len(setting.judged)} evaluated clips are from recordings that the "
            f"probe was trained on, the first is {leaked[0].id} of {recording(leaked[0])}; split the data by recording"
        )
    return {"num_clips": len(leaked), "num_sources": len({recording(clip) for clip in leaked})}


def _warn_of_training(setting: Setting, result: TaskResult) -> None:
    """Classes that cannot be learned."""
    missing: set[int] = set()
    num_clips = 0
    for part in setting.rounds:
        unseen = ~setting.labels[part.training].any(axis=0) & setting.labels[part.judged].any(axis=0)
        missing |= set(np.flatnonzero(unseen).tolist())
        num_clips += int(setting.labels[part.judged][:, unseen].any(axis=1).sum())
    if missing:
        first = setting.classes[min(missing)]
        result.warnings.append(
            f"probe: {len(missing)} classes have no clip to learn on, the first is {first!r}; "
            f"{num_clips} evaluated clips are of them"
        )


def _counts(setting: Setting) -> dict[str, int]:
    judged = [setting.clips[row] for row in setting.judged]
    return {
        "num_clips": len(judged),
        "num_sources": len({recording(clip) for clip in judged}),
        "num_training_clips": len({int(row) for part in setting.rounds for row in part.training}),
        "num_classes": len(setting.classes),
        "num_rounds": len(setting.rounds),
    }


def _protocol(setting: Setting) -> dict[str, Any]:
    learned = sorted({setting.clips[row].id for part in setting.rounds for row in part.training})
    return {
        "trained_on": setting.trained_on,
        "training_id_hash": hashlib.sha256("\n".join(learned).encode()).hexdigest(),
        "classes": setting.classes,
        "features": "unit norm, mean over windows; standardised for the probe by the training clips",
        "probe": f"{'one-against-the-rest' if setting.is_multi_label else 'multinomial'} logistic regression, L2",
        "strengths": list(STRENGTHS),
        "strength_chosen_on": "loss of held-out recordings of the training clips",
        "neighbours": {"k": list(_NEIGHBOURS), "weights": "exp(cosine / 0.07)"},
        "intervals_over": f"{_counts(setting)['num_sources']} sources",
    }
