"""One ranking out of several that were made in different ways, for example by vectors and by words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError, ShapeError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


def reciprocal_rank_fusion(
    rankings: Sequence[IntArray],
    *,
    k: int,
    ranks: Sequence[IntArray | None] | None = None,
    weights: Sequence[float] | None = None,
    constant: float = 60.0,
) -> tuple[FloatArray, IntArray]:
    """The k best rows by the sum of weight / (constant + rank) over the rankings that name them.

    Only ranks count, so scores of different kinds need no common scale. Rows with equal sums are ordered by their best
    single rank, then by row.

    Reference: Cormack, Clarke, Buettcher, Reciprocal rank fusion outperforms Condorcet and individual rank learning methods,
    SIGIR 2009; the constant is theirs. Deviations from it: weights; ranks that tie.

    Args:
        rankings: rows of each, best first, int64 [M_i], each row once.
        k: rows wanted; fewer if the rankings name fewer.
        ranks: of each row of each ranking, from 1, where rows of one ranking may tie; None for 1, 2, 3, ...
        weights: of the rankings; default 1 each.
        constant: how little the top ranks stand out.

    Returns:
        Sums float64 [K] and rows int64 [K], best first.

    Raises:
        ConfigError: if k, a weight or the constant makes no sense.
        ShapeError: if lengths differ, or a ranking names a row twice.
    """
    if k < 1 or not constant >= 0:
        raise ConfigError(f"rank fusion: k = {k}, constant = {constant}, expected at least 1 and 0")
    factors = [1.0] * len(rankings) if weights is None else list(weights)
    given = [None] * len(rankings) if ranks is None else list(ranks)
    if len(factors) != len(rankings) or len(given) != len(rankings):
        raise ShapeError(
            f"rank fusion: {len(factors)} weights and {len(given)} lists of ranks for {len(rankings)} rankings; give as many"
        )
    if not all(factor >= 0 for factor in factors):
        raise ConfigError(f"rank fusion: weights {factors}, expected none below 0")
    rows = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *rankings]))
    parts = np.zeros((len(rows), len(rankings)))
    best_rank = np.full(len(rows), np.inf)
    for column, (ranking, one_ranks, factor) in enumerate(zip(rankings, given, factors, strict=True)):
        places = np.searchsorted(rows, ranking)
        rank = _ranks(ranking, one_ranks)
        parts[places, column] = factor / (constant + rank)
        best_rank[places] = np.minimum(best_rank[places], rank)
    parts.sort(axis=1)  # addition rounds: rows with the same ranks in other rankings must get the same sum
    sums = parts.sum(axis=1)
    order = np.lexsort((rows, best_rank, -sums))[:k]
    return sums[order], rows[order]


def _ranks(ranking: IntArray, ranks: IntArray | None) -> FloatArray:
    if len(np.unique(ranking)) != len(ranking):
        raise ShapeError(f"rank fusion: a ranking of {len(ranking)} rows names some of them twice, expected each once")
    if ranks is None:
        return np.arange(1.0, len(ranking) + 1)
    if ranks.shape != ranking.shape:
        raise ShapeError(f"rank fusion: ranks {list(ranks.shape)} for rows {list(ranking.shape)}, expected one each")
    return ranks.astype(np.float64)
