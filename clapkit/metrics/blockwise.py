"""Ranks from embeddings, without a matrix of all similarities.

The similarity of a clip and a caption is their product, summed in float64 and rounded to float32: what
``evaluate_retrieval`` is given where the matrix fits. Here it is made block by block in float32, which decides almost
every comparison, because the error of such a sum has a known bound; only pairs that lie closer together than this bound
are summed again in float64. The ranks are therefore those of the whole matrix, ties included, at the price of the fast
product, and both directions come from one pass.

Reference for the bound: Higham, Accuracy and stability of numerical algorithms, 2002, section 3.1: in whatever order D
products are added, the error is at most D u / (1 - D u) times the sum of their magnitudes, with u = 2^-24 for float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from clapkit.errors import MetricError
from clapkit.metrics.ranking import BoolArray, FloatArray, IntArray, Ranking, checked_index, ranking_from_counts

Float32Array = npt.NDArray[np.float32]

# Captions and clips of one product. The scores of 2048 x 4096 pairs take 32 MiB.
_BLOCK_CAPTIONS = 2048
_BLOCK_CLIPS = 4096
# Scores compared at a time: they stay in the cache, and the hits of a column of at most 255 fit into a byte.
_TILE_CAPTIONS = 252
_TILE_CLIPS = 1024
# Above this share of undecided comparisons a whole tile is summed in float64, which then is faster than pair by pair.
_MANY_UNDECIDED = 0.01
_PAIRS_AT_ONCE = 1024
_UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True, slots=True)
class CountedPairs:
    """How the score of each of P pairs compares with those of all pairs of the same caption, and of the same clip.

    Attributes:
        clip: int64 [P].
        caption: int64 [P].
        score: float32 [P].
        clips_higher: int64 [P], clips that score higher for the caption.
        clips_equal: int64 [P], clips with the same score for the caption, this one included.
        captions_higher: int64 [P], captions that score higher for the clip.
        captions_equal: int64 [P], captions with the same score for the clip, this one included.
    """

    clip: IntArray
    caption: IntArray
    score: Float32Array
    clips_higher: IntArray
    clips_equal: IntArray
    captions_higher: IntArray
    captions_equal: IntArray

    def text_to_audio(self, chosen: BoolArray) -> tuple[IntArray, Ranking]:
        """Captions look for clips.

        Args:
            chosen: bool [P], the pairs that are relevant.

        Returns:
            The captions that have such a pair, ascending, and where their clips stand.
        """
        return self._ranked(self.caption, self.clips_higher, self.clips_equal, chosen)

    def audio_to_text(self, chosen: BoolArray) -> tuple[IntArray, Ranking]:
        """Clips look for captions; otherwise as ``text_to_audio``."""
        return self._ranked(self.clip, self.captions_higher, self.captions_equal, chosen)

    def _ranked(self, query: IntArray, higher: IntArray, equal: IntArray, chosen: BoolArray) -> tuple[IntArray, Ranking]:
        queries, row = np.unique(query[chosen], return_inverse=True)
        return queries, ranking_from_counts(row, self.score[chosen], higher[chosen], equal[chosen])


def count_pairs(audio: npt.ArrayLike, text: npt.ArrayLike, clip: npt.ArrayLike, caption: npt.ArrayLike) -> CountedPairs:
    """Compare pairs of clips and captions with all others.

    Takes N * M * D products and P * (N + M) comparisons, and memory for the pairs and one more copy of the embeddings.

    Args:
        audio: embeddings [N clips, D], float32 or float64.
        text: embeddings [M captions, D].
        clip: integers [P], row of ``audio`` of each pair.
        caption: integers [P], row of ``text`` of each pair; no pair twice.

    Raises:
        MetricError: if shapes do not fit, a value is not finite, or an index is out of range.
    """
    a, t = checked_vectors(audio, text)
    rows, columns = checked_index(clip, len(a), name="clip"), checked_index(caption, len(t), name="caption")
    if len(rows) != len(columns):
        raise MetricError(f"caption: {len(columns)} entries, expected {len(rows)}, one per clip of a pair")
    score = exact_scores(a, t, rows, columns)
    clips, captions = _Side.build(rows, score, size=len(a)), _Side.build(columns, score, size=len(t))
    _count_all(a, t, clips, captions)
    return CountedPairs(rows, columns, score, captions.higher, captions.equal, clips.higher, clips.equal)


class _Side:
    """The pairs as queries of one kind, clips or captions, with those first that have most pairs.

    So ordered, the queries that have a j-th pair are the first ``num_with[j]`` ones, and the thresholds of their j-th
    pairs are one contiguous list.

    Attributes:
        order: int64 [queries], the row of the embeddings at each place.
        num_with: how many queries have more than j pairs, for each j.
        pairs: for each j the pairs int64 [num_with[j]], by the place of their query.
        score: float32 [P].
        higher, equal: int64 [P], counted so far.
    """

    def __init__(self, order: IntArray, pairs: list[IntArray], score: Float32Array) -> None:
        self.order, self.pairs, self.score = order, pairs, score
        self.higher = np.zeros(len(score), dtype=np.int64)
        self.equal = np.zeros(len(score), dtype=np.int64)

    @classmethod
    def build(cls, query: IntArray, score: Float32Array, *, size: int) -> _Side:
        num_pairs = np.bincount(query, minlength=size)
        order = np.argsort(-num_pairs, kind="stable")
        place = np.argsort(order)[query]  # [P]
        by_place = np.argsort(place, kind="stable")
        first = np.concatenate(([0], np.cumsum(num_pairs[order])[:-1]))  # [queries]
        num_with = [int(np.count_nonzero(num_pairs > j)) for j in range(int(num_pairs.max(initial=0)))]
        return cls(order, [by_place[first[:count] + j] for j, count in enumerate(num_with)], score)

    def within(self, start: int, end: int) -> Iterator[IntArray]:
        """For each j the pairs of the places from ``start`` to ``end`` that have one."""
        for pairs in self.pairs:
            if len(pairs) <= start:
                return
            yield pairs[start:end]


def _count_all(a: FloatArray, t: FloatArray, clips: _Side, captions: _Side) -> None:
    a_ordered, t_ordered = a[clips.order], t[captions.order]
    audio, text = a_ordered.astype(np.float32, copy=False), t_ordered.astype(np.float32, copy=False)
    margin = rounding_margin(a, t)
    buffer = np.empty(min(len(t), _BLOCK_CAPTIONS) * min(len(a), _BLOCK_CLIPS), dtype=np.float32)
    for top in range(0, len(t), _BLOCK_CAPTIONS):
        for left in range(0, len(a), _BLOCK_CLIPS):
            block = text[top : top + _BLOCK_CAPTIONS], audio[left : left + _BLOCK_CLIPS]
            scores = buffer[: len(block[0]) * len(block[1])].reshape(len(block[0]), len(block[1]))
            np.matmul(block[0], block[1].T, out=scores)  # [captions, clips]
            for row in range(0, len(scores), _TILE_CAPTIONS):
                for column in range(0, scores.shape[1], _TILE_CLIPS):
                    tile = scores[row : row + _TILE_CAPTIONS, column : column + _TILE_CLIPS]
                    _Tile(tile, top + row, left + column, a_ordered, t_ordered, margin).count(clips, captions)


class _Tile:
    """Scores of neighbouring captions and clips, and what their thresholds say of them."""

    def __init__(
        self, scores: Float32Array, top: int, left: int, audio: FloatArray, text: FloatArray, margin: np.float32
    ) -> None:
        self.scores, self.top, self.left, self.audio, self.text, self.margin = scores, top, left, audio, text, margin
        self.exact: Float32Array | None = None

    def count(self, clips: _Side, captions: _Side) -> None:
        height, width = self.scores.shape
        for pairs in clips.within(self.left, self.left + width):
            self._compare(clips, pairs, clips.score[pairs][None, :], axis=0)
        for pairs in captions.within(self.top, self.top + height):
            self._compare(captions, pairs, captions.score[pairs][:, None], axis=1)

    def _compare(self, side: _Side, pairs: IntArray, own: Float32Array, *, axis: int) -> None:
        """Count along an axis how many scores are higher than, and the same as, those of the pairs."""
        part = np.s_[:, : len(pairs)] if axis == 0 else np.s_[: len(pairs)]
        scores = self.scores[part]
        if self.exact is None:
            is_higher = scores > own + self.margin
            is_open = is_higher != (scores >= own - self.margin)
            if np.count_nonzero(is_open) <= max(_MANY_UNDECIDED * is_open.size, len(pairs)):
                side.higher[pairs] += _counts(is_higher, axis)
                # Of a flat array, because with two dimensions it takes twenty times as long.
                captions, clips = np.divmod(np.flatnonzero(is_open), is_open.shape[1])
                self._decide(side, pairs, own, captions, clips, axis=axis)
                return
            height, width = self.scores.shape
            rows, columns = self.text[self.top : self.top + height], self.audio[self.left : self.left + width]
            self.exact = (rows.astype(np.float64) @ columns.astype(np.float64).T).astype(np.float32)
        exact = self.exact[part]
        side.higher[pairs] += _counts(exact > own, axis)
        side.equal[pairs] += _counts(exact == own, axis)

    def _decide(
        self, side: _Side, pairs: IntArray, own: Float32Array, captions: IntArray, clips: IntArray, *, axis: int
    ) -> None:
        """Sum again what float32 leaves open: scores of the tile, by row and column."""
        threshold, query = own.ravel(), clips if axis == 0 else captions
        exact = exact_scores(self.audio, self.text, clips + self.left, captions + self.top)
        reference, place = threshold[query], pairs[query]
        np.add.at(side.higher, place[exact > reference], 1)
        np.add.at(side.equal, place[exact == reference], 1)


def _counts(mask: BoolArray, axis: int) -> IntArray:
    """Number of True along an axis of a tile; ``np.count_nonzero`` with an axis takes four times as long."""
    if axis == 0:
        columns: IntArray = np.add.reduce(mask.view(np.uint8), axis=0, dtype=np.uint8).astype(np.int64)
        return columns
    rows: IntArray = np.bitwise_count(np.packbits(mask, axis=1)).sum(axis=1, dtype=np.int64)
    return rows


def exact_scores(a: FloatArray, t: FloatArray, clip: IntArray, caption: IntArray) -> Float32Array:
    """Products of rows of ``a`` and ``t``, summed in float64, float32 [pairs]."""
    scores = np.empty(len(clip), dtype=np.float32)
    for part in _parts(len(clip)):
        scores[part] = np.einsum("pd,pd->p", a[clip[part]], t[caption[part]], dtype=np.float64)
    return scores


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, _PAIRS_AT_ONCE):
        yield slice(start, start + _PAIRS_AT_ONCE)


def rounding_margin(a: FloatArray, t: FloatArray) -> np.float32:
    """How far a product of rows of ``a`` and ``t`` in float32 may be from the exact one, rounded.

    D roundings of the sum, those of the embeddings and of the exact score to float32, and some for the margin itself.
    """
    squares = [np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64).max() for vectors in (a, t)]
    return np.float32((a.shape[1] + 8) * _UNIT_ROUNDOFF * 1.01 * np.sqrt(squares[0] * squares[1]))


def checked_vectors(
    first: npt.ArrayLike, second: npt.ArrayLike, *, names: tuple[str, str] = ("audio", "text")
) -> tuple[FloatArray, FloatArray]:
    """Two sets of embeddings that can be compared.

    Args:
        first: [N, D], float32 or float64.
        second: [M, D].
        names: what messages call them.

    Raises:
        MetricError: if one is no matrix, empty, of half precision or not finite, or the widths differ.
    """
    arrays = []
    for name, array in zip(names, (np.asarray(first), np.asarray(second)), strict=True):
        if array.ndim != 2 or 0 in array.shape:
            raise MetricError(f"{name}: shape {list(array.shape)}, expected embeddings with at least one row and column")
        if array.dtype not in (np.float32, np.float64):
            raise MetricError(f"{name}: type {array.dtype}, expected float32 or float64")
        finite = np.isfinite(array).all(axis=1)
        if not finite.all():
            raise MetricError(
                f"{name}: row {int(np.argmin(finite))} holds a value that is not finite; the embeddings are damaged or the "
                "model has diverged"
            )
        arrays.append(array)
    a, t = arrays
    if a.shape[1] != t.shape[1]:
        raise MetricError(
            f"{names[0]}: {a.shape[1]} wide, {names[1]}: {t.shape[1]} wide; expected the same width, that of one model"
        )
    return a, t
