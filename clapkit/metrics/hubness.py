"""Hubness: whether a few items come up for far more queries than their share.

N_k of an item is the number of queries that have it among their k best items; over N items its mean is k Q / N. Items that
tie for the last places share them, so that N_k is what random orders would give on average and does not depend on the
order of the items. A skewness above 1 is strong hubness.

Reference: Radovanovic, Nanopoulos and Ivanovic, 2010, Hubs in space, JMLR 11. Deviations from it: ties as said above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.nearest import nearest_pairs
from clapkit.metrics.ranking import FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class Hubness:
    """How unevenly N items come up for Q queries.

    Attributes:
        skewness: population skewness of N_k; 0 where all items come up equally often.
        never_retrieved_share: items that come up for no query, as a share of all.
        largest_share: queries for which the item comes up that comes up most, as a share of all.
    """

    skewness: float
    never_retrieved_share: float
    largest_share: float


def k_occurrence(queries: npt.ArrayLike, items: npt.ArrayLike, k: int) -> FloatArray:
    """N_k of every item, float64 [N], from unit vectors; the [Q, N] cosines are never held.

    Args:
        queries: [Q, D].
        items: [N, D].
        k: length of the lists, 1 to N.

    Raises:
        MetricError: as ``nearest_pairs``.
    """
    counts = np.zeros(len(np.asarray(items)))
    for pairs in nearest_pairs(queries, items, k):
        last = np.minimum.reduceat(pairs.score, pairs.starts)  # [block] score of the k-th best
        is_ahead = pairs.score > last[pairs.query]
        num_ahead = np.bincount(pairs.query[is_ahead], minlength=pairs.num_queries)
        num_tied = np.bincount(pairs.query, minlength=pairs.num_queries) - num_ahead
        share = (k - num_ahead) / num_tied  # [block] of the places that are left, for each item that ties for them
        counts += np.bincount(pairs.item, weights=np.where(is_ahead, 1.0, share[pairs.query]), minlength=len(counts))
    return counts


def hubness(occurrence: npt.ArrayLike, *, num_queries: int) -> Hubness:
    """What N_k says of the whole gallery.

    Args:
        occurrence: N_k [N].
        num_queries: Q.

    Raises:
        MetricError: if there is no item or no query.
    """
    counts = np.asarray(occurrence, dtype=np.float64)
    if counts.ndim != 1 or not len(counts) or num_queries < 1:
        raise MetricError(f"hubness: {counts.size} items and {num_queries} queries, expected at least one of each")
    return Hubness(
        skewness=skewness(counts),
        never_retrieved_share=float((counts == 0).mean()),
        largest_share=float(counts.max() / num_queries),
    )


def skewness(values: npt.ArrayLike) -> float:
    """Population skewness, ``mean (x - m)^3 / (mean (x - m)^2)^1.5``; 0 where all values are the same.

    Args:
        values: [N], N >= 1.
    """
    x = np.asarray(values, dtype=np.float64)
    deviations = x - x.mean()
    variance = np.square(deviations).mean()
    # Equal counts of ties differ by rounding, which would be blown up to a skewness.
    if variance <= 1e-20 * max(1.0, float(np.square(x).max())):
        return 0.0
    return float((deviations**3).mean() / variance**1.5)


def largest_hubs(occurrence: npt.ArrayLike, count: int) -> IntArray:
    """The items that come up most, most first, the earlier one first where they come up equally often.

    Args:
        occurrence: N_k [N].
        count: how many, or all if there are fewer.
    """
    return np.argsort(-np.asarray(occurrence), kind="stable")[:count].astype(np.int64)
