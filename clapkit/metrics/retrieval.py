"""Retrieval in both directions from one similarity matrix and an explicit caption-to-clip map.

Text to audio (``t2a``): every caption is a query, the gallery is all clips, one clip is relevant. Audio to text
(``a2t``): every clip that has captions is a query, the gallery is all captions, those of the clip are relevant and
the best of them counts. Clips without captions are distractors. Captions per clip may vary and come in any order;
headline numbers are means over queries, and the mean over clips is given beside them.

The definitions are those of ``docs/metrics.md``; a change of any of them changes ``DEFINITIONS_VERSION``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.mean_average_precision import average_precision
from clapkit.metrics.ranking import (
    FloatArray,
    IntArray,
    Ranking,
    best_rank,
    check_cutoff,
    checked_scores,
    hit_probability,
    rank_pairs,
)
from clapkit.metrics.statistics import Summary, bootstrap_intervals, weighted_mean, weighted_median

DEFINITIONS_VERSION = 1
# Above this share of tied queries the pessimistic numbers alone would mislead, so the expected ones are given as well.
_MANY_TIES = 0.001


def evaluate_retrieval(
    similarity: npt.ArrayLike, caption_clip: npt.ArrayLike, *, ks: Sequence[int] = (1, 5, 10), cutoff: int = 10
) -> dict[str, Any]:
    """Both directions of retrieval.

    Args:
        similarity: cosines [N clips, M captions], float32 or float64.
        caption_clip: integers [M], the row of the clip that each caption belongs to.
        ks: cut-offs of R@k.
        cutoff: cut-off of mAP.

    Returns:
        A dict with

        * ``metrics``: ``t2a_R@1`` ... ``a2t_MRR`` -> value, means over queries (MedR: plain median), fractions;
        * ``macro``: the same for the means over clips of the mean over the clip's queries (no MedR);
        * ``ties``: ``t2a_num_tied_queries``, ``a2t_num_tied_queries``;
        * ``expected``: R@k and MeanR averaged over random orders of tied items, for directions with many ties;
        * ``counts``: ``t2a_num_queries``, ``t2a_num_items``, ``a2t_num_queries``, ``a2t_num_items``;
        * ``warnings``: sentences;
        * ``per_query``: direction -> name -> array [Q]; ``clip`` is the row of the query's clip.

    Raises:
        MetricError: if the similarity is not finite or a caption points to no clip.
    """
    scores = checked_scores(similarity, name="similarity")
    clips = _checked_captions(caption_clip, scores.shape)
    for k in (*ks, cutoff):
        check_cutoff(k)
    captions = np.arange(scores.shape[1])
    query_clips, compact = np.unique(clips, return_inverse=True)
    gallery = scores if len(query_clips) == len(scores) else scores[query_clips]
    rankings = {"t2a": rank_pairs(scores.T, captions, clips), "a2t": rank_pairs(gallery, compact, captions)}
    clip_of_query = {"t2a": clips, "a2t": query_clips}
    num_items = {"t2a": scores.shape[0], "a2t": scores.shape[1]}
    result: dict[str, Any] = {
        "metrics": {},
        "macro": {},
        "ties": {f"{d}_num_tied_queries": r.num_tied_queries for d, r in rankings.items()},
        "expected": {},
        "counts": {},
        "warnings": [],
        "per_query": {},
    }
    for direction, ranking in rankings.items():
        values = _per_query(ranking, ks=ks, cutoff=cutoff)
        per_query = {"clip": clip_of_query[direction], **values}
        result["per_query"][direction] = per_query
        result["metrics"] |= {f"{direction}_{name}": value for name, value in _summarise(values).items()}
        result["macro"] |= {f"{direction}_{name}": value for name, value in _macro(per_query).items()}
        result["counts"] |= {
            f"{direction}_num_queries": ranking.num_queries,
            f"{direction}_num_items": num_items[direction],
        }
        result["warnings"] += _warnings(direction, ranking, num_items[direction], cutoffs=(*ks, cutoff))
        if ranking.num_tied_queries > _MANY_TIES * ranking.num_queries:
            result["expected"] |= {f"{direction}_{name}": value for name, value in _expected(ranking, ks).items()}
    return result


def retrieval_intervals(
    per_query: Mapping[str, Mapping[str, npt.ArrayLike]], *, num_draws: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the metrics: clips are drawn, with all their captions, for both directions at once.

    Args:
        per_query: as ``evaluate_retrieval`` gives it.
        num_draws: bootstrap samples.
        seed: of the draws.

    Returns:
        metric name -> (lower, upper).
    """
    query_clips = np.unique(np.asarray(per_query["a2t"]["clip"]))
    summaries: dict[str, Summary] = {}
    for direction, columns in per_query.items():
        clip = np.searchsorted(query_clips, np.asarray(columns["clip"]))
        for name, values in columns.items():
            if name not in ("clip", "rank"):
                summaries[f"{direction}_{name}"] = weighted_mean(values, clip, num_clips=len(query_clips))
        rank = columns["rank"]
        summaries[f"{direction}_MedR"] = weighted_median(rank, clip, num_clips=len(query_clips))
        summaries[f"{direction}_MeanR"] = weighted_mean(rank, clip, num_clips=len(query_clips))
    return bootstrap_intervals(summaries, num_clips=len(query_clips), num_draws=num_draws, seed=seed)


