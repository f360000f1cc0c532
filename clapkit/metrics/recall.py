"""R@k: whether the best relevant item of a query is among the first k.

Conventions: pessimistic ties; ranks from 1; with several relevant items any one of them is enough (hit rate, not the
fraction found); a query without relevant item is an error; k larger than the gallery is always a hit. Checked against
the retrieval cases of ``tests/golden/golden_metrics.json``.
"""

from __future__ import annotations

import numpy.typing as npt

from clapkit.metrics.ranking import FloatArray, check_cutoff, hit_probability, rank_relevant
from clapkit.types import Metric


def build(k: int = 10) -> Metric:
    """Recall at k.

    Args:
        k: cut-off, at least 1.

    Raises:
        MetricError: if k is less than 1.
    """
    check_cutoff(k)

    def recall(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> FloatArray:
        return hit_probability(rank_relevant(scores, relevant), k)

    return recall
