"""Reciprocal rank: 1 / rank of the best relevant item, without a cut-off; its mean is MRR.

Conventions: pessimistic ties; a query without relevant item is an error.
"""

from __future__ import annotations

import numpy.typing as npt

from clapkit.metrics.ranking import FloatArray, best_rank, rank_relevant
from clapkit.types import Metric


def build() -> Metric:
    """Reciprocal of the rank of the best relevant item."""

    def reciprocal_rank(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> FloatArray:
        return 1.0 / best_rank(rank_relevant(scores, relevant))

    return reciprocal_rank
