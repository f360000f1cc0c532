"""From the ranking of one query to hits that a person can read.

A file that was cut into overlapping windows comes back many times, and a library holds one sound under several names.
``group`` joins what lies in one place or in one file, ``fold`` joins copies, and ``search_until`` asks the index for
more candidates until that leaves enough hits. Nothing here opens a file or knows an index.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError, ShapeError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
Metadata = Sequence[Mapping[str, Any]]
Ranking = tuple[FloatArray, IntArray]
"""Scores [M] and rows int64 [M] of candidates, best first."""

# Vectors of one sound that differ by rounding, or by the codec of a copy, are closer than this.
SAME_SOUND = 0.9999
# Two unit vectors of cosine c are sqrt(2 - 2c) apart, so their cosines with a query differ by no more than that.
_SAME_SCORE = math.sqrt(2 - 2 * SAME_SOUND)
_GROWTH = 4
_CopyKey = tuple[str, float | None, float | None]


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a file; ``start_s`` and ``end_s`` are None where the table does not say."""

    start_s: float | None
    end_s: float | None
    score: float


@dataclass(frozen=True, slots=True)
class FoundItem:
    """One hit, made of one or more rows of the table.

    Attributes:
        row: the best one.
        score: of the best row.
        rows: all that its spans are made of, best first.
        spans: where it is, best first.
        also: other paths with the same sound, best first.
        floor: candidates that score less cannot change this hit; infinite where none that comes later can.
    """

    row: int
    score: float
    rows: tuple[int, ...]
    spans: tuple[Span, ...]
    also: tuple[str, ...] = ()
    floor: float = math.inf


@dataclass(frozen=True, slots=True)
class _Window:
    """A candidate with what grouping looks at."""

    row: int
    score: float
    start_s: float | None
    end_s: float | None

    @property
    def span(self) -> Span:
        return Span(self.start_s, self.end_s, self.score)


def group(
    scores: FloatArray,
    rows: IntArray,
    metadata: Metadata,
    *,
    by: Literal["none", "file"] = "none",
    max_spans: int = 3,
    merge_gap_s: float = 0.0,
    max_drop: float = 0.1,
    background: float | None = None,
) -> list[FoundItem]:
    """Hits from the candidates of one query, in the order of their best candidates.

    By ``none``, a window that overlaps a better one of its clip by more than half of the shorter of both is left out
    (non-maximum suppression), so that ten windows over one bark are one hit. Rows of one clip with one and the same span
    are no windows but its captions; each is a hit. By ``file``, each file is one hit; those of its windows that score within
    ``max_drop`` of its best, and nearer to it than to the ``background``, and overlap or touch are one span.

    Args:
        scores: of the candidates, [M]; they need not fall, for the order may come from elsewhere.
        rows: candidates, best first, int64 [M].
        metadata: of each candidate: ``id``, ``path``, ``start_s``, ``end_s``.
        by: what is one hit.
        max_spans: of one file, the best.
        merge_gap_s: windows of a file that are no further apart are one span.
        max_drop: how far below the best window of a file another one may score and still be part of a span.
        background: what items that have nothing to do with the query score, such as the mean over the table. Without it, a
            file in which nothing stands out is one span from end to end.

    Raises:
        ShapeError: if scores, rows and metadata differ in length.
        ConfigError: if a limit makes no sense.
    """
    if rows.ndim != 1 or rows.shape != scores.shape or len(rows) != len(metadata):
        raise ShapeError(
            f"hits: scores {list(scores.shape)}, rows {list(rows.shape)} and {len(metadata)} of metadata, expected one of each"
        )
    for name, value, least in (("max_spans", max_spans, 1), ("merge_gap_s", merge_gap_s, 0), ("max_drop", max_drop, 0)):
        if not value >= least:
            raise ConfigError(f"hits: {name} = {value}, expected at least {least}")
    windows = [
        _Window(row, score, described["start_s"], described["end_s"])
        for row, score, described in zip(rows.tolist(), scores.tolist(), metadata, strict=True)
    ]
    if by == "file":
        paths = [described["path"] for described in metadata]
        return _files(windows, paths, max_spans=max_spans, merge_gap_s=merge_gap_s, max_drop=max_drop, background=background)
    clips = [(described["id"], described["path"]) for described in metadata]
    return [FoundItem(window.row, window.score, (window.row,), (window.span,)) for window in _separate(windows, clips)]


