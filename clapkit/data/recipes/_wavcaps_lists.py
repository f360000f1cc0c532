"""The JSON files of WavCaps, item by item, and the blacklists that go with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.data.tables import read_table
from clapkit.errors import ManifestError
from clapkit.types import Reporter

SOURCES = ("freesound", "bbc", "soundbible", "audioset")

# Names that the authors give to the sources, in lower case.
_SOURCE_NAMES = {
    "freesound": "freesound",
    "fsd_final": "freesound",
    "bbc_sound_effects": "bbc",
    "bbc": "bbc",
    "bbc_final": "bbc",
    "soundbible": "soundbible",
    "sb_final": "soundbible",
    "audioset": "audioset",
    "audioset_sl": "audioset",
    "as_final": "audioset",
}
# ``Y`` and an id of YouTube, which may start with Y itself.
_AUDIOSET_ID = re.compile(r"Y([A-Za-z0-9_-]{11})(?:\.wav|\.flac)?")

Blacklist = Mapping[str, frozenset[str]]
"""Source -> ids of its items, as ``Item.id`` has them."""


@dataclass(frozen=True, slots=True)
class Item:
    """One recording.

    Attributes:
        place: where it stands, for messages.
        source: one of ``SOURCES``.
        id: of the recording in its source; of AudioSet the 11 characters of YouTube.
        cells: everything that the list says.
        problem: why it cannot be used; None if it can.
    """

    place: str
    source: str
    id: str
    cells: Mapping[str, Any]
    problem: str | None = None


def item_stem(item: Item) -> str:
    """Name of the audio file without suffix; items of AudioSet are called ``Y....wav`` and lie as ``Y....flac``."""
    return f"Y{item.id}" if item.source == "audioset" and len(item.id) == 11 else item.id


def read_items(source: Path, reporter: Reporter) -> Iterator[Item]:
    """All items of the JSON files in a folder, or of one file.

    Args:
        source: the folder, searched two levels deep, or the file.
        reporter: told about JSON files that are no list of WavCaps.

    Raises:
        ManifestError: if no list is there, one cannot be read, or the source of an item cannot be told.
    """
    if source.is_file():
        paths = [source]
    else:
        paths = [path for depth in ("*.json", "[!.]*/*.json", "[!.]*/[!.]*/*.json") for path in sorted(source.glob(depth))]
    first_of: dict[tuple[str, str], str] = {}
    num_lists = 0
    for path in paths:
        data = _load(path)
        if not (isinstance(data, dict) and isinstance(data.get("data"), list)):
            if source.is_file():
                break
            hint = "; a blacklist is applied with -O exclude=PATH" if _looks_like_blacklist(data) else ""
            reporter.say(f"{path}: passed over, because it is no list of WavCaps{hint}")
            continue
        num_lists += 1
        for number, cells in enumerate(data["data"], start=1):
            yield _item(path, f"{path.name} item {number}", cells, first_of)
    if not num_lists:
        raise ManifestError(
            f'{source}: no list of WavCaps found, expected JSON {{"data": [...]}} such as json_files/SoundBible/sb_final.json; '
            "name the folder or the file"
        )


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); make it readable or name another") from error
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path}: not JSON ({error}); get the file again or remove it") from error


def _item(path: Path, place: str, cells: Any, first_of: dict[tuple[str, str], str]) -> Item:
    if not isinstance(cells, dict):
        return Item(place, "", "", {}, f"holds a {type(cells).__name__}, expected an object; correct it")
    given = cells.get("id")
    id = "" if given is None else str(given).strip()
    if not id:
        return Item(place, "", "", cells, "no id, expected the name of its audio; drop the item")
    source = _source_of(path, id, cells)
    if source is None:
        raise ManifestError(
            f"{path}: {place} (id {id!r}, fields {', '.join(cells)}) does not tell its source, expected the fields of WavCaps; "
            "name the file fsd_final.json, bbc_final.json, sb_final.json or as_final.json"
        )
    id = normalised_id(source, id)
    first = first_of.setdefault((source, id), place)
    if first != place:
        return Item(
            place, source, id, cells, f"id {id!r} of {source} is listed twice, first as {first}, expected once; drop one"
        )
    return Item(place, source, id, cells)


def _source_of(path: Path, id: str, cells: Mapping[str, Any]) -> str | None:
    """Source of an item, by the fields that only its list has; by the name of the file or folder where they are gone."""
    if _AUDIOSET_ID.fullmatch(id) and "title" not in cells and "tags" not in cells:
        return "audioset"
    if "category" in cells:
        return "bbc"
    if "tags" in cells or "file_name" in cells:
        return "freesound"
    if "title" in cells:
        return "soundbible"
    return next((_SOURCE_NAMES[n.lower()] for n in (path.stem, path.parent.name) if n.lower() in _SOURCE_NAMES), None)


def normalised_id(source: str, id: str) -> str:
    """Id of a recording in its source: exactly one ``Y`` and the suffix are taken off the names of AudioSet."""
    if source != "audioset":
        return id.removesuffix(".flac")
    match = _AUDIOSET_ID.fullmatch(id)
    return match[1] if match else id.removesuffix(".wav")


def _looks_like_blacklist(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(str(name).lower() in _SOURCE_NAMES for name in content)


def read_blacklist(path: Path) -> Blacklist:
    """Ids to leave out.

    Args:
        path: JSON ``{"AudioSet": [...], "FreeSound": [...]}`` of WavCaps, or CSV with a column ``sound_id``, as the DCASE
            challenge publishes for Freesound.

    Raises:
        ManifestError: if it is neither.
    """
    if path.suffix.lower() == ".csv":
        table = read_table(path)
        if "sound_id" not in table.columns:
            found = ", ".join(table.columns)
            raise ManifestError(f"{path}: columns {found} found, expected sound_id (ids of Freesound); correct -O exclude")
        broken = next((row for row in table.rows if row.problem is not None), None)
        if broken is not None:
            raise ManifestError(f"{path} {broken.place}: {broken.problem}")
        return {"freesound": frozenset(str(row.cells["sound_id"]).strip() for row in table.rows)}
    content = _load(path)
    ids: dict[str, frozenset[str]] = {}
    for name, given in content.items() if _looks_like_blacklist(content) else [("", None)]:
        if not isinstance(given, list) or not all(isinstance(id, str | int) for id in given):
            raise ManifestError(
                f'{path}: is no blacklist of WavCaps, expected {{"AudioSet": [ids], "FreeSound": [ids]}}; correct -O exclude'
            )
        source = _SOURCE_NAMES[name.lower()]
        ids[source] = ids.get(source, frozenset()) | {normalised_id(source, str(id).strip()) for id in given}
    return ids
