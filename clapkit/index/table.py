"""Embedding tables: vectors and what is known about each, on disk in the layout of clip-retrieval and autofaiss.

A folder holds an audio table, a text table, or both::

    table.json                         what made the vectors, and which files belong together
    audio_emb/audio_emb_0.npy          unit-norm vectors [N, D], float16 or float32
    metadata/metadata_0.parquet        row i describes vector i
    text_emb/text_emb_0.npy            the same for captions
    text_metadata/metadata_0.parquet
    statistics/audio_0.npz             mean and covariance of the vectors, for calibrated scores
    sketch/audio_0.npy, audio_0.npz    the vectors in one byte per number, for a faster exact search; long tables only

The number in the names is the generation: an update writes the files of the next one and then replaces ``table.json``.
Vectors are memory-mapped and metadata are read by column and row, so that a query touches little more than its hits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clapkit.errors import EmbeddingError
from clapkit.index.layout import SCHEMA, TABLE_JSON, Modality, TableInfo, read_info
from clapkit.index.npy import open_array
from clapkit.index.writer import (
    ROW_GROUP_ROWS,
    TableWriter,
    first_wrong_norm,
    metadata_rows,
    next_generation,
    publish,
)

__all__ = [
    "SCHEMA",
    "TABLE_JSON",
    "EmbeddingTable",
    "Modality",
    "TableInfo",
    "load_table",
    "open_table",
    "read_info",
    "save_tables",
]

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]

# Columns that tables of older versions do not have.
_ADDED = ("content",)
_REMEDY = "embed again"
# Updates that may take place while one table is being opened.
_ATTEMPTS = 20


class EmbeddingTable:
    """N unit-norm vectors of one modality and one row of metadata for each.

    Attributes:
        modality: ``audio`` or ``text``.
        vectors: [N, D], float16 or float32.
    """

    def __init__(self, modality: Modality, vectors: FloatArray, *, metadata: pa.Table | Path) -> None:
        """Put a table together.

        Args:
            modality: ``audio`` or ``text``.
            vectors: unit norm [N, D].
            metadata: N rows of ``SCHEMA``, or the parquet file that holds them, which is opened and stays open.

        Raises:
            EmbeddingError: if the file is missing or damaged, or has not one row per vector.
        """
        self.modality = modality
        self.vectors = vectors
        self._metadata = _MetadataFile(metadata) if isinstance(metadata, Path) else metadata
        if self._metadata.num_rows != len(vectors):
            name = metadata if isinstance(metadata, Path) else f"{modality} table"
            raise EmbeddingError(f"{name}: {self._metadata.num_rows} rows, expected {len(vectors)}, one per vector; {_REMEDY}")

    @classmethod
    def build(
        cls,
        modality: Modality,
        vectors: FloatArray,
        *,
        ids: Sequence[str],
        paths: Sequence[str | None],
        spans: Sequence[tuple[float | None, float | None]],
        captions: Sequence[Sequence[str]],
        labels: Sequence[Sequence[str]],
        splits: Sequence[str | None],
        contents: Sequence[str | None] | None = None,
        dtype: Literal["float16", "float32"] = "float32",
    ) -> EmbeddingTable:
        """Make a table in memory.

        Args:
            modality: ``audio`` or ``text``.
            vectors: unit norm [N, D].
            ids: of the clips; several rows may have one id.
            paths: of the audio files.
            spans: start and end in seconds.
            captions: of each row.
            labels: of each row.
            splits: of each row.
            contents: hashes of the bytes of the audio files, XXH3-128, hexadecimal; None if none is known.
            dtype: number format to keep.

        Raises:
            EmbeddingError: if the lengths differ, or vectors are not finite or not of unit norm.
        """
        if len(ids) != len(vectors):
            raise EmbeddingError(f"{modality} table: column id has {len(ids)} rows, expected {len(vectors)}, one per vector")
        metadata = metadata_rows(
            ids=ids, paths=paths, spans=spans, captions=captions, labels=labels, splits=splits, contents=contents
        )
        wrong = first_wrong_norm(vectors)
        if wrong is not None:
            row, norm = wrong
            raise EmbeddingError(f"{modality} table: row {row} ({ids[row]!r}) has norm {norm}, expected 1; {_REMEDY}")
        return cls(modality, vectors.astype(dtype), metadata=metadata)

    def __len__(self) -> int:
        """N."""
        return len(self.vectors)

    @property
    def width(self) -> int:
        """D."""
        return int(self.vectors.shape[1])

    @property
    def ids(self) -> list[str]:
        """Clip ids, one per row."""
        ids: list[str] = self.columns(["id"])["id"]
        return ids

    @property
    def metadata_path(self) -> Path | None:
        """The parquet file of the metadata; None for a table in memory."""
        return self._metadata.path if isinstance(self._metadata, _MetadataFile) else None

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Whole metadata columns.

        Args:
            names: fields of ``SCHEMA``.

        Raises:
            EmbeddingError: if the file is damaged.
        """
        table = self.arrow(names)
        return {name: table.column(name).to_pylist() for name in names}

    def arrow(self, names: Sequence[str]) -> pa.Table:
        """Whole metadata columns, as Arrow keeps them.

        Args:
            names: fields of ``SCHEMA``.

        Raises:
            EmbeddingError: if the file is damaged.
        """
        if isinstance(self._metadata, _MetadataFile):
            return self._metadata.read(names)
        return self._metadata.select(list(names))

    def rows(self, wanted: Sequence[int] | IntArray) -> list[dict[str, Any]]:
        """Metadata of some rows, in the order asked for.

        Args:
            wanted: row numbers.

        Raises:
            EmbeddingError: if there is no such row, or the file is damaged.
        """
        numbers = np.asarray(wanted, dtype=np.int64)
        outside = numbers[(numbers < 0) | (numbers >= len(self))]
        if len(outside):
            raise EmbeddingError(f"{self.modality} table: no row {outside[0]}, expected 0 to {len(self) - 1}")
        if isinstance(self._metadata, _MetadataFile):
            return self._metadata.rows(numbers)
        return _take(self._metadata, numbers)

    def blocks(self) -> Iterator[tuple[FloatArray, pa.Table]]:
        """Vectors [n, D] and their metadata, block by block, so that tables larger than memory can be copied.

        Raises:
            EmbeddingError: if the file is damaged.
        """
        start = 0
        for rows in self._metadata_blocks():
            yield self.vectors[start : start + rows.num_rows], rows
            start += rows.num_rows

    def _metadata_blocks(self) -> Iterator[pa.Table]:
        if isinstance(self._metadata, _MetadataFile):
            yield from self._metadata.blocks()
        else:
            for start in range(0, len(self), ROW_GROUP_ROWS):
                yield self._metadata.slice(start, ROW_GROUP_ROWS)


