"""Vectors that need not be computed again: of the table before an update, of a run that was interrupted, of a shared cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from clapkit.errors import ClapkitError
from clapkit.steps.clip_vectors import EmbeddedClip, FloatArray
from clapkit.steps.embed_earlier import EarlierAudio
from clapkit.steps.vector_cache import Spans, VectorCache, policy_scope
from clapkit.types import Clip

PROGRESS = ".progress.sqlite"
"""File in a run directory that keeps vectors until the run is finished."""

Origin = Literal["earlier", "progress", "cache"]


class KnownVectors:
    """Where vectors are looked for before they are computed, and where computed ones are kept.

    Args:
        progress: of the run.
        cache: shared by runs, if one was named.
        earlier: rows of the table that is brought up to date, if there is one.
    """

    def __init__(self, progress: VectorCache, *, cache: VectorCache | None = None, earlier: EarlierAudio | None = None) -> None:
        self._progress, self._cache, self._earlier = progress, cache, earlier
        # Of clips that were found and not handed out yet: as many as are looked at ahead.
        self._origins: dict[str, Origin] = {}

    def find(self, clip: Clip, content: str) -> EmbeddedClip | None:
        """The vectors of a clip, if they are known.

        Args:
            clip: to be embedded.
            content: hash of the bytes of its file.
        """
        origin: Origin = "earlier"
        found = self._earlier.find(clip, content) if self._earlier is not None else None
        if found is None:
            origin, found = "progress", _get(self._progress, clip, content)
        if found is None and self._cache is not None:
            origin, found = "cache", _get(self._cache, clip, content)
        if found is not None:
            self._origins[clip.id] = origin
        return found

    def keep(self, clip: Clip, embedded: EmbeddedClip) -> Origin | None:
        """Keep the vectors of a clip where they were not found.

        Args:
            clip: that was embedded.
            embedded: its vectors.

        Returns:
            Where they were found; None if they were computed.
        """
        origin = self._origins.pop(clip.id, None)
        # An earlier table has rounded its vectors: they are kept there only, and nobody else is given them.
        if origin is None:
            _put(self._progress, clip, embedded)
        if origin in (None, "progress") and self._cache is not None:
            _put(self._cache, clip, embedded)
        return origin


def _get(cache: VectorCache, clip: Clip, content: str) -> EmbeddedClip | None:
    found = cache.get(content, clip.start_s, clip.end_s)
    if found is None:
        return None
    vectors, spans, num_windows = found
    return EmbeddedClip(0, vectors, spans, num_windows, content)


def _put(cache: VectorCache, clip: Clip, embedded: EmbeddedClip) -> None:
    assert embedded.content is not None
    cache.put(embedded.content, clip.start_s, clip.end_s, embedded.vectors, embedded.spans, embedded.num_windows)


@contextlib.contextmanager
def known_vectors(
    folder: Path,
    *,
    fingerprint: str,
    policy: Mapping[str, Any],
    cache: Path | None = None,
    earlier: EarlierAudio | None = None,
) -> Iterator[KnownVectors]:
    """Open the files that keep vectors; what was kept is on the disk afterwards, whatever happens.

    Args:
        folder: of the table, where ``PROGRESS`` lies.
        fingerprint: of the model.
        policy: how audio is cut and pooled.
        cache: file that runs share.
        earlier: rows of the table that is brought up to date.
    """
    scope = policy_scope(fingerprint, policy)
    with open_progress(folder, scope=scope) as progress, contextlib.ExitStack() as stack:
        shared = None if cache is None else stack.enter_context(VectorCache(cache, scope=scope))
        yield KnownVectors(progress, cache=shared, earlier=earlier)


@contextlib.contextmanager
def open_progress(folder: Path, *, scope: str) -> Iterator[VectorCache]:
    """Open the file that keeps the vectors of a run; one that is still empty is deleted where the run fails.

    Args:
        folder: of the table.
        scope: of the vectors.
    """
    is_new = not (folder / PROGRESS).exists()
    progress = _Progress(folder / PROGRESS, scope=scope)
    try:
        with progress:
            yield progress
    except ClapkitError:
        if is_new and not progress.num_kept:
            discard_progress(folder)
        raise


class _Progress(VectorCache):
    """A cache that counts what is put into it."""

    num_kept = 0

    def put(
        self, content: str, start_s: float | None, end_s: float | None, vectors: FloatArray, spans: Spans, num_windows: int
    ) -> None:
        self.num_kept += 1
        super().put(content, start_s, end_s, vectors, spans, num_windows)


def discard_progress(folder: Path) -> None:
    """Delete the vectors that were kept for a run that is finished."""
    for path in folder.glob(f"{PROGRESS}*"):  # SQLite may leave a journal beside the file
        path.unlink()
