"""Geometry of the embeddings: how close pairs are, how spread each modality is, how far the two lie apart, and hubs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.data.manifest import Manifest
from clapkit.errors import MetricError
from clapkit.metrics import geometry
from clapkit.metrics.hubness import hubness, k_occurrence, largest_hubs
from clapkit.metrics.separability import modality_separability
from clapkit.metrics.statistics import bootstrap_intervals, weighted_mean
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.result import Task, TaskResult

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Work that grows with N^2 is done on at most so many rows or queries, drawn with the seed of the command.
MAX_ROWS = 10_000
# Queries of margins times the pairs that each is compared with: so many comparisons take seconds.
_MAX_COMPARISONS = 250_000_000
# Clips whose cosines with the captions of all others of them stand for the negative ones.
_MAX_NEGATIVES = 1_000
# Length of the lists of hubness; a tenth of a smaller gallery.
_MAX_K = 10
_NUM_HUBS = 10
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Metric -> column of the table ``geometry`` whose mean over the clips it is.
_MEANS = {
    "alignment": "squared_distance",
    "positive_cosine": "positive_cosine",
    "margin_t2a": "margin_t2a",
    "margin_a2t": "margin_a2t",
}


def build() -> Task:
    """Geometry."""
    return Geometry()


@dataclass(frozen=True, slots=True)
class _Pairs:
    """The clips that have captions.

    Attributes:
        clip: int64 [P], rows among the evaluated clips.
        audio: unit norm [P, D].
        text: unit-norm mean of the captions of each [P, D].
    """

    clip: IntArray
    audio: FloatArray
    text: FloatArray


class Geometry:
    """Pairs of a clip and the mean of its captions; what needs no captions is measured on all clips."""

    needs = "captions or labels"
    by_default = True
    needs_model = False

    def possible(self, split: Manifest) -> bool:
        """Whether at least two clips have a caption or a label."""
        return sum(bool(clip.captions or clip.labels) for clip in split) >= 2

    def run(self, evaluated: Evaluated) -> TaskResult:
        """All measures that the data allow; see ``clapkit.metrics.geometry``."""
        seed, num_clips = evaluated.config.seed, len(evaluated.clips)
        result = TaskResult(counts={"num_clips": num_clips, "num_captions": 0, "embedding_dim": evaluated.audio.shape[1]})
        result.protocol = {
            "text": "unit-norm mean of the captions of a clip; hubness takes every caption",
            "max_rows": MAX_ROWS,
            "seed": seed,
        }
        if num_clips < 2:
            result.warnings.append(f"geometry: left out, as it needs two clips and there is {num_clips}")
            return result
        result.metrics["uniformity_audio"] = _uniformity(evaluated.audio, seed=seed)
        _add_ranks(result, "audio", evaluated.audio)
        _add_tolerance(result, evaluated)
        pairs = _pairs(evaluated)
        if pairs is None:
            result.warnings.append("geometry: fewer than two clips have captions, so only audio is measured")
        else:
            _add_pairs(result, pairs, evaluated)
            _add_hubness(result, evaluated)
        _add_temperature(result, evaluated)
        if num_clips > MAX_ROWS or result.counts["num_captions"] > MAX_ROWS:
            result.warnings.append(
                f"geometry: uniformity and hubness are of at most {MAX_ROWS} clips, hubness of {MAX_ROWS} queries, and margins "
                f"of {len(result.per_query.get('geometry', {}).get('clip', []))} clips (seed {seed})"
            )
        return result


def _pairs(evaluated: Evaluated) -> _Pairs | None:
    if sum(bool(clip.captions) for clip in evaluated.clips) < 2:
        return None
    captions = evaluated.captions
    clip, text = geometry.group_directions(captions.vectors, captions.clip)
    return _Pairs(clip, evaluated.audio[clip], text)


def _uniformity(vectors: FloatArray, *, seed: int) -> float:
    return geometry.uniformity(vectors[geometry.sample_rows(len(vectors), limit=MAX_ROWS, seed=seed)])


def _add_ranks(result: TaskResult, modality: str, vectors: FloatArray) -> None:
    result.metrics[f"effective_rank_{modality}"] = geometry.effective_rank(vectors)
    try:
        result.metrics[f"participation_ratio_{modality}"] = geometry.participation_ratio(vectors)
    except MetricError as error:  # a collapsed model has other numbers that must be seen
        result.warnings.append(f"geometry: participation_ratio_{modality} is left out: {error}")


def _add_tolerance(result: TaskResult, evaluated: Evaluated) -> None:
    labels = [clip.labels for clip in evaluated.clips]
    column = {name: number for number, name in enumerate(sorted({name for given in labels for name in given}))}
    mask = np.zeros((len(labels), len(column)), dtype=bool)
    for row, given in enumerate(labels):
        mask[row, [column[name] for name in given]] = True
    if (mask.sum(axis=0) >= 2).any():
        result.metrics["tolerance"] = geometry.tolerance(evaluated.audio, mask)
        result.counts["num_labelled_clips"] = int(mask.any(axis=1).sum())


def _add_pairs(result: TaskResult, pairs: _Pairs, evaluated: Evaluated) -> None:
    """Measures of both modalities, and the table with one row per clip."""
    config, audio, text = evaluated.config, pairs.audio, pairs.text
    result.counts |= {"num_captioned_clips": len(audio), "num_captions": len(evaluated.captions.texts)}
    result.metrics |= {
        "modality_gap": geometry.modality_gap(audio, text),
        "uniformity_text": _uniformity(text, seed=config.seed),
        "negative_cosine": geometry.mean_negative_cosine(audio, text),
        "modality_separability": modality_separability(audio, text),
    }
    result.protocol["modality_separability"] = "ridge regression on -1 and +1, 5 folds, both rows of a pair in one fold"
    _add_ranks(result, "text", text)
    rows = geometry.sample_rows(len(audio), limit=min(MAX_ROWS, max(1, _MAX_COMPARISONS // len(audio))), seed=config.seed)
    cosines = geometry.positive_cosines(audio[rows], text[rows])
    columns: dict[str, FloatArray] = {
        "squared_distance": 2 - 2 * cosines,
        "positive_cosine": cosines,
        "margin_t2a": geometry.margins(text[rows], audio, rows),
        "margin_a2t": geometry.margins(audio[rows], text, rows),
    }
    result.metrics |= {metric: float(columns[column].mean()) for metric, column in _MEANS.items()}
    result.metrics["alignment"] = geometry.alignment(audio, text)
    result.metrics["positive_cosine"] = geometry.mean_positive_cosine(audio, text)
    result.details["distributions"] = _distributions(columns, audio, text, seed=config.seed)
    result.protocol["quantiles_of_negative_cosines"] = f"all pairs of at most {_MAX_NEGATIVES} clips"
    _add_table(result, pairs.clip[rows], columns, evaluated, every=len(rows) == len(audio))


def _add_table(
    result: TaskResult, clip: IntArray, columns: Mapping[str, FloatArray], evaluated: Evaluated, *, every: bool
) -> None:
    """Per-clip values, the intervals that follow from them, and which metrics are their means.

    Args:
        result: gets all three.
        clip: rows of the clips among those evaluated [P].
        columns: name -> values [P].
        evaluated: clips and configuration.
        every: whether no clip was left out by sampling; if one was, means over all clips are no means of the columns.
    """
    config = evaluated.config
    table: dict[str, Any] = {"id": [evaluated.clips[row].id for row in clip], "clip": clip, **columns}
    result.per_query["geometry"] = table
    means = {metric: column for metric, column in _MEANS.items() if every or metric.startswith("margin")}
    result.tested |= {metric: ("geometry", column) for metric, column in means.items()}
    if config.bootstrap:
        place = np.arange(len(clip))
        result.intervals |= bootstrap_intervals(
            {metric: weighted_mean(columns[column], place, num_clips=len(clip)) for metric, column in means.items()},
            num_clips=len(clip),
            num_draws=config.bootstrap,
            seed=config.seed,
        )


def _distributions(columns: Mapping[str, FloatArray], audio: FloatArray, text: FloatArray, *, seed: int) -> dict[str, Any]:
    """Quantiles of cosines and margins, and the share of margins that are lost."""
    some = geometry.sample_rows(len(audio), limit=_MAX_NEGATIVES, seed=seed)
    cosines = audio[some].astype(np.float64) @ text[some].T  # [S, S]
    found = {"negative_cosine": _quantiles(cosines[~np.eye(len(some), dtype=bool)])}
    found |= {name: _quantiles(columns[name]) for name in ("positive_cosine", "margin_t2a", "margin_a2t")}
    for name in ("margin_t2a", "margin_a2t"):
        found[name]["share_not_positive"] = float((columns[name] <= 0).mean())
    return found


def _quantiles(values: FloatArray) -> dict[str, float]:
    return {
        f"q{round(100 * q):02d}": float(value) for q, value in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)
    }


def _add_hubness(result: TaskResult, evaluated: Evaluated) -> None:
    """Both directions; every caption of the clips that take part is a query and an item."""
    captions, clips, seed = evaluated.captions, evaluated.clips, evaluated.config.seed
    captioned, gallery = _clips_of_hubness(captions.clip, num_clips=len(clips), seed=seed)
    sentences = np.flatnonzero(np.isin(captions.clip, captioned))

    def of_clip(place: int) -> dict[str, Any]:
        return {"id": clips[gallery[place]].id}

    def of_caption(place: int) -> dict[str, Any]:
        return {"id": clips[captions.clip[sentences[place]]].id, "caption": captions.texts[sentences[place]]}

    sides: dict[str, tuple[FloatArray, FloatArray, Callable[[int], dict[str, Any]]]] = {
        "t2a": (captions.vectors[sentences], evaluated.audio[gallery], of_clip),
        "a2t": (evaluated.audio[captioned], captions.vectors[sentences], of_caption),
    }
    result.details["hubness"] = {}
    for direction, (queries, items, describe) in sides.items():
        rows = geometry.sample_rows(len(queries), limit=MAX_ROWS, seed=seed)
        k = min(_MAX_K, max(1, len(items) // 10))
        occurrence = k_occurrence(queries[rows], items, k)
        found = hubness(occurrence, num_queries=len(rows))
        result.metrics[f"hubness_{direction}"] = found.skewness
        result.protocol[f"hubness_{direction}_k"] = k
        result.details["hubness"][direction] = {
            "k": k,
            "num_queries": len(rows),
            "num_items": len(items),
            "skewness": found.skewness,
            "never_retrieved_share": found.never_retrieved_share,
            "largest_share": found.largest_share,
            "largest": [describe(row) | {"count": float(occurrence[row])} for row in largest_hubs(occurrence, _NUM_HUBS)],
        }


def _clips_of_hubness(caption_clip: IntArray, *, num_clips: int, seed: int) -> tuple[IntArray, IntArray]:
    """The clips with captions that take part, and those that can be found, which are more by clips without captions.

    Both sides are sampled, because the same queries in a larger gallery would hit nearly every item once at most.
    """
    captioned = np.unique(caption_clip)
    others = np.setdiff1d(np.arange(num_clips), captioned)
    chosen, beside = (rows[geometry.sample_rows(len(rows), limit=MAX_ROWS, seed=seed)] for rows in (captioned, others))
    return chosen, np.union1d(chosen, beside)


def _add_temperature(result: TaskResult, evaluated: Evaluated) -> None:
    scale = None if evaluated.model is None else evaluated.model.config.get("logit_scale")
    if scale:
        result.details["temperature"] = {"logit_scale": float(scale), "tau": 1 / float(scale)}
