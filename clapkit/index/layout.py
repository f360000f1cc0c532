"""Where the files of an embedding table lie, and ``table.json``, which names those that belong together.

Vectors and metadata carry the number of their generation in their names. An update writes the files of the next
generation beside the old ones and then replaces ``table.json`` in one step: whoever reads it finds one whole table,
the old or the new.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import xxhash

from clapkit.errors import EmbeddingError

Modality = Literal["audio", "text"]
Files = tuple[str, str]

FORMAT = 2
TABLE_JSON = "table.json"
_READABLE = (1, 2)
# ``caption`` is the first one, the text column that clip-retrieval reads; ``captions`` has them all. ``content`` is the
# XXH3-128 of the bytes of the audio file, hexadecimal; files of older versions do not have it.
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
        ("content", pa.string()),
    ]
)
_MODALITIES = ("audio", "text")
# What a table puts into each folder; what table.json does not name is left over. Beside table.json: nothing but itself.
_PLACES = {
    "audio_emb": re.compile(r"audio_emb_\d+\.npy"),
    "text_emb": re.compile(r"text_emb_\d+\.npy"),
    "metadata": re.compile(r"metadata_\d+\.parquet"),
    "text_metadata": re.compile(r"metadata_\d+\.parquet"),
    "statistics": re.compile(r"(audio|text)_\d+\.npz"),
    "sketch": re.compile(r"(audio|text)_\d+\.np[yz]"),
    ".": re.compile(r"(?!)"),
}
_TEMPORARY = re.compile(r"\.(audio_emb|text_emb|metadata|audio|text|table)[_.].*\.tmp")


@dataclass(frozen=True, slots=True)
class TableInfo:
    """The content of ``table.json``.

    Attributes:
        width: D.
        dtype: ``float16`` or ``float32``.
        counts: modality -> number of rows.
        model_path: folder of the model that made the vectors, absolute; empty if it is not known.
        model_fingerprint: hash of its weights and configuration.
        audio_policy: how audio was cut and pooled, JSON values.
        data: what was embedded, JSON values.
        files: modality -> files of vectors and metadata, relative to the folder; set by ``publish``.
        id: hash of all vectors and metadata; equal content has equal ids. Set by ``publish``.
        generation: how often the table was brought up to date; set by ``publish``.
        directory: folder of the table; None before it is written.
    """

    width: int
    dtype: str
    counts: Mapping[str, int]
    model_path: str
    model_fingerprint: str
    audio_policy: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Files] = field(default_factory=dict)
    id: str = ""
    generation: int = 0
    directory: Path | None = None

    @property
    def modality(self) -> str:
        """``audio``, ``text`` or ``both``."""
        return "both" if len(self.counts) == 2 else next(iter(self.counts))


def table_files(modality: str, generation: int) -> Files:
    """Vectors and metadata of a modality, relative to the folder of the table."""
    metadata = "metadata" if modality == "audio" else "text_metadata"
    return f"{modality}_emb/{modality}_emb_{generation}.npy", f"{metadata}/metadata_{generation}.parquet"


def statistics_file(modality: str, generation: int) -> str:
    """Statistics of the vectors of a modality, relative to the folder of the table."""
    return f"statistics/{modality}_{generation}.npz"


def sketch_files(modality: str, generation: int) -> Files:
    """Codes of a modality, and what they stand for, relative to the folder of the table."""
    return f"sketch/{modality}_{generation}.npy", f"sketch/{modality}_{generation}.npz"


def write_info(folder: Path, info: TableInfo) -> None:
    """Write ``table.json``, which appears whole or not at all.

    Args:
        folder: of the table.
        info: what it says.
    """
    content = {
        "clapkit_table": FORMAT,
        "modality": info.modality,
        "width": info.width,
        "dtype": info.dtype,
        "counts": dict(info.counts),
        "files": {modality: list(files) for modality, files in info.files.items()},
        "generation": info.generation,
        "id": info.id,
        "model": {
            "path": info.model_path,
            # A runs folder that is moved as a whole keeps working.
            "relative_path": os.path.relpath(info.model_path, folder) if info.model_path else "",
            "fingerprint": info.model_fingerprint,
        },
        "audio_policy": dict(info.audio_policy),
        "data": dict(info.data),
    }
    with replacing(folder / TABLE_JSON) as temporary:
        temporary.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n", encoding="utf-8")
    sync_folder(folder)


def read_info(folder: Path) -> TableInfo:
    """Read ``table.json``.

    Args:
        folder: of the table.

    Raises:
        EmbeddingError: if it is missing, damaged or of another version.
    """
    path = folder / TABLE_JSON
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError as error:
        raise EmbeddingError(f"{path}: no such file, so the embeddings are not complete; embed again") from error
    except (OSError, ValueError) as error:
        raise EmbeddingError(f"{path}: cannot be read as JSON ({error}); embed again") from error
    version = content.get("clapkit_table") if isinstance(content, dict) else None
    if version not in _READABLE:
        known = " and ".join(map(str, _READABLE))
        raise EmbeddingError(f"{path}: table format {version!r}, this clapkit reads {known}; embed again")
    if version == 1:
        content = _as_format_2(content, text)
    try:
        return _info(content, folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EmbeddingError(f"{path}: damaged ({type(error).__name__}: {error}); embed again") from error


def _as_format_2(content: dict[str, Any], text: str) -> dict[str, Any]:
    """What format 1 left to be known: one generation of files; nobody hashed them, so their description stands for them."""
    files = {modality: table_files(modality, 0) for modality in content.get("counts", {}) if modality in _MODALITIES}
    return {**content, "files": files, "generation": 0, "id": xxhash.xxh3_128_hexdigest(text.encode())}


def _info(content: Mapping[str, Any], folder: Path) -> TableInfo:
    counts = {str(name): int(count) for name, count in content["counts"].items()}
    if not counts or not counts.keys() <= set(_MODALITIES):
        raise EmbeddingError(f"{folder / TABLE_JSON}: counts name {sorted(counts)}, expected audio, text or both; embed again")
    model = content["model"]
    moved = (folder / model["relative_path"]).resolve() if model["relative_path"] else None
    return TableInfo(
        width=int(content["width"]),
        dtype=str(content["dtype"]),
        counts=counts,
        model_path=os.fspath(moved) if moved is not None and moved.is_dir() else model["path"],
        model_fingerprint=str(model["fingerprint"]),
        audio_policy=dict(content["audio_policy"].items()),
        data=dict(content["data"].items()),
        files={modality: _pair(content["files"][modality]) for modality in counts},
        id=str(content["id"]),
        generation=int(content["generation"]),
        directory=folder,
    )


def _pair(names: Any) -> Files:
    vectors, metadata = names
    return str(vectors), str(metadata)


def remove_others(folder: Path, info: TableInfo | None) -> None:
    """Delete what an older generation, or a writer that was killed, left in the folder of a table.

    Args:
        folder: of the table; nobody may be writing to it.
        info: what is published; None if nothing is.
    """
    kept = set() if info is None else {name for files in info.files.values() for name in files}
    if info is not None:
        kept |= {statistics_file(modality, info.generation) for modality in info.counts}
        kept |= {name for modality in info.counts for name in sketch_files(modality, info.generation)}
    for place, pattern in _PLACES.items():
        if not (folder / place).is_dir():
            continue
        for path in (folder / place).iterdir():
            is_ours = pattern.fullmatch(path.name) or _TEMPORARY.fullmatch(path.name)
            if is_ours and path.relative_to(folder).as_posix() not in kept:
                path.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where a file is written before it gets its name; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends without an error."""
    temporary = temporary_path(path)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make renames within a folder last through a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
