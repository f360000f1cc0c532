"""Ranks where a clip is several windows, and its score depends on how they fit the caption.

Such a score is no product of two vectors. It is computed for a block of captions and clips at a time, twice: once for the
scores of the pairs, and once to compare all others with them, so that neither the cosines of all windows nor the scores of all
clips are ever there as a whole. Cosines are summed in float64 and scores rounded to float32, as everywhere: equal clips then
have equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.blockwise import CountedPairs, Float32Array
from clapkit.metrics.ranking import FloatArray, IntArray
from clapkit.metrics.retrieval import checked_captions

# Cosines of one block: 256 x 8192 in float64 take 16 MiB.
_BLOCK_CAPTIONS = 256
_BLOCK_WINDOWS = 8192


def count_windowed_pairs(
    windows: npt.ArrayLike, num_windows: npt.ArrayLike, text: npt.ArrayLike, caption_clip: npt.ArrayLike, *, tau: float
) -> CountedPairs:
    """Compare every caption and its clip with all others.

    The score of caption t and a clip of windows a_w is ``sum_w alpha_w (t . a_w)``, ``alpha = softmax_w((t . a_w) / tau)``.

    Reference: after CoLLAP, 2024, arXiv 2410.02271; the form is our own.

    Args:
        windows: unit norm [R, D], those of one clip together, in the order of the clips.
        num_windows: integers [N clips], how many windows each has, at least 1.
        text: unit norm [M captions, D].
        caption_clip: integers [M], the clip that each caption belongs to.
        tau: temperature of the windows; 0 takes the best window alone.

    Raises:
        MetricError: if shapes do not fit, a value is not finite, a clip has no window or a caption no clip.
    """
    a, t = _checked(windows, "windows"), _checked(text, "text")
    counts = np.asarray(num_windows)
    if not len(counts) or counts.min() < 1 or counts.sum() != len(a) or a.shape[1] != t.shape[1]:
        raise MetricError(
            f"windows: {len(a)} rows of width {a.shape[1]} for {len(counts)} clips and text of width {t.shape[1]}; "
            "expected equal widths, at least one row for every clip and as many rows as num_windows says"
        )
    if not (np.isfinite(tau) and tau >= 0):
        raise MetricError(f"tau = {tau}: expected a finite number of at least 0")
    clip = checked_captions(caption_clip, num_clips=len(counts), num_captions=len(t))
    own = np.empty(len(t), dtype=np.float32)
    for captions, clips, scores in _blocks(a, counts, t, tau):
        inside = (clip[captions] >= clips.start) & (clip[captions] < clips.stop)
        own[captions][inside] = scores[inside, clip[captions][inside] - clips.start]
    higher, equal = np.zeros((2, len(t)), dtype=np.int64), np.zeros((2, len(t)), dtype=np.int64)  # clips, captions
    for captions, clips, scores in _blocks(a, counts, t, tau):
        higher[0, captions] += np.count_nonzero(scores > own[captions, None], axis=1)
        equal[0, captions] += np.count_nonzero(scores == own[captions, None], axis=1)
        pairs = np.flatnonzero((clip >= clips.start) & (clip < clips.stop))
        others = scores[:, clip[pairs] - clips.start]  # [captions of the block, pairs]
        higher[1, pairs] += np.count_nonzero(others > own[pairs], axis=0)
        equal[1, pairs] += np.count_nonzero(others == own[pairs], axis=0)
    return CountedPairs(clip, np.arange(len(t)), own, higher[0], equal[0], higher[1], equal[1])


def _blocks(a: FloatArray, counts: IntArray, t: FloatArray, tau: float) -> Iterator[tuple[slice, slice, Float32Array]]:
    """Captions, clips and their scores [captions, clips]; always the same blocks, so that equal scores stay equal."""
    end = np.cumsum(counts)
    first = 0
    while first < len(counts):
        begin = int(end[first] - counts[first])
        last = max(first + 1, int(np.searchsorted(end, begin + _BLOCK_WINDOWS, side="right")))
        sounds = a[begin : end[last - 1]].astype(np.float64).T  # [D, windows]
        for top in range(0, len(t), _BLOCK_CAPTIONS):
            captions = slice(top, min(len(t), top + _BLOCK_CAPTIONS))
            yield captions, slice(first, last), _fused(t[captions].astype(np.float64) @ sounds, counts[first:last], tau)
        first = last


def _fused(cosines: FloatArray, counts: IntArray, tau: float) -> Float32Array:
    """Cosines with windows [captions, windows] to scores of clips [captions, clips]."""
    first = np.cumsum(counts) - counts
    best = np.maximum.reduceat(cosines, first, axis=1)
    if not tau:
        return best.astype(np.float32)
    weights = np.exp((cosines - np.repeat(best, counts, axis=1)) / tau)  # the best one has 1: no overflow, no division by 0
    scores: FloatArray = np.add.reduceat(weights * cosines, first, axis=1) / np.add.reduceat(weights, first, axis=1)
    return scores.astype(np.float32)


def _checked(vectors: npt.ArrayLike, name: str) -> FloatArray:
    array = np.asarray(vectors)
    if array.ndim != 2 or array.dtype.kind != "f" or not len(array) or not np.isfinite(array).all():
        raise MetricError(f"{name}: {array.dtype} {list(array.shape)}, expected finite vectors, one a row")
    return array
