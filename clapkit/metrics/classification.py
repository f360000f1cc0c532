"""Classification: scores of clips against classes, whatever gave the scores (prompts, a probe, neighbours).

Conventions. Clips with one label: accuracy, mean per-class recall and top-k, where a tie with a wrong class is a miss, and
counts as that class in the confusion matrix. Where clips have several labels: macro mAP, see ``multi_label``. Intervals draw
whole sources: takes of one recording are right or wrong together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.multi_label import (
    checked_labels,
    classification_average_precision,
    divide_where_positive,
    mean_average_precision,
)
from clapkit.metrics.ranking import BoolArray, FloatArray, IntArray, best_rank, checked_scores, rank_pairs
from clapkit.metrics.statistics import Summary, bootstrap_intervals

# With more classes than this, top-5 accuracy is a metric and not only a detail.
_MANY_CLASSES = 50
_TOP = (3, 5)
# Weights of clips that are in memory at a time.
_CHUNK_WEIGHTS = 1 << 21


@dataclass(frozen=True, slots=True)
class _Single:
    """The clips with one label.

    Attributes:
        rows: bool [N], which of all clips.
        target: [n], their class.
        rank: [n], of that class, counting ties as better.
        predicted: [n], the best class; of equals, a wrong one.
        margin: [n], score of that class minus the best of the others; NaN where there is no other.
        num_tied: clips whose class scores the same as another.
    """

    rows: BoolArray
    target: IntArray
    rank: FloatArray
    predicted: IntArray
    margin: FloatArray
    num_tied: int

    @property
    def correct(self) -> FloatArray:
        return (self.rank <= 1).astype(np.float64)


def evaluate_classification(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, fold: npt.ArrayLike | None = None
) -> dict[str, Any]:
    """Everything that is said of one classifier.

    Args:
        scores: [N clips, C classes], higher is better.
        labels: bool or 0/1 [N, C], at least one in every row.
        fold: integers [N], the official fold of each clip; None where they have none.

    Returns:
        A dict with

        * ``metrics``: ``accuracy`` (pooled), with two or more folds ``accuracy_folds`` (mean of the folds),
          ``mean_per_class_recall``, with more than 50 classes ``top5_accuracy``, all over the clips with one label; ``mAP``
          over all clips, where some have several labels;
        * ``chance``: of these, for a classifier that guesses;
        * ``counts``: ``num_clips``, ``num_single_label_clips``, ``num_classes``, ``num_classes_present``, ``num_tied_clips``;
        * ``folds``: fold -> ``accuracy`` and ``num_clips``; ``top_k``: k -> accuracy at 3 and 5, where there are more classes;
        * ``per_class``: columns [C] ``num_clips``, ``recall``, ``precision``, ``average_precision`` (NaN where undefined),
          ``confused_with`` (class that took most of its clips, -1 for none) and ``num_confused``;
        * ``confusion``: columns ``target``, ``predicted``, ``count`` of the pairs that occur;
        * ``per_query``: ``clip`` (rows of the single-label clips), ``target``, ``predicted``, ``rank``, ``correct`` and
          ``margin`` (score of the right class minus that of the best other one; NaN where there is no other).

    Raises:
        MetricError: if scores are not finite, shapes differ, or a clip has no label.
    """
    checked, truth = _checked_truth(scores, labels)
    single = _single_label(checked, truth)
    folds = _checked_folds(fold, len(checked))
    num_classes = checked.shape[1]
    everyone = np.ones((1, len(checked)))
    summaries = _summaries(checked, truth, single, folds)
    return {
        "metrics": {name: float(summary(everyone)[0]) for name, summary in summaries.items()},
        "chance": {name: _chance(name, truth) for name in summaries},
        "counts": {
            "num_clips": len(checked),
            "num_single_label_clips": int(single.rows.sum()),
            "num_classes": num_classes,
            "num_classes_present": int(truth.any(axis=0).sum()),
            "num_tied_clips": single.num_tied,
        },
        "folds": _per_fold(single, folds),
        "top_k": {k: float((single.rank <= k).mean()) for k in _TOP if k < num_classes and single.rows.any()},
        "per_class": _per_class(single, truth, classification_average_precision(checked, truth)),
        "confusion": _confusion(single, num_classes),
        "per_query": {
            "clip": np.flatnonzero(single.rows),
            "target": single.target,
            "predicted": single.predicted,
            "rank": single.rank,
            "margin": single.margin,
            "correct": single.correct,
        },
    }


def classification_intervals(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    fold: npt.ArrayLike | None = None,
    source: npt.ArrayLike | None = None,
    num_draws: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the metrics of ``evaluate_classification``.

    Args:
        scores: [N clips, C classes].
        labels: bool or 0/1 [N, C], at least one in every row.
        fold: integers [N], or None.
        source: integers [N], the recording that each clip is from; whole recordings are drawn. Default: every clip is its own.
        num_draws: bootstrap samples.
        seed: of the draws.

    Raises:
        MetricError: if scores are not finite, shapes differ, or a clip has no label.
    """
    checked, truth = _checked_truth(scores, labels)
    summaries = _summaries(checked, truth, _single_label(checked, truth), _checked_folds(fold, len(checked)))
    found = np.arange(len(checked)) if source is None else np.asarray(source)
    if found.shape != (len(checked),):
        raise MetricError(f"source: shape {list(found.shape)}, expected [{len(checked)}], one recording per clip")
    distinct, cluster = np.unique(found, return_inverse=True)
    return bootstrap_intervals(
        {name: _of_clusters(summary, cluster) for name, summary in summaries.items()},
        num_clips=len(distinct),
        num_draws=num_draws,
        seed=seed,
    )