def clip_means(values: npt.ArrayLike, clip: npt.ArrayLike) -> tuple[IntArray, FloatArray]:
    """Mean over the queries of each clip.

    Args:
        values: per-query values [Q].
        clip: integers [Q], the clip of each query.

    Returns:
        The clips, ascending, and their means.
    """
    clips, index = np.unique(np.asarray(clip), return_inverse=True)
    means: FloatArray = np.bincount(index, weights=np.asarray(values, dtype=np.float64)) / np.bincount(index)
    return clips, means


def _checked_captions(caption_clip: npt.ArrayLike, shape: tuple[int, ...]) -> IntArray:
    clips = np.asarray(caption_clip)
    if clips.shape != (shape[1],) or clips.dtype.kind not in "iu":
        raise MetricError(
            f"caption_clip: {clips.dtype} {list(clips.shape)}, expected {shape[1]} whole numbers, one per caption"
        )
    dangling = (clips < 0) | (clips >= shape[0])
    if dangling.any():
        caption = int(np.argmax(dangling))
        raise MetricError(f"caption {caption}: belongs to clip {clips[caption]}, expected 0 to {shape[0] - 1}")
    return clips.astype(np.int64)


def _per_query(ranking: Ranking, *, ks: Sequence[int], cutoff: int) -> dict[str, FloatArray]:
    rank = best_rank(ranking)
    hits = {f"R@{k}": hit_probability(ranking, k) for k in ks}
    return {"rank": rank, **hits, f"mAP@{cutoff}": average_precision(ranking, cutoff), "MRR": 1.0 / rank}


def _summarise(values: Mapping[str, FloatArray]) -> dict[str, float]:
    rank = values["rank"]
    means = {name: float(column.mean()) for name, column in values.items() if name != "rank"}
    return means | {"MedR": float(np.median(rank)), "MeanR": float(rank.mean())}


def _macro(per_query: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    names = {"MeanR" if name == "rank" else name: name for name in per_query if name != "clip"}
    return {metric: float(clip_means(per_query[name], per_query["clip"])[1].mean()) for metric, name in names.items()}


def _expected(ranking: Ranking, ks: Sequence[int]) -> dict[str, float]:
    hits = {f"R@{k}": float(hit_probability(ranking, k, ties="expected").mean()) for k in ks}
    return hits | {"MeanR": float(best_rank(ranking, ties="expected").mean())}


def _warnings(direction: str, ranking: Ranking, num_items: int, *, cutoffs: Sequence[int]) -> list[str]:
    warnings = []
    trivial = sorted({k for k in cutoffs if k >= num_items})
    if trivial:
        listing = ", ".join(map(str, trivial))
        warnings.append(f"{direction}: the gallery has {num_items} items, so values at k = {listing} say nothing")
    if ranking.num_tied_queries > _MANY_TIES * ranking.num_queries:
        warnings.append(
            f"{direction}: {ranking.num_tied_queries} of {ranking.num_queries} queries have tied scores (duplicates or "
            "a collapsed model); ties count against the model, see the expected values"
        )
    return warnings
