"""From the vectors of windows to the vectors of clips, in the order in which the clips began."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clapkit.errors import NumericalError

FloatArray = npt.NDArray[np.float32]
Pool = Literal["mean", "none"]
Fuse = Callable[[FloatArray], FloatArray]
"""Unit-norm vectors of the windows of a clip [W, D] to one vector [D]."""


@dataclass(frozen=True, slots=True)
class EmbeddedClip:
    """One clip that was embedded.

    Attributes:
        row: of the manifest.
        vectors: unit norm, float32 [W, D]; [1, D] if windows are pooled.
        spans: start and end of each vector in seconds of its file.
        num_windows: windows that were encoded.
        content: XXH3-128 of the bytes of the file, hexadecimal; None if it was not asked for.
    """

    row: int
    vectors: FloatArray
    spans: list[tuple[float, float]]
    num_windows: int
    content: str | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A clip without a vector, and why: ``row`` is of the manifest, ``reason`` one line."""

    row: int
    reason: str


@dataclass(slots=True)
class _OpenClip:
    """A clip some of whose windows are not encoded or not even decoded yet."""

    row: int
    id: str
    total: npt.NDArray[np.float64]  # [D], of the vectors so far
    vectors: list[FloatArray] = field(default_factory=list)
    spans: list[tuple[float, float]] = field(default_factory=list)
    num_windows: int = 0
    num_waiting: int = 0
    content: str | None = None
    has_ended: bool = False
    outcome: EmbeddedClip | Rejected | None = None


class ClipsInOrder:
    """Puts the windows of clips together again; what it keeps of a clip whose mean is taken does not grow with its windows.

    Args:
        width: D.
        pool: ``mean`` makes one vector of the windows of a clip, ``none`` keeps them.
        fuse: how ``mean`` does so where the model knows better than their mean.
    """

    def __init__(self, *, width: int, pool: Pool, fuse: Fuse | None = None) -> None:
        self._width, self._pool, self._fuse = width, pool, fuse
        self._open: deque[_OpenClip] = deque()
        self._waiting: deque[_OpenClip] = deque()  # one entry for each window that has no vector yet

    def __len__(self) -> int:
        """How many clips were begun and not handed out."""
        return len(self._open)

    def begin(self, row: int, id: str) -> None:
        """The next windows belong to this clip."""
        self._open.append(_OpenClip(row, id, np.zeros(self._width)))

    def add_window(self, start_s: float, end_s: float) -> None:
        """The newest clip has one more window, whose vector will follow."""
        clip = self._open[-1]
        if self._pool == "mean" and clip.spans:
            clip.spans[0] = (clip.spans[0][0], end_s)
        else:
            clip.spans.append((start_s, end_s))
        clip.num_windows += 1
        clip.num_waiting += 1
        self._waiting.append(clip)

    def end(self, content: str | None = None) -> None:
        """The newest clip has no more windows."""
        self._open[-1].content = content
        self._open[-1].has_ended = True

    def settle(self, outcome: EmbeddedClip | Rejected) -> None:
        """The newest clip is known, or cannot be embedded; vectors of windows that it has had are passed over."""
        self._open[-1].outcome = outcome
        self._open[-1].has_ended = True

    def add_vectors(self, vectors: FloatArray) -> None:
        """Vectors [n, D] of the first n windows that have none.

        Raises:
            NumericalError: if one is not finite.
        """
        clips = [self._waiting.popleft() for _ in range(len(vectors))]
        expect_finite(vectors, [clip.id for clip in clips])
        for clip, vector in zip(clips, vectors, strict=True):
            clip.num_waiting -= 1
            if clip.outcome is not None:
                continue
            if self._pool == "mean":
                clip.total += vector
            if self._pool == "none" or self._fuse is not None:
                clip.vectors.append(vector)

    def finished(self) -> Iterator[EmbeddedClip | Rejected]:
        """Hand out the clips that are complete, up to the first that is not.

        Raises:
            NumericalError: if the windows of a clip cancel each other.
        """
        while self._open and self._open[0].has_ended and (self._open[0].outcome or not self._open[0].num_waiting):
            clip = self._open.popleft()
            yield clip.outcome or self._embedded(clip)

    def _embedded(self, clip: _OpenClip) -> EmbeddedClip:
        if self._pool == "none":
            vectors = np.stack(clip.vectors)  # [W, D]
        else:
            vectors = unit_norm(self._pooled(clip)[None])  # [1, D]
            expect_finite(vectors, [clip.id])
        return EmbeddedClip(clip.row, vectors, clip.spans, clip.num_windows, clip.content)

    def _pooled(self, clip: _OpenClip) -> npt.NDArray[np.floating[Any]]:
        """The direction of all windows together [D]."""
        if self._fuse is None or clip.num_windows == 1:  # one window is itself, whatever fuses
            return clip.total
        return self._fuse(np.stack(clip.vectors))


def unit_norm(vectors: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Rows of norm 1 to the last bit of float32, NaN for rows of zeros; half precision towers come near it only."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: FloatArray = np.divide(wide, norms, out=np.full_like(wide, np.nan), where=norms > 0).astype(np.float32)
    return unit


def expect_finite(vectors: FloatArray, names: Sequence[str]) -> None:
    """Refuse vectors [N, D] that are not finite; ``names`` says what they belong to.

    Raises:
        NumericalError: if there is one; names the first.
    """
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        first = names[int(np.argmax(broken))]
        raise NumericalError(
            f"{int(broken.sum())} of {len(vectors)} embeddings are zero or not finite, the first of {first!r}; "
            "the model is damaged or has diverged"
        )
