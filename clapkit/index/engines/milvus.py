"""Milvus: a server or cluster, and the same client on an embedded file (Milvus Lite).

A push fills a new collection, ``NAME__2`` after ``NAME__1``, and then points the alias ``NAME`` to it, which the server
does in one step; the old collection is dropped afterwards. Searches go through the alias, so a push that was killed
leaves the old table and a collection that the next push drops.
What is known of the table stands in a field of its first row, because Milvus Lite keeps no descriptions of collections.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index.engines import Pushed, _content
from clapkit.index.engines._filters import to_milvus
from clapkit.index.layout import SCHEMA, Modality, TableInfo
from clapkit.index.table import EmbeddingTable
from clapkit.index.where import Where
from clapkit.types import Reporter

FloatArray = npt.NDArray[np.floating[Any]]

_DESCRIPTION = "clapkit_table"
_TIMEOUT_S = 10.0
_BATCH_ROWS = 1000  # 2 MB of vectors of 512; a message may have 64 MB
_BATCH_QUERIES = 64
# Limits of the server: bytes of a text, items of an array, hits per query.
_MAX_TEXT = 65_535
_MAX_ITEMS = 4096
_MAX_HITS = 16_384


class MilvusEngine:
    """A collection of Milvus.

    Args:
        uri: of a server, or a file that ends in ``.db``.
        collection: the alias that stands for the newest collection.
        address: as the user wrote it.
        modality: of the items.
    """

    def __init__(self, uri: str, collection: str, *, address: str, modality: Modality) -> None:
        self.address, self.modality = address, modality
        self._uri, self._alias = uri, collection
        self._connection: Any = None
        self._known: tuple[str, TableInfo] | None = None

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
        found = self._find()
        held = None if found is None else found[1]
        if not _content.is_needed(table, info, held, address=self.address, modality=self.modality, reporter=reporter):
            return Pushed(len(table), unchanged=True)
        old = None if found is None else found[0]
        new = f"{self._alias}__{1 if old is None else _number(old) + 1}"
        description = _content.describe(info, self.modality, count=len(table))
        with self._translated("cannot be written"):
            self._create(new, table.width, approximate=approximate)
            self._fill(new, table, description, reporter)
            self._switch(old, new)
        if not approximate:
            return Pushed(len(table), unchanged=False)
        recall = self._recall(table, queries)
        kind = "rows of the table" if queries is None else "the queries given"
        reporter.say(f"{self.address}: recall@10 of the approximate index is {recall:.3f} for {kind}")
        return Pushed(len(table), unchanged=False, recall=recall)

    def search(self, queries: FloatArray, k: int, *, where: str | None = None) -> list[list[tuple[float, dict[str, Any]]]]:
        """See ``Engine.search``."""
        condition = "" if where is None else to_milvus(Where(where))
        collection, info = self._found()
        _content.check_queries(queries, k, width=info.width, address=self.address)
        limit = min(k, info.counts[self.modality])
        if limit > _MAX_HITS:
            raise ConfigError(
                f"{self.address}: {limit} hits wanted, Milvus gives at most {_MAX_HITS}; narrow the search with --where"
            )
        return [
            [(score, _row(entity)) for score, entity in hits]
            for hits in self._nearest(collection, queries, limit, condition, ["row", *SCHEMA.names])
        ]

    def count(self) -> int:
        """See ``Engine.count``."""
        collection, _ = self._found()
        with self._translated("cannot be counted"):
            return int(self._client().query(collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    def info(self) -> TableInfo:
        """See ``Engine.info``."""
        return self._found()[1]

    def close(self) -> None:
        """See ``Engine.close``; another process can then open the file of Milvus Lite."""
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        self._known = None
        if self._is_file:
            from milvus_lite.server_manager import server_manager_instance

            server_manager_instance.release_server(self._uri)

    @property
    def _is_file(self) -> bool:
        return "://" not in self._uri

    def _client(self) -> Any:
        if self._connection is None:
            library = _library(embedded=self._is_file)
            with self._translated("cannot be opened"):
                # The token is of the environment, so it stands in no record of a command line.
                token = "" if self._is_file else os.environ.get("MILVUS_TOKEN", "")
                self._connection = library.MilvusClient(self._uri, token=token, timeout=_TIMEOUT_S)
        return self._connection

    def _found(self) -> tuple[str, TableInfo]:
        """The collection as it was when it was first looked at, and what is known of it."""
        if self._known is None:
            self._known = self._find()
        if self._known is None:
            raise EmbeddingError(
                f"{self.address}: holds no collection {self._alias!r}; fill it with `clapkit embed --push {self.address}`"
            )
        return self._known

    def _find(self) -> tuple[str, TableInfo] | None:
        """The newest collection; None if there is none."""
        if self._is_file and not os.path.exists(self._uri):
            return None
        client = self._client()
        with self._translated("cannot be read"):
            if not client.has_collection(self._alias):
                return None
            if self._alias in client.list_collections():
                raise EmbeddingError(
                    f"{self.address}: {self._alias!r} is a collection that was not filled by clapkit; name another one"
                )
            collection = client.describe_alias(self._alias)["collection_name"]
            client.load_collection(collection)
            first = client.get(collection, ids=[0], output_fields=[_DESCRIPTION])
        return collection, _content.read_description(first[0][_DESCRIPTION] if first else None, address=self.address)

    def _create(self, collection: str, width: int, *, approximate: bool) -> None:
        client, types = self._client(), _library(embedded=self._is_file).DataType
        if client.has_collection(collection):
            client.drop_collection(collection)  # of a push that was killed
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("row", types.INT64, is_primary=True)
        schema.add_field("vector", types.FLOAT_VECTOR, dim=width)
        for field in SCHEMA:
            if pa.types.is_list(field.type):
                shape = {"element_type": types.VARCHAR, "max_capacity": _MAX_ITEMS, "max_length": _MAX_TEXT}
                schema.add_field(field.name, types.ARRAY, nullable=True, **shape)
            elif pa.types.is_string(field.type):
                schema.add_field(field.name, types.VARCHAR, max_length=_MAX_TEXT, nullable=True)
            else:
                schema.add_field(field.name, types.DOUBLE, nullable=True)
        schema.add_field(_DESCRIPTION, types.VARCHAR, max_length=_MAX_TEXT, nullable=True)
        index = client.prepare_index_params()
        # Inner product, as clapkit scores: Milvus would divide by norms that float16 has moved from 1, and swap near equals.
        index.add_index("vector", index_type="AUTOINDEX" if approximate else "FLAT", metric_type="IP")
        # Strong: a search sees all that was inserted before it.
        client.create_collection(collection, schema=schema, index_params=index, consistency_level="Strong")

    def _fill(self, collection: str, table: EmbeddingTable, description: str, reporter: Reporter) -> None:
        client = self._client()
        with reporter.track(f"push to {self.address}", len(table), "rows") as tracker:
            for first, vectors, metadata in _content.batches(table, _BATCH_ROWS):
                rows = [
                    {"row": first + place, "vector": vector, **row}
                    for place, (vector, row) in enumerate(zip(vectors.astype(np.float32), metadata.to_pylist(), strict=True))
                ]
                if first == 0:
                    rows[0][_DESCRIPTION] = description
                client.insert(collection, rows)
                tracker.advance(len(rows))
        client.flush(collection)
        client.load_collection(collection)

    def _switch(self, old: str | None, new: str) -> None:
        client = self._client()
        if old is None:
            client.create_alias(new, self._alias)
        else:
            client.alter_alias(new, self._alias)
        for collection in client.list_collections():
            if collection != new and re.fullmatch(rf"{re.escape(self._alias)}__\d+", collection):
                client.drop_collection(collection)
        self._known = None

    def _nearest(
        self, collection: str, queries: FloatArray, limit: int, condition: str, fields: Sequence[str]
    ) -> list[list[tuple[float, dict[str, Any]]]]:
        """Cosines and fields of the items near each query, best first and equal ones by row."""
        answers: list[list[tuple[float, dict[str, Any]]]] = []
        with self._translated("cannot be searched"):
            for start in range(0, len(queries), _BATCH_QUERIES):
                block = list(queries[start : start + _BATCH_QUERIES].astype(np.float32))
                found = self._client().search(collection, block, filter=condition, limit=limit, output_fields=list(fields))
                answers += [[(float(hit["distance"]), hit["entity"]) for hit in hits] for hits in found]
        return [sorted(hits, key=lambda hit: (-hit[0], hit[1]["row"])) for hits in answers]

    def _recall(self, table: EmbeddingTable, queries: FloatArray | None) -> float:
        asked, expected = _content.exact_rows(table, queries)
        found = self._nearest(self._found()[0], asked, expected.shape[1], "", ["row"])
        return _content.recall([[entity["row"] for _, entity in hits] for hits in found], expected)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        library = _library(embedded=self._is_file)
        try:
            yield
        except library.MilvusException as error:
            reason = " ".join(error.message.split())
            raise EmbeddingError(f"{self.address}: {what} by Milvus ({reason}); {self._advice()}") from error

    def _advice(self) -> str:
        if self._is_file:
            return "check that the file is of Milvus Lite and no other process has it open"
        return "check that the server runs and MILVUS_TOKEN is its token"


def _library(*, embedded: bool) -> ModuleType:
    """Import the client, which logs each failure with its traceback to standard error; the exception says it, too."""
    try:
        import pymilvus

        if embedded:
            import milvus_lite  # noqa: F401
    except ImportError as error:
        raise ConfigError("milvus: pymilvus and milvus-lite are not installed; `pip install 'clapkit[milvus]'`") from error
    for name in ("pymilvus", "milvus_lite"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    library: ModuleType = pymilvus
    return library


def _number(collection: str) -> int:
    number = collection.rpartition("__")[2]
    return int(number) if number.isdecimal() else 0


def _row(entity: dict[str, Any]) -> dict[str, Any]:
    """A row of ``SCHEMA``; the client has its own kind of list."""
    row = {}
    for field in SCHEMA:
        value = entity.get(field.name)
        row[field.name] = list(value) if value is not None and pa.types.is_list(field.type) else value
    return row
