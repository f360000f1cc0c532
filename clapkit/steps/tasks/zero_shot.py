"""Zero-shot classification: clips against the prompts of their classes, and what the choice of the prompt is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest
from clapkit.data.recordings import recording
from clapkit.errors import ManifestError
from clapkit.metrics.zero_shot import evaluate_zero_shot, zero_shot_intervals
from clapkit.steps.embedding import cosine_similarity
from clapkit.steps.evaluation.class_prompts import embed_classes, labels_of, wanted_classes
from clapkit.steps.evaluation.classes import class_table, fold_numbers, source_numbers
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.prompts import PromptSet, default_prompt, read_prompts
from clapkit.steps.evaluation.result import Task, TaskResult
from clapkit.types import Clip

FloatArray = npt.NDArray[np.floating[Any]]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

# The whole confusion matrix is written up to this many classes; beyond, the pairs that are confused most.
_MAX_MATRIX = 500
_NUM_CONFUSIONS = 200


def build() -> Task:
    """Zero-shot classification."""
    return ZeroShot()


class ZeroShot:
    """Labelled clips against all classes of the data set, or of a list, whether the split has clips of them or not."""

    needs = "labels"
    by_default = True
    needs_model = True

    def possible(self, split: Manifest) -> bool:
        """Whether a clip has a label."""
        return any(clip.labels for clip in split)

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Classify; see ``clapkit.metrics.classification``."""
        config = evaluated.config
        prompts = read_prompts(config)
        question = _question(evaluated, prompts)
        scores = question.scores(evaluated, prompts.templates)
        found = evaluate_zero_shot(scores, question.labels, fold=question.fold)
        intervals = {}
        if config.bootstrap:
            intervals = zero_shot_intervals(
                scores,
                question.labels,
                fold=question.fold,
                source=question.source,
                num_draws=config.bootstrap,
                seed=config.seed,
            )
        num_sources = len(np.unique(question.source))
        per_query = _per_query(found["per_query"], question)
        return TaskResult(
            metrics=found["metrics"],
            intervals=intervals,
            chance=found["chance"],
            counts=found["counts"] | {"num_sources": num_sources},
            warnings=_warnings(found["counts"], num_unlabelled=len(evaluated.clips) - len(question.clips)),
            protocol={
                "prompts": list(prompts.templates),
                "prompt_set": prompts.name,
                "class_spelling": prompts.spelling,
                "classes": question.names,
                "class_texts": [" | ".join(texts) for texts in question.classes.values()],
                "accuracy_over": f"{found['counts']['num_single_label_clips']} clips with one label, pooled",
                "intervals_over": f"{num_sources} sources",
            },
            details={
                "folds": found["folds"],
                "top_k": {f"top{k}_accuracy": value for k, value in found["top_k"].items()},
                "per_class": class_table(found["per_class"], question.names),
                "confusion": _confusion(found["confusion"], question.names),
                "prompt_sensitivity": _sensitivity(evaluated, question, prompts, headline=found["metrics"]),
            },
            per_query={"zero_shot": per_query} if per_query else {},
            tested={"zero_shot_accuracy": ("zero_shot", "correct")} if per_query else {},
        )


@dataclass(frozen=True, slots=True)
class _Question:
    """Which clips are asked which classes.

    Attributes:
        clips: N, those with labels.
        rows: int64 [N], of the evaluated clips.
        classes: label -> the texts that go into prompts, C entries.
        labels: bool [N, C].
        fold: int64 [N], official folds; None where clips have none.
        source: int64 [N], a number for the recording of each clip.
    """

    clips: list[Clip]
    rows: IntArray
    classes: Mapping[str, tuple[str, ...]]
    labels: BoolArray
    fold: IntArray | None
    source: IntArray

    @property
    def names(self) -> list[str]:
        return list(self.classes)

    def scores(self, evaluated: Evaluated, templates: Sequence[str]) -> FloatArray:
        """Cosines [N, C] of the clips and the classes in some prompts."""
        return cosine_similarity(evaluated.audio[self.rows], embed_classes(evaluated, self.classes, templates))


