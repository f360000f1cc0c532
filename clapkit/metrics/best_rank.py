"""Rank of the best relevant item: the per-query value behind MedR (its plain median) and MeanR (its mean).

Conventions: pessimistic ties; ranks from 1, so that a perfect system has MedR 1; the median of an even number of
queries is the mean of the middle two and is not floored. A query without relevant item is an error.
"""

from __future__ import annotations

import numpy.typing as npt

from clapkit.metrics.ranking import FloatArray, rank_relevant
from clapkit.metrics.ranking import best_rank as best_rank_of
from clapkit.types import Metric


def build() -> Metric:
    """Rank of the best relevant item, from 1; lower is better."""

    def best_rank(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> FloatArray:
        return best_rank_of(rank_relevant(scores, relevant))

    return best_rank
