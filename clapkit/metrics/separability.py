"""How well a linear probe tells audio embeddings from text embeddings: 0.5 if the modalities mix, 1 if a plane parts them.

The probe is ridge regression on targets of -1 and +1 with an intercept, which has the direction of linear discriminant
analysis with shrinkage; it is solved in closed form, so that the answer depends on nothing but the vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import FloatArray

# Penalty as a share of the mean variance: small against the directions that matter, and enough where N is less than D.
_RIDGE = 1e-3
# Variance, as a share of the squared norm, below which vectors are the same but for rounding in float32.
_ROUNDING = 1e-12


def modality_separability(audio: npt.ArrayLike, text: npt.ArrayLike, *, num_folds: int = 5) -> float:
    """Cross-validated accuracy of the probe; pair i is in fold ``i mod num_folds``, both its rows together.

    Args:
        audio: [N, D], N >= 2.
        text: [N, D], row i belongs to row i of ``audio``.
        num_folds: parts, each predicted by a probe that learned on the others; at most N.

    Raises:
        MetricError: if the shapes do not fit, a value is not finite, or there are fewer than two pairs or folds.
    """
    a, t = np.asarray(audio, dtype=np.float64), np.asarray(text, dtype=np.float64)
    if a.ndim != 2 or a.shape != t.shape or len(a) < 2:
        raise MetricError(f"audio is {list(a.shape)} and text {list(t.shape)}; expected the same [N, D] twice, N of 2 or more")
    if not (np.isfinite(a).all() and np.isfinite(t).all()):
        raise MetricError("audio or text: holds values that are not finite; embed again with weights that are")
    if num_folds < 2:
        raise MetricError(f"num_folds {num_folds}: expected at least 2")
    # The probe is the same wherever the origin is, and moments around the mean lose nothing when one is taken from another.
    mean = (a.mean(axis=0) + t.mean(axis=0)) / 2
    norm = (np.square(a).sum() + np.square(t).sum()) / (2 * len(a))
    a, t = a - mean, t - mean
    fold = np.arange(len(a)) % min(num_folds, len(a))
    moments = [_Moments.of(a[fold == held], t[fold == held]) for held in range(int(fold.max()) + 1)]
    right = 0
    for held in range(len(moments)):
        weights, intercept = _probe(sum(moments[:held] + moments[held + 1 :], start=_Moments()), norm=norm)
        # A score of 0 says nothing, and counts as wrong for either.
        right += int((a[fold == held] @ weights + intercept > 0).sum())
        right += int((t[fold == held] @ weights + intercept < 0).sum())
    return right / (2 * len(a))


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of N pairs of an audio and a text embedding; those of two parts add up.

    Attributes:
        num_pairs: N.
        audio: sum of the audio embeddings [D].
        text: sum of the text embeddings [D].
        products: sum of the outer products of all rows with themselves [D, D].
    """

    num_pairs: int = 0
    audio: FloatArray | float = 0.0
    text: FloatArray | float = 0.0
    products: FloatArray | float = 0.0

    @classmethod
    def of(cls, audio: FloatArray, text: FloatArray) -> _Moments:
        return cls(len(audio), audio.sum(axis=0), text.sum(axis=0), audio.T @ audio + text.T @ text)

    def __add__(self, other: _Moments) -> _Moments:
        return _Moments(
            self.num_pairs + other.num_pairs,
            self.audio + other.audio,
            self.text + other.text,
            self.products + other.products,
        )


def _probe(moments: _Moments, *, norm: float) -> tuple[FloatArray, float]:
    """Weights [D] and intercept whose score is positive for audio; ``norm`` is the mean squared norm of the embeddings."""
    audio, text = np.asarray(moments.audio) / moments.num_pairs, np.asarray(moments.text) / moments.num_pairs
    mean = (audio + text) / 2
    covariance = np.asarray(moments.products) / (2 * moments.num_pairs) - np.outer(mean, mean)  # [D, D]
    variance = float(np.trace(covariance))
    if variance <= _ROUNDING * norm:  # rounding alone can be told apart, too
        return np.zeros(len(mean)), 0.0
    ridge = _RIDGE * variance / len(mean)
    # (audio - text) / 2 is the mean of target times row.
    weights: FloatArray = np.linalg.solve(covariance + ridge * np.eye(len(mean)), (audio - text) / 2)
    return weights, -float(mean @ weights)
