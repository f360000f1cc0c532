"""Embedding tables: vectors and what is known about each, on disk in the layout of clip-retrieval and autofaiss.

A folder holds an audio table, a text table, or both::

    table.json                         what made the vectors: model, width, number format, counts, audio policy
    audio_emb/audio_emb_0.npy          unit-norm vectors [N, D], float16 or float32
    metadata/metadata_0.parquet        row i describes vector i
    text_emb/text_emb_0.npy            the same for captions
    text_metadata/metadata_0.parquet

Vectors are memory-mapped and metadata are read by column and row, so that a query touches little more than its hits.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clapkit.errors import EmbeddingError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
Modality = Literal["audio", "text"]

FORMAT = 1
TABLE_JSON = "table.json"
_FILES = {
    "audio": ("audio_emb/audio_emb_0.npy", "metadata/metadata_0.parquet"),
    "text": ("text_emb/text_emb_0.npy", "text_metadata/metadata_0.parquet"),
}
# ``caption`` is the first one, the text column that clip-retrieval reads; ``captions`` has them all.
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("caption", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("split", pa.string()),
        ("captions", pa.list_(pa.string())),
    ]
)
_NORM_TOLERANCE = 0.01  # float16 keeps 11 bits: a unit vector comes back with a norm within 0.001
_BLOCK_ROWS = 8192


@dataclass(frozen=True, slots=True)
class TableInfo:
    """The content of ``table.json``.

    Attributes:
        width: D.
        dtype: ``float16`` or ``float32``.
        counts: modality -> number of rows.
        model_path: folder of the model that made the vectors, absolute.
        model_fingerprint: hash of its weights and configuration.
        audio_policy: how audio was cut and pooled, JSON values.
        data: what was embedded, JSON values.
    """

    width: int
    dtype: str
    counts: Mapping[str, int]
    model_path: str
    model_fingerprint: str
    audio_policy: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def modality(self) -> str:
        """``audio``, ``text`` or ``both``."""
        return "both" if len(self.counts) == 2 else next(iter(self.counts))


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
            metadata: N rows of ``SCHEMA``, or the parquet file that holds them.
        """
        self.modality = modality
        self.vectors = vectors
        self._metadata = metadata

    @classmethod
    def build(
        cls,
        modality: Modality,
        vectors: FloatArray,
        *,
        ids: Sequence[str],
        paths: Sequence[str],
        spans: Sequence[tuple[float | None, float | None]],
        captions: Sequence[Sequence[str]],
        labels: Sequence[Sequence[str]],
        splits: Sequence[str | None],
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
            dtype: number format to keep.

        Raises:
            EmbeddingError: if the lengths differ, or vectors are not finite or not of unit norm.
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
        }
        for name, column in columns.items():
            if len(column) != len(vectors):
                raise EmbeddingError(
                    f"{modality} table: column {name} has {len(column)} rows, expected {len(vectors)}, one per vector"
                )
        _check_vectors(vectors, name=f"{modality} table")
        return cls(modality, vectors.astype(dtype), metadata=pa.table(columns, schema=SCHEMA))

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

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """Whole metadata columns.

        Args:
            names: fields of ``SCHEMA``.

        Raises:
            EmbeddingError: if the file is damaged.
        """
        table = self._read(names)
        return {name: table.column(name).to_pylist() for name in names}

    def rows(self, wanted: Sequence[int] | IntArray) -> list[dict[str, Any]]:
        """Metadata of some rows, in the order asked for.

        Args:
            wanted: row numbers.

        Raises:
            EmbeddingError: if the file is damaged.
        """
        numbers = np.asarray(wanted, dtype=np.int64)
        # Made of its buffer, because pa.array() imports pandas.
        indices = pa.Array.from_buffers(pa.int64(), len(numbers), [None, pa.py_buffer(numbers.tobytes())])
        found: list[dict[str, Any]] = self._read(SCHEMA.names).take(indices).to_pylist()
        return found

    def write(self, folder: Path) -> None:
        """Write vectors and metadata; each file appears whole or not at all."""
        vectors_path, metadata_path = (folder / name for name in _FILES[self.modality])
        with _replacing(vectors_path) as temporary, temporary.open("wb") as file:
            np.save(file, self.vectors)
        with _replacing(metadata_path) as temporary:
            pq.write_table(self._read(SCHEMA.names), temporary)

    def _read(self, names: Sequence[str]) -> pa.Table:
        if isinstance(self._metadata, Path):
            return _read_parquet(self._metadata, names)
        return self._metadata.select(list(names))


