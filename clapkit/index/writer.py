"""Writes an embedding table piece by piece, in bounded memory, so that readers see all of it or none of it.

A ``TableWriter`` writes the files of one modality under temporary names and gives them their names when it is finished;
``publish`` then makes them the table of the folder. What was written does not depend on the sizes of the pieces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from clapkit.errors import EmbeddingError
from clapkit.index._sketch import FEWEST_ROWS, write_sketch
from clapkit.index.layout import (
    SCHEMA,
    TABLE_JSON,
    Files,
    Modality,
    TableInfo,
    read_info,
    remove_others,
    statistics_file,
    sync_folder,
    table_files,
    temporary_path,
    write_info,
)
from clapkit.index.npy import HEADER_BYTES, header, open_array
from clapkit.index.statistics import ScoreStatistics

FloatArray = npt.NDArray[np.floating[Any]]

ROW_GROUP_ROWS = 8192
"""Rows that are written at a time; a hit costs the reading of as many."""
_NORM_TOLERANCE = 0.01  # float16 keeps 11 bits: a unit vector comes back with a norm within 0.001


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """The finished files of one modality.

    Attributes:
        modality: ``audio`` or ``text``.
        generation: of the files.
        count: N.
        width: D.
        dtype: ``float16`` or ``float32``.
        files: vectors and metadata, relative to the folder.
        digest: hash of their content, XXH3-128, hexadecimal.
    """

    modality: Modality
    generation: int
    count: int
    width: int
    dtype: str
    files: Files
    digest: str


def metadata_rows(
    *,
    ids: Sequence[str],
    paths: Sequence[str | None],
    spans: Sequence[tuple[float | None, float | None]],
    captions: Sequence[Sequence[str]],
    labels: Sequence[Sequence[str]],
    splits: Sequence[str | None],
    contents: Sequence[str | None] | None = None,
) -> pa.Table:
    """Rows of ``SCHEMA``.

    Args:
        ids: of the clips; several rows may have one id.
        paths: of the audio files.
        spans: start and end in seconds.
        captions: of each row.
        labels: of each row.
        splits: of each row.
        contents: hashes of the bytes of the audio files; None if none is known.

    Raises:
        EmbeddingError: if the lengths differ.
    """
    columns: dict[str, Sequence[Any]] = {
        "id": ids,
        "path": paths,
        "start_s": [start for start, _ in spans],
        "end_s": [end for _, end in spans],
        "caption": [texts[0] if texts else None for texts in captions],
        "labels": [list(names) for names in labels],
        "split": splits,
        "captions": [list(texts) for texts in captions],
        "content": [None] * len(ids) if contents is None else contents,
    }
    for name, column in columns.items():
        if len(column) != len(ids):
            raise EmbeddingError(f"metadata: column {name} has {len(column)} rows, expected {len(ids)}, one per id")
    return pa.table(columns, schema=SCHEMA)


class TableWriter:
    """Writes vectors and metadata of one modality; a context manager, which discards what was not finished."""

    def __init__(
        self, folder: Path, modality: Modality, *, width: int, dtype: Literal["float16", "float32"], generation: int = 0
    ) -> None:
        """Open the files under temporary names.

        Args:
            folder: of the table.
            modality: ``audio`` or ``text``.
            width: D.
            dtype: number format to keep.
            generation: of the files, as ``next_generation`` gives it.

        Raises:
            EmbeddingError: if that generation is published.
        """
        self._folder, self._modality, self._generation = folder, modality, generation
        self._width, self._dtype = width, np.dtype(dtype)
        self._files = table_files(modality, generation)
        if (folder / TABLE_JSON).is_file() and self._files in read_info(folder).files.values():
            raise EmbeddingError(f"{folder / self._files[0]}: is published, expected a new generation; ask next_generation")
        self._count = 0
        self._pending: list[tuple[FloatArray, pa.Table]] = []
        self._num_pending = 0
        self._statistics = ScoreStatistics.empty(width)
        self._vectors_hash = xxhash.xxh3_128()
        self._metadata_hash = _ColumnHash()
        self._finals = [folder / name for name in self._files]
        self._temporaries = [temporary_path(path) for path in self._finals]
        self._vectors = self._temporaries[0].open("wb")
        self._vectors.write(bytes(HEADER_BYTES))  # the shape is known at the end
        self._metadata = pq.ParquetWriter(self._temporaries[1], SCHEMA)

    def __enter__(self) -> Self:
        """The writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Discard what was not finished."""
        self.discard()

    def append(self, vectors: FloatArray, metadata: pa.Table) -> None:
        """Add rows.

        Args:
            vectors: unit norm [n, D].
            metadata: n rows of ``SCHEMA``, as ``metadata_rows`` makes them.

        Raises:
            EmbeddingError: if they do not fit each other, or a vector is not finite or not of unit norm.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self._width:
            raise EmbeddingError(
                f"{self._modality} table: vectors of shape {list(vectors.shape)}, expected [rows, {self._width}]"
            )
        if metadata.num_rows != len(vectors) or metadata.schema.names != SCHEMA.names:
            raise EmbeddingError(
                f"{self._modality} table: {metadata.num_rows} rows of {', '.join(metadata.schema.names)} for {len(vectors)} "
                f"vectors, expected one of {', '.join(SCHEMA.names)} for each"
            )
        wrong = first_wrong_norm(vectors)
        if wrong is not None:
            row, norm = wrong
            raise EmbeddingError(
                f"{self._modality} table: row {self._count + self._num_pending + row} ({metadata['id'][row].as_py()!r}) "
                f"has norm {norm}, expected 1; the model or its input is damaged"
            )
        rows = metadata.cast(SCHEMA)
        for start in range(0, len(vectors), ROW_GROUP_ROWS):
            part = slice(start, start + ROW_GROUP_ROWS)
            # A copy, because the caller may fill the same array again.
            self._pending.append((vectors[part].astype(self._dtype, copy=True), rows.slice(start, ROW_GROUP_ROWS)))
            self._num_pending += len(self._pending[-1][0])
            if self._num_pending >= ROW_GROUP_ROWS:
                self._write_groups(at_end=False)

    def _write_groups(self, *, at_end: bool) -> None:
        """Write what is pending in groups of one size, so that the files do not depend on the sizes of the pieces."""
        if not self._pending:
            return
        vectors = np.concatenate([part for part, _ in self._pending])
        metadata = pa.concat_tables([part for _, part in self._pending])
        whole = len(vectors) if at_end else len(vectors) - len(vectors) % ROW_GROUP_ROWS
        for start in range(0, whole, ROW_GROUP_ROWS):
            stop = min(start + ROW_GROUP_ROWS, whole)
            self._write_group(vectors[start:stop], metadata.slice(start, stop - start).combine_chunks())
        self._pending = [(vectors[whole:], metadata.slice(whole))] if whole < len(vectors) else []
        self._num_pending = len(vectors) - whole

    def _write_group(self, vectors: FloatArray, metadata: pa.Table) -> None:
        little_endian = np.ascontiguousarray(vectors, dtype=self._dtype.newbyteorder("<"))
        self._vectors.write(little_endian.data)
        self._vectors_hash.update(little_endian.data)
        self._metadata.write_table(metadata, row_group_size=ROW_GROUP_ROWS)
        self._metadata_hash.update(metadata)
        self._statistics.add(vectors)
        self._count += len(vectors)

    def finish(self) -> Written:
        """Write the rest and give the files their names.

        Returns:
            What ``publish`` needs.
        """
        self._write_groups(at_end=True)
        self._vectors.seek(0)
        self._vectors.write(header(self._count, self._width, dtype=self._dtype.name))
        self._vectors.close()
        self._metadata.close()
        for temporary, final in zip(self._temporaries, self._finals, strict=True):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(final)
            sync_folder(final.parent)
        self._statistics.save(self._folder / statistics_file(self._modality, self._generation))
        digest = xxhash.xxh3_128(f"{self._dtype.name} {self._count} {self._width}".encode())
        digest.update(self._vectors_hash.digest())
        digest.update(self._metadata_hash.digest())
        return Written(
            modality=self._modality,
            generation=self._generation,
            count=self._count,
            width=self._width,
            dtype=self._dtype.name,
            files=self._files,
            digest=digest.hexdigest(),
        )

    def discard(self) -> None:
        """Delete what is not finished; does nothing after ``finish``."""
        for temporary in self._temporaries:
            temporary.unlink(missing_ok=True)
        self._pending = []
        # Closing writes what is buffered, which a full disk refuses; nobody will read it.
        with contextlib.suppress(OSError):
            self._vectors.close()
        with contextlib.suppress(OSError):
            self._metadata.close()


