"""AP@k of ranked retrieval: (sum over relevant items with rank <= k of j / rank_j) / min(R, k); its mean is mAP@k.

``j`` counts the relevant items from the best, ``R`` is their number. Conventions: pessimistic ties; ranks are sorted,
so the order of a clip's captions in the data does not matter; the denominator counts all relevant items, found or
not, but no more than k, so that a perfect ranking scores 1. With one relevant item it is the reciprocal rank cut at
k. The average precision of classification, which groups tied scores, is another metric and lives in ``zero_shot``.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from clapkit.metrics.ranking import FloatArray, Ranking, check_cutoff, rank_relevant
from clapkit.types import Metric

Denominator = Literal["min", "relevant"]


def build(k: int = 10, denominator: Denominator = "min") -> Metric:
    """Average precision at k.

    Args:
        k: cut-off, at least 1.
        denominator: ``min`` divides by the smaller of k and the number of relevant items, ``relevant`` by that number.

    Raises:
        MetricError: if k is less than 1.
    """
    check_cutoff(k)

    def mean_average_precision(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> FloatArray:
        return average_precision(rank_relevant(scores, relevant), k, denominator=denominator)

    return mean_average_precision


def average_precision(ranking: Ranking, k: int, *, denominator: Denominator = "min") -> FloatArray:
    """AP@k of each query, float64 [Q].

    Raises:
        MetricError: if k is less than 1.
    """
    check_cutoff(k)
    precision = np.where(ranking.rank <= k, ranking.position / ranking.rank, 0.0)  # [P]
    total = np.bincount(ranking.query, weights=precision, minlength=ranking.num_queries)  # [Q]
    divisor = ranking.num_relevant if denominator == "relevant" else np.minimum(ranking.num_relevant, k)
    result: FloatArray = total / divisor
    return result
