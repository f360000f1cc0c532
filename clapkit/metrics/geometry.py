"""Geometry of two sets of embeddings: how close pairs are, how spread each modality is, how far the modalities lie apart.

All take embeddings [N, D], one row per pair, with unit norm; rows that stand for the same clip should come once, or
uniformity counts their distance 0 as clumping. Uniformity takes time N^2 and memory N.

Reference: Wang and Isola, 2020, arXiv 2005.10242 (alignment, uniformity); Liang et al., 2022, arXiv 2203.02053 (modality
gap); Roy and Vetterli, 2007 (effective rank); Wang and Liu, 2021, arXiv 2012.09740 (tolerance). Deviations: uniformity is
per modality, over distinct pairs of rows; tolerance is the mean over the pairs of one label, not over all pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.blockwise import exact_scores
from clapkit.metrics.nearest import nearest_pairs
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
        part = x[start : start + _CHUNK_ROWS]
        distances = squares[start : start + len(part), None] + squares[start:] - 2 * part @ x[start:].T  # [chunk, rest]
        kernel = np.exp(-2 * np.maximum(distances, 0.0))
        among, later = kernel[:, : len(part)], kernel[:, len(part) :]  # pairs with later rows stand for both orders
        total += float(among.sum()) - float(np.trace(among)) + 2 * float(later.sum())  # a row is no pair with itself
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
    centred = x - x.mean(axis=0)
    covariance = centred.T @ centred  # [D, D], up to a factor that cancels
    total, largest = float(np.trace(covariance)), np.square(x).sum(axis=1).max()
    if total <= 1e-12 * largest:
        raise MetricError("embeddings: all rows are the same, expected some spread; the participation ratio has no meaning")
    return float(total**2 / np.square(covariance).sum())  # the sum of the squared eigenvalues is that of all entries


def positive_cosines(audio: npt.ArrayLike, text: npt.ArrayLike) -> FloatArray:
    """Cosine of every pair, float64 [N].

    Args:
        audio: [N, D].
        text: [N, D], row i belongs to row i of ``audio``.

    Raises:
        MetricError: if the shapes do not fit, a value is not finite, or there is no row.
    """
    a, t = _pairs(audio, text)
    cosines: FloatArray = (a * t).sum(axis=1)
    return cosines


def margins(queries: npt.ArrayLike, items: npt.ArrayLike, own: npt.ArrayLike) -> FloatArray:
    """Cosine of each query with its item minus that with the hardest other item, float32 [Q].

    Where every query has one relevant item the share of margins of 0 or less is 1 - R@1. Time Q N, memory Q + N.

    Args:
        queries: [Q, D].
        items: [N, D], N >= 2.
        own: integers [Q], the row of the item that belongs to each query.

    Raises:
        MetricError: as ``nearest_pairs``.
    """
    others = nearest_pairs(queries, items, 1, excluded=own)
    hardest = np.concatenate([pairs.score[pairs.starts] for pairs in others])  # those of a query tie
    q, x = np.asarray(queries), np.asarray(items)
    found: FloatArray = exact_scores(q, x, np.arange(len(q)), np.asarray(own)) - hardest
    return found


def tolerance(embeddings: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """Mean cosine of two distinct rows with the same label; higher forgives more inside a class.

    Args:
        embeddings: [N, D].
        labels: bool [N, C]; a pair that shares several labels counts once for each.

    Raises:
        MetricError: if the shapes do not fit, a value is not finite, or no two rows share a label.
    """
    x, mask = _checked("embeddings", embeddings), np.asarray(labels)
    if mask.dtype != np.bool_ or mask.ndim != 2 or len(mask) != len(x):
        raise MetricError(f"labels: {mask.dtype} {list(mask.shape)}, expected bool [{len(x)}, classes]")
    of_class = mask.astype(np.float64).T  # [C, N]
    counts = of_class.sum(axis=1)
    num_pairs = float((counts * (counts - 1)).sum())
    if not num_pairs:
        raise MetricError("labels: no two rows share one, expected at least one pair; the tolerance has no meaning")
    sums = of_class @ x  # [C, D]
    own = of_class @ np.square(x).sum(axis=1)  # [C] what pairs of a row with itself add
    return float((np.square(sums).sum(axis=1) - own).sum() / num_pairs)


def group_directions(vectors: npt.ArrayLike, group: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Unit-norm mean of the rows of each group, for example of the captions of each clip.

    Args:
        vectors: unit norm [M, D].
        group: integers [M], the group of each row.

    Returns:
        The G groups, ascending, and their directions, float64 [G, D].

    Raises:
        MetricError: if the shapes do not fit, a value is not finite, or the rows of a group cancel each other.
    """
    x, index = _checked("vectors", vectors), np.asarray(group)
    if index.shape != (len(x),) or index.dtype.kind not in "iu":
        raise MetricError(f"group: {index.dtype} {list(index.shape)}, expected {len(x)} whole numbers, one per vector")
    order = np.argsort(index, kind="stable")
    groups, first, counts = np.unique(index[order], return_index=True, return_counts=True)
    sums = np.zeros((len(groups), x.shape[1]))
    largest = np.argsort(-counts, kind="stable")  # groups that have a j-th row are the first of these
    for j in range(int(counts.max(initial=0))):  # several times as fast as np.add.reduceat
        having = largest[: np.count_nonzero(counts > j)]
        sums[having] += x[order[first[having] + j]]
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    if (norms < 1e-9).any():
        raise MetricError(
            f"group {groups[int(norms.argmin())]}: its vectors cancel each other; expected a mean with a direction"
        )
    return groups.astype(np.int64), sums / norms


def sample_rows(num_rows: int, *, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """All rows, or ``limit`` of them drawn without replacement, ascending: what work that grows with N^2 is done on.

    Args:
        num_rows: N.
        limit: most rows.
        seed: of the draw.
    """
    if num_rows <= limit:
        return np.arange(num_rows)
    return np.sort(np.random.default_rng(seed).choice(num_rows, size=limit, replace=False))


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
