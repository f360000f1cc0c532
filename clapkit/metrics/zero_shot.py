"""Zero-shot classification: clips against class vectors made of prompts.

Class vectors are made by normalising each prompt embedding, averaging, and normalising again: averaging raw
embeddings would weight prompts by their norm. What is counted, and how, is said in ``classification``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.classification import classification_intervals, evaluate_classification
from clapkit.metrics.ranking import FloatArray

_PREFIX = "zero_shot_"


def class_vectors(prompt_embeddings: npt.ArrayLike) -> FloatArray:
    """One unit vector per class, where every class has as many prompts.

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
    num_classes, num_prompts, width = prompts.shape
    return described_class_vectors(prompts.reshape(-1, width), np.repeat(np.arange(num_classes), num_prompts))


def described_class_vectors(prompt_embeddings: npt.ArrayLike, class_of: npt.ArrayLike) -> FloatArray:
    """One unit vector per class, where classes have any number of prompts.

    Args:
        prompt_embeddings: [M prompts, D], of any norm.
        class_of: integers [M], the class of each prompt; every class from 0 to C - 1 has one.

    Returns:
        [C, D]: normalise, mean over the prompts of a class, normalise.

    Raises:
        MetricError: if the shapes do not fit, a class has no prompt, or a prompt or a mean has norm zero.
    """
    prompts, classes = np.asarray(prompt_embeddings, dtype=np.float64), np.asarray(class_of)
    if prompts.ndim != 2 or 0 in prompts.shape or classes.shape != (len(prompts),):
        raise MetricError(
            f"prompt embeddings: {list(prompts.shape)} for {classes.size} classes, expected [prompts, width] and a class each"
        )
    num_prompts = np.bincount(classes)
    if not num_prompts.all():
        raise MetricError(f"class {int(np.argmin(num_prompts))}: has no prompt, expected at least one for every class")
    order = np.argsort(classes, kind="stable")
    starts = np.concatenate(([0], np.cumsum(num_prompts)[:-1]))
    return _unit(np.add.reduceat(_unit(prompts)[order], starts, axis=0) / num_prompts[:, None])


def evaluate_zero_shot(scores: npt.ArrayLike, labels: npt.ArrayLike, *, fold: npt.ArrayLike | None = None) -> dict[str, Any]:
    """Zero-shot classification, by the kind of the data.

    Where every clip has one label: accuracy and mean per-class recall. Where some have several: mAP over all clips,
    and the former over the clips with one label, whose number is given.

    Args:
        scores: cosines [N clips, C classes].
        labels: bool or 0/1 [N, C], at least one in every row.
        fold: integers [N], the official fold of each clip; None where they have none.

    Returns:
        What ``evaluate_classification`` gives, with ``zero_shot_`` before the names of ``metrics`` and ``chance``.

    Raises:
        MetricError: if scores are not finite, shapes differ, or a clip has no label.
    """
    found = evaluate_classification(scores, labels, fold=fold)
    renamed = {part: {_PREFIX + name: value for name, value in found[part].items()} for part in ("metrics", "chance")}
    return found | renamed


def zero_shot_intervals(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    fold: npt.ArrayLike | None = None,
    source: npt.ArrayLike | None = None,
    num_draws: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals of the metrics of ``evaluate_zero_shot``.

    Args:
        scores: cosines [N clips, C classes].
        labels: bool or 0/1 [N, C], at least one in every row.
        fold: integers [N], or None.
        source: integers [N], the recording that each clip is from; whole recordings are drawn. Default: every clip is its own.
        num_draws: bootstrap samples.
        seed: of the draws.

    Raises:
        MetricError: if scores are not finite, shapes differ, or a clip has no label.
    """
    found = classification_intervals(scores, labels, fold=fold, source=source, num_draws=num_draws, seed=seed)
    return {_PREFIX + name: interval for name, interval in found.items()}


def _unit(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise MetricError("prompt embeddings: a prompt, or the mean of a class, has norm 0 or is not finite")
    result: FloatArray = vectors / norms
    return result
