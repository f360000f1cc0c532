"""Retrieval in both directions from similarities, or embeddings, and an explicit caption-to-clip map.

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
from clapkit.metrics.blockwise import CountedPairs, count_pairs
from clapkit.metrics.chance import chance_levels
from clapkit.metrics.mean_average_precision import Denominator, average_precision
from clapkit.metrics.ranking import (
    BoolArray,
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
HEADLINE_KS = (1, 5, 10)
# Above this share of tied queries the pessimistic numbers alone would mislead, so the expected ones are given as well.
_MANY_TIES = 0.001


def evaluate_retrieval(
    similarity: npt.ArrayLike, caption_clip: npt.ArrayLike, *, ks: Sequence[int] = HEADLINE_KS, cutoff: int = 10
) -> dict[str, Any]:
    """Both directions of retrieval.

    Args:
        similarity: cosines [N clips, M captions], float32 or float64.
        caption_clip: integers [M], the row of the clip that each caption belongs to.
        ks: cut-offs of R@k.
        cutoff: cut-off of mAP.

    Returns:
        As ``evaluate_rankings``.

    Raises:
        MetricError: if the similarity is not finite or a caption points to no clip.
    """
    scores = checked_scores(similarity, name="similarity")
    num_clips, num_captions = scores.shape
    clips = checked_captions(caption_clip, num_clips=num_clips, num_captions=num_captions)
    captions = np.arange(num_captions)
    query_clips, compact = np.unique(clips, return_inverse=True)
    gallery = scores if len(query_clips) == num_clips else scores[query_clips]
    return evaluate_rankings(
        {"t2a": rank_pairs(scores.T, captions, clips), "a2t": rank_pairs(gallery, compact, captions)},
        clip_of_query={"t2a": clips, "a2t": query_clips},
        num_items={"t2a": num_clips, "a2t": num_captions},
        ks=ks,
        precisions=headline_precision(cutoff),
    )


def evaluate_embeddings(
    audio: npt.ArrayLike,
    text: npt.ArrayLike,
    caption_clip: npt.ArrayLike,
    *,
    ks: Sequence[int] = HEADLINE_KS,
    cutoff: int = 10,
) -> dict[str, Any]:
    """``evaluate_retrieval`` for collections whose matrix of similarities does not fit into memory; same numbers.

    Args:
        audio: embeddings [N clips, D], unit norm, float32 or float64.
        text: embeddings [M captions, D].
        caption_clip: integers [M], the row of the clip that each caption belongs to.
        ks: cut-offs of R@k.
        cutoff: cut-off of mAP.

    Returns:
        As ``evaluate_rankings``.

    Raises:
        MetricError: if shapes do not fit, a value is not finite or a caption points to no clip.
    """
    num_clips, num_captions = len(np.asarray(audio)), len(np.asarray(text))
    clips = checked_captions(caption_clip, num_clips=num_clips, num_captions=num_captions)
    counted = count_pairs(audio, text, clips, np.arange(num_captions))
    return evaluate_counted(counted, np.ones(num_captions, dtype=bool), clips, num_clips=num_clips, ks=ks, cutoff=cutoff)


def evaluate_counted(
    counted: CountedPairs,
    relevant: BoolArray,
    caption_clip: IntArray,
    *,
    num_clips: int,
    ks: Sequence[int] = HEADLINE_KS,
    cutoff: int = 10,
) -> dict[str, Any]:
    """Both directions of retrieval for some of the pairs of clips and captions that were compared with all.

    Args:
        counted: P pairs.
        relevant: bool [P], the pairs that are right.
        caption_clip: int64 [M], the row of the clip that each caption belongs to.
        num_clips: N.
        ks: cut-offs of R@k.
        cutoff: cut-off of mAP.

    Returns:
        As ``evaluate_rankings``; captions and clips without a right pair are no queries.
    """
    captions, t2a = counted.text_to_audio(relevant)
    clips, a2t = counted.audio_to_text(relevant)
    return evaluate_rankings(
        {"t2a": t2a, "a2t": a2t},
        clip_of_query={"t2a": caption_clip[captions], "a2t": clips},
        num_items={"t2a": num_clips, "a2t": len(caption_clip)},
        ks=ks,
        precisions=headline_precision(cutoff),
    )


def headline_precision(cutoff: int) -> dict[str, tuple[int, Denominator]]:
    """The average precision of the headline: at most ``cutoff`` relevant items are expected of a query."""
    return {f"mAP@{cutoff}": (cutoff, "min")}


def evaluate_rankings(
    rankings: Mapping[str, Ranking],
    *,
    clip_of_query: Mapping[str, IntArray],
    num_items: Mapping[str, int],
    ks: Sequence[int],
    precisions: Mapping[str, tuple[int, Denominator]],
) -> dict[str, Any]:
    """Metrics of one or both directions.

    Args:
        rankings: direction, ``t2a`` or ``a2t`` -> where the relevant items of its queries stand.
        clip_of_query: direction -> int64 [Q], the row of the clip that each query is, or describes.
        num_items: direction -> size of the gallery.
        ks: cut-offs of R@k.
        precisions: name -> cut-off and denominator of each average precision.

    Returns:
        A dict with

        * ``metrics``: ``t2a_R@1`` ... ``a2t_MRR`` -> value, means over queries (MedR: plain median), fractions;
        * ``chance``: the same for a model that guesses;
        * ``macro``: the same for the means over clips of the mean over the clip's queries (no MedR);
        * ``ties``: ``t2a_num_tied_queries``, ``a2t_num_tied_queries``;
        * ``expected``: R@k and MeanR averaged over random orders of tied items, for directions with many ties;
        * ``counts``: ``t2a_num_queries``, ``t2a_num_items``, ``a2t_num_queries``, ``a2t_num_items``;
        * ``warnings``: sentences;
        * ``per_query``: direction -> name -> array [Q]; ``clip`` is the row of the query's clip.

    Raises:
        MetricError: if a cut-off is less than 1.
    """
    cutoffs = [*ks, *(k for k, _ in precisions.values())]
    for k in cutoffs:
        check_cutoff(k)
    result: dict[str, Any] = {
        "metrics": {},
        "chance": {},
        "macro": {},
        "ties": {f"{d}_num_tied_queries": r.num_tied_queries for d, r in rankings.items()},
        "expected": {},
        "counts": {},
        "warnings": [],
        "per_query": {},
    }
    for direction, ranking in rankings.items():
        gallery = num_items[direction]
        values = _per_query(ranking, ks=ks, precisions=precisions)
        per_query = {"clip": clip_of_query[direction], **values}
        result["per_query"][direction] = per_query
        found: dict[str, Mapping[str, float]] = {
            "metrics": _summarise(values),
            "chance": chance_levels(ranking.num_relevant, gallery, ks=ks, precisions=precisions),
            "macro": _macro(per_query),
            "counts": {"num_queries": ranking.num_queries, "num_items": gallery},
            "expected": _expected(ranking, ks) if _has_many_ties(ranking) else {},
        }
        for part, numbers in found.items():
            result[part] |= {f"{direction}_{name}": value for name, value in numbers.items()}
        result["warnings"] += _warnings(direction, ranking, gallery, cutoffs=cutoffs)
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
    query_clips = np.unique(np.concatenate([np.asarray(columns["clip"]) for columns in per_query.values()]))
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


def checked_captions(caption_clip: npt.ArrayLike, *, num_clips: int, num_captions: int) -> IntArray:
    """The clip of each caption, int64 [M].

    Raises:
        MetricError: if there is not one whole number per caption, or one is no clip.
    """
    clips = np.asarray(caption_clip)
    if clips.shape != (num_captions,) or clips.dtype.kind not in "iu":
        raise MetricError(
            f"caption_clip: {clips.dtype} {list(clips.shape)}, expected {num_captions} whole numbers, one per caption"
        )
    dangling = (clips < 0) | (clips >= num_clips)
    if dangling.any():
        caption = int(np.argmax(dangling))
        raise MetricError(f"caption {caption}: belongs to clip {clips[caption]}, expected 0 to {num_clips - 1}")
    return clips.astype(np.int64)


def _per_query(
    ranking: Ranking, *, ks: Sequence[int], precisions: Mapping[str, tuple[int, Denominator]]
) -> dict[str, FloatArray]:
    rank = best_rank(ranking)
    hits = {f"R@{k}": hit_probability(ranking, k) for k in ks}
    average = {name: average_precision(ranking, k, denominator=how) for name, (k, how) in precisions.items()}
    return {"rank": rank, **hits, **average, "MRR": 1.0 / rank}


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


def _has_many_ties(ranking: Ranking) -> bool:
    return ranking.num_tied_queries > _MANY_TIES * ranking.num_queries


def _warnings(direction: str, ranking: Ranking, num_items: int, *, cutoffs: Sequence[int]) -> list[str]:
    warnings = []
    trivial = sorted({k for k in cutoffs if k >= num_items})
    if trivial:
        listing = ", ".join(map(str, trivial))
        warnings.append(f"{direction}: the gallery has {num_items} items, so values at k = {listing} say nothing")
    if _has_many_ties(ranking):
        warnings.append(
            f"{direction}: {ranking.num_tied_queries} of {ranking.num_queries} queries have tied scores (duplicates or "
            "a collapsed model); ties count against the model, see the expected values"
        )
    return warnings
