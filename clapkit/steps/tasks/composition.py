"""Composition: pairs and triples of clips that differ in how their parts hang together, and what shuffled words cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from clapkit.data.manifest import Manifest
from clapkit.metrics.composition import composition_chance, composition_scores
from clapkit.metrics.statistics import bootstrap_intervals, weighted_mean
from clapkit.steps.evaluation.composition_items import KEYS, Items, find_items
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.result import Task, TaskResult
from clapkit.steps.evaluation.word_order import add_word_order


def build() -> Task:
    """Compositional items, and sensitivity to the order of words."""
    return Composition()


class Composition:
    """Scores CompA-like items where there are some, and retrieval with shuffled words wherever there are captions."""

    needs = "captions"
    by_default = False
    needs_model = False  # items do not; shuffled words do

    def possible(self, split: Manifest) -> bool:
        """Whether a clip has a caption."""
        return any(clip.captions for clip in split)

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Both parts; see ``clapkit.metrics.composition`` and ``clapkit.steps.evaluation.word_order``."""
        result = TaskResult(protocol={"items": f"clips that share an item in extra.{' or extra.'.join(KEYS)}"})
        splits = {clip.split for clip in evaluated.clips}
        found = find_items(evaluated.clips, (clip for clip in evaluated.manifest if clip.split in splits))
        for task, items in found.items():
            _add_task(result, evaluated, task, items)
        if found:
            result.protocol["captions_of_items"] = "the first of each clip"
        if evaluated.model is None:
            result.warnings.append("word order: left out, because shuffled captions need a model that can embed them")
        else:
            add_word_order(result, evaluated)
        return result


def _add_task(result: TaskResult, evaluated: Evaluated, task: str, items: Items) -> None:
    """Pairs and triples of one task; text and audio scores of triples are no headline numbers."""
    result.counts |= {
        f"num_{task}_pairs": len(items.pairs),
        f"num_{task}_triples": len(items.triples),
        f"num_{task}_incomplete": items.num_incomplete,
        f"num_{task}_incomplete_triples": items.num_incomplete_triples,
    }
    for number, whole, what in (
        (items.num_incomplete, items.num_incomplete + len(items.pairs), "items"),
        (items.num_incomplete_triples, items.num_incomplete_triples + len(items.triples), "triples"),
    ):
        if number:
            result.warnings.append(
                f"composition: {number} of {whole} {what} of {task} lack a clip or a caption and are left out"
            )
    if items.pairs:
        _add_scores(result, evaluated, items.pairs, task, names=("text", "audio", "group"))
    if items.triples:
        _add_scores(result, evaluated, items.triples, f"{task}_triples", names=("group",))


def _add_scores(
    result: TaskResult, evaluated: Evaluated, items: Mapping[str, tuple[int, ...]], name: str, *, names: tuple[str, ...]
) -> None:
    rows = np.array(list(items.values()))  # [I, C]
    solved = {kind: values.astype(np.float64) for kind, values in composition_scores(_similarity(evaluated, rows)).items()}
    chance = composition_chance(rows.shape[1])
    table = f"composition_{name}"
    columns: dict[str, Any] = {
        "id": [evaluated.clips[row].id for row in rows[:, 0]],
        "clip": rows[:, 0],
        "item": list(items),
        **solved,
    }
    result.per_query[table] = columns
    result.metrics |= {f"{table}_{kind}": float(solved[kind].mean()) for kind in names}
    result.chance |= {f"{table}_{kind}": chance[kind] for kind in names}
    result.tested |= {f"{table}_{kind}": (table, kind) for kind in names}
    result.details.setdefault("scores", {})[name] = {
        kind: {"value": float(values.mean()), "chance": chance[kind]} for kind, values in solved.items()
    }
    config = evaluated.config
    if config.bootstrap:
        size = len(rows)
        summaries = {f"{table}_{kind}": weighted_mean(solved[kind], np.arange(size), num_clips=size) for kind in names}
        result.intervals |= bootstrap_intervals(summaries, num_clips=size, num_draws=config.bootstrap, seed=config.seed)


def _similarity(evaluated: Evaluated, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Cosines [I items, C clips, C captions], float32 as everywhere."""
    captions = evaluated.captions
    first = np.unique(captions.clip, return_index=True)  # clips with captions, and the first caption of each
    caption = first[1][np.searchsorted(first[0], rows)]
    audio, text = evaluated.audio[rows].astype(np.float64), captions.vectors[caption].astype(np.float64)  # [I, C, D]
    similarity: np.ndarray[Any, Any] = np.einsum("icd,ijd->icj", audio, text).astype(np.float32)
    return similarity
