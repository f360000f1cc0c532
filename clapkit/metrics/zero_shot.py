"""Zero-shot classification: clips against class vectors made of prompts.

Class vectors are made by normalising each prompt embedding, averaging, and normalising again: averaging raw
embeddings would weight prompts by their norm. Single-label clips get accuracy and mean per-class recall, where a tie
with a wrong class is a miss. Multi-label clips get macro mAP over the classes that have positives, where equal scores
form one threshold (as in scikit-learn's ``average_precision_score``), so that the order of the clips does not matter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import BoolArray, FloatArray, best_rank, checked_scores, rank_pairs
from clapkit.metrics.statistics import Summary, bootstrap_intervals

# With more classes than this, top-5 accuracy is given as well.
_MANY_CLASSES = 50


def class_text(label: str) -> str:
    """How a class name is written in a prompt: underscores become blanks, runs of blanks one blank; case is kept."""
    return " ".join(label.replace("_", " ").split())


def class_vectors(prompt_embeddings: npt.ArrayLike) -> FloatArray:
    """One unit vector per class.

    Args:
        prompt_embeddings: [C classes, P prompts, D], of any norm.

    Returns:
        [C, D]: normalise, mean over prompts, normalise.

    Raises:
        MetricError: if the shape is another, or a prompt or a mean has norm zero.
    """
    prompts = np.asarray(prompt_embeddings)
    if prompts.ndim != 3 or 0 in prompts.shape:
        raise MetricError(f"prompt embeddings: shape {list(prompts.shape)}, expected [classes, prompts, width]")
    return _unit(_unit(prompts.astype(np.float64)).mean(axis=1))


def evaluate_zero_shot(scores: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """Zero-shot classification, by the kind of the data.

    Where every clip has one label: accuracy and mean per-class recall. Where some have several: mAP over all clips,
    and the former over the clips with one label, whose number is given.

    Args:
        scores: cosines [N clips, C classes].
        labels: bool or 0/1 [N, C], at least one in every row.

    Returns:
        A dict with ``metrics``; ``counts`` (``num_clips``, ``num_single_label_clips``, ``num_classes``,
        ``num_classes_present``, ``num_tied_clips``); ``per_query``: ``clip`` (rows of the single-label clips),
        ``target``, ``predicted``, ``rank``, ``correct``.

    Raises:
        MetricError: if scores are not finite, shapes differ, or a clip has no label.
    """
    checked, truth, single = _checked_truth(scores, labels)
    metrics = {} if single.all() else dict(evaluate_multi_label(checked, truth)["metrics"])
    counts = {
        "num_clips": len(checked),
        "num_single_label_clips": int(single.sum()),
        "num_classes": checked.shape[1],
        "num_classes_present": int(truth.any(axis=0).sum()),
        "num_tied_clips": 0,
    }
    per_query: dict[str, Any] = {}
    if single.any():
        target = truth[single].argmax(axis=1)
        outcome = evaluate_single_label(checked[single], target)
        metrics = outcome["metrics"] | metrics
        counts["num_tied_clips"] = outcome["num_tied_clips"]
        per_query = {"clip": np.flatnonzero(single), "target": target, **outcome["per_query"]}
    return {"metrics": metrics, "counts": counts, "per_query": per_query}


def zero_shot_intervals(
    scores: npt.ArrayLike, labels: npt.ArrayLike, *, num_draws: int = 2000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over clips of the metrics of ``evaluate_zero_shot``.

    Args:
        scores: cosines [N clips, C classes].
        labels: bool or 0/1 [N, C], at least one in every row.
        num_draws: bootstrap samples.
        seed: of the draws.

    Raises:
        MetricError: if scores are not finite, shapes differ, or a clip has no label.
    """
    checked, truth, single = _checked_truth(scores, labels)
    summaries: dict[str, Summary] = {}
    if single.any():
        target = truth[single].argmax(axis=1)
        rank = evaluate_single_label(checked[single], target)["per_query"]["rank"]
        summaries["zero_shot_accuracy"] = _share(rank <= 1, single)
        summaries["zero_shot_mean_per_class_recall"] = _on(single, mean_per_class_recall(rank <= 1, target))
        if checked.shape[1] > _MANY_CLASSES:
            summaries["zero_shot_top5_accuracy"] = _share(rank <= 5, single)
    if not single.all():
        summaries["zero_shot_mAP"] = mean_average_precision(checked, truth)
    return bootstrap_intervals(summaries, num_clips=len(checked), num_draws=num_draws, seed=seed)


def evaluate_single_label(scores: npt.ArrayLike, target: npt.ArrayLike) -> dict[str, Any]:
    """Accuracy where every clip has one class.

    Args:
        scores: [N clips, C classes].
        target: integers [N], the class of each clip.

    Returns:
        ``metrics`` (``zero_shot_accuracy``, ``zero_shot_mean_per_class_recall``, with many classes
        ``zero_shot_top5_accuracy``), ``num_tied_clips``, ``num_classes_present``, and ``per_query`` with ``rank`` of
        the right class, ``correct`` and ``predicted`` (lowest index among equals).

    Raises:
        MetricError: if scores are not finite or a target is no class.
    """
    checked = checked_scores(scores)
    classes = np.asarray(target)
    if classes.shape != (len(checked),):
        raise MetricError(f"target: shape {list(classes.shape)}, expected [{len(checked)}], one class per clip")
    ranking = rank_pairs(checked, np.arange(len(checked)), classes)
    rank = best_rank(ranking)
    correct = (rank <= 1).astype(np.float64)
    num_classes = checked.shape[1]
    recall = mean_per_class_recall(correct, classes)
    metrics = {
        "zero_shot_accuracy": float(correct.mean()),
        "zero_shot_mean_per_class_recall": float(recall(np.ones((1, len(correct))))[0]),
    }
    if num_classes > _MANY_CLASSES:
        metrics["zero_shot_top5_accuracy"] = float((rank <= 5).mean())
    return {
        "metrics": metrics,
        "num_tied_clips": ranking.num_tied_queries,
        "num_classes_present": len(np.unique(classes)),
        "per_query": {"rank": rank, "correct": correct, "predicted": checked.argmax(axis=1)},
    }


