"""Retrieval in both directions, with the variants of the field beside the headline numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest
from clapkit.metrics.blockwise import count_pairs
from clapkit.metrics.mean_average_precision import Denominator
from clapkit.metrics.retrieval import HEADLINE_KS, evaluate_counted, evaluate_rankings, retrieval_intervals
from clapkit.steps.evaluation.captions import merged_pairs, shared_texts
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.relevance import RelevantPairs, fingerprint, read_relevance, relevant_pairs
from clapkit.steps.evaluation.result import Task, TaskResult

IntArray = npt.NDArray[np.int64]
# Comparisons that the further pairs of merged texts may cost, one with every clip and caption each: less than a minute.
_MERGED_COMPARISONS = 2e10
# With many relevant clips the denominators differ; the DCASE challenge of 2025 ranks by 16 files.
_RELEVANCE_PRECISIONS: Mapping[str, tuple[int, Denominator]] = {
    "mAP@10": (10, "relevant"),
    "mAP@10_min": (10, "min"),
    "mAP@16": (16, "relevant"),
    "mAP@16_min": (16, "min"),
}


def build() -> Task:
    """Retrieval."""
    return Retrieval()


class Retrieval:
    """Captions look for clips, and clips for captions."""

    needs = "captions"
    by_default = True
    needs_model = False

    def possible(self, split: Manifest) -> bool:
        """Whether a clip has a caption."""
        return any(clip.captions for clip in split)

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Both directions; see ``clapkit.metrics.retrieval``.

        Raises:
            ManifestError: if the table of relevance does not fit the data.
        """
        captions, num_clips = evaluated.captions, len(evaluated.clips)
        pairs = _Pairs(captions.clip, num_clips=num_clips)
        result = TaskResult()
        merged = _merged(captions.texts, captions.clip, num_clips=num_clips, result=result)
        table = _table(evaluated, result)
        rows_merged = None if merged is None else pairs.add(*merged)
        rows_table = None if table is None else pairs.add(table.clip, table.caption)
        counted = count_pairs(evaluated.audio, captions.vectors, *pairs.listed())
        is_own = np.arange(len(counted.clip)) < len(captions.clip)
        found = evaluate_counted(counted, is_own, captions.clip, num_clips=num_clips)
        _add_headline(result, found, evaluated)
        if rows_merged is not None:
            relevant = is_own.copy()
            relevant[rows_merged] = True
            same = evaluate_counted(counted, relevant, captions.clip, num_clips=num_clips)
            result.variants["text_merged"] = _variant(same, evaluated)
        if rows_table is not None:
            relevant = np.zeros(len(counted.clip), dtype=bool)
            relevant[rows_table] = True
            queries, ranking = counted.text_to_audio(relevant)
            judged = evaluate_rankings(
                {"t2a": ranking},
                clip_of_query={"t2a": captions.clip[queries]},
                num_items={"t2a": num_clips},
                ks=HEADLINE_KS,
                precisions=_RELEVANCE_PRECISIONS,
            )
            result.variants["relevance"] = _variant(judged, evaluated)
        return result


class _Pairs:
    """Pairs of clips and captions that are to be ranked, each once; those of the data come first."""

    def __init__(self, caption_clip: IntArray, *, num_clips: int) -> None:
        self.num_clips = num_clips
        self.keys = np.arange(len(caption_clip)) * num_clips + caption_clip

    def add(self, clip: IntArray, caption: IntArray) -> IntArray:
        """Add what is not there yet, and give the rows of all [P]."""
        wanted = caption * self.num_clips + clip
        self.keys = np.concatenate((self.keys, np.setdiff1d(wanted, self.keys)))
        order = np.argsort(self.keys)
        rows: IntArray = order[np.searchsorted(self.keys, wanted, sorter=order)]
        return rows

    def listed(self) -> tuple[IntArray, IntArray]:
        """The clip and the caption of each pair."""
        return self.keys % self.num_clips, self.keys // self.num_clips


def _merged(texts: Sequence[str], clip: IntArray, *, num_clips: int, result: TaskResult) -> tuple[IntArray, IntArray] | None:
    """Further pairs of captions with equal words; None if no two clips share one, or there are too many."""
    merged = merged_pairs(texts, clip, most=int(_MERGED_COMPARISONS / (num_clips + len(texts))))
    if isinstance(merged, int):
        result.warnings.append(
            f"text_merged is left out: equal captions make {merged} further relevant pairs, too many to rank"
        )
        return None
    return merged if len(merged[0]) else None


def _table(evaluated: Evaluated, result: TaskResult) -> RelevantPairs | None:
    path = evaluated.config.relevance
    if path is None:
        return None
    judgements = read_relevance(path, evaluated.manifest)
    table = relevant_pairs(judgements, evaluated.clips)
    result.protocol["relevance"] = {"fingerprint": fingerprint(judgements), "num_judgements": len(judgements)}
    result.warnings += table.warnings
    return table


def _add_headline(result: TaskResult, found: dict[str, Any], evaluated: Evaluated) -> None:
    captions = evaluated.captions
    shared = shared_texts(captions.texts, captions.clip)
    result.metrics, result.chance = found["metrics"], found["chance"]
    result.intervals = _intervals(found, evaluated)
    result.counts = found["counts"] | {"num_duplicate_captions": shared.num_captions}
    result.details = {name: found[name] for name in ("macro", "ties", "expected")} | {"t2a_R@1_ceiling": shared.ceiling}
    result.warnings = found["warnings"] + result.warnings
    result.per_query = {
        direction: {"id": [evaluated.clips[row].id for row in columns["clip"]], **columns}
        for direction, columns in found["per_query"].items()
    }
    result.per_query["t2a"] = {**result.per_query["t2a"], "caption": captions.texts}
    result.tested = _tested(found["metrics"])


def _variant(found: dict[str, Any], evaluated: Evaluated) -> dict[str, Any]:
    intervals = _intervals(found, evaluated)
    return {"metrics": found["metrics"], "intervals": intervals, "chance": found["chance"], "counts": found["counts"]}


def _intervals(found: dict[str, Any], evaluated: Evaluated) -> dict[str, tuple[float, float]]:
    config = evaluated.config
    if not config.bootstrap:
        return {}
    return retrieval_intervals(found["per_query"], num_draws=config.bootstrap, seed=config.seed)


def _tested(metrics: dict[str, float]) -> dict[str, tuple[str, str]]:
    """Metrics that are means over clips, and the columns they are means of."""
    found = {}
    for metric in metrics:
        direction, name = metric.split("_", 1)
        if name != "MedR":
            found[metric] = (direction, "rank" if name == "MeanR" else name)
    return found
