"""Cells of a table row to values, and the name of a file to the file; what is wrong is a ``RowError``."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.tables import Row
from clapkit.types import Caption

# Tried in this order behind a name that says no format.
_LIKELY_SUFFIXES = (".flac", ".wav", ".ogg", ".mp3")


class RowError(Exception):
    """Why a row cannot be used; becomes the reason of its rejection."""


def read_text(value: Any) -> str:
    """A cell as text; nothing is empty text."""
    text = "" if value is None else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half a surrogate pair, which no file in UTF-8 can hold.
        raise RowError(f"text {ascii(text)} is not valid Unicode; correct it") from error
    return text


def read_number(key: str, value: Any) -> float | None:
    """A cell as seconds; None if it is empty."""
    text = read_text(value).strip()
    if not text:
        return None
    try:
        number = float(text)
    except ValueError as error:
        raise RowError(f"{key} {text!r}, expected seconds; correct it") from error
    if not math.isfinite(number):
        raise RowError(f"{key} {text!r}, expected seconds; correct it")
    return number


def read_fold(value: Any) -> int | None:
    """A cell as a whole number from 1; None if it is empty."""
    text = read_text(value).strip()
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise RowError(f"fold {text!r}, expected a whole number of at least 1; correct it")
    return int(text)


def read_labels(value: Any) -> list[str]:
    """A list, or text with semicolons, as names."""
    names = [read_text(name) for name in value] if isinstance(value, list) else read_text(value).split(";")
    return [name.strip() for name in names if name.strip()]


def read_captions(value: Any, lang: str) -> list[Caption]:
    """A text, or a list of texts or caption objects, as captions; empty ones are left out."""
    captions = []
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, dict):
            caption = Caption(read_text(item.get("text")).strip(), read_text(item.get("lang")) or lang)
        else:
            caption = Caption(read_text(item).strip(), lang)
        if caption.text:
            captions.append(caption)
    return captions


def wavcaps_names(row: Row, cells: Mapping[str, Any]) -> list[str]:
    """Names under which the audio of a WavCaps item may lie, best first."""
    names = []
    wav = read_text(row.cells.get("wav"))
    if wav and not os.path.isabs(wav):
        names += [wav, PurePosixPath(wav).name]
    id = read_text(cells.get("id"))
    if id:
        # AudioSet items are called Y....wav and lie as Y....flac.
        stem = id.removesuffix(".wav")
        names += [id, *(stem + suffix for suffix in _LIKELY_SUFFIXES)]
    audio = PurePosixPath(read_text(cells.get("audio"))).name
    return names + [audio] if audio else names


def locate(names: list[str], folder: Path) -> str:
    """The first of some names under which a file lies, relative to the folder or absolute."""
    given = [name for name in names if name.strip()]
    if not given:
        raise RowError("empty audio path, expected the name of a file; fill it or drop the row")
    for name in given:
        if not os.path.isabs(name) and os.path.normpath(name).split(os.sep)[0] == os.pardir:
            raise RowError(f"audio {name!r} leaves the audio folder, expected a path inside {folder}; set --audio-dir")
        # The name as it stands comes first: names on disk do hold blanks and HTML entities.
        for variant in dict.fromkeys([name, html.unescape(name), name.strip(), html.unescape(name).strip()]):
            if os.path.isfile(folder / variant):
                return variant
        if PurePosixPath(name).suffix.lower() not in AUDIO_SUFFIXES:
            for suffix in _LIKELY_SUFFIXES:
                if os.path.isfile(folder / (name + suffix)):
                    return name + suffix
    raise RowError(f"audio {given[0]!r}: no such file in {folder}; get the file, or set --audio-dir")
