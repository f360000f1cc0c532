"""Queries of a retrieval that went wrong: what to listen to when a number disappoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

MAX_QUERIES = 5000
"""More are not searched for margins, but every so many of them."""

_NUM_SHOWN = 3
_NUM_HITS = 3
# Scores in memory at a time.
_CHUNK_SCORES = 2**23


@dataclass(frozen=True, slots=True)
class Gallery:
    """Clips and captions, and which captions are the same words.

    A clip that is described in the same words as the query is no wrong answer, though the protocol may count it as one.

    Attributes:
        audio: unit norm [N, D].
        text: unit norm [M, D].
        clip: int64 [M], the row of each caption's clip.
        texts: M captions.
        words: int64 [M], equal for equal captions.
        clips_of: number of a text -> rows of the clips with it.
        captions_of: number of a text -> rows of the captions that it is.
        words_of: row of a clip -> numbers of its texts.
        own_captions: row of a clip -> rows of its captions.
    """

    audio: FloatArray
    text: FloatArray
    clip: IntArray
    texts: Sequence[str]
    words: IntArray
    clips_of: Mapping[int, IntArray]
    captions_of: Mapping[int, IntArray]
    words_of: Mapping[int, IntArray]
    own_captions: Mapping[int, IntArray]

    @classmethod
    def build(cls, audio: FloatArray, text: FloatArray, clip: IntArray, texts: Sequence[str]) -> Gallery:
        """Find out which captions are the same; arguments as the attributes."""
        words = np.unique(np.array(texts, dtype=object), return_inverse=True)[1].astype(np.int64)
        rows = np.arange(len(texts))
        groups = (_groups(words, clip), _groups(words, rows), _groups(clip, words), _groups(clip, rows))
        return cls(audio, text, clip, texts, words, *groups)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out."""
        found = []
        for name, number in (("captions", len(self.text)), ("clips", len(self.words_of))):
            if number > MAX_QUERIES:
                found.append(f"margins are of {MAX_QUERIES:,} of the {number:,} {name}, evenly chosen")
        return tuple(found)


def _groups(keys: IntArray, values: IntArray) -> dict[int, IntArray]:
    """Key -> its distinct values, in the order of the keys."""
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    parts = np.split(values[order], starts[1:])
    return {int(key): np.unique(part) for key, part in zip(found, parts, strict=True)}