def mean_per_class_recall(correct: npt.ArrayLike, target: npt.ArrayLike) -> Summary:
    """Mean over the classes present of the share of their clips that is right, given the weights of the clips.

    Args:
        correct: 0 or 1 per clip [N].
        target: integers [N], the class of each clip.
    """
    _, index = np.unique(np.asarray(target), return_inverse=True)
    member = np.eye(index.max() + 1)[index]  # [N, classes present]
    right = member * np.asarray(correct, dtype=np.float64)[:, None]

    def summary(weights: FloatArray) -> FloatArray:
        return _mean_where(weights @ right, weights @ member)  # classes that a draw misses do not count

    return summary


def evaluate_multi_label(scores: npt.ArrayLike, labels: npt.ArrayLike) -> dict[str, Any]:
    """Macro mean average precision where clips have any number of classes.

    Args:
        scores: [N clips, C classes].
        labels: bool or 0/1 [N, C].

    Returns:
        ``metrics`` (``zero_shot_mAP``), ``num_classes_present`` and ``per_class``: AP [C], NaN for classes without
        positives.

    Raises:
        MetricError: if scores are not finite, shapes differ, or no class has a positive.
    """
    per_class = classification_average_precision(scores, labels)
    present = ~np.isnan(per_class)
    if not present.any():
        raise MetricError("zero-shot mAP: no class has a positive clip; are the labels of this split those of the classes?")
    return {
        "metrics": {"zero_shot_mAP": float(per_class[present].mean())},
        "num_classes_present": int(present.sum()),
        "per_class": per_class,
    }


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
    truth = _checked_labels(labels, checked.shape)
    weights = np.ones((1, len(checked)))
    columns = [_weighted_ap(checked[:, c], truth[:, c], weights)[0] for c in range(checked.shape[1])]
    return np.array(columns)


def mean_average_precision(scores: npt.ArrayLike, labels: npt.ArrayLike) -> Summary:
    """Macro mAP over the classes that have positives, as a function of the weights of the clips.

    Args:
        scores: [N clips, C classes].
        labels: bool or 0/1 [N, C].

    Raises:
        MetricError: if scores are not finite or shapes differ.
    """
    checked = checked_scores(scores)
    truth = _checked_labels(labels, checked.shape)

    def summary(weights: FloatArray) -> FloatArray:
        total, present = np.zeros(len(weights)), np.zeros(len(weights))
        for c in range(checked.shape[1]):
            precision = _weighted_ap(checked[:, c], truth[:, c], weights)
            total += np.nan_to_num(precision)
            present += ~np.isnan(precision)
        return _divide(total, present)

    return summary


def _weighted_ap(scores: FloatArray, truth: BoolArray, weights: FloatArray) -> FloatArray:
    """AP of one class for each row of clip weights [draws, N]: [draws]."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    threshold_ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    found = np.cumsum(weights[:, order] * truth[order], axis=1)[:, threshold_ends]  # [draws, thresholds]
    retrieved = np.cumsum(weights[:, order], axis=1)[:, threshold_ends]
    gained = np.diff(found, axis=1, prepend=0.0)
    precision = np.divide(found, retrieved, out=np.zeros_like(found), where=retrieved > 0)
    return _divide((gained * precision).sum(axis=1), found[:, -1])


def _mean_where(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Row means [draws] of the quotients [draws, C] whose denominator is not zero."""
    present = denominator > 0
    quotient = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=present)
    return _divide(quotient.sum(axis=1), present.sum(axis=1).astype(np.float64))


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _share(hit: BoolArray, rows: BoolArray) -> Summary:
    """Share of hits among the clips of a subset, given the weights of all clips."""
    return _on(rows, lambda weights: _divide(weights @ hit.astype(np.float64), weights.sum(axis=1)))


def _on(rows: BoolArray, summary: Summary) -> Summary:
    return lambda weights: summary(weights[:, rows])


def _unit(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise MetricError("prompt embeddings: a prompt, or the mean of a class, has norm 0 or is not finite")
    result: FloatArray = vectors / norms
    return result


def _checked_labels(labels: npt.ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    array = np.asarray(labels)
    if array.shape != shape:
        raise MetricError(f"labels: shape {list(array.shape)}, expected {list(shape)}, that of the scores")
    if not np.isin(array, (0, 1)).all():
        raise MetricError("labels: hold values other than 0 and 1")
    return array.astype(bool)


def _checked_truth(scores: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[FloatArray, BoolArray, BoolArray]:
    """Scores [N, C], labels [N, C] and which clips have exactly one label [N]."""
    checked = checked_scores(scores)
    truth = _checked_labels(labels, checked.shape)
    num_labels = truth.sum(axis=1)
    if not num_labels.all():
        raise MetricError(f"clip {int(np.argmin(num_labels))}: has no label; leave unlabelled clips out of zero-shot")
    return checked, truth, num_labels == 1
