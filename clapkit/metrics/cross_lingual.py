"""Whether captions that say the same in L languages find the same clips.

All take parallel queries: query q of every language is a translation of the others. Conventions: ranks from 1, pessimistic
ties; variances are those of the population; pairs of languages are unordered and count once.

Reference: mean rank variance as in ATRI, 2025, arXiv 2502.14627. It is unbounded and ruled by bad ranks, hence the measures
beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import FloatArray
from clapkit.metrics.statistics import Summary


def consistency(rank: npt.ArrayLike, top: npt.ArrayLike) -> dict[str, FloatArray]:
    """How far the languages agree, per parallel query.

    Args:
        rank: of the right item, from 1, [L languages, Q queries], L >= 2.
        top: integers [L, Q, K], the K best items, best first, no item twice.

    Returns:
        Name -> float64 [Q]: ``rank_variance`` and ``log_rank_variance`` over languages; ``top1_agreement`` and
        ``topK_jaccard`` (K written out; intersection over union of the best K), means over pairs of languages;
        ``right_in_every_language`` and ``right_in_any_language``, 0 or 1: whether the rank is 1.

    Raises:
        MetricError: if the shapes do not fit, there are fewer than two languages or no query, or a rank is less than 1.
    """
    ranks, best = np.asarray(rank, dtype=np.float64), np.asarray(top)
    if ranks.ndim != 2 or len(ranks) < 2 or not ranks.size:
        raise MetricError(f"rank: shape {list(ranks.shape)}, expected [languages, queries] with 2 languages or more")
    if best.ndim != 3 or best.shape[:2] != ranks.shape or not best.shape[2] or best.dtype.kind not in "iu":
        expected = f"{ranks.shape[0]}, {ranks.shape[1]}, K"
        raise MetricError(f"top: {best.dtype} {list(best.shape)}, expected whole numbers [{expected}]")
    if not (ranks >= 1).all():
        raise MetricError(f"rank: smallest is {ranks.min()}, expected 1 or more")
    right = ranks == 1
    return {
        "rank_variance": ranks.var(axis=0),
        "log_rank_variance": np.log(ranks).var(axis=0),
        "top1_agreement": _mean_over_pairs(best[:, :, :1]),
        f"top{best.shape[2]}_jaccard": _mean_over_pairs(best),
        "right_in_every_language": right.all(axis=0).astype(np.float64),
        "right_in_any_language": right.any(axis=0).astype(np.float64),
    }


def top1_agreement(top1: npt.ArrayLike) -> FloatArray:
    """Share of the queries for which two languages find the same item first, [L, L]; 1 on the diagonal.

    Args:
        top1: integers [L, Q], the best item.

    Raises:
        MetricError: if the shape is another or there is no query.
    """
    best = np.asarray(top1)
    if best.ndim != 2 or not best.size:
        raise MetricError(f"top1: shape {list(best.shape)}, expected [languages, queries]")
    return np.array([(best == row).mean(axis=1) for row in best])


def parallel_distance(vectors: npt.ArrayLike) -> FloatArray:
    """Cosine distance of parallel captions, mean over pairs of languages, float64 [Q].

    Args:
        vectors: unit norm [L languages, Q queries, D], L >= 2.

    Raises:
        MetricError: if the shape is another.
    """
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != 3 or len(array) < 2:
        raise MetricError(f"vectors: shape {list(array.shape)}, expected [languages, queries, D] with 2 languages or more")
    cosines = [(array[i] * array[j]).sum(axis=1) for i in range(len(array)) for j in range(i)]
    distance: FloatArray = 1.0 - np.mean(cosines, axis=0)
    return distance


def mean_over_languages(values: Sequence[npt.ArrayLike], clip: Sequence[npt.ArrayLike], *, num_clips: int) -> Summary:
    """Unweighted mean over languages of the mean over queries, as a function of the weights of the clips.

    Args:
        values: per language, values of its queries.
        clip: per language, the clip of each query; a language need not have queries of every clip.
        num_clips: N.

    Raises:
        MetricError: if there is no language, or one has no query or other than one clip per query.
    """
    if not values or len(values) != len(clip):
        raise MetricError(f"languages: {len(values)} lists of values and {len(clip)} of clips, expected as many, at least one")
    totals, counts = np.zeros((num_clips, len(values))), np.zeros((num_clips, len(values)))  # [N, L]
    for language, (column, rows) in enumerate(zip(values, clip, strict=True)):
        array, index = np.asarray(column, dtype=np.float64), np.asarray(rows)
        if array.ndim != 1 or not len(array) or array.shape != index.shape:
            raise MetricError(
                f"language {language}: {list(array.shape)} values of {list(index.shape)} clips, expected one clip per query"
            )
        np.add.at(totals[:, language], index, array)
        np.add.at(counts[:, language], index, 1.0)

    def summary(weights: FloatArray) -> FloatArray:
        drawn = weights @ counts  # [draws, L]
        is_there = drawn > 0  # languages that a draw misses do not count
        means = np.divide(weights @ totals, drawn, out=np.zeros_like(drawn), where=is_there)
        num_there = is_there.sum(axis=1)
        result: FloatArray = np.divide(means.sum(axis=1), num_there, out=np.full(len(weights), np.nan), where=num_there > 0)
        return result

    return summary


def _mean_over_pairs(items: npt.NDArray[np.int64]) -> FloatArray:
    """Mean Jaccard overlap of the item sets [L, Q, K] of two languages, float64 [Q]."""
    num_languages, num_queries, size = items.shape
    total = np.zeros(num_queries)
    for i in range(num_languages):
        for j in range(i):
            shared = (items[i][:, :, None] == items[j][:, None, :]).sum(axis=(1, 2))  # [Q]
            total += shared / (2 * size - shared)
    mean: FloatArray = total / (num_languages * (num_languages - 1) / 2)
    return mean
