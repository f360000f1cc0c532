"""How much an approximate search finds, and how much effort it takes to find enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

RECALL_K = 10


@dataclass(frozen=True)
class Recall:
    """How many of the true best items a search finds.

    Attributes:
        mean: recall@10 over the queries.
        standard_error: of that mean.
        num_queries: that it was measured with.
    """

    mean: float
    standard_error: float
    num_queries: int


def recall_of(scores: FloatArray, true_scores: FloatArray) -> Recall:
    """Share of hits that score as well as the true ones, so that equal items may stand in for each other.

    Args:
        scores: exact scores of what was found, [Q, k].
        true_scores: of the best items, best first, [Q, k].
    """
    per_query = (scores >= true_scores[:, -1:]).mean(axis=1)  # [Q]
    error = float(per_query.std() / math.sqrt(len(per_query)))
    return Recall(mean=float(per_query.mean()), standard_error=error, num_queries=len(per_query))


def least_effort(reaches: Callable[[int], bool], lowest: int, highest: int) -> int:
    """The least effort that reaches a goal, to a sixteenth of it; ``highest`` if none does.

    Args:
        reaches: whether an effort does; if one does, so do greater ones.
        lowest: first one to try.
        highest: last one to try.
    """
    below, effort = lowest - 1, min(lowest, highest)
    while effort < highest and not reaches(effort):
        below, effort = effort, min(2 * effort, highest)
    while effort - below > max(1, effort // 16):
        middle = (below + effort) // 2
        if reaches(middle):
            effort = middle
        else:
            below = middle
    return effort
