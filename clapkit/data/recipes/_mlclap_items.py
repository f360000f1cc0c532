"""The lists of WavCaps and ML-CLAP, item by item, in each of their shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.errors import ManifestError

_SUFFIXES = (".json", ".jsonl")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class ListedItem:
    """One clip of a list.

    Attributes:
        list_name: the list without its suffix, with folders where the source is a folder; of a JSON file that holds one item,
            its folder.
        place: where the item stands, for messages.
        split: that the name of the list says.
        cells: everything that the list says.
        own_name: what the audio is called where a JSON file holds this one item.
    """

    list_name: str
    place: str
    split: str | None
    cells: Mapping[str, Any]
    own_name: str | None = None


def read_items(source: Path) -> Iterator[ListedItem]:
    """All items of the lists in a folder, or of one list.

    Args:
        source: the folder, searched to any depth, or a list.

    Raises:
        ManifestError: if there is no list, or one cannot be read.
    """
    paths = [source] if source.is_file() else sorted(path for suffix in _SUFFIXES for path in source.rglob(f"*{suffix}"))
    if not paths or source.is_file() and source.suffix.lower() not in _SUFFIXES:
        raise ManifestError(
            f'{source}: no list found, expected JSON {{"data": [{{"caption_1", ..., "wav"}}]}} such as clotho_test.json; '
            "name the file, or the folder that holds it"
        )
    for path in paths:
        name = path.stem if source.is_file() else path.relative_to(source).with_suffix("").as_posix()
        yield from _read(path, name, _split_of(path.stem))


def _split_of(stem: str) -> str | None:
    """``clotho_test`` is test; so is ``test``."""
    return _SPLITS.get(re.split(r"[_\-.]", stem.lower())[-1])


def _read(path: Path, name: str, split: str | None) -> Iterator[ListedItem]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); make it readable or name another") from error
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: byte {error.start} is not UTF-8, expected JSON in UTF-8; convert it") from error
    if path.suffix.lower() == ".jsonl":
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
        items = [(f"{path.name} line {number}", _parse(f"{path} line {number}", line)) for number, line in lines]
    else:
        content = _parse(str(path), text)
        if isinstance(content, dict) and "data" not in content and "captions" in content:
            yield ListedItem(name.rpartition("/")[0], f"{name}.json", _split_of(path.parent.name), content, name)
            return
        listed = content.get("data") if isinstance(content, dict) else content
        if not isinstance(listed, list):
            raise ManifestError(
                f'{path}: no items found, expected {{"data": [...]}} or {{"captions": {{...}}}}; remove the file'
            )
        items = [(f"{path.name} item {number}", cells) for number, cells in enumerate(listed, start=1)]
    if not items:
        raise ManifestError(f"{path}: holds no item, expected at least one; remove the file")
    for place, cells in items:
        if not isinstance(cells, dict):
            raise ManifestError(f"{path} {place}: holds a {type(cells).__name__}, expected an object; correct it")
        yield ListedItem(name, place, split, cells)


def _parse(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{place}: not JSON ({error}); correct it") from error