def save_tables(folder: Path, tables: Sequence[EmbeddingTable], info: TableInfo) -> None:
    """Write tables and then ``table.json``, which says that they are complete.

    Raises:
        EmbeddingError: if the tables do not fit the description.
    """
    counts = {table.modality: len(table) for table in tables}
    if counts != dict(info.counts) or any(table.width != info.width for table in tables):
        raise EmbeddingError(f"tables with {counts} rows do not fit the description: {dict(info.counts)}, width {info.width}")
    (folder / TABLE_JSON).unlink(missing_ok=True)
    for table in tables:
        table.write(folder)
    content = {
        "clapkit_table": FORMAT,
        "modality": info.modality,
        "width": info.width,
        "dtype": info.dtype,
        "counts": dict(info.counts),
        "model": {
            "path": info.model_path,
            # A runs folder that is moved as a whole keeps working.
            "relative_path": os.path.relpath(info.model_path, folder),
            "fingerprint": info.model_fingerprint,
        },
        "audio_policy": dict(info.audio_policy),
        "data": dict(info.data),
    }
    with _replacing(folder / TABLE_JSON) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n", encoding="utf-8")


def read_info(folder: Path) -> TableInfo:
    """Read ``table.json``.

    Raises:
        EmbeddingError: if it is missing, damaged or of another version.
    """
    path = folder / TABLE_JSON
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EmbeddingError(f"{path}: no such file; name a finished embed run") from error
    except (OSError, ValueError) as error:
        raise EmbeddingError(f"{path}: cannot be read as JSON ({error}); embed again") from error
    version = content.get("clapkit_table") if isinstance(content, dict) else None
    if version != FORMAT:
        raise EmbeddingError(f"{path}: table format {version!r}, this clapkit reads {FORMAT}; embed again")
    try:
        model = content["model"]
        moved = (folder / model["relative_path"]).resolve()
        info = TableInfo(
            width=int(content["width"]),
            dtype=str(content["dtype"]),
            counts={str(name): int(count) for name, count in content["counts"].items()},
            model_path=os.fspath(moved) if moved.is_dir() else model["path"],
            model_fingerprint=str(model["fingerprint"]),
            audio_policy=content["audio_policy"],
            data=content["data"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EmbeddingError(f"{path}: damaged ({type(error).__name__}: {error}); embed again") from error
    if not info.counts or not info.counts.keys() <= _FILES.keys():
        raise EmbeddingError(f"{path}: counts name {sorted(info.counts)}, expected audio, text or both; embed again")
    return info


def load_table(folder: Path, modality: Modality, *, info: TableInfo) -> EmbeddingTable:
    """Open one table and check that its files belong together.

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
    vectors_path, metadata_path = (folder / name for name in _FILES[modality])
    vectors = _open_vectors(vectors_path)
    expected = (info.counts[modality], info.width)
    if vectors.shape != expected or str(vectors.dtype) != info.dtype:
        raise EmbeddingError(
            f"{vectors_path}: {vectors.dtype} {list(vectors.shape)}, expected {info.dtype} {list(expected)} "
            f"as {TABLE_JSON} says; embed again"
        )
    num_rows = _num_parquet_rows(metadata_path)
    if num_rows != len(vectors):
        raise EmbeddingError(f"{metadata_path}: {num_rows} rows, expected {len(vectors)}, one per vector; embed again")
    _check_vectors(vectors, name=os.fspath(vectors_path))
    return EmbeddingTable(modality, vectors, metadata=metadata_path)


def _open_vectors(path: Path) -> FloatArray:
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise EmbeddingError(f"{path}: no such file; embed again") from error
    except (OSError, ValueError, EOFError) as error:
        raise EmbeddingError(f"{path}: cannot be read ({error}); embed again") from error
    return vectors  # type: ignore[no-any-return]


def _num_parquet_rows(path: Path) -> int:
    try:
        num_rows: int = pq.read_metadata(path).num_rows
    except FileNotFoundError as error:
        raise EmbeddingError(f"{path}: no such file; embed again") from error
    except (OSError, pa.ArrowException) as error:
        raise EmbeddingError(f"{path}: cannot be read as parquet ({_one_line(error)}); embed again") from error
    return num_rows


def _read_parquet(path: Path, names: Sequence[str]) -> pa.Table:
    try:
        # Not pq.read_table: it imports pandas, which takes longer than the search.
        with pq.ParquetFile(path) as file:
            return file.read(columns=list(names)).select(list(names))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise EmbeddingError(f"{path}: cannot be read as parquet ({_one_line(error)}); embed again") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _check_vectors(vectors: FloatArray, *, name: str) -> None:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS].astype(np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", block, block))
        wrong = ~(np.abs(norms - 1) <= _NORM_TOLERANCE)  # also true where the norm is NaN
        if wrong.any():
            row = int(np.argmax(wrong))
            raise EmbeddingError(f"{name}: row {start + row} has norm {norms[row]}, expected 1; embed again")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