def _question(evaluated: Evaluated, prompts: PromptSet) -> _Question:
    rows = [row for row, clip in enumerate(evaluated.clips) if clip.labels]
    if not rows:
        raise ManifestError("no clip that could be embedded has a label; see rejected.jsonl")
    clips = [evaluated.clips[row] for row in rows]
    classes = wanted_classes(evaluated, prompts)
    labels = labels_of(evaluated, clips, classes)
    return _Question(clips, np.array(rows, dtype=np.int64), classes, labels, fold_numbers(clips), source_numbers(clips))


def _sensitivity(
    evaluated: Evaluated, question: _Question, prompts: PromptSet, *, headline: Mapping[str, float]
) -> dict[str, Any]:
    """What each template alone would have given, so that readers see how much the choice matters; empty for one template."""
    if len(prompts.templates) < 2:
        return {}
    alone = {}
    for template in dict.fromkeys((*prompts.templates, default_prompt())):
        scores = question.scores(evaluated, [template])
        alone[template] = evaluate_zero_shot(scores, question.labels, fold=question.fold)["metrics"]
    wanted = [name for name in ("zero_shot_accuracy", "zero_shot_mAP") if name in headline]
    return {
        name: _spread({t: m[name] for t, m in alone.items()}, prompts.templates, ensemble=headline[name]) for name in wanted
    }


def _spread(alone: Mapping[str, float], templates: Sequence[str], *, ensemble: float) -> dict[str, Any]:
    """One metric over the templates of a set."""
    values = np.array([alone[template] for template in templates])
    best, worst = templates[int(values.argmax())], templates[int(values.argmin())]
    return {
        "ensemble": ensemble,
        "templates": {template: alone[template] for template in templates},
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)),
        "best": {"template": best, "value": alone[best], "chosen_on": "the evaluated clips"},
        "worst": {"template": worst, "value": alone[worst]},
        "default": {"template": default_prompt(), "value": alone[default_prompt()]},
    }


def _confusion(pairs: Mapping[str, IntArray], classes: Sequence[str]) -> dict[str, Any]:
    """The confusion matrix, rows are targets; with very many classes, the wrong pairs that occur most."""
    if len(classes) <= _MAX_MATRIX:
        counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
        counts[pairs["target"], pairs["predicted"]] = pairs["count"]
        return {"classes": list(classes), "counts": counts.tolist()}
    wrong = np.flatnonzero(pairs["target"] != pairs["predicted"])
    largest = wrong[np.argsort(-pairs["count"][wrong], kind="stable")][:_NUM_CONFUSIONS]
    return {
        "num_pairs": len(wrong),
        "largest": [
            {
                "target": classes[pairs["target"][n]],
                "predicted": classes[pairs["predicted"][n]],
                "count": int(pairs["count"][n]),
            }
            for n in largest
        ],
    }


def _per_query(columns: Mapping[str, Any], question: _Question) -> dict[str, Any]:
    """One row for each clip with one label; empty without such clips."""
    if not len(columns["clip"]):
        return {}
    return {
        **columns,
        "id": [question.clips[row].id for row in columns["clip"]],
        "clip": question.rows[columns["clip"]],
        "source": [recording(question.clips[row]) for row in columns["clip"]],
        "target": [question.names[number] for number in columns["target"]],
        "predicted": [question.names[number] for number in columns["predicted"]],
    }


def _warnings(counts: Mapping[str, int], *, num_unlabelled: int) -> list[str]:
    warnings = []
    if num_unlabelled:
        warnings.append(f"zero-shot: {num_unlabelled} clips without labels are left out")
    if counts["num_single_label_clips"] < counts["num_clips"]:
        share = f"{counts['num_single_label_clips']} of {counts['num_clips']}"
        warnings.append(f"zero-shot: accuracy is over the {share} clips with one label")
    if counts["num_classes_present"] < counts["num_classes"]:
        share = f"{counts['num_classes_present']} of {counts['num_classes']}"
        warnings.append(f"zero-shot: {share} classes have clips in the split")
    if counts["num_classes"] == 1:
        warnings.append("zero-shot: there is one class only, so that every clip is right; more come with --classes")
    return warnings
