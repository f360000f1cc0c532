"""Lists of corpora: where they and their audio lie, the columns they must have, and rows that come twice."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clapkit.data.tables import Table
from clapkit.errors import ManifestError
from clapkit.types import Clip, RecipeRequest


def find_list(source: Path, names: Sequence[str], *, corpus: str) -> Path:
    """The list of a corpus: the source itself if it is a file, otherwise the first of some paths below it.

    Args:
        source: that the user named.
        names: paths relative to the folder of the corpus, the official one first.
        corpus: its name, for messages.

    Raises:
        ManifestError: if none of them is there.
    """
    if source.is_file():
        return source
    for name in names:
        if (source / name).is_file():
            return source / name
    raise ManifestError(
        f"{source}: is no {corpus}, no {names[0]} found, expected it below the folder; name the folder that holds it"
    )


def find_lists(folder: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Path]:
    """Lists in a folder or in the folders right below it.

    Args:
        folder: to look in; hidden folders and links to folders in it are passed over.
        names: what a list holds -> file names that it goes by.

    Returns:
        What a list holds -> its path, for the lists that are there.

    Raises:
        ManifestError: if the folder cannot be read, or if several files go by the names of one list.
    """
    found: dict[str, Path] = {}
    folders = [folder, *_folders_below(folder)]
    for key, file_names in names.items():
        paths = [place / name for place in folders for name in file_names if os.path.isfile(place / name)]
        if len(paths) > 1:
            raise ManifestError(
                f"{folder}: holds two lists of {key}, {paths[0].relative_to(folder)} and {paths[1].relative_to(folder)}, "
                "expected one; name the file or the folder of the one that is meant, and set --audio-dir"
            )
        if paths:
            found[key] = paths[0]
    return found


def audio_root(request: RecipeRequest) -> Path:
    """The folder that audio paths are relative to: the one that the user named for audio, or that of the source."""
    assert request.source is not None, "prepare gives a source to recipes that need one"
    return request.audio_dir or (request.source if request.source.is_dir() else request.source.parent)


def require_columns(path: Path, table: Table, columns: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        ManifestError: if one is missing.
    """
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ManifestError(
            f"{path}: no column {missing[0]!r}, columns found: {', '.join(table.columns)}; expected {', '.join(columns)}; "
            "name the list of the corpus"
        )


def repeated(first: dict[str, str], item: str, place: str) -> str | None:
    """Why an item cannot be used that an earlier row has listed already; None if this row is the first.

    Args:
        first: item -> place of its first row; filled in here.
        item: id of the clip.
        place: of this row.
    """
    if first.setdefault(item, place) == place:
        return None
    return f"{place} lists it again, first on {first[item]}, expected one row for a clip; drop one of them"


def warn_of_torn_sources(clips: Sequence[Clip]) -> list[str]:
    """A sentence about recordings that lie in several folds, if there are any.

    Their clips share a split all the same, so that one of the folds is no longer whole.

    Args:
        clips: with source and fold.
    """
    folds: dict[str, set[int | None]] = {}
    for clip in clips:
        folds.setdefault(clip.source or clip.id, set()).add(clip.fold)
    torn = [source for source, found in folds.items() if len(found) > 1]
    return [f"Recordings that lie in several folds: {len(torn)}, first: {torn[0]}; expected one fold each."] if torn else []


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers, blanks at the ends stripped.

    Raises:
        ManifestError: if the file cannot be read as UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ManifestError(f"{path}: cannot be read ({reason}); get the file again") from error
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
        ManifestError: if it holds anything else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({error}); get the file again") from error
    if not isinstance(content, dict):
        raise ManifestError(f"{path}: holds a {type(content).__name__}, expected one object; get the file again")
    return content


def _folders_below(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError as error:
        raise ManifestError(f"{folder}: cannot be read ({error.strerror}); make it readable or name another folder") from error
    return [folder / name for name in sorted(names)]
