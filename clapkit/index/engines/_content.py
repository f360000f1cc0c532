"""What goes into an engine: a description of the table, and its rows in batches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clapkit.errors import ConfigError, EmbeddingError, ShapeError
from clapkit.index.exact import ExactIndex
from clapkit.index.layout import SCHEMA, Modality, TableInfo
from clapkit.index.table import EmbeddingTable
from clapkit.types import Reporter

FloatArray = npt.NDArray[np.floating[Any]]

_VERSION = 1
_RECALL_AT = 10
_RECALL_QUERIES = 100


def describe(info: TableInfo, modality: Modality, *, count: int) -> str:
    """The description of a table, JSON on one line.

    Args:
        info: of the folder of the table.
        modality: of the table.
        count: of its rows.
    """
    content = {
        "clapkit_engine": _VERSION,
        "modality": modality,
        "count": count,
        "width": info.width,
        "dtype": info.dtype,
        "id": info.id,
        "model": {"path": info.model_path, "fingerprint": info.model_fingerprint},
        "audio_policy": dict(info.audio_policy),
        "data": dict(info.data),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False)


def read_description(text: str | None, *, address: str) -> TableInfo:
    """Read what ``describe`` wrote.

    Args:
        text: of the engine; None where it has none.
        address: for messages.

    Raises:
        EmbeddingError: if it is no description, or of another version.
    """
    try:
        content = json.loads(text or "")
        version = content["clapkit_engine"]
        if version != _VERSION:
            raise EmbeddingError(f"{address}: engine format {version!r}, this clapkit reads {_VERSION}; push the table again")
        return TableInfo(
            width=int(content["width"]),
            dtype=str(content["dtype"]),
            counts={str(content["modality"]): int(content["count"])},
            model_path=str(content["model"]["path"]),
            model_fingerprint=str(content["model"]["fingerprint"]),
            audio_policy=content["audio_policy"],
            data=content["data"],
            id=str(content["id"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{address}: was not filled by clapkit; name another place, or embed with --push") from error


def is_needed(
    table: EmbeddingTable, info: TableInfo, stored: TableInfo | None, *, address: str, modality: Modality, reporter: Reporter
) -> bool:
    """Whether a table has to be sent; says so if the engine has it already.

    Args:
        table: to send.
        info: of its folder.
        stored: what the engine says of what it has; None if it has nothing.
        address: for messages.
        modality: that the engine is for.
        reporter: messages.

    Raises:
        ConfigError: if the table is of the other modality.
        EmbeddingError: if the table is empty, or the engine holds vectors of another model.
    """
    if table.modality != modality:
        raise ConfigError(f"{address}: is for {modality}, got the {table.modality} table")
    if not len(table):
        raise EmbeddingError(f"{address}: the {modality} table has no rows, expected some; embed something first")
    if stored is None or not stored.counts[modality]:
        return True
    if stored.model_fingerprint != info.model_fingerprint:
        raise EmbeddingError(
            f"{address}: holds vectors of the model {stored.model_path or '?'} ({stored.model_fingerprint[:12]}), these are of "
            f"{info.model_path or '?'} ({info.model_fingerprint[:12]}); push to another place or delete that one"
        )
    if info.id and stored.id == info.id and stored.counts[modality] == len(table):
        reporter.say(f"{address} holds this {modality} table already: {len(table)} rows, nothing is sent")
        return False
    return True


def batches(table: EmbeddingTable, size: int) -> Iterator[tuple[int, FloatArray, pa.RecordBatch]]:
    """A table in parts: first row, vectors [n, D] of the memory map, and n rows of ``SCHEMA``.

    Args:
        table: to read.
        size: n, rows in a part.

    Raises:
        EmbeddingError: if the metadata are damaged.
    """
    first = 0
    for vectors, metadata in table.blocks():
        for start in range(0, len(vectors), size):
            part = metadata.slice(start, size).cast(SCHEMA).combine_chunks()
            yield first + start, vectors[start : start + size], part.to_batches()[0]
        first += len(vectors)


def check_queries(queries: FloatArray, k: int, *, width: int, address: str) -> None:
    """Refuse queries that cannot be asked.

    Args:
        queries: [Q, D].
        k: hits per query.
        width: D of the engine.
        address: for messages.

    Raises:
        ShapeError: if the widths differ or k is less than 1.
    """
    if queries.ndim != 2 or queries.shape[1] != width:
        raise ShapeError(f"{address}: queries have the shape {list(queries.shape)}, expected [queries, {width}]")
    if k < 1:
        raise ShapeError(f"{address}: k = {k}, expected at least 1")


def exact_rows(table: EmbeddingTable, queries: FloatArray | None) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Queries [Q, D] to measure recall with and the rows [Q, 10] that an exact search finds for them.

    Args:
        table: that was sent.
        queries: to take; None for rows of the table, evenly spread.
    """
    if queries is None:
        rows = np.unique(np.linspace(0, len(table) - 1, _RECALL_QUERIES).astype(np.int64))
        queries = table.vectors[rows]
    queries = queries[:_RECALL_QUERIES].astype(np.float32)
    index = ExactIndex()
    index.add(table.vectors)
    return queries, index.search(queries, _RECALL_AT)[1]


def recall(found: list[list[int]], expected: npt.NDArray[np.int64]) -> float:
    """Share of the expected rows [Q, k] that were found."""
    hits = sum(len(set(rows) & set(wanted)) for rows, wanted in zip(found, expected.tolist(), strict=True))
    return hits / expected.size


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
