"""The two files of an approximate index: the faiss index, and the description that says which table it is of."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.errors import EmbeddingError
from clapkit.index._faiss import load_faiss
from clapkit.index.layout import Modality, replacing, sync_folder

FOLDER = "index"
FORMAT = 1
_NAME = re.compile(r"(?P<name>[a-z0-9]+)_(?P<modality>audio|text)_(?P<generation>\d+)\.(json|faiss)")


@dataclass(frozen=True)
class Description:
    """The content of the ``.json`` of an index.

    Attributes:
        path: of that file.
        table: id of the table.
        width: D.
        rows: N.
        bytes: of the ``.faiss`` file.
        faiss: version that wrote it.
        num_changed: rows added or taken out since the index was made from nothing.
        options: that it was asked for with.
        report: for people.
    """

    path: Path
    table: str
    width: int
    rows: int
    bytes: int
    faiss: str
    num_changed: int
    options: Mapping[str, Any]
    report: dict[str, Any]

    @property
    def generation(self) -> int:
        """Of the table, when the index was made."""
        return int(_parts(self.path)["generation"])


def description_path(folder: Path, name: str, modality: Modality, generation: int) -> Path:
    """Where the description of an index lies."""
    return folder / FOLDER / f"{name}_{modality}_{generation}.json"


def index_files(folder: Path) -> Iterator[tuple[Path, str, Modality]]:
    """Files of indexes with the name of the plug-in and the modality, sorted."""
    for path in sorted((folder / FOLDER).glob("*")):
        match = _NAME.fullmatch(path.name)
        if match is not None:
            yield path, match["name"], "audio" if match["modality"] == "audio" else "text"


def is_left_over(path: Path) -> bool:
    """Whether a file is what a build that was killed leaves."""
    return path.name.endswith(".tmp") and path.name.startswith(".") and _NAME.match(path.name[1:]) is not None


def descriptions(folder: Path, name: str, modality: Modality) -> list[Description]:
    """All of one kind of index, newest first.

    Raises:
        EmbeddingError: if one is damaged.
    """
    paths = [path for path, *kind in index_files(folder) if path.suffix == ".json" and kind == [name, modality]]
    return sorted(map(read_description, paths), key=lambda description: -description.generation)


def read_description(path: Path) -> Description:
    """Read the ``.json`` of an index.

    Raises:
        EmbeddingError: if it is damaged or of another version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, f"cannot be read as JSON ({error})") from error
    version = content.get("clapkit_index") if isinstance(content, dict) else None
    if version != FORMAT:
        raise damaged(path, f"index format {version!r}, this clapkit reads {FORMAT}")
    try:
        return Description(
            path=path,
            table=str(content["table"]),
            width=int(content["width"]),
            rows=int(content["rows"]),
            bytes=int(content["bytes"]),
            faiss=str(content["faiss"]),
            num_changed=int(content["num_changed"]),
            options=dict(content["options"]),
            report=dict(content["report"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(path, f"damaged ({type(error).__name__}: {error})") from error


def read_faiss(description: Description, *, is_mapped: bool) -> Any:
    """The faiss index of a description.

    Args:
        description: of the index.
        is_mapped: read its rows when they are asked for, which does not allow changes.

    Raises:
        EmbeddingError: if the file is missing, damaged, or faiss cannot read it.
    """
    faiss = load_faiss()
    path = description.path.with_suffix(".faiss")
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        raise damaged(path, f"cannot be read ({error.strerror})") from error
    if num_bytes != description.bytes:  # a mapped file that is too short ends the process, not the search
        raise damaged(path, f"{num_bytes} bytes, expected {description.bytes}")
    try:
        inner = faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC if is_mapped else 0)
    except RuntimeError as error:
        reason = " ".join(str(error).split()).rpartition("Error: ")[2]
        what = f"faiss {faiss.__version__} cannot read what faiss {description.faiss} wrote"
        raise damaged(path, f"{what} ({reason})") from error
    if (inner.ntotal, inner.d) != (description.rows, description.width):
        raise damaged(path, f"{inner.ntotal} x {inner.d}, expected {description.rows} x {description.width}")
    return inner


def write_files(
    path: Path, inner: Any, report: Mapping[str, Any], *, table: str, options: Mapping[str, Any], num_changed: int
) -> dict[str, Any]:
    """Write an index and its description; both are complete before either gets its name, and the description comes last.

    Args:
        path: of the description.
        inner: the faiss index.
        report: for people.
        table: id of the table.
        options: that it was asked for with.
        num_changed: rows added or taken out since it was made from nothing.

    Returns:
        The report with the ``bytes`` of the index.
    """
    faiss = load_faiss()
    with replacing(path) as description, replacing(path.with_suffix(".faiss")) as temporary:
        faiss.write_index(inner, os.fspath(temporary))
        num_bytes = temporary.stat().st_size
        full_report = {**report, "bytes": num_bytes}
        content = {
            "clapkit_index": FORMAT,
            "table": table,
            "width": inner.d,
            "rows": inner.ntotal,
            "bytes": num_bytes,
            "faiss": faiss.__version__,
            "num_changed": num_changed,
            "options": dict(options),
            "report": full_report,
        }
        description.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2) + "\n", encoding="utf-8")
    sync_folder(path.parent)
    return full_report


def none_built(folder: Path, name: str, modality: Modality) -> EmbeddingError:
    """The error where there is no index."""
    return EmbeddingError(f"{folder}: no {name} index of the {modality} table; {remedy(name)}")


def damaged(path: Path, reason: str) -> EmbeddingError:
    """The error for a file that cannot be used."""
    return EmbeddingError(f"{path}: {reason}; delete it and {remedy(_parts(path)['name'])}")


def remedy(name: str) -> str:
    """What to do where an index cannot be used."""
    return f"build it with `clapkit embed --update --index {name}`"


def _parts(path: Path) -> re.Match[str]:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return match