class _MetadataFile:
    """A parquet file that is kept open: an update that deletes it does not disturb who reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Not pq.read_table: it imports pandas, which takes longer than the search.
            self._file = pq.ParquetFile(path, memory_map=True)
        except FileNotFoundError as error:
            raise EmbeddingError(f"{path}: no such file; {_REMEDY}") from error
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from error
        self.num_rows: int = self._file.metadata.num_rows
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.metadata.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def read(self, names: Sequence[str]) -> pa.Table:
        return self._read(names, range(len(self._ends)))

    def rows(self, numbers: IntArray) -> list[dict[str, Any]]:
        """Metadata of some rows; only the row groups that hold them are read."""
        groups, places = np.unique(np.searchsorted(self._ends, numbers, side="right"), return_inverse=True)
        starts = np.concatenate(([0], self._ends))  # [groups + 1]
        sizes = np.diff(starts)[groups]
        shifts = np.cumsum(sizes) - sizes - starts[groups]  # from a row of the table to a row of what is read
        table = self._read(SCHEMA.names, groups.tolist())
        return _take(table, numbers + shifts[places])

    def blocks(self) -> Iterator[pa.Table]:
        for group in range(len(self._ends)):
            yield self._read(SCHEMA.names, [group])

    def _read(self, names: Sequence[str], groups: Sequence[int]) -> pa.Table:
        stored = set(self._file.schema_arrow.names)
        missing = [name for name in names if name in _ADDED and name not in stored]
        try:
            table = self._file.read_row_groups(list(groups), columns=[name for name in names if name not in missing])
            for name in missing:
                table = table.append_column(SCHEMA.field(name), pa.nulls(table.num_rows, SCHEMA.field(name).type))
            return table.select(list(names))
        except (OSError, KeyError, pa.ArrowException) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: BaseException) -> EmbeddingError:
        return EmbeddingError(f"{self.path}: cannot be read as parquet ({' '.join(str(error).split())}); {_REMEDY}")


def _take(table: pa.Table, numbers: IntArray) -> list[dict[str, Any]]:
    # Made of its buffer, because pa.array() imports pandas.
    indices = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers.astype(np.int64).tobytes())])
    found: list[dict[str, Any]] = table.take(indices).to_pylist()
    return found


def save_tables(folder: Path, tables: Sequence[EmbeddingTable], info: TableInfo) -> TableInfo:
    """Write tables and then ``table.json``, which says that they are complete; a table that is there is replaced.

    Args:
        folder: of the tables.
        tables: one for each modality.
        info: what made them.

    Returns:
        The description as ``read_info`` will give it.

    Raises:
        EmbeddingError: if the tables do not fit the description.
    """
    generation = next_generation(folder)
    written = []
    for table in tables:
        dtype: Any = table.vectors.dtype.name
        with TableWriter(folder, table.modality, width=table.width, dtype=dtype, generation=generation) as writer:
            for vectors, metadata in table.blocks():
                writer.append(vectors, metadata)
            written.append(writer.finish())
    return publish(folder, written, info)


def open_table(folder: Path, modality: Modality) -> tuple[TableInfo, EmbeddingTable]:
    """Open one table and what is known about it, both of one generation, while it may be brought up to date.

    Args:
        folder: the embed run.
        modality: which table.

    Raises:
        EmbeddingError: as ``read_info`` and ``load_table``.
    """
    for _ in range(_ATTEMPTS):
        info = read_info(folder)
        try:
            return info, load_table(folder, modality, info=info)
        except EmbeddingError:
            # Files that an update has deleted: what table.json names by now is there.
            if read_info(folder).generation == info.generation:
                raise
    raise EmbeddingError(f"{folder}: was updated {_ATTEMPTS} times while it was opened; wait for the updates and ask again")


def load_table(folder: Path, modality: Modality, *, info: TableInfo) -> EmbeddingTable:
    """Open one table and check that its files belong together; no vector is read.

    Args:
        folder: the embed run.
        modality: which table.
        info: of the folder, from ``read_info``.

    Raises:
        EmbeddingError: if the folder has no such table, a file is missing or damaged, or files do not fit each other.
    """
    if modality not in info.counts:
        raise EmbeddingError(
            f"{folder}: holds {' and '.join(info.counts)} only, no {modality} table; "
            f"embed with --modality {modality if info.modality == modality else 'both'}"
        )
    vectors_path, metadata_path = (folder / name for name in info.files[modality])
    vectors = open_array(vectors_path, remedy=_REMEDY)
    expected = (info.counts[modality], info.width)
    if vectors.shape != expected or str(vectors.dtype) != info.dtype:
        raise EmbeddingError(
            f"{os.fspath(vectors_path)}: {vectors.dtype} {list(vectors.shape)}, expected {info.dtype} {list(expected)} "
            f"as {TABLE_JSON} says; {_REMEDY}"
        )
    return EmbeddingTable(modality, vectors, metadata=metadata_path)