def mean_of_groups(values: npt.ArrayLike, group: npt.ArrayLike) -> Summary:
    """Mean over groups (classes, folds) of the mean inside the group; groups that a draw misses do not count.

    Args:
        values: one per clip [N].
        group: integers [N].
    """
    groups = np.asarray(group)
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups.min(initial=0) - 1))
    ordered = np.asarray(values, dtype=np.float64)[order]

    def summary(weights: FloatArray) -> FloatArray:
        drawn = weights[:, order]  # [draws, N]
        right = np.add.reduceat(drawn * ordered, starts, axis=1)  # [draws, groups]
        size = np.add.reduceat(drawn, starts, axis=1)
        share = np.divide(right, size, out=np.zeros_like(right), where=size > 0)
        return divide_where_positive(share.sum(axis=1), (size > 0).sum(axis=1).astype(np.float64))

    return summary


def _summaries(scores: FloatArray, truth: BoolArray, single: _Single, fold: IntArray | None) -> dict[str, Summary]:
    """Metric -> how it follows from the weights of the clips."""
    rows, found = single.rows, dict[str, Summary]()
    if rows.any():
        found["accuracy"] = _on(rows, _mean(single.rank <= 1))
        if fold is not None and len(np.unique(fold[rows])) > 1:
            found["accuracy_folds"] = _on(rows, mean_of_groups(single.correct, fold[rows]))
        found["mean_per_class_recall"] = _on(rows, mean_of_groups(single.correct, single.target))
        if scores.shape[1] > _MANY_CLASSES:
            found["top5_accuracy"] = _on(rows, _mean(single.rank <= 5))
    if not rows.all():
        found["mAP"] = mean_average_precision(scores, truth)
    return found


def _single_label(scores: FloatArray, truth: BoolArray) -> _Single:
    rows = truth.sum(axis=1) == 1
    if not rows.any():
        nothing = np.empty(0, dtype=np.int64)
        return _Single(rows, nothing, nothing.astype(np.float64), nothing, nothing.astype(np.float64), 0)
    own, target = scores[rows], truth[rows].argmax(axis=1)
    ranking = rank_pairs(own, np.arange(len(own)), target)
    rank = best_rank(ranking)
    others = own.copy()
    others[np.arange(len(own)), target] = -np.inf
    predicted = np.where(rank <= 1, target, others.argmax(axis=1))
    margin = own[np.arange(len(own)), target] - others.max(axis=1)
    margin = np.where(np.isfinite(margin), margin, np.nan)
    return _Single(rows, target, rank, predicted, margin, ranking.num_tied_queries)


