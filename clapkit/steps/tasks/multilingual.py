"""Retrieval with captions of several languages: each language by itself, their mean, the worst, and whether they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.metrics.cross_lingual import consistency, mean_over_languages, parallel_distance, top1_agreement
from clapkit.metrics.nearest import top_items
from clapkit.metrics.retrieval import evaluate_embeddings
from clapkit.metrics.statistics import bootstrap_intervals, weighted_mean
from clapkit.steps.evaluation.context import Captions, Evaluated
from clapkit.steps.evaluation.result import Task, TaskResult

IntArray = npt.NDArray[np.int64]

KS = (1, 5, 10)
TOP = 10
"""Items of which the overlap of two languages is taken."""

_METRICS = (*(f"R@{k}" for k in KS), "mAP@10")
# Column of the parallel captions -> metric.
_CONSISTENCY = {
    "rank_variance": "mean_rank_variance",
    "log_rank_variance": "mean_log_rank_variance",
    "top1_agreement": "top1_agreement",
    "top10_jaccard": "top10_jaccard",
    "right_in_every_language": "right_in_every_language",
    "right_in_any_language": "right_in_any_language",
    "distance": "caption_distance",
}


def build() -> Task:
    """Multilingual retrieval."""
    return Multilingual()


class Multilingual:
    """Captions of one language look for clips and clips for captions of one language; languages count alike."""

    needs = "captions of a second language"
    by_default = True
    needs_model = False

    def possible(self, split: Manifest) -> bool:
        """Whether captions have two languages or more."""
        return len({caption.lang for clip in split for caption in clip.captions}) > 1

    def run(self, evaluated: Evaluated) -> TaskResult:
        """All languages; see ``clapkit.metrics.cross_lingual`` for what is said of their agreement."""
        captions = evaluated.captions
        languages = sorted(set(captions.languages))
        if len(languages) < 2:
            raise ManifestError("no clip that could be embedded has captions of a second language; see rejected.jsonl")
        found = [_one_language(evaluated, language) for language in languages]
        parallel = parallel_captions(captions)
        result = TaskResult(
            counts={"num_languages": len(languages), "num_clips": len(np.unique(captions.clip))},
            protocol={
                "languages": languages,
                "mean": "unweighted, over all languages"
                + (", English among them" if "en" in languages else "; no caption is English"),
                "t2a_gallery": "all clips",
                "a2t_gallery": "captions of the language",
                "parallel": "the j-th caption of a clip in each language",
            },
            details={"per_language": {}, "worst_language": {}},
        )
        _add_languages(result, found, evaluated)
        # Where a translation is missing, the mean over languages is no mean over queries, which a paired test needs.
        _add_means(result, found, evaluated, is_tested=parallel.size == len(captions.texts))
        _add_consistency(result, found, evaluated, parallel)
        return result


@dataclass(frozen=True, slots=True)
class _Language:
    """Retrieval in one language.

    Attributes:
        name: its tag.
        rows: int64 [M], its captions among all.
        columns: direction -> name -> [Q], of its queries: ``clip``, ``rank`` and the metrics.
        chance: name of a metric -> what guessing gets.
        top: int64 [M, K], the best clips of each caption, best first.
    """

    name: str
    rows: IntArray
    columns: Mapping[str, Mapping[str, npt.NDArray[Any]]]
    chance: Mapping[str, float]
    top: IntArray

    @property
    def metrics(self) -> dict[str, float]:
        """``t2a_R@1`` ... ``a2t_mAP@10``, means over queries."""
        return {
            f"{direction}_{name}": float(columns[name].mean())
            for direction, columns in self.columns.items()
            for name in _METRICS
        }


def _one_language(evaluated: Evaluated, language: str) -> _Language:
    captions, audio = evaluated.captions, evaluated.audio
    rows = np.array([row for row, spoken in enumerate(captions.languages) if spoken == language], dtype=np.int64)
    vectors, clips = captions.vectors[rows], captions.clip[rows]
    found = evaluate_embeddings(audio, vectors, clips, ks=KS)
    wanted = ("clip", "rank", *_METRICS)
    return _Language(
        name=language,
        rows=rows,
        columns={way: {name: columns[name] for name in wanted} for way, columns in found["per_query"].items()},
        chance={f"{way}_{name}": found["chance"][f"{way}_{name}"] for way in found["per_query"] for name in _METRICS},
        top=top_items(vectors, audio, min(TOP, len(audio))),
    )


def _add_languages(result: TaskResult, found: Sequence[_Language], evaluated: Evaluated) -> None:
    """What is said of each language alone."""
    for language in found:
        intervals = {}
        if evaluated.config.bootstrap:
            clips = language.columns["a2t"]["clip"]
            summaries = {
                f"{direction}_{name}": weighted_mean(
                    columns[name], np.searchsorted(clips, columns["clip"]), num_clips=len(clips)
                )
                for direction, columns in language.columns.items()
                for name in _METRICS
            }
            intervals = bootstrap_intervals(
                summaries, num_clips=len(clips), num_draws=evaluated.config.bootstrap, seed=evaluated.config.seed
            )
        counts = {"num_captions": len(language.rows), "num_clips": len(language.columns["a2t"]["clip"])}
        result.variants[f"language_{language.name}"] = {"metrics": language.metrics, "intervals": intervals}
        result.details["per_language"][language.name] = {**counts, "metrics": language.metrics}
    for direction in ("t2a", "a2t"):
        metric = f"{direction}_R@1"
        worst = min(found, key=lambda language: language.metrics[metric])
        result.metrics[f"multilingual_worst_{metric}"] = worst.metrics[metric]
        result.details["worst_language"][metric] = worst.name
        interval = result.variants[f"language_{worst.name}"]["intervals"].get(metric)
        if interval is not None:
            result.intervals[f"multilingual_worst_{metric}"] = interval
        result.per_query[f"multilingual_{direction}"] = _queries(found, direction, evaluated)


def _queries(found: Sequence[_Language], direction: str, evaluated: Evaluated) -> dict[str, Any]:
    """One row per query, language after language."""
    parts = [language.columns[direction] for language in found]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    columns: dict[str, Any] = {
        "id": [evaluated.clips[row].id for row in joined["clip"]],
        "language": [language.name for language, part in zip(found, parts, strict=True) for _ in part["clip"]],
    }
    if direction == "t2a":
        columns["caption"] = [evaluated.captions.texts[row] for language in found for row in language.rows]
    return columns | joined


def _add_means(result: TaskResult, found: Sequence[_Language], evaluated: Evaluated, *, is_tested: bool) -> None:
    """Unweighted means over languages."""
    clips = np.unique(evaluated.captions.clip)
    summaries = {
        f"multilingual_{direction}_{name}": mean_over_languages(
            [language.columns[direction][name] for language in found],
            [np.searchsorted(clips, language.columns[direction]["clip"]) for language in found],
            num_clips=len(clips),
        )
        for direction in ("t2a", "a2t")
        for name in _METRICS
    }
    everything = np.ones((1, len(clips)))
    result.metrics |= {name: float(summary(everything)[0]) for name, summary in summaries.items()}
    result.chance |= {
        f"multilingual_{name}": float(np.mean([language.chance[name] for language in found])) for name in found[0].chance
    }
    config = evaluated.config
    if config.bootstrap:
        result.intervals |= bootstrap_intervals(summaries, num_clips=len(clips), num_draws=config.bootstrap, seed=config.seed)
    if is_tested:
        for name in summaries:
            direction, column = name.removeprefix("multilingual_").split("_", 1)
            result.tested[name] = (f"multilingual_{direction}", column)


def _add_consistency(result: TaskResult, found: Sequence[_Language], evaluated: Evaluated, parallel: IntArray) -> None:
    """Whether parallel captions, int64 [L, Q], find the same."""
    captions = evaluated.captions
    num_left_out = len(captions.texts) - parallel.size
    result.counts |= {"num_parallel_captions": parallel.shape[1], "num_captions_without_translation": num_left_out}
    if num_left_out:
        result.warnings.append(
            f"multilingual: {num_left_out} of {len(captions.texts)} captions lack a translation into one of the "
            f"{len(found)} languages; they are left out of the agreement of languages"
        )
    if not parallel.shape[1]:
        result.warnings.append("multilingual: no caption is there in every language, so nothing is said about their agreement")
        return
    if len(evaluated.clips) <= TOP:
        result.warnings.append(
            f"multilingual: the gallery has {len(evaluated.clips)} clips, so the overlap of the best {TOP} says nothing"
        )
    # Captions of a language are in the order of all captions, so that a row is found by bisection.
    places = [np.searchsorted(language.rows, rows) for language, rows in zip(found, parallel, strict=True)]
    pairs = list(zip(found, places, strict=True))
    rank = np.stack([language.columns["t2a"]["rank"][place] for language, place in pairs])  # [L, Q]
    top = np.stack([language.top[place] for language, place in pairs])  # [L, Q, K]
    columns = consistency(rank, top)
    columns["top10_jaccard"] = columns.pop(f"top{top.shape[2]}_jaccard")
    columns["distance"] = parallel_distance(captions.vectors[parallel])
    clip = captions.clip[parallel[0]]
    result.metrics |= {f"multilingual_{name}": float(columns[column].mean()) for column, name in _CONSISTENCY.items()}
    agreement = top1_agreement(top[:, :, 0])
    names = [language.name for language in found]
    result.details["top1_agreement"] = {
        f"{names[i]}-{names[j]}": float(agreement[i, j]) for i in range(len(names)) for j in range(i + 1, len(names))
    }
    table: dict[str, Any] = {
        "id": [evaluated.clips[row].id for row in clip],
        "clip": clip,
        "caption": [captions.texts[row] for row in parallel[0]],
        **columns,
    }
    result.per_query["multilingual_parallel"] = table
    result.tested |= {f"multilingual_{name}": ("multilingual_parallel", column) for column, name in _CONSISTENCY.items()}
    config = evaluated.config
    if config.bootstrap:
        clips, index = np.unique(clip, return_inverse=True)
        summaries = {
            f"multilingual_{name}": weighted_mean(columns[column], index, num_clips=len(clips))
            for column, name in _CONSISTENCY.items()
        }
        result.intervals |= bootstrap_intervals(summaries, num_clips=len(clips), num_draws=config.bootstrap, seed=config.seed)


def parallel_captions(captions: Captions) -> IntArray:
    """Rows of the captions that are translations of each other, int64 [L languages, Q], languages sorted.

    The j-th caption of a clip in one language belongs to the j-th in every other; what has no counterpart in one language is
    left out of all.
    """
    languages = sorted(set(captions.languages))
    rows: dict[int, dict[str, list[int]]] = {}
    for row, (clip, language) in enumerate(zip(captions.clip.tolist(), captions.languages, strict=True)):
        rows.setdefault(clip, {name: [] for name in languages})[language].append(row)
    # zip stops where the shortest language does.
    parallel = [group for spoken in rows.values() for group in zip(*spoken.values(), strict=False)]
    return np.array(parallel, dtype=np.int64).reshape(-1, len(languages)).T