def find_queries(gallery: Gallery, ranks: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, Any]]]:
    """The queries whose answer ranks last, and those that a wrong answer misleads most.

    Args:
        gallery: clips and captions.
        ranks: direction -> rank of the right answer, from 1: of every caption for ``t2a``, and of every clip that has
            captions, in the order of the rows, for ``a2t``.

    Returns:
        ``t2a_worst``, ``t2a_confusing``, ``a2t_worst``, ``a2t_confusing`` -> queries, the worst first, no text or clip
        twice. Each has ``clip`` (row), ``caption`` (None for ``a2t``), ``rank``, ``margin`` (score of the best wrong answer
        minus that of the right one) and ``hits``: ``clip``, ``caption``, ``rank``, ``score``, ``kind`` (``right``,
        ``same words`` or ``wrong``).
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for direction, queries in (("t2a", np.arange(len(gallery.text))), ("a2t", np.array(sorted(gallery.words_of)))):
        rank = np.asarray(ranks.get(direction, ()), dtype=np.float64)
        if len(rank) != len(queries):
            continue
        by_rank = [int(place) for place in np.lexsort((queries, -rank)) if rank[place] > 1]
        worst = _distinct(gallery, direction, [int(queries[place]) for place in by_rank], taken=())
        sample = _sample(queries)
        margins = _margins(gallery, direction, sample)
        by_margin = [int(sample[place]) for place in np.lexsort((sample, -margins)) if margins[place] > 0]
        confusing = _distinct(gallery, direction, by_margin, taken=worst)
        at = {int(query): place for place, query in enumerate(queries)}
        for kind, chosen in (("worst", worst), ("confusing", confusing)):
            found[f"{direction}_{kind}"] = [_describe(gallery, direction, query, rank[at[query]]) for query in chosen]
    return found


def _sample(rows: IntArray) -> IntArray:
    if len(rows) <= MAX_QUERIES:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MAX_QUERIES).astype(np.int64)]


def _scores(queries: FloatArray, items: FloatArray, rows: IntArray) -> Iterator[tuple[IntArray, FloatArray]]:
    """Rows of queries, some at a time, and their cosines with all items [chunk, items]."""
    size = max(1, _CHUNK_SCORES // len(items))
    transposed = items.astype(np.float64).T
    for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        # Equal vectors have equal scores when the sums run in float64 and are rounded.
        yield chunk, (queries[chunk].astype(np.float64) @ transposed).astype(np.float32)


def _margins(gallery: Gallery, direction: str, queries: IntArray) -> npt.NDArray[np.float64]:
    """Score of the best wrong answer minus that of the best right one, for each query; -inf where nothing is wrong."""
    asking, items = (gallery.text, gallery.audio) if direction == "t2a" else (gallery.audio, gallery.text)
    margins = []
    for chunk, scores in _scores(asking, items, queries):
        for query, row in zip(chunk, scores, strict=True):
            margins.append(_margin(gallery, direction, int(query), row))
    return np.array(margins, dtype=np.float64)


def _margin(gallery: Gallery, direction: str, query: int, scores: FloatArray) -> float:
    right, same = _answers(gallery, direction, query)
    wrong = scores.copy()
    wrong[right] = wrong[same] = -np.inf
    return float(wrong.max() - scores[right].max())


def _answers(gallery: Gallery, direction: str, query: int) -> tuple[IntArray, IntArray]:
    """Items that the protocol counts as right, and items that share words with the query."""
    if direction == "t2a":
        return gallery.clip[query : query + 1], gallery.clips_of[int(gallery.words[query])]
    same = [gallery.captions_of[int(words)] for words in gallery.words_of[query]]
    return gallery.own_captions[query], np.concatenate(same)


def _distinct(gallery: Gallery, direction: str, queries: Sequence[int], *, taken: Sequence[int]) -> list[int]:
    """The first few queries that differ from each other, and from those taken, in their words and their clip."""

    def keys(query: int) -> set[tuple[str, int]]:
        if direction == "t2a":
            return {("words", int(gallery.words[query])), ("clip", int(gallery.clip[query]))}
        return {("words", int(gallery.words_of[query][0])), ("clip", query)}

    seen = {key for query in taken for key in keys(query)}
    chosen: list[int] = []
    for query in queries:
        if not keys(query) & seen:
            chosen.append(query)
            seen |= keys(query)
        if len(chosen) == _NUM_SHOWN:
            break
    return chosen


def _describe(gallery: Gallery, direction: str, query: int, rank: float) -> dict[str, Any]:
    """A query with its best hit and the best wrong ones."""
    asking, items = (gallery.text, gallery.audio) if direction == "t2a" else (gallery.audio, gallery.text)
    scores = next(_scores(asking, items, np.array([query])))[1][0]
    right = _answers(gallery, direction, query)[0]
    margin = _margin(gallery, direction, query, scores)
    return {
        "clip": int(gallery.clip[query]) if direction == "t2a" else query,
        "caption": gallery.texts[query] if direction == "t2a" else None,
        "rank": int(rank),
        "num_items": len(scores),
        "score": float(scores[right].max()),
        "margin": margin if np.isfinite(margin) else None,
        "hits": _hits(gallery, direction, query, scores),
    }


def _hits(gallery: Gallery, direction: str, query: int, scores: FloatArray) -> list[dict[str, Any]]:
    """The first item, whatever it is, and the wrong ones that come next; no caption twice.

    Right items and others that are described in the same words could fill every place where captions repeat.
    """
    right, same = (set(rows.tolist()) for rows in _answers(gallery, direction, query))
    hits: list[dict[str, Any]] = []
    seen: set[int] = set()
    for place, item in enumerate(np.argsort(-scores, kind="stable").tolist(), start=1):
        kind = "right" if item in right else "same words" if item in same else "wrong"
        key = item if direction == "t2a" else int(gallery.words[item])
        if key in seen or (hits and kind != "wrong"):
            continue
        seen.add(key)
        hits.append(
            {
                "clip": item if direction == "t2a" else int(gallery.clip[item]),
                "caption": None if direction == "t2a" else gallery.texts[item],
                "rank": place,
                "score": float(scores[item]),
                # Equal captions: the words are those of the clip, whichever of them came first.
                "kind": "right" if direction == "a2t" and kind == "same words" else kind,
            }
        )
        if len(hits) == _NUM_HITS:
            break
    return hits
