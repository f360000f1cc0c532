"""JSON beside a sound, as shards and tables of the field store it: captions, labels and the record of an export."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from clapkit.data.manifest import read_clip, to_line
from clapkit.data.safe_paths import is_safe_audio_path
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip

RECORD_KEY = "clapkit"
"""Key or column that holds the manifest line of a clip that was exported."""

CAPTION_KEYS = ("captions", "caption", "text")
"""Keys that hold captions, best first."""

ROW_KEY = "clapkit_row"
"""Key or column that holds the place of that line in its manifest, from 0."""

LABEL_KEYS = ("tag", "tags", "labels", "label")
"""Keys that hold class names, best first."""

_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_][A-Za-z0-9]+)*", re.IGNORECASE)


class TextError(Exception):
    """Why stored text cannot be used; becomes the reason of a rejection."""


def decode_json(content: bytes | str) -> Any:
    """JSON to values; NaN and infinities, which are no JSON but often written, become null.

    Raises:
        TextError: if it is not JSON in UTF-8.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, parse_constant=lambda constant: None)
        json.dumps(value, ensure_ascii=False).encode()  # JSON can spell half a surrogate pair
    except (ValueError, RecursionError) as error:
        raise TextError(f"not JSON in UTF-8 ({str(error).splitlines()[0][:80]}); correct it") from error
    return value


def read_captions(value: Any, lang: str) -> Iterator[Caption]:
    """Captions of a text, a list of them, objects with ``text`` and ``lang``, or an object with a list for each language.

    Empty ones come as empty captions: the caller refuses them by number.

    Raises:
        TextError: if there is something else.
    """
    if isinstance(value, str):
        yield Caption(value.strip(), lang)
    elif isinstance(value, list):
        for item in value:
            yield from read_captions("" if item is None else item, lang)
    elif isinstance(value, dict) and "text" in value and value.keys() <= {"text", "lang", "language"}:
        named = value.get("lang", value.get("language"))
        yield from read_captions(value["text"], named if isinstance(named, str) and named else lang)
    elif isinstance(value, dict) and all(_LANGUAGE.fullmatch(key) for key in value):
        for key, item in value.items():
            yield from read_captions([] if item is None else item, key)
    elif value is not None:
        raise TextError(f"caption {str(value)[:60]!r} is a {type(value).__name__}, expected a text; correct it")


def read_labels(value: Any) -> tuple[str, ...]:
    """Class names of a text, a number or a list of them; empty ones are left out.

    Raises:
        TextError: if there is something else.
    """
    items = value if isinstance(value, list) else [value]
    names = []
    for item in items:
        if isinstance(item, dict | list):
            raise TextError(f"label {str(item)[:60]!r} is a {type(item).__name__}, expected a text; correct it")
        name = "" if item is None else str(item).strip()
        if name:
            names.append(name)
    return tuple(dict.fromkeys(names))


def first_filled(record: Mapping[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of some keys that holds anything."""
    return next((key for key in keys if record.get(key) not in (None, "", [], {})), None)


def read_record(value: Any) -> Clip:
    """The clip that was exported, as it stood in its manifest.

    Raises:
        TextError: if the record is no manifest line, or its audio path is none that may be written.
    """
    record = decode_json(value) if isinstance(value, str) else value
    if not isinstance(record, dict):
        raise TextError(f"{RECORD_KEY} record is a {type(record).__name__}, expected an object; export the corpus again")
    try:
        clip = read_clip(dict(record), RECORD_KEY)
        to_line(clip).encode()
    except (ManifestError, ValueError) as error:
        raise TextError(
            f"{RECORD_KEY} record cannot be used ({str(error).partition(': ')[2]}); export the corpus again"
        ) from error
    if not is_safe_audio_path(clip.audio):
        raise TextError(f"{RECORD_KEY} record names the audio {clip.audio!r}, expected a path inside the corpus; rename it")
    return clip
