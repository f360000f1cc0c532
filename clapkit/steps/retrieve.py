"""``clapkit retrieve``: the items of an embedding table that are nearest to a text or a sound.

Torch is loaded only when nothing else can embed a query: words are embedded without it by towers of clapkit's own, and come
from a cache when they were asked before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.config import RetrieveConfig
from clapkit.errors import ClapkitError, ConfigError, EmbeddingError
from clapkit.index.statistics import load_statistics, statistics_of
from clapkit.index.table import EmbeddingTable, Modality, TableInfo, open_table, read_info
from clapkit.index.where import Where
from clapkit.run_dir import RunDir
from clapkit.steps import inputs, queries
from clapkit.steps.hit_files import write_hits
from clapkit.steps.queries import Query
from clapkit.steps.query_encoder import QueryEncoder
from clapkit.steps.search import EngineSource, Source, TableSource, Wish, as_json, cache_folder, find
from clapkit.types import Hit, Reporter

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


def run(config: RetrieveConfig, run_dir: RunDir | None, reporter: Reporter) -> dict[str, Any]:
    """Search a table.

    Args:
        config: of the command.
        run_dir: where inputs are recorded; None if the query leaves nothing behind.
        reporter: messages.

    Returns:
        ``model``, ``embeddings``, ``num_items`` (that were searched) and ``results``: for each query its hits, best
        first; also what was written on request.

    Raises:
        ClapkitError: if there is no query, or the table or its model cannot be used.
    """
    asked = queries.read_queries(config)
    if config.lang is not None and not any(part.kind == "text" for part in queries.all_parts(asked)):
        raise ConfigError(f"--lang {config.lang}: belongs to queries of words, of which there are none; leave it out")
    search = Search(config, run_dir=run_dir, reporter=reporter)
    result = search.result(asked)
    return result | write_hits(result["results"], config, reporter=reporter)


def converse(config: RetrieveConfig, lines: Iterable[str], reporter: Reporter) -> Iterator[dict[str, Any] | ClapkitError]:
    """Answer lines one by one, with a table and a model that are opened once.

    Args:
        config: of the command.
        lines: words, or ``@FILE``.
        reporter: messages.

    Yields:
        What ``run`` returns, or why a line could not be answered.

    Raises:
        ClapkitError: if the table cannot be used.
    """
    search = Search(config, run_dir=None, reporter=reporter)
    for line in lines:
        try:
            result = search.result(queries.of_line(line, config))
            yield result | write_hits(result["results"], config, reporter=reporter)
        except ClapkitError as error:
            yield error


class Search:
    """A table that was opened, ready for queries.

    Args:
        config: which table, how to search it, and what a hit is.
        run_dir: where inputs are recorded, if anywhere.
        reporter: messages.

    Raises:
        ClapkitError: if the table or its model cannot be used.
    """

    def __init__(self, config: RetrieveConfig, *, run_dir: RunDir | None, reporter: Reporter) -> None:
        inputs.check_device_name(config.device)
        self._config, self._wish = config, Wish.of(config)
        opened = _open(config, reporter)
        self.info, self.name, self._sources = opened.info, opened.name, opened.sources
        if run_dir is not None and opened.record is not None:
            run_dir.add_input(opened.record, opened.info.model_fingerprint)
        self._encode = QueryEncoder(
            self.info,
            language=config.lang,
            device=config.device,
            reporter=reporter,
            tables=opened.tables,
            vectors=None if config.vectors is None else queries.read_vectors(config.vectors),
            on_device=lambda device: None if run_dir is None else run_dir.set_device(device),
        )

    def hits(self, asked: Sequence[Query]) -> list[list[Hit]]:
        """The hits of each query."""
        vectors = queries.compose(asked, self._encode(queries.all_parts(asked)), minus_weight=self._config.minus_weight)
        return find(self._sources, vectors, [query.words for query in asked], self._wish)

    def nearest(self, vector: FloatArray, *, words: str = "") -> list[Hit]:
        """The hits of a vector [D] of any length, which says ``words``.

        Raises:
            NumericalError: if it has no direction.
        """
        return find(self._sources, queries.unit_rows(vector[None], origin="query"), [words], self._wish)[0]

    def result(self, asked: Sequence[Query]) -> dict[str, Any]:
        """The answer to queries, as ``--json`` prints it."""
        answers = [
            {"query": query.name, "hits": [as_json(hit) for hit in hits]}
            for query, hits in zip(asked, self.hits(asked), strict=True)
        ]
        return {
            "model": self.info.model_path,
            "embeddings": self.name,
            "num_items": sum(source.num_items for source in self._sources),
            "results": answers,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class _Opened:
    """Where is searched: what made it, how results call it, the tables if there are some, and the file that stands for it."""

    info: TableInfo
    name: str
    sources: list[Source]
    tables: list[EmbeddingTable]
    record: Path | None


def _open(config: RetrieveConfig, reporter: Reporter) -> _Opened:
    if ":" in config.index:
        return _open_engine(config, reporter)
    path = Path(config.embeddings) if config.embeddings is not None else None
    if path is not None and _is_foreign(path):
        return _open_foreign(path, config, reporter)
    if config.ids is not None or config.model is not None:
        raise ConfigError("--ids and --model: belong to --embeddings FILE.npy; an embed run names its model itself")
    folder = inputs.resolve_embeddings(config.embeddings, runs_root=config.runs_root)
    reporter.say(f"searching {folder}")
    while True:
        opened = _open_tables(folder, _modalities(config))
        info = opened[0][0]
        if info.model_path:
            inputs.check_table_model(folder, model_path=Path(info.model_path), fingerprint=info.model_fingerprint)
        try:
            sources = [_source(table, info, config, folder=folder) for info, table in opened]
        except EmbeddingError:
            if read_info(folder).id == info.id:
                raise
            continue  # an update has replaced what belongs to the table
        return _Opened(info, os.fspath(folder), sources, [table for _, table in opened], folder / inputs.TABLE)


def _open_tables(folder: Path, modalities: Sequence[Modality]) -> list[tuple[TableInfo, EmbeddingTable]]:
    """The tables of one generation."""
    while True:
        opened = [open_table(folder, modality) for modality in modalities]
        if len({info.id for info, _ in opened}) == 1:
            return opened


def _modalities(config: RetrieveConfig) -> list[Modality]:
    return ["audio", "text"] if config.target == "both" else [config.target]


def _source(table: EmbeddingTable, info: TableInfo, config: RetrieveConfig, *, folder: Path | None) -> Source:
    statistics = statistics_of(table) if folder is None else load_statistics(folder, table.modality, info)
    return TableSource(
        table,
        info,
        index=config.index,
        options=config.options,
        folder=folder,
        rows=_wanted_rows(table, config.where),
        statistics=statistics,
        cache=cache_folder(),
    )


def _wanted_rows(table: EmbeddingTable, expression: str | None) -> IntArray | None:
    """Rows that satisfy the filter, ascending; None for all."""
    if expression is None:
        return None
    where = Where(expression)
    rows: IntArray = np.flatnonzero(where.mask_table(table.arrow(where.columns)))
    return rows


def _is_foreign(path: Path) -> bool:
    """Whether vectors were made by others: a file of numbers, or a folder of them that no clapkit has described."""
    return path.suffix == ".npy" or (path.is_dir() and not any((path / name).exists() for name in (inputs.TABLE, "run.json")))


def _open_foreign(path: Path, config: RetrieveConfig, reporter: Reporter) -> _Opened:
    from clapkit.index.foreign import read_foreign

    if config.target == "both":
        raise ConfigError("--target both: vectors of others are one table; name --target audio or text")
    table = read_foreign(path, config.ids, modality=config.target)
    reporter.say(f"searching {path}: {len(table)} vectors of width {table.width}")
    state = _words_state(table) if config.hybrid else ""
    info = TableInfo(table.width, str(table.vectors.dtype), {table.modality: len(table)}, "", "", id=state)
    if config.model is not None:
        model = inputs.resolve_model(config.model, runs_root=config.runs_root)
        info = dataclasses.replace(info, model_path=os.fspath(model.path.resolve()), model_fingerprint=model.fingerprint)
    return _Opened(info, os.fspath(path), [_source(table, info, config, folder=None)], [table], None)


def _words_state(table: EmbeddingTable) -> str:
    """What tells the words of a table in memory from others: its full-text index in the cache is found by it."""
    state = hashlib.sha256()
    for batch in table.arrow(["id", "path", "captions", "labels"]).to_batches():
        state.update(batch.serialize())
    return state.hexdigest()


def _open_engine(config: RetrieveConfig, reporter: Reporter) -> _Opened:
    from clapkit.index import engines

    if config.embeddings is not None or config.ids is not None or config.options:
        raise ConfigError(f"--index {config.index}: the engine holds the vectors; leave out --embeddings, --ids and -O")
    if config.where is not None:
        Where(config.where)
    held = []
    for modality in _modalities(config):
        engine = engines.parse(config.index, modality=modality)
        if engine is None:
            raise ConfigError(f"--index {config.index}: is neither a back end nor the address of an engine; see docs/search.md")
        held.append((modality, engine))
    info = held[0][1].info()
    reporter.say(f"searching {config.index}: {' and '.join(f'{engine.count()} of {name}' for name, engine in held)}")
    if info.model_path:
        inputs.check_table_model(Path(config.index), model_path=Path(info.model_path), fingerprint=info.model_fingerprint)
    sources: list[Source] = [EngineSource(engine, modality=modality, where=config.where) for modality, engine in held]
    return _Opened(info, config.index, sources, [], None)
