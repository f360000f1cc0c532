"""Nearest neighbours: what the most similar training clips are says what a clip is, without anything being learned.

Every neighbour votes for its classes with ``exp(cosine / 0.07)``, so that close ones count more. All training clips that are as
similar as the k-th count, so that neither the order of the clips nor copies of one decide.

Reference: Wu et al., 2018, Unsupervised feature learning via non-parametric instance discrimination, arXiv 1805.01978, section
3.4. Deviations: ties at the k-th neighbour are kept, and votes are divided by their sum, so that scores of different clips can
be compared, as average precision does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import FloatArray

_TEMPERATURE = 0.07
_CHUNK_SCORES = 1 << 22


def neighbour_scores(clips: npt.ArrayLike, training: npt.ArrayLike, *, labels: npt.ArrayLike, k: int) -> FloatArray:
    """How much of the votes of its nearest training clips each class gets.

    Args:
        clips: unit norm [N, D].
        training: unit norm [M, D].
        labels: bool or 0/1 [M, C], of the training clips.
        k: neighbours that vote; all of them where there are fewer.

    Returns:
        [N, C], 0 to 1; rows sum to 1 where every training clip has one label.

    Raises:
        MetricError: if shapes do not fit, a value is not finite, or k is less than 1.
    """
    queries, gallery = np.asarray(clips, dtype=np.float64), np.asarray(training, dtype=np.float64)
    votes = np.asarray(labels, dtype=np.float64)
    if k < 1:
        raise MetricError(f"neighbours: k is {k}, expected at least 1")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1] or not len(gallery):
        raise MetricError(
            f"neighbours: clips {list(queries.shape)}, training {list(gallery.shape)}, expected [N, D] and [M, D]"
        )
    if votes.ndim != 2 or len(votes) != len(gallery):
        raise MetricError(f"neighbours: labels {list(votes.shape)}, expected [{len(gallery)}, classes]")
    if not np.isfinite(queries).all() or not np.isfinite(gallery).all():
        raise MetricError("neighbours: vectors hold values that are not finite; embed again with weights that are")
    step = max(1, _CHUNK_SCORES // len(gallery))
    parts = [
        _votes(queries[start : start + step], gallery, votes, min(k, len(gallery))) for start in range(0, len(queries), step)
    ]
    return np.concatenate(parts) if parts else np.empty((0, votes.shape[1]))


def _votes(queries: FloatArray, gallery: FloatArray, votes: FloatArray, k: int) -> FloatArray:
    # Rounded to float32, equal training clips have equal cosines wherever they stand.
    cosine = (queries @ gallery.T).astype(np.float32).astype(np.float64)  # [chunk, M]
    kth = np.partition(cosine, -k, axis=1)[:, -k]
    nearest = cosine.max(axis=1, keepdims=True)
    weight = np.exp((cosine - nearest) / _TEMPERATURE) * (cosine >= kth[:, None])
    shares: FloatArray = (weight @ votes) / weight.sum(axis=1, keepdims=True)
    return shares