def next_generation(folder: Path) -> int:
    """Number of the files that an update has to write; what a writer that was killed left behind is deleted.

    Args:
        folder: of the table, which nobody else may be writing to; it need not exist.

    Raises:
        EmbeddingError: if ``table.json`` is damaged.
    """
    info = read_info(folder) if (folder / TABLE_JSON).is_file() else None
    remove_others(folder, info)
    return 0 if info is None else info.generation + 1


def publish(folder: Path, written: Sequence[Written], info: TableInfo) -> TableInfo:
    """Make finished files the table of a folder, then delete those that they replace: ``describe`` and ``commit``."""
    described = describe(folder, written, info)
    commit(folder, described)
    return described


def commit(folder: Path, described: TableInfo) -> None:
    """Make the files that ``describe`` has described the table of a folder, then delete those that they replace.

    ``table.json`` is replaced in one step: a reader finds the old table or the new one, whenever this is killed.
    """
    write_info(folder, described)
    remove_others(folder, described)


def describe(folder: Path, written: Sequence[Written], info: TableInfo) -> TableInfo:
    """Put together what ``table.json`` will say of finished files, so that indexes can be made before readers see them.

    A long table of float16 gets a sketch, one byte per number, for which it is read twice: see ``_sketch``.

    Args:
        folder: of the table, which nobody else may be writing to.
        written: one for each modality of the table, all of one generation.
        info: what made them; ``files``, ``id``, ``generation`` and ``directory`` are found here.

    Returns:
        The description as ``read_info`` will give it once it is committed.

    Raises:
        EmbeddingError: if the files do not fit the description.
    """
    found = {part.modality: part.count for part in written}
    generations = {part.generation for part in written}
    if found != dict(info.counts) or any((part.width, part.dtype) != (info.width, info.dtype) for part in written):
        have = ", ".join(f"{part.modality} {part.dtype} [{part.count}, {part.width}]" for part in written)
        raise EmbeddingError(
            f"{folder}: tables {have} do not fit the description: {dict(info.counts)} rows, {info.dtype}, width {info.width}"
        )
    if len(generations) != 1:
        raise EmbeddingError(f"{folder}: tables of generations {sorted(generations)}, expected one; write them together")
    described = dataclasses.replace(
        info,
        files={part.modality: part.files for part in written},
        id=xxhash.xxh3_128_hexdigest(" ".join(sorted(f"{part.modality} {part.digest}" for part in written)).encode()),
        generation=generations.pop(),
        directory=folder,
    )
    for part in written:
        if part.dtype == "float16" and part.count >= FEWEST_ROWS:
            vectors = open_array(folder / part.files[0], remedy="embed again")
            write_sketch(folder, part.modality, generation=part.generation, table_id=described.id, vectors=vectors)
    return described


