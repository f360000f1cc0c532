"""Geometry of two sets of embeddings: how close pairs are, how spread each modality is, how far the modalities lie apart.

All take embeddings [N, D], one row per pair, with unit norm; rows that stand for the same clip should come once, or
uniformity counts their distance 0 as clumping. Uniformity and the mean negative cosine take time N^2 and memory N.

Reference: Wang and Isola, 2020, arXiv 2005.10242 (alignment, uniformity); Liang et al., 2022, arXiv 2203.02053 (modality
gap); Roy and Vetterli, 2007 (effective rank). Deviations: uniformity is per modality, over distinct pairs of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import FloatArray

# Rows compared with all others at a time.
_CHUNK_ROWS = 1024


def alignment(audio: npt.ArrayLike, text: npt.ArrayLike) -> float:
    """Mean squared distance of the pairs, ``mean_i |a_i - t_i|^2 = 2 - 2 mean positive cosine``; lower is closer.

    Args:
        audio: [N, D].
        text: [N, D], row i belongs to row i of ``audio``.

    Raises:
        MetricError: if the shapes do not fit, a value is not finite, or there is no row.
    """
    a, t = _pairs(audio, text)
    return float(np.square(a - t).sum(axis=1).mean())


def uniformity(embeddings: npt.ArrayLike) -> float:
    """Spread of one modality, ``log mean_{i<j} exp(-2 |x_i - x_j|^2)``: 0 if collapsed, -8 for two antipodal points.

    Args:
        embeddings: [N, D], N >= 2.

    Raises:
        MetricError: if the shape is another, a value is not finite, or there are fewer than two rows.
    """
    x = _checked("embeddings", embeddings, at_least=2)
    squares = np.square(x).sum(axis=1)  # [N]
    total = 0.0
    for start in range(0, len(x), _CHUNK_ROWS):
        rows = slice(start, start + _CHUNK_ROWS)
        distances = squares[rows, None] + squares - 2 * x[rows] @ x.T  # [chunk, N]
        kernel = np.exp(-2 * np.maximum(distances, 0.0))
        total += float(kernel.sum()) - float(kernel.diagonal(start).sum())  # a row is no pair with itself
    return float(np.log(total / (len(x) * (len(x) - 1))))


def modality_gap(audio: npt.ArrayLike, text: npt.ArrayLike) -> float:
    """Distance of the two means, ``|mean a - mean t|``, 0 to 2.

    Args:
        audio: [N, D].
        text: [M, D].

    Raises:
        MetricError: if the widths differ, a value is not finite, or there is no row.
    """
    a, t = _checked("audio", audio), _checked("text", text)
    if a.shape[1] != t.shape[1]:
        raise MetricError(f"audio is {a.shape[1]} wide and text {t.shape[1]}; expected the same width")
    return float(np.linalg.norm(a.mean(axis=0) - t.mean(axis=0)))


def mean_positive_cosine(audio: npt.ArrayLike, text: npt.ArrayLike) -> float:
    """Mean cosine of the pairs.

    Args:
        audio: [N, D].
        text: [N, D], row i belongs to row i of ``audio``.

    Raises:
        MetricError: if the shapes do not fit, a value is not finite, or there is no row.
    """
    a, t = _pairs(audio, text)
    return float((a * t).sum(axis=1).mean())


def mean_negative_cosine(audio: npt.ArrayLike, text: npt.ArrayLike) -> float:
    """Mean cosine of every row with the partners of the other rows.

    Args:
        audio: [N, D], N >= 2.
        text: [N, D], row i belongs to row i of ``audio``.

    Raises:
        MetricError: if the shapes do not fit, a value is not finite, or there are fewer than two rows.
    """
    a, t = _pairs(audio, text, at_least=2)
    every = a.sum(axis=0) @ t.sum(axis=0)  # sum over all N^2 cosines
    return float((every - (a * t).sum()) / (len(a) * (len(a) - 1)))


def effective_rank(embeddings: npt.ArrayLike) -> float:
    """Exponential of the entropy of the singular values divided by their sum: 1 to D; not centred.

    Args:
        embeddings: [N, D].

    Raises:
        MetricError: if the shape is another, a value is not finite, or all are 0.
    """
    singular = np.linalg.svd(_checked("embeddings", embeddings), compute_uv=False)
    if singular[0] == 0:
        raise MetricError("embeddings: all are 0, expected some that are not; the effective rank has no meaning")
    share = singular / singular.sum()
    share = share[share > 0]  # 0 log 0 = 0
    return float(np.exp(-(share * np.log(share)).sum()))


def participation_ratio(embeddings: npt.ArrayLike) -> float:
    """``(sum l)^2 / sum l^2`` over the eigenvalues l of the covariance, centred: 1 to D.

    Args:
        embeddings: [N, D].

    Raises:
        MetricError: if the shape is another, a value is not finite, or all rows are the same.
    """
    x = _checked("embeddings", embeddings)
    eigenvalues = np.square(np.linalg.svd(x - x.mean(axis=0), compute_uv=False))  # up to a factor that cancels
    largest = np.square(x).sum(axis=1).max()
    if eigenvalues[0] <= 1e-12 * largest:
        raise MetricError("embeddings: all rows are the same, expected some spread; the participation ratio has no meaning")
    return float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum())


def _uniformity_audio(audio: npt.ArrayLike, text: npt.ArrayLike) -> float:
    return uniformity(audio)


def _uniformity_text(audio: npt.ArrayLike, text: npt.ArrayLike) -> float:
    return uniformity(text)


PAIR_GEOMETRY: Mapping[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    "modality_gap": modality_gap,
    "alignment": alignment,
    "uniformity_audio": _uniformity_audio,
    "uniformity_text": _uniformity_text,
}
"""What a training run logs of its audio and text embeddings, by name; all are finite for collapsed embeddings too."""


def _pairs(audio: npt.ArrayLike, text: npt.ArrayLike, *, at_least: int = 1) -> tuple[FloatArray, FloatArray]:
    a, t = _checked("audio", audio, at_least=at_least), _checked("text", text, at_least=at_least)
    if a.shape != t.shape:
        raise MetricError(f"audio is {list(a.shape)} and text {list(t.shape)}; expected the same [N, D] twice")
    return a, t


def _checked(name: str, embeddings: npt.ArrayLike, *, at_least: int = 1) -> FloatArray:
    x = np.asarray(embeddings, dtype=np.float64)
    if x.ndim != 2 or len(x) < at_least:
        raise MetricError(f"{name}: shape {list(x.shape)}, expected [N, D] with N of {at_least} or more")
    if not np.isfinite(x).all():
        raise MetricError(f"{name}: holds values that are not finite; embed again with weights that are")
    return x
