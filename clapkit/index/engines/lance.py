"""LanceDB: one library for a folder and an object store.

A push writes a new version of the table; a version appears with one small file, written last, so readers see the old
table or the new one whatever happens meanwhile. Versions older than an hour are deleted by the next push.
Vectors keep the number format of the table. Hits are scored again in float64 from the vectors that LanceDB gives back.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index.engines import Pushed, _content
from clapkit.index.engines._filters import to_lance
from clapkit.index.layout import SCHEMA, Modality, TableInfo
from clapkit.index.table import EmbeddingTable
from clapkit.index.where import Where
from clapkit.types import Reporter, Tracker

FloatArray = npt.NDArray[np.floating[Any]]

_DESCRIPTION = b"clapkit"
_BATCH_ROWS = 4096
_BATCH_QUERIES = 64
# Candidates beyond k, so that float16 arithmetic in LanceDB cannot push a true hit out.
_MARGIN = 20
# Of the approximate index: partitions looked into, and candidates per hit that are scored with their whole vectors.
_PROBES = 64
_REFINE = 10
_READER_TIME = timedelta(hours=1)
_PLACE_IN_RUST = re.compile(r",?\s*\S+\.rs:\d+(:\d+)?")
_STORE_OPTIONS = {"connect_timeout": "5s", "timeout": "60s", "client_max_retries": "2"}


class LanceEngine:
    """A table of LanceDB.

    Args:
        database: folder, or URI of a place in an object store.
        table: its name.
        address: as the user wrote it.
        modality: of the items.
    """

    def __init__(self, database: str, table: str, *, address: str, modality: Modality) -> None:
        self.address, self.modality = address, modality
        self._database, self._name = database, table
        self._table: Any = None

    def push(
        self,
        table: EmbeddingTable,
        info: TableInfo,
        *,
        reporter: Reporter,
        approximate: bool = False,
        queries: FloatArray | None = None,
    ) -> Pushed:
        """See ``Engine.push``."""
        stored = self._open()
        held = None if stored is None else self._described(stored)
        if not _content.is_needed(table, info, held, address=self.address, modality=self.modality, reporter=reporter):
            return Pushed(len(table), unchanged=True)
        schema = _schema(table, _content.describe(info, self.modality, count=len(table)))
        with self._translated("cannot be written"), reporter.track(f"push to {self.address}", len(table), "rows") as tracker:
            reader = pa.RecordBatchReader.from_batches(schema, _record_batches(table, schema, tracker))
            created = self._connect().create_table(self._name, data=reader, mode="overwrite")
            if approximate:
                self._build_index(created)
            created.optimize(cleanup_older_than=_READER_TIME)
        self._table = created
        if not approximate:
            return Pushed(len(table), unchanged=False)
        recall = self._recall(table, queries)
        kind = "rows of the table" if queries is None else "the queries given"
        reporter.say(f"{self.address}: recall@10 of the approximate index is {recall:.3f} for {kind}")
        return Pushed(len(table), unchanged=False, recall=recall)

    def search(self, queries: FloatArray, k: int, *, where: str | None = None) -> list[list[tuple[float, dict[str, Any]]]]:
        """See ``Engine.search``."""
        condition = None if where is None else to_lance(Where(where))
        _content.check_queries(queries, k, width=self.info().width, address=self.address)
        queries = queries.astype(np.float32)
        answers: list[list[tuple[float, dict[str, Any]]]] = []
        for start in range(0, len(queries), _BATCH_QUERIES):
            block = queries[start : start + _BATCH_QUERIES]
            found = self._nearest(block, k + _MARGIN, condition)
            answers += [_scored(query, part, k) for query, part in zip(block, found, strict=True)]
        return answers

    def count(self) -> int:
        """See ``Engine.count``."""
        with self._translated("cannot be counted"):
            return int(self._opened().count_rows())

    def info(self) -> TableInfo:
        """See ``Engine.info``."""
        return self._described(self._opened())

    def close(self) -> None:
        """See ``Engine.close``."""
        self._table = None

    def _described(self, table: Any) -> TableInfo:
        text = (table.schema.metadata or {}).get(_DESCRIPTION, b"").decode()
        return _content.read_description(text, address=self.address)

    def _opened(self) -> Any:
        """The table as it was when it was first looked at, so that a push in between changes no answer."""
        if self._table is None:
            self._table = self._open()
        if self._table is None:
            raise EmbeddingError(
                f"{self.address}: holds no table {self._name!r} of LanceDB; fill it with `clapkit embed --push {self.address}`"
            )
        return self._table

    def _open(self) -> Any:
        """The newest version of the table; None if there is none."""
        if not self._is_remote and not os.path.isdir(self._database):
            if os.path.exists(self._database):
                raise EmbeddingError(f"{self.address}: {self._database} is a file, expected a folder; name another place")
            return None
        with self._translated("cannot be opened"):
            try:
                return self._connect().open_table(self._name)
            except ValueError as error:
                if "was not found" in str(error):
                    return None
                raise

    @property
    def _is_remote(self) -> bool:
        return "://" in self._database

    def _connect(self) -> Any:
        return _library().connect(self._database, storage_options=_STORE_OPTIONS if self._is_remote else None)

    def _nearest(self, queries: FloatArray, limit: int, condition: str | None) -> list[pa.Table]:
        """Items near each query, in no particular order."""
        table = self._opened()
        with self._translated("cannot be searched"):
            # Of one query it makes another kind of search, so it always gets two.
            wanted = list(queries) if len(queries) > 1 else [queries[0], queries[0]]
            search = table.search(wanted, vector_column_name="vector").distance_type("dot").limit(limit)
            if condition is not None:
                search = search.where(condition, prefilter=True)
            found = search.nprobes(_PROBES).refine_factor(_REFINE).to_arrow()
        numbers = found.column("query_index").to_numpy()
        return [found.filter(pa.array(numbers == number)) for number in range(len(queries))]

    def _build_index(self, table: Any) -> None:
        from lancedb.index import IvfPq

        table.create_index("vector", config=IvfPq(distance_type="dot"))

    def _recall(self, table: EmbeddingTable, queries: FloatArray | None) -> float:
        asked, expected = _content.exact_rows(table, queries)
        found = []
        for start in range(0, len(asked), _BATCH_QUERIES):
            block = asked[start : start + _BATCH_QUERIES]
            parts = self._nearest(block, expected.shape[1] + _MARGIN, None)
            found += [part.column("row").to_numpy()[_order(query, part)[1]] for query, part in zip(block, parts, strict=True)]
        return _content.recall([rows[: expected.shape[1]].tolist() for rows in found], expected)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """LanceDB raises what Python has; its own errors name places in its source."""
        try:
            yield
        except (RuntimeError, ValueError, OSError) as error:
            reason = _PLACE_IN_RUST.sub("", _content.one_line(error))
            raise EmbeddingError(f"{self.address}: {what} by LanceDB ({reason}); check the address and its rights") from error


def _library() -> ModuleType:
    """Import LanceDB, whose native part writes warnings to standard error unless told otherwise before."""
    told = os.environ.get("LANCEDB_LOG")
    os.environ["LANCEDB_LOG"] = told or "error"
    try:
        import lancedb
    except ImportError as error:
        raise ConfigError("lance: LanceDB is not installed; `pip install 'clapkit[lance]'`") from error
    finally:
        if told is None:
            del os.environ["LANCEDB_LOG"]
    library: ModuleType = lancedb
    return library


def _schema(table: EmbeddingTable, description: str) -> pa.Schema:
    item = pa.float16() if table.vectors.dtype == np.float16 else pa.float32()
    fields = [pa.field("row", pa.int64()), pa.field("vector", pa.list_(item, table.width)), *SCHEMA]
    return pa.schema(fields, metadata={_DESCRIPTION: description.encode()})


def _record_batches(table: EmbeddingTable, schema: pa.Schema, tracker: Tracker) -> Iterator[pa.RecordBatch]:
    for first, vectors, metadata in _content.batches(table, _BATCH_ROWS):
        rows = pa.array(np.arange(first, first + len(vectors)))
        flat = pa.array(np.ascontiguousarray(vectors).ravel())
        columns = [rows, pa.FixedSizeListArray.from_arrays(flat, table.width), *metadata.columns]
        yield pa.record_batch(columns, schema=schema)
        tracker.advance(len(vectors))


def _order(query: FloatArray, found: pa.Table) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Cosines [M] of items with a query [D], and their order, best first and equal ones by row."""
    flat = found.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(len(found), len(query)).astype(np.float64)
    scores = (vectors @ query.astype(np.float64)).astype(np.float32)
    return scores, np.lexsort((found.column("row").to_numpy(), -scores))


def _scored(query: FloatArray, found: pa.Table, k: int) -> list[tuple[float, dict[str, Any]]]:
    scores, order = _order(query, found)
    best = order[:k]
    known = [name for name in SCHEMA.names if name in found.schema.names]
    rows = found.select(known).take(pa.array(best)).to_pylist()
    missing = dict.fromkeys(SCHEMA.names)
    return [(float(scores[place]), {**missing, **row}) for place, row in zip(best, rows, strict=True)]