def first_wrong_norm(vectors: FloatArray) -> tuple[int, float] | None:
    """The first row that is not finite or not of unit norm, and its norm.

    Args:
        vectors: [N, D].
    """
    for start in range(0, len(vectors), ROW_GROUP_ROWS):
        block = vectors[start : start + ROW_GROUP_ROWS].astype(np.float32, copy=False)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        wrong = ~(np.abs(norms - 1) <= _NORM_TOLERANCE)  # also true where the norm is NaN
        if wrong.any():
            row = int(np.argmax(wrong))
            return start + row, float(norms[row])
    return None


class _ColumnHash:
    """Hash of rows of ``SCHEMA`` that depends on their values only, not on how Arrow or Parquet lay them out."""

    def __init__(self) -> None:
        self._parts: dict[str, xxhash.xxh3_128] = {}

    def update(self, rows: pa.Table) -> None:
        for name in SCHEMA.names:
            for chunk in rows.column(name).cast(SCHEMA.field(name).type).chunks:
                self._update(name, chunk)

    def _update(self, name: str, values: pa.Array) -> None:
        """Take in which values there are, their lengths, and the values themselves, each in a hash of its own."""
        present = np.asarray(values.is_valid().to_numpy(zero_copy_only=False), dtype=np.uint8)
        self._part(name, "present").update(present.tobytes())
        known = values.drop_null()
        if pa.types.is_list(values.type):
            self._part(name, "length").update(_lengths(known).tobytes())
            self._update(f"{name}.item", known.flatten())
        elif pa.types.is_string(values.type):
            lengths, offsets = _lengths(known), _offsets(known)
            self._part(name, "length").update(lengths.tobytes())
            characters = known.buffers()[2]
            if characters is not None:
                self._part(name, "value").update(memoryview(characters)[offsets[0] : offsets[-1]])
        else:
            self._part(name, "value").update(known.to_numpy(zero_copy_only=False).tobytes())

    def _part(self, name: str, kind: str) -> xxhash.xxh3_128:
        return self._parts.setdefault(f"{name} {kind}", xxhash.xxh3_128())

    def digest(self) -> bytes:
        whole = xxhash.xxh3_128()
        for name, part in sorted(self._parts.items()):
            whole.update(f"{name} ".encode() + part.digest())
        return whole.digest()


def _offsets(values: pa.Array) -> npt.NDArray[np.int32]:
    """Where each string or list begins and the last one ends, [n + 1]."""
    buffer = values.buffers()[1]
    if buffer is None or len(values) == 0:
        return np.zeros(len(values) + 1, dtype=np.int32)
    return np.frombuffer(buffer, dtype=np.int32)[values.offset : values.offset + len(values) + 1]


def _lengths(values: pa.Array) -> npt.NDArray[np.int32]:
    return np.diff(_offsets(values))
