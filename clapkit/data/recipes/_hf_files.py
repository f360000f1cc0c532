"""Where the rows of a Hugging Face data set lie, and what its columns are.

Two layouts: ``save_to_disk`` (``dataset_info.json``, ``state.json`` and Arrow streams, one folder for each split below a
``dataset_dict.json``), and folders of Parquet files whose names give the split.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from clapkit.data.recipes.folder import SPLIT_FOLDERS
from clapkit.errors import ManifestError

DATA_SUFFIXES = (".parquet", ".arrow")
"""Endings of files with rows, in lower case."""

# Rows with audio are large: as many at once as fit into memory even where each holds minutes of sound.
_BATCH_ROWS = 16
_NUMBERED = re.compile(r"(?P<split>[\w.]+?)-\d{5}-of-\d{5}")


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file with rows.

    Attributes:
        path: of the file.
        label: path without its suffix, relative to the source; unique.
        split: that its folder or name gives.
    """

    path: Path
    label: str
    split: str | None


def find_files(source: Path) -> list[DataFile]:
    """The files of a data set, split by split and in the order of their numbers.

    Raises:
        ManifestError: if the source holds no data set.
    """
    if source.is_file():
        if source.suffix.lower() not in DATA_SUFFIXES:
            raise ManifestError(f"{source}: expected a {' or '.join(DATA_SUFFIXES)} file or a folder of them; name one")
        return [DataFile(source, source.stem, _split_of_path(source.name))]
    if (source / "dataset_dict.json").is_file():
        names = _read_json(source / "dataset_dict.json").get("splits")
        if not isinstance(names, list) or not names:
            raise ManifestError(f"{source}/dataset_dict.json: names no splits, expected a list; save the data set again")
        return [file for name in names for file in _saved(source / str(name), f"{name}/", map_split(str(name)))]
    if (source / "state.json").is_file():
        return _saved(source, "", None)
    return _walk(source)


@contextmanager
def opened(file: DataFile) -> Iterator[tuple[pyarrow.Schema, Iterator[pyarrow.RecordBatch]]]:
    """Schema and rows of a file, a few rows at a time.

    Raises:
        ManifestError: if the file cannot be opened; damage further on is raised as ``pyarrow.ArrowException`` or ``OSError``.
    """
    try:
        stream = pyarrow.memory_map(str(file.path)) if file.path.suffix.lower() == ".arrow" else None
        reader = parquet.ParquetFile(file.path) if stream is None else _arrow_reader(stream)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{file.path}: cannot be read ({reason}); get the file again") from error
    with reader:
        if stream is None:
            yield reader.schema_arrow, reader.iter_batches(batch_size=_BATCH_ROWS)
        else:
            yield reader.schema, _arrow_batches(reader)


def read_features(schema: pyarrow.Schema, file: DataFile) -> dict[str, Any]:
    """Column name -> what the data set says that it is; empty where it says nothing."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is not None:
        try:
            features = json.loads(text)["info"]["features"]
        except (ValueError, KeyError, TypeError) as error:
            raise ManifestError(
                f"{file.path}: its huggingface metadata cannot be read ({error}); write the file again"
            ) from error
    else:
        info = file.path.parent / "dataset_info.json"
        features = _read_json(info).get("features") if info.is_file() else None
    return features if isinstance(features, dict) else {}


def class_names(feature: Any) -> list[str] | None:
    """Names of the classes of a ``ClassLabel``, or of a list of them."""
    if isinstance(feature, list) and feature:
        return class_names(feature[0])
    if not isinstance(feature, Mapping):
        return None
    if feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        return [str(name) for name in names] if isinstance(names, list) else None
    return class_names(feature.get("feature"))


def map_split(name: str) -> str:
    """A split under the name that it has in a manifest: the usual ones are mapped, others stay."""
    return SPLIT_FOLDERS.get(name.lower(), name)


def _arrow_reader(stream: Any) -> Any:
    """Streams are what is saved; the random-access format of Arrow is read, too."""
    try:
        return ipc.open_stream(stream)
    except pyarrow.ArrowInvalid:
        stream.seek(0)
        return ipc.open_file(stream)


def _arrow_batches(reader: Any) -> Iterator[pyarrow.RecordBatch]:
    batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            yield batch.slice(start, _BATCH_ROWS)


def _saved(folder: Path, prefix: str, split: str | None) -> list[DataFile]:
    """Files of one split that ``save_to_disk`` wrote."""
    state = _read_json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise ManifestError(
            f"{folder}: rows are chosen by a list of indices, expected all; flatten_indices() and save it again"
        )
    names = [str(item.get("filename")) for item in state.get("_data_files") or [] if isinstance(item, Mapping)]
    if not names or any(PurePosixPath(name).name != name for name in names):
        raise ManifestError(
            f"{folder}/state.json: names the files {names}, expected some in this folder; save the data set again"
        )
    if split is None and isinstance(state.get("_split"), str):
        split = map_split(state["_split"])
    return [DataFile(folder / name, prefix + PurePosixPath(name).stem, split) for name in names]


def _walk(source: Path) -> list[DataFile]:
    found = []
    for parent, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = [PurePosixPath(parent, name).relative_to(PurePosixPath(source)) for name in names]
        found += [path for path in relative if not path.name.startswith(".")]
    paths = sorted((path for path in found if path.suffix.lower() in DATA_SUFFIXES), key=str)
    if not paths:
        raise ManifestError(
            f"{source}: is no saved data set, no dataset_dict.json, state.json or {' or '.join(DATA_SUFFIXES)} file found; "
            "name the folder that save_to_disk wrote, or the one with data/train-00000-of-00001.parquet"
        )
    labels = [str(path.with_suffix("")) for path in paths]
    return [
        DataFile(source / path, label if labels.count(label) == 1 else str(path), _split_of_path(str(path)))
        for path, label in zip(paths, labels, strict=True)
    ]


def _split_of_path(path: str) -> str | None:
    """``any-00000-of-00001`` is the split ``any``; otherwise a word of the file name or a folder has to be called like one."""
    *folders, name = PurePosixPath(path).with_suffix("").parts
    numbered = _NUMBERED.fullmatch(name)
    if numbered is not None and numbered["split"] not in ("data", "part"):
        name = numbered["split"]
        words = {SPLIT_FOLDERS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_FOLDERS}
        return words.pop() if len(words) == 1 else name
    words = {SPLIT_FOLDERS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_FOLDERS}
    if len(words) == 1:
        return words.pop()
    return next((SPLIT_FOLDERS[part.lower()] for part in reversed(folders) if part.lower() in SPLIT_FOLDERS), None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({error}); save the data set again") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{path}: holds a {type(value).__name__}, expected an object; save the data set again")
    return value
