"""Lists of clips that are left out of a corpus by their ids: ``--exclude``."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.data.tables import TABLE_SUFFIXES, Row, Table, read_table
from clapkit.errors import ConfigError, ManifestError, RunDirError
from clapkit.files import file_fingerprint
from clapkit.run_dir import RunDir
from clapkit.types import Clip, Rejection, Reporter

# Best first; a rejected.jsonl of clapkit calls its clips items.
_ID_COLUMNS = ("id", "item")


@dataclass(frozen=True, slots=True)
class ExclusionList:
    """Ids of clips that are left out.

    Attributes:
        address: as the user wrote it.
        path: of the file.
        fingerprint: of its content.
        places: id -> where it stands in the file, in the order of the file.
        num_rows: that were read.
        max_rows: that the user asked for; None asks for all.
    """

    address: str
    path: Path
    fingerprint: str
    places: Mapping[str, str]
    num_rows: int
    max_rows: int | None


def read_list(address: str) -> ExclusionList:
    """Read a list of clips.

    Args:
        address: path of a table with a column ``id`` or of a text file with one id a line, with ``:N`` behind it for its
            first N rows. A file that is really called like that wins.

    Raises:
        ConfigError: if N is no number of rows.
        ManifestError: if the file is missing, is no such list, or holds no id.
    """
    path, max_rows = _locate(address)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"--exclude {path}: cannot be read ({error.strerror}); name a file with ids of clips") from error
    rows = list(itertools.islice(_rows(path, content), max_rows))
    if not rows:
        raise ManifestError(f"--exclude {path}: holds no id, expected ids of clips; name another file or leave it out")
    places: dict[str, str] = {}
    for id, place in rows:
        places.setdefault(id, place)
    return ExclusionList(address, path, hashlib.sha256(content).hexdigest(), places, len(rows), max_rows)


def record_lists(lists: Sequence[ExclusionList], run_dir: RunDir) -> None:
    """Note in ``run.json`` what the lists hold.

    Raises:
        RunDirError: if one holds something else than when the run was started.
    """
    recorded = {entry["path"]: entry["fingerprint"] for entry in run_dir.record["inputs"]}
    for listed in lists:
        if recorded.get(os.fspath(listed.path), listed.fingerprint) != listed.fingerprint:
            raise RunDirError(
                f"--exclude {listed.path}: has changed since {run_dir.path} was started; restore it, or start again "
                "with --overwrite"
            )
        run_dir.add_input(listed.path, listed.fingerprint)


def changed_lists(addresses: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """Which lists do not hold any more what they held for a run; one that is gone was needed only then.

    Args:
        addresses: of the lists, as the run was given them.
        record: ``run.json`` of the run.

    Raises:
        ConfigError: if an address is none.
    """
    recorded = {entry["path"]: entry["fingerprint"] for entry in record.get("inputs", [])}
    changed = []
    for address in addresses:
        with contextlib.suppress(ManifestError, OSError):  # it is gone, or cannot be read any more
            path, _ = _locate(address)
            if path.is_file() and recorded.get(os.fspath(path)) != file_fingerprint(path):
                changed.append(address)
    return changed


def exclude(
    clips: Sequence[Clip], listed: ExclusionList, *, known: Collection[str], reporter: Reporter, is_limited: bool = False
) -> list[Clip | Rejection]:
    """Leave out the clips of a list.

    Args:
        clips: that are left of the corpus.
        listed: the list.
        known: ids of all clips of the corpus; an id that is none of them is looked for without blanks around it, too.
        reporter: told how many are left out, and which ids are of no clip.
        is_limited: whether only the first clips of the corpus were asked for, so that a list may name others only.

    Raises:
        ManifestError: if no id of the list is that of a clip.
    """
    places: dict[str, str] = {}
    unknown: list[tuple[str, str]] = []
    for id, place in listed.places.items():
        name = id if id in known else id.strip()
        if name in known:
            places.setdefault(name, place)
        else:
            unknown.append((id, place))
    if not places and not is_limited:
        raise ManifestError(
            f"--exclude {listed.address}: none of its {len(unknown)} ids is that of a clip, first: {unknown[0][0]!r}, clips of "
            f"this corpus are called for example {next(iter(known))!r}; name a list of this corpus"
        )
    items = [_excluded(clip, listed, places[clip.id]) if clip.id in places else clip for clip in clips]
    num_excluded = sum(isinstance(item, Rejection) for item in items)
    reporter.say(f"--exclude {listed.address}: {num_excluded} of {len(clips)} clips left out")
    if listed.max_rows is not None and listed.num_rows < listed.max_rows:
        reporter.warn(f"--exclude {listed.address}: the list has {listed.num_rows} rows only, all of them are left out")
    if unknown:
        id, place = unknown[0]
        reporter.warn(
            f"--exclude {listed.address}: {len(unknown)} of {len(listed.places)} ids are of no clip of this corpus, "
            f"first: {id!r} ({place})"
        )
    return items


def warn_of_emptied(before: Sequence[Clip], after: Sequence[Clip], reporter: Reporter) -> None:
    """Say which splits are nearly gone: a list of suspects holds every clip that was trained on, not only the worst.

    Args:
        before: all clips.
        after: those that no list names.
        reporter: told about it.
    """
    left = Counter(clip.split for clip in after)
    for split, count in Counter(clip.split for clip in before).items():
        if split is not None and left[split] * 10 <= count:
            reporter.warn(
                f"--exclude: of split {split}, {left[split]} of {count} clips are left; of a list that holds every clip, such "
                "as suspects.csv, name the number of rows that are meant, as in suspects.csv:400"
            )


def _excluded(clip: Clip, listed: ExclusionList, place: str) -> Rejection:
    return Rejection(clip.id, f"named by --exclude {listed.path} {place}", "excluded", split=clip.split)


def _locate(address: str) -> tuple[Path, int | None]:
    """The file that an address means, and how many of its rows."""
    head, colon, count = address.rpartition(":")
    whole, listed = (Path(os.path.expanduser(path)) for path in (address, head))
    is_count = re.fullmatch("0*[1-9][0-9]{,17}", count) is not None
    if os.path.exists(whole):  # of pathlib, this question fails where a name is too long
        return whole, None
    if not colon or not os.path.exists(listed):
        raise ManifestError(
            f"--exclude {listed if colon and is_count else whole}: no such file, expected a table with a column id or a text "
            "file with one id a line; correct the path"
        )
    if not is_count:
        raise ConfigError(
            f"--exclude {address}: {count!r} is no number of rows, expected at least 1 behind the colon, as in {head}:400"
        )
    return listed, int(count)


def _rows(path: Path, content: bytes) -> Iterator[tuple[str, str]]:
    """Id and place of every row."""
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _of_table(path, read_table(path))
    text = _decode(path, content)
    if not text.strip():
        return iter(())
    if suffix not in TABLE_SUFFIXES:
        return _of_lines(text)
    return _of_table(path, read_table(path, delimiter=_delimiter(text) if suffix == ".csv" else None))


def _decode(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_text(path, error.start) from error
    if "\0" in text:
        raise _not_text(path, content.index(b"\0"))
    return text


def _not_text(path: Path, byte: int) -> ManifestError:
    return ManifestError(
        f"--exclude {path}: is no UTF-8 text (byte {byte}), expected a table with a column id or one id a line; "
        "name another file, or save it as CSV in UTF-8"
    )


def _delimiter(text: str) -> str:
    """What stands between the columns: spreadsheets of some countries write semicolons."""
    header = text.lstrip().partition("\n")[0]
    return max(",;\t", key=header.count)


def _of_lines(text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(text.split("\n"), start=1):
        is_header = number == 1 and line.strip() == "id"  # as `cut` leaves it
        if line.strip() and not is_header:
            yield line.rstrip("\r"), f"line {number}"


def _of_table(path: Path, table: Table) -> Iterator[tuple[str, str]]:
    by_lower = {name.strip().lower(): name for name in reversed(table.columns)}
    column = next((by_lower[name] for name in _ID_COLUMNS if name in by_lower), None)
    if column is None:
        raise ManifestError(
            f"--exclude {path}: no column id, columns found: {', '.join(table.columns)}; rename the one with the ids of clips, "
            "or write one id a line into a .txt file"
        )
    for row in table.rows:
        if row.problem is not None:
            raise ManifestError(f"--exclude {path} {row.place}: {row.problem}")
        id = _text(row, column)
        if id.strip():
            yield id, row.place
        elif any(_text(row, name).strip() for name in row.cells):  # others are left over from a spreadsheet
            raise ManifestError(
                f"--exclude {path} {row.place}: column {column} is empty, expected an id; fill it or drop the row"
            )


def _text(row: Row, column: str) -> str:
    value = row.cells.get(column)
    return "" if value is None else str(value)