def fold(
    items: Sequence[FoundItem],
    metadata: Metadata,
    *,
    rows: IntArray,
    vectors: Callable[[IntArray], FloatArray] | None = None,
) -> list[FoundItem]:
    """Hits with copies of one sound folded into the best of them.

    Copies are hits whose best rows have the same bytes (``content``) and the same span; where either has no ``content``,
    those whose vectors have a cosine of at least 0.9999. Both imply nearly equal scores; a hit whose score is further away
    stays on its own.

    Args:
        items: best first.
        metadata: of each candidate: ``path``, ``start_s``, ``end_s``, ``content``.
        rows: candidates that the items were made of, int64 [M].
        vectors: gives the stored vectors [n, D] of some rows, unit norm; asked only where a ``content`` is missing. None to
            compare by content only.
    """
    described = dict(zip(rows.tolist(), metadata, strict=True))
    stored = {} if vectors is None else _unhashed_vectors(items, described, vectors)
    kept: list[_Fold] = []
    by_key: dict[_CopyKey, int] = {}
    for item in items:
        key, path = _copy_key(described[item.row]), described[item.row]["path"]
        place = _twin(item, kept, key=key, by_key=by_key, stored=stored)
        if place is not None:
            kept[place].paths.append(path)
            continue
        if key is not None:
            by_key.setdefault(key, len(kept))
        kept.append(_Fold(item, key, [path]))
    return [one.folded() for one in kept]


def search_until(
    search: Callable[[int], Ranking],
    make_hits: Callable[[FloatArray, IntArray], Sequence[FoundItem]],
    *,
    k: int,
    num_items: int,
    min_score: float | None = None,
    first: int | None = None,
) -> list[FoundItem]:
    """The best k hits of one query, whatever share of the candidates the making of hits takes away.

    Asks for four times as many candidates until there are k hits that no further candidate can change, so the answer does
    not depend on how many it starts with.

    Args:
        search: number of candidates -> their scores and rows [M], best first.
        make_hits: scores and rows of candidates -> hits, best first.
        k: hits wanted.
        num_items: candidates that there are.
        min_score: hits below it are not wanted.
        first: candidates to start with, by default k.

    Returns:
        At most k hits; fewer if there are no more.

    Raises:
        ConfigError: if k or ``first`` is less than 1.
    """
    return search_all_until(
        lambda _, count: [search(count)],
        lambda _, scores, rows: make_hits(scores, rows),
        num_queries=1,
        k=k,
        num_items=num_items,
        min_score=min_score,
        first=first,
    )[0]


def search_all_until(
    search: Callable[[IntArray, int], Iterable[Ranking]],
    make_hits: Callable[[int, FloatArray, IntArray], Sequence[FoundItem]],
    *,
    num_queries: int,
    k: int,
    num_items: int,
    min_score: float | None = None,
    first: int | None = None,
) -> list[list[FoundItem]]:
    """As ``search_until`` for many queries at once; only those with too few hits are searched again.

    Args:
        search: numbers of queries [Q] and number of candidates -> scores and rows of each, best first; row -1 where an index
            found fewer.
        make_hits: number of a query, scores and rows of its candidates -> hits, best first.
        num_queries: how many there are.
        k: hits wanted of each.
        num_items: candidates that there are.
        min_score: hits below it are not wanted.
        first: candidates to start with, by default k.

    Raises:
        ConfigError: if k or ``first`` is less than 1.
    """
    count = k if first is None else first
    if k < 1 or count < 1:
        raise ConfigError(f"hits: {k} hits from {count} candidates, expected at least 1 of both")
    hits: list[list[FoundItem]] = [[] for _ in range(num_queries)]
    pending = list(range(num_queries)) if num_items else []
    while pending:
        count = min(count, num_items)
        unfinished = []
        for query, (scores, rows) in zip(pending, search(np.array(pending), count), strict=True):
            real = rows >= 0
            made = make_hits(query, scores[real], rows[real])
            hits[query] = [hit for hit in made if min_score is None or hit.score >= min_score][:k]
            exhausted = count == num_items or int(real.sum()) < count
            if not exhausted and not _settled(hits[query], float(scores[-1]), k=k, min_score=min_score):
                unfinished.append(query)
        pending = unfinished
        count *= _GROWTH
    return hits


def _settled(hits: Sequence[FoundItem], last_score: float, *, k: int, min_score: float | None) -> bool:
    """Whether candidates that score no more than ``last_score`` can neither add a hit nor change one."""
    complete = len(hits) == k or (min_score is not None and last_score < min_score)
    return complete and all(last_score < hit.floor for hit in hits)


def _separate(windows: Sequence[_Window], clips: Sequence[tuple[str, str]]) -> list[_Window]:
    """Windows that do not overlap a better one of their clip by more than half."""
    taken: dict[tuple[str, str], _Taken] = {}
    return [window for window, clip in zip(windows, clips, strict=True) if taken.setdefault(clip, _Taken()).add(window)]