def _chance(metric: str, truth: BoolArray) -> float:
    """What guessing gets: equal chances for all classes, or scores that have nothing to do with the labels."""
    if metric == "mAP":
        return float(truth.mean(axis=0)[truth.any(axis=0)].mean())
    num_right = 5 if metric == "top5_accuracy" else 1
    return float(num_right / truth.shape[1])


def _per_fold(single: _Single, fold: IntArray | None) -> dict[int, dict[str, float]]:
    if fold is None:
        return {}
    own = fold[single.rows]
    return {
        int(number): {"accuracy": float(single.correct[own == number].mean()), "num_clips": int((own == number).sum())}
        for number in np.unique(own)
    }


def _per_class(single: _Single, truth: BoolArray, average_precision: FloatArray) -> dict[str, npt.NDArray[Any]]:
    num_classes = truth.shape[1]
    wrong = _confusion(single, num_classes)
    wrong = {name: column[wrong["target"] != wrong["predicted"]] for name, column in wrong.items()}
    confused_with, num_confused = np.full(num_classes, -1), np.zeros(num_classes, dtype=np.int64)
    # The largest count is written last; of equal ones, that of the first class.
    for pair in np.lexsort((-wrong["predicted"], wrong["count"])):
        confused_with[wrong["target"][pair]] = wrong["predicted"][pair]
        num_confused[wrong["target"][pair]] = wrong["count"][pair]
    right = np.bincount(single.target, weights=single.correct, minlength=num_classes)
    return {
        "num_clips": truth.sum(axis=0),
        "recall": divide_where_positive(right, np.bincount(single.target, minlength=num_classes)),
        "precision": divide_where_positive(right, np.bincount(single.predicted, minlength=num_classes)),
        "average_precision": average_precision,
        "confused_with": confused_with,
        "num_confused": num_confused,
    }


def _confusion(single: _Single, num_classes: int) -> dict[str, IntArray]:
    pairs, count = np.unique(single.target * num_classes + single.predicted, return_counts=True)
    return {"target": pairs // num_classes, "predicted": pairs % num_classes, "count": count}


def _mean(values: BoolArray) -> Summary:
    return lambda weights: divide_where_positive(weights @ values.astype(np.float64), weights.sum(axis=1))


def _on(rows: BoolArray, summary: Summary) -> Summary:
    return lambda weights: summary(weights[:, rows])


def _of_clusters(summary: Summary, cluster: IntArray) -> Summary:
    """The same quantity, from the weights of clusters of clips [draws, S] instead of clips; a block of draws at a time."""
    step = max(1, _CHUNK_WEIGHTS // len(cluster))

    def clustered(weights: FloatArray) -> FloatArray:
        blocks = [weights[start : start + step] for start in range(0, len(weights), step)]
        return np.concatenate([summary(block[:, cluster]) for block in blocks])

    return clustered


def _checked_truth(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    checked = checked_scores(scores)
    truth = checked_labels(labels, checked.shape)
    num_labels = truth.sum(axis=1)
    if not num_labels.all():
        raise MetricError(f"clip {int(np.argmin(num_labels))}: has no label; leave clips without labels out")
    return checked, truth


def _checked_folds(fold: npt.ArrayLike | None, num_clips: int) -> IntArray | None:
    if fold is None:
        return None
    folds = np.asarray(fold)
    if folds.shape != (num_clips,) or folds.dtype.kind not in "iu":
        raise MetricError(f"fold: {folds.dtype} {list(folds.shape)}, expected integers [{num_clips}], one fold per clip")
    return folds.astype(np.int64)
