"""What a model that guesses gets: the values expected if every query's items come in a random order without ties.

With R of N items relevant, the best relevant rank b is larger than r with probability S(r) = C(N - r, R) / C(N, R). Then
R@k = 1 - S(k), MeanR = (N + 1) / (R + 1), MRR = sum over r of (S(r - 1) - S(r)) / r, and AP@k follows from the chance R / N
that an item is relevant and the 1 + (r - 1) (R - 1) / (N - 1) relevant ones expected up to rank r. MedR is the median of b
over all queries. They say how far above nothing a number is, and they are what a collapsed model gets on average over
random orders of its ties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.mean_average_precision import Denominator
from clapkit.metrics.ranking import FloatArray, IntArray, check_cutoff

# Probabilities are products of up to N quotients: so close to one half they are one half.
_ROUNDING = 1e-9


def chance_levels(
    num_relevant: npt.ArrayLike,
    num_items: int,
    *,
    ks: Sequence[int] = (1, 5, 10),
    precisions: Mapping[str, tuple[int, Denominator]],
) -> dict[str, float]:
    """Metrics of a random order, averaged over queries.

    Args:
        num_relevant: integers [Q], relevant items of each query.
        num_items: N, the gallery.
        ks: cut-offs of R@k.
        precisions: name -> cut-off and denominator of each average precision.

    Returns:
        ``R@1`` ..., the names of ``precisions``, ``MRR``, ``MedR`` and ``MeanR``.

    Raises:
        MetricError: if there is no query, or one has no or more relevant items than there are items.
    """
    sizes = np.asarray(num_relevant)
    if not len(sizes) or sizes.min() < 1 or sizes.max() > num_items:
        raise MetricError(f"chance: {len(sizes)} queries, expected at least one, each with 1 to {num_items} relevant items")
    relevant, counts = np.unique(sizes, return_counts=True)
    share: FloatArray = counts / counts.sum()
    beyond = np.zeros(num_items + 1)  # [N + 1] probability that the best rank of any query is larger than 0, 1, ..., N
    for size, weight in zip(relevant, share, strict=True):
        beyond += weight * _beyond(size, num_items)
    at_rank = beyond[:-1] - beyond[1:]  # [N]
    levels = {f"R@{k}": float(1 - beyond[min(k, num_items)]) for k in ks}
    for name, (k, denominator) in precisions.items():
        levels[name] = float(share @ chance_average_precision(relevant, num_items, k, denominator=denominator))
    return levels | {
        "MRR": float((at_rank / np.arange(1, num_items + 1)).sum()),
        "MedR": _median(at_rank),
        "MeanR": float(share @ ((num_items + 1) / (relevant + 1))),
    }


def chance_average_precision(num_relevant: IntArray, num_items: int, k: int, *, denominator: Denominator = "min") -> FloatArray:
    """AP@k expected of a random order, for each number of relevant items [S].

    Raises:
        MetricError: if k is less than 1.
    """
    check_cutoff(k)
    rank = np.arange(1, min(k, num_items) + 1)  # [k]
    others = (num_relevant - 1) / max(num_items - 1, 1)  # [S] chance that another item is relevant, too
    precision = (1 + others[:, None] * (rank - 1)) / rank  # [S, k] if the item at this rank is relevant
    divisor = num_relevant if denominator == "relevant" else np.minimum(num_relevant, k)
    result: FloatArray = precision.sum(axis=1) * num_relevant / num_items / divisor
    return result


def _beyond(num_relevant: int, num_items: int) -> FloatArray:
    """The same for queries with this many relevant items."""
    left = num_items - np.arange(num_items)  # items that are not placed yet
    return np.concatenate(([1.0], np.cumprod(np.maximum(left - num_relevant, 0) / left)))


def _median(probability: FloatArray) -> float:
    """Plain median of ranks from 1 with these probabilities: the middle of the two where one half lies between them."""
    cumulative = np.cumsum(probability)
    lower, upper = np.argmax(cumulative >= 0.5 - _ROUNDING), np.argmax(cumulative > 0.5 + _ROUNDING)
    return float(lower + upper) / 2 + 1