@dataclass(slots=True)
class _Taken:
    """Places of one clip that are hits, in the order of their starts."""

    places: list[tuple[float, float]] = field(default_factory=list)
    longest_s: float = 0.0

    def add(self, window: _Window) -> bool:
        """Take a place unless it is taken; a window without a place is never one that is taken."""
        if window.start_s is None or window.end_s is None:
            return True
        start, end = window.start_s, window.end_s
        # Places that begin outside of these two do not reach the window.
        first = bisect.bisect_left(self.places, (start - self.longest_s,))
        last = bisect.bisect_left(self.places, (end,))
        for other_start, other_end in self.places[first:last]:
            shorter = min(end - start, other_end - other_start)
            is_window = (start, end) != (other_start, other_end)  # of one clip, no two windows are in one place
            if is_window and min(end, other_end) - max(start, other_start) > shorter / 2:
                return False
        bisect.insort(self.places, (start, end))
        self.longest_s = max(self.longest_s, end - start)
        return True


def _files(
    windows: Sequence[_Window],
    paths: Sequence[str],
    *,
    max_spans: int,
    merge_gap_s: float,
    max_drop: float,
    background: float | None,
) -> list[FoundItem]:
    files: dict[str, list[int]] = {}  # path -> places in the ranking
    for place, path in enumerate(paths):
        files.setdefault(path, []).append(place)
    items = []
    for places in files.values():
        best = windows[places[0]]
        floor = best.score - max_drop
        if background is not None:
            floor = min(best.score, max(floor, (best.score + background) / 2))
        near = [place for place in places if windows[place].score >= floor]
        runs = _runs(windows, near, merge_gap_s=merge_gap_s)[:max_spans]
        items.append(
            FoundItem(
                row=best.row,
                score=best.score,
                rows=tuple(windows[place].row for place in sorted(place for run in runs for place in run)),
                spans=tuple(_joined([windows[place] for place in run]) for run in runs),
                floor=floor,
            )
        )
    return items


def _runs(windows: Sequence[_Window], places: Sequence[int], *, merge_gap_s: float) -> list[list[int]]:
    """Places in the ranking whose windows overlap or touch, each run best first, the best run first."""
    timed = [place for place in places if windows[place].start_s is not None and windows[place].end_s is not None]
    untimed = sorted(set(places) - set(timed))
    runs = [untimed] if untimed else []
    end = -math.inf
    for place in sorted(timed, key=lambda place: (windows[place].start_s, place)):
        start_s, end_s = windows[place].start_s, windows[place].end_s
        assert start_s is not None
        assert end_s is not None
        if end == -math.inf or start_s > end + merge_gap_s:
            runs.append([])
            end = end_s
        runs[-1].append(place)
        end = max(end, end_s)
    return sorted(sorted(run) for run in runs)


def _joined(run: Sequence[_Window]) -> Span:
    """The span of a run, with the score of its best window."""
    starts = [window.start_s for window in run if window.start_s is not None]
    ends = [window.end_s for window in run if window.end_s is not None]
    whole = len(starts) == len(ends) == len(run)
    return Span(min(starts) if whole else None, max(ends) if whole else None, run[0].score)


@dataclass(slots=True)
class _Fold:
    """A hit and the paths of its copies, its own first."""

    item: FoundItem
    key: _CopyKey | None
    paths: list[str]

    def folded(self) -> FoundItem:
        others = dict.fromkeys(path for path in self.paths if path != self.paths[0])
        floor = min(self.item.floor, self.item.score - _SAME_SCORE)
        return replace(self.item, also=(*self.item.also, *others), floor=floor)


def _copy_key(described: Mapping[str, Any]) -> _CopyKey | None:
    """What copies of a sound have in common; None if its bytes are not known."""
    if described.get("content") is None:
        return None
    # Milliseconds: spans went through text in some manifests.
    start_s, end_s = (None if time is None else round(time, 3) for time in (described["start_s"], described["end_s"]))
    return described["content"], start_s, end_s


def _twin(
    item: FoundItem,
    kept: Sequence[_Fold],
    *,
    key: _CopyKey | None,
    by_key: Mapping[_CopyKey, int],
    stored: Mapping[int, FloatArray],
) -> int | None:
    """Place of the kept hit that the item is a copy of."""
    place = None if key is None else by_key.get(key)
    if place is not None and _close(item, kept[place].item):
        return place
    vector = stored.get(item.row)
    if vector is None:
        return None
    for place, other in enumerate(kept):
        if key is not None and other.key is not None:
            continue  # both are known by their bytes, and they differ
        if _close(item, other.item) and float(vector @ stored[other.item.row]) >= SAME_SOUND:
            return place
    return None


def _close(one: FoundItem, other: FoundItem) -> bool:
    return abs(one.score - other.score) <= _SAME_SCORE


def _unhashed_vectors(
    items: Sequence[FoundItem], described: Mapping[int, Mapping[str, Any]], vectors: Callable[[IntArray], FloatArray]
) -> dict[int, FloatArray]:
    """Row -> vector of all hits, or nothing where all are known by their bytes."""
    rows = [item.row for item in items]
    if all(described[row].get("content") is not None for row in rows):
        return {}
    return dict(zip(rows, vectors(np.array(rows, dtype=np.int64)).astype(np.float32), strict=True))
