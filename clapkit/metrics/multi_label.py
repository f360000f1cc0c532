"""Mean average precision of classification, where clips have any number of classes.

Conventions: macro mean over the classes that have positives; equal scores form one threshold, so that the order of the clips
does not matter. Checked against scikit-learn's ``average_precision_score``. The average precision of retrieval, which ends at
rank k, is another metric and lives in ``mean_average_precision``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import BoolArray, FloatArray, checked_scores
from clapkit.metrics.statistics import Summary


def classification_average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> FloatArray:
    """Average precision of each class [C], equal scores forming one threshold; NaN for a class without positives.

    AP = sum over thresholds of (recall - recall before) * precision.

    Args:
        scores: [N clips, C classes].
        labels: bool or 0/1 [N, C].

    Raises:
        MetricError: if scores are not finite or shapes differ.
    """
    checked = checked_scores(scores)
    truth = checked_labels(labels, checked.shape)
    weights = np.ones((1, len(checked)))
    return np.array([_weighted_ap(checked[:, c], truth[:, c], weights)[0] for c in range(checked.shape[1])])


def mean_average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Summary:
    """Macro mAP over the classes that have positives, as a function of the weights of the clips.

    Args:
        scores: [N clips, C classes].
        labels: bool or 0/1 [N, C].

    Raises:
        MetricError: if scores are not finite or shapes differ.
    """
    checked = checked_scores(scores)
    truth = checked_labels(labels, checked.shape)

    def summary(weights: FloatArray) -> FloatArray:
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for c in np.flatnonzero(truth.any(axis=0)):
            precision = _weighted_ap(checked[:, c], truth[:, c], weights)
            total += np.nan_to_num(precision)
            present += ~np.isnan(precision)
        return divide_where_positive(total, present)

    return summary


def checked_labels(labels: npt.ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    """Labels as truth values.

    Raises:
        MetricError: if their shape is not that of the scores, or they are not 0 and 1.
    """
    array = np.asarray(labels)
    if array.shape != shape:
        raise MetricError(f"labels: shape {list(array.shape)}, expected {list(shape)}, that of the scores")
    if not np.isin(array, (0, 1)).all():
        raise MetricError("labels: hold values other than 0 and 1")
    return array.astype(bool)


def divide_where_positive(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> FloatArray:
    """Quotients; NaN where the denominator is 0."""
    quotient: FloatArray = np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)
    return quotient


def _weighted_ap(scores: FloatArray, truth: BoolArray, weights: FloatArray) -> FloatArray:
    """AP of one class for each row of clip weights [draws, N]: [draws]."""
    order = np.argsort(-scores, kind="stable")
    positive = np.flatnonzero(truth[order])  # [P] places of the positives, best score first
    if not len(positive):
        return np.full(len(weights), np.nan)
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    # A threshold without a positive adds no recall, so that only the end of each positive's threshold is needed.
    ends, first = np.unique(ends[np.searchsorted(ends, positive)], return_index=True)  # [thresholds]
    starts = np.concatenate(([0], ends[:-1] + 1))
    retrieved = np.cumsum(np.add.reduceat(weights[:, order[: ends[-1] + 1]], starts, axis=1), axis=1)  # [draws, thresholds]
    gained = np.add.reduceat(weights[:, order[positive]], first, axis=1)
    found = np.cumsum(gained, axis=1)
    precision = np.divide(found, retrieved, out=np.zeros_like(found), where=retrieved > 0)
    return divide_where_positive((gained * precision).sum(axis=1), found[:, -1])
