"""The searchable side of ``clapkit retrieve``: tables with their indexes, or an engine, and the hits that they give."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from clapkit import registry
from clapkit.config import RetrieveConfig
from clapkit.errors import ConfigError
from clapkit.index._sketch import load_sketch
from clapkit.index.fusion import reciprocal_rank_fusion
from clapkit.index.hits import FoundItem, fold, group, search_all_until
from clapkit.index.statistics import ScoreStatistics, calibrated
from clapkit.index.table import EmbeddingTable, Modality, TableInfo
from clapkit.types import Hit, HitSpan

if TYPE_CHECKING:
    from clapkit.index.engines import Engine

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
Ranking = tuple[FloatArray, IntArray]
"""Cosines float32 [M] and rows int64 [M] of the items of a query, best first."""

# Of each ranking, where two are joined: what is further down changes no place near the top.
_FUSED = 1000


class Source(Protocol):
    """Items of one modality that can be searched.

    Attributes:
        modality: of the items.
        num_items: that are searched, after the filter.
    """

    modality: Modality
    num_items: int

    @property
    def num_files(self) -> int:
        """Files that the items are from, or more where that is not known."""
        ...

    def search(self, queries: FloatArray, count: int) -> list[Ranking]:
        """The best items of each query [Q, D]."""
        ...

    def fused(self, query: FloatArray, words: str, count: int) -> Ranking:
        """The best items of a query [D] by its vector and its words."""
        ...

    def rows(self, wanted: Sequence[int] | IntArray) -> list[dict[str, Any]]:
        """Metadata of items."""
        ...

    def vectors(self, wanted: IntArray) -> FloatArray:
        """Vectors of items [M, D]."""
        ...

    def z_scores(self, query: FloatArray, scores: FloatArray) -> list[float | None]:
        """How many deviations above the mean cosine of a query [D] with all items each score [K] is; None if not known."""
        ...

    def mean_score(self, query: FloatArray) -> float | None:
        """Mean cosine of a query [D] with all items; None if not known."""
        ...


class TableSource:
    """A table, its index and its statistics.

    Args:
        table: to search.
        info: of its folder.
        index: name of the back end: ``exact``, or one that was built beside the table.
        options: of the back end, ``key=value``.
        folder: of the table; None where it lies in memory.
        rows: ascending, if not all are wanted.
        statistics: of its cosines.
        cache: where a full-text index goes if the folder cannot be written.
    """

    def __init__(
        self,
        table: EmbeddingTable,
        info: TableInfo,
        *,
        index: str,
        options: Sequence[str],
        folder: Path | None,
        rows: IntArray | None,
        statistics: ScoreStatistics | None,
        cache: Path,
    ) -> None:
        self.modality, self.num_items = table.modality, len(table) if rows is None else len(rows)
        self._table, self._info, self._folder, self._rows = table, info, folder, rows
        self._statistics, self._cache = statistics, cache
        self._index = _open_index(index, options, table, info, folder)
        self._full_text: Any = None
        self._known: dict[int, dict[str, Any]] = {}

    @functools.cached_property
    def num_files(self) -> int:
        """Files that the items of the table are from."""
        return max(1, len(self._table.arrow(["path"]).column("path").unique()))

    def search(self, queries: FloatArray, count: int) -> list[Ranking]:
        """The best items of each query [Q, D]."""
        scores, rows = self._index.search(queries, count, rows=self._rows)
        return list(zip(scores, rows, strict=True))

    def fused(self, query: FloatArray, words: str, count: int) -> Ranking:
        """The best items by vector and by words, joined by their ranks; scores are cosines."""
        by_words, ranks = self._ranked_by_words(words) if words else (np.empty(0, dtype=np.int64),) * 2
        by_vector = self.search(query[None], _FUSED)[0][1]
        # Items that only their words have found have a place among the vectors, too: of the windows of a clip the best one
        # is meant.
        candidates = np.union1d(by_vector[by_vector >= 0], by_words)
        scores, by_vector = (found[0] for found in self._index.search(query[None], len(candidates), rows=candidates))
        rows = reciprocal_rank_fusion([by_vector, by_words], ranks=[None, ranks], k=count)[1]
        cosines = dict(zip(by_vector.tolist(), scores.tolist(), strict=True))
        return np.array([cosines[row] for row in rows.tolist()], dtype=np.float32), rows

    def _ranked_by_words(self, words: str) -> tuple[IntArray, IntArray]:
        """Items that have some of the words, best first, and their ranks."""
        if self._full_text is None:
            from clapkit.index.fulltext import FullText

            self._full_text = FullText.open(self._folder, self._table, info=self._info, cache=self._cache)
        found = self._full_text.ranking(words, _FUSED)
        wanted = np.ones(len(found.rows), dtype=bool) if self._rows is None else np.isin(found.rows, self._rows)
        return found.rows[wanted][:_FUSED], found.ranks[wanted][:_FUSED]

    def rows(self, wanted: Sequence[int] | IntArray) -> list[dict[str, Any]]:
        """Metadata of items, each read once."""
        numbers = [int(row) for row in wanted]
        missing = sorted(set(numbers) - self._known.keys())
        if missing:
            self._known |= dict(zip(missing, self._table.rows(missing), strict=True))
        return [self._known[row] for row in numbers]

    def vectors(self, wanted: IntArray) -> FloatArray:
        """Vectors of items [M, D]."""
        vectors: FloatArray = self._table.vectors[wanted]
        return vectors

    def z_scores(self, query: FloatArray, scores: FloatArray) -> list[float | None]:
        """How many deviations above the mean cosine of a query [D] with all items of the table each score [K] is."""
        if self._statistics is None:
            return [None] * len(scores)
        return calibrated(scores[None], *self._statistics.of(query[None]))[0]

    def mean_score(self, query: FloatArray) -> float | None:
        """Mean cosine of a query [D] with all items of the table."""
        return None if self._statistics is None else float(self._statistics.mean @ query)


class EngineSource:
    """A table that was pushed into an engine.

    Args:
        engine: that holds it.
        modality: of its items.
        where: filter, in clapkit's language.
    """

    def __init__(self, engine: Engine, *, modality: Modality, where: str | None) -> None:
        self._engine, self._where, self.modality = engine, where, modality
        self.num_items: int = engine.count()
        self._found: list[dict[str, Any]] = []

    @property
    def num_files(self) -> int:
        """Not known: as many as there are items."""
        return max(1, self.num_items)

    def search(self, queries: FloatArray, count: int) -> list[Ranking]:
        """The best items of each query; rows number what was found so far."""
        rankings = []
        for answer in self._engine.search(queries, count, where=self._where):
            first = len(self._found)
            self._found += [row for _, row in answer]
            scores = np.array([score for score, _ in answer], dtype=np.float32)
            rankings.append((scores, np.arange(first, len(self._found))))
        return rankings

    def fused(self, query: FloatArray, words: str, count: int) -> Ranking:
        """Not to be had: the engine ranks by vectors."""
        raise ConfigError("--hybrid: needs the names and captions of a table, an engine ranks by vectors; leave one out")

    def rows(self, wanted: Sequence[int] | IntArray) -> list[dict[str, Any]]:
        """Metadata of items that were found."""
        return [self._found[row] for row in wanted]

    def vectors(self, wanted: IntArray) -> FloatArray:
        """Not to be had."""
        raise ConfigError("--fold: the engine does not give vectors back; leave --fold out")

    def z_scores(self, query: FloatArray, scores: FloatArray) -> list[float | None]:
        """Not known: the engine holds the vectors."""
        return [None] * len(scores)

    def mean_score(self, query: FloatArray) -> float | None:
        """Not known."""
        return None


@dataclass(frozen=True, slots=True)
class Wish:
    """How hits are made of a ranking; see the options of ``clapkit retrieve`` of the same names."""

    k: int
    min_score: float | None = None
    group_by: Literal["none", "file"] = "none"
    fold: bool = False
    hybrid: bool = False

    @classmethod
    def of(cls, config: RetrieveConfig) -> Wish:
        """The wish of a call.

        Raises:
            ConfigError: if ``-k`` is less than 1.
        """
        if config.k < 1:
            raise ConfigError(f"-k {config.k}: expected at least 1")
        return cls(config.k, config.min_score, config.group_by, config.fold, config.hybrid)


def find(sources: Sequence[Source], queries: FloatArray, words: Sequence[str], wish: Wish) -> list[list[Hit]]:
    """The hits of each query, over all sources.

    Hits of sounds and of captions are put in one order by how unusual their scores are: cosines of words with words are
    larger than those of words with sounds.

    Args:
        sources: to search.
        queries: unit norm [Q, D].
        words: what each query says in words.
        wish: how hits are made.
    """
    found = [_find_in(source, queries, words, wish) for source in sources]
    if len(found) == 1:
        return [_ranked(hits) for hits in found[0]]
    merged = []
    for parts in zip(*found, strict=True):
        hits = [hit for part in parts for hit in part]
        # A table whose items all score the same has no z-scores, which then compare with nothing.
        by_score = any(hit.z_score is None for hit in hits)
        merged.append(_ranked(sorted(hits, key=lambda hit: _order(hit, by_score=by_score))[: wish.k]))
    return merged


def _find_in(source: Source, queries: FloatArray, words: Sequence[str], wish: Wish) -> list[list[Hit]]:
    def search(numbers: IntArray, count: int) -> list[Ranking]:
        if wish.hybrid:
            rankings = [source.fused(queries[number], words[number], count) for number in numbers]
        else:
            rankings = source.search(queries[numbers], count)
        found = np.concatenate([rows for _, rows in rankings])
        source.rows(found[found >= 0])  # what is known of them is read once for all queries
        return rankings

    def make_hits(number: int, scores: FloatArray, rows: IntArray) -> list[FoundItem]:
        metadata = source.rows(rows)
        background = source.mean_score(queries[number]) if wish.group_by == "file" else None
        items = group(scores, rows, metadata, by=wish.group_by, background=background)
        return fold(items, metadata, rows=rows, vectors=source.vectors) if wish.fold else items

    items = search_all_until(
        search,
        make_hits,
        num_queries=len(queries),
        k=min(wish.k, source.num_files) if wish.group_by == "file" else wish.k,
        num_items=min(source.num_items, 2 * _FUSED) if wish.hybrid else source.num_items,
        min_score=wish.min_score,
        first=2 * _FUSED if wish.hybrid else None,  # scores of a joined ranking do not fall: all of it is looked at
    )
    return [_hits(found, source, query) for found, query in zip(items, queries, strict=True)]


def _hits(items: Sequence[FoundItem], source: Source, query: FloatArray) -> list[Hit]:
    z_scores = source.z_scores(query, np.array([item.score for item in items], dtype=np.float32))
    hits = []
    for item, row, z_score in zip(items, source.rows([item.row for item in items]), z_scores, strict=True):
        spans = tuple(HitSpan(span.start_s, span.end_s, span.score) for span in item.spans)
        hits.append(
            Hit(
                rank=0,
                score=item.score,
                z_score=z_score,
                modality=source.modality,
                id=row["id"],
                path=row["path"] or "",
                start_s=spans[0].start_s,
                end_s=spans[0].end_s,
                spans=spans,
                captions=tuple(row["captions"] or ()),
                labels=tuple(row["labels"] or ()),
                also=item.also,
            )
        )
    return hits


def _ranked(hits: Sequence[Hit]) -> list[Hit]:
    return [dataclasses.replace(hit, rank=rank) for rank, hit in enumerate(hits, start=1)]


def _order(hit: Hit, *, by_score: bool) -> float:
    return -(hit.score if by_score or hit.z_score is None else hit.z_score)


def as_json(hit: Hit) -> dict[str, Any]:
    """A hit as ``--json`` prints it."""
    plain = dataclasses.asdict(hit)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def _open_index(name: str, options: Sequence[str], table: EmbeddingTable, info: TableInfo, folder: Path | None) -> Any:
    assignments = registry.parse_assignments(options)
    if name == "exact":
        index = registry.build("index", name, assignments)
        index.add(table.vectors, None if folder is None else load_sketch(folder, table.modality, info))
        return index
    registry.module("index", name)  # refuses unknown names
    if folder is None:
        raise ConfigError(f"--index {name}: belongs to an embed run, these vectors are a file; leave --index out")
    if assignments:
        given = ", ".join(assignments)
        raise ConfigError(f"-O {given}: the index was built with options of its own; leave -O out, or embed --index again")
    from clapkit.index.stored import open_stored

    return open_stored(name, folder, table.modality, info=info, table=table)


def cache_folder() -> Path:
    """Where what a search builds is kept, if not beside the table."""
    from clapkit.steps.query_cache import cache_dir

    return cache_dir(os.environ)
