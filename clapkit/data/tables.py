"""Rows of CSV, TSV, JSON, JSON-lines and Parquet files, each with the place that a message can point at.

Cells of text tables stay text: an id such as ``1234567e890`` is no number, and an empty cell is empty.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.errors import ConfigError, ManifestError

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        place: where it stands, for example ``"line 12"``.
        cells: column name -> value; text in text tables, JSON values otherwise.
        problem: why the row cannot be used; None if it can.
    """

    place: str
    cells: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """All rows of a file.

    Attributes:
        columns: names, in the order in which they first appear.
        rows: in the order of the file.
        is_wavcaps: a JSON object with the rows under ``data``, as WavCaps and ML-CLAP publish them.
    """

    columns: list[str]
    rows: list[Row]
    is_wavcaps: bool = False


def read_table(
    path: Path,
    *,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    columns: Sequence[str] | None = None,
    comment: str | None = None,
    skip_initial_space: bool = False,
) -> Table:
    """Read a table by its suffix.

    Args:
        path: a file that ends in one of ``TABLE_SUFFIXES``.
        encoding: of a text table; a byte order mark of UTF-8 is skipped.
        delimiter: between the cells of a CSV or TSV file; None is the usual one.
        columns: names for the columns of a CSV or TSV file that has no header.
        comment: what lines of a CSV or TSV file begin with that hold no row.
        skip_initial_space: whether blanks behind a delimiter belong to it.

    Raises:
        ManifestError: if the file is missing, empty, in another encoding, or no such table.
        ConfigError: if the encoding or delimiter does not exist.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _collect(path, list(_parquet_rows(path)))
    text = _read_text(path, encoding)
    if not text.strip():
        raise ManifestError(f"{path}: is empty, expected a table with a header; name another file")
    if suffix in (".csv", ".tsv"):
        lines = _csv_lines(path, text, delimiter or ("\t" if suffix == ".tsv" else ","), skip_initial_space)
        return _read_csv(path, lines, columns, comment)
    if suffix == ".jsonl":
        return _collect(path, list(_jsonl_rows(path, text)))
    if suffix == ".json":
        return _read_json(path, text)
    raise ManifestError(f"{path}: is no table, expected one of {', '.join(TABLE_SUFFIXES)}; convert it")


def _read_text(path: Path, encoding: str) -> str:
    try:
        codec = codecs.lookup(encoding).name
    except LookupError as error:
        raise ConfigError(f"option encoding={encoding}: no such encoding, expected for example utf-8 or latin-1") from error
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); name a readable table") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and codec == "utf-8":
        raise ManifestError(f"{path} line 1: is UTF-16, expected {encoding}; pass -O encoding=utf-16 or convert the file")
    try:
        return content.decode("utf-8-sig" if codec == "utf-8" else codec)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path} line {line}: byte {error.start} (0x{content[error.start]:02x}) is not {encoding}, expected text in "
            f"{encoding}; pass -O encoding=latin-1 (or what the file is in) or convert it"
        ) from error


def _csv_lines(path: Path, text: str, delimiter: str, skip_initial_space: bool) -> Iterator[tuple[int, list[str]]]:
    """Cells of every row with the number of the line on which it begins; blank lines are left out."""
    if len(delimiter) != 1:
        raise ConfigError(f"option delimiter={delimiter}: expected one character")
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=skip_initial_space)
    line = 1
    try:
        for cells in reader:
            if cells:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise ManifestError(f"{path} line {reader.line_num}: not CSV ({error}); correct the quoting") from error


def _read_csv(path: Path, lines: Iterator[tuple[int, list[str]]], columns: Sequence[str] | None, comment: str | None) -> Table:
    names = None if columns is None else list(columns)
    rows = []
    for line, cells in lines:
        if comment and cells[0].startswith(comment):
            continue
        if names is None:
            names = _header(path, line, cells)
        else:
            rows.append(_csv_row(f"line {line}", names, cells))
    if names is None or not rows:
        found = "a header and no row" if columns is None else "no row"
        raise ManifestError(f"{path}: holds {found}, expected at least one; name another file")
    return Table(names, rows)


def _header(path: Path, line: int, columns: list[str]) -> list[str]:
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None:
        raise ManifestError(f"{path} line {line}: column {repeated!r} comes twice, expected unique names; rename one")
    return columns


def _csv_row(place: str, columns: list[str], cells: list[str]) -> Row:
    if len(cells) != len(columns):
        problem = f"{len(cells)} cells found, {len(columns)} expected from the header; quote cells that hold the delimiter"
        return Row(place, {}, problem)
    return Row(place, dict(zip(columns, cells, strict=True)))


def _jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    # Not splitlines(): it also breaks at separators such as U+2028, which JSON allows inside a text.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path} line {number}: not JSON ({error}); correct the line") from error
        if number == 1 and isinstance(cells, dict) and "clapkit_manifest" in cells:
            continue
        yield _json_row(path, f"line {number}", cells)


def _read_json(path: Path, text: str) -> Table:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{path}: not JSON ({error}); correct it, or name it .jsonl if it holds one object a line"
        ) from error
    is_wavcaps = isinstance(content, dict)
    items = content.get("data") if is_wavcaps else content
    if not isinstance(items, list):
        raise ManifestError(f'{path}: no rows found, expected a list of objects or {{"data": [...]}}; convert it')
    return _collect(path, [_json_row(path, f"item {i}", item) for i, item in enumerate(items, start=1)], is_wavcaps)


def _json_row(path: Path, place: str, cells: Any) -> Row:
    if not isinstance(cells, dict):
        raise ManifestError(f"{path} {place}: holds a {type(cells).__name__}, expected an object; correct it")
    return Row(place, cells)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow  # here, because it takes a third of a second and few tables are Parquet
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=4096):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number}", cells)
    except (OSError, pyarrow.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{path}: cannot be read as Parquet ({reason}); name a readable Parquet file") from error


def _collect(path: Path, rows: list[Row], is_wavcaps: bool = False) -> Table:
    if not rows:
        raise ManifestError(f"{path}: holds no row, expected at least one; name another file")
    return Table(list(dict.fromkeys(name for row in rows for name in row.cells)), rows, is_wavcaps)
