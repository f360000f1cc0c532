"""What another program says about each row of its vectors, brought into the columns of an embedding table.

Columns are recognised by name, in any case of letters::

    path       path, audio_path, image_path, audio, file, filename, file_name, filepath, file_path, fname, wav
    id         id, key, clip_id; without these the path, without that the number of the row, from 0
    caption    caption, text; ``captions`` where there are several
    labels     labels, label: a list, or text with semicolons between them
    split, start_s, end_s, content

What there is no column for is null.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clapkit.errors import EmbeddingError
from clapkit.index.layout import SCHEMA

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
# Best first.
_NAMES = {
    "path": (
        *("path", "audio_path", "image_path", "audio", "file"),
        *("filename", "file_name", "filepath", "file_path", "fname", "wav"),
    ),
    "id": ("id", "key", "clip_id"),
    "captions": ("captions", "caption", "text"),
    "labels": ("labels", "label"),
    "split": ("split",),
    "start_s": ("start_s",),
    "end_s": ("end_s",),
    "content": ("content",),
}


def read_rows(path: Path, *, num_rows: int, first_row: int = 0) -> pa.Table:
    """Read what is known of each row.

    Args:
        path: Parquet, CSV, TSV or JSON lines.
        num_rows: vectors that it describes.
        first_row: number of the first of them.

    Returns:
        Rows of ``SCHEMA``.

    Raises:
        EmbeddingError: if the file is missing or damaged, has another number of rows or no column that is known, or a row has
            no id.
    """
    try:
        table = _read(path)
    except FileNotFoundError as error:
        raise EmbeddingError(f"{path}: no such file, expected the metadata of the vectors; check the path") from error
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise EmbeddingError(f"{path}: cannot be read ({_one_line(error)}); write it again") from error
    if table.num_rows != num_rows:
        raise EmbeddingError(f"{path}: {table.num_rows} rows, expected {num_rows}, one per vector; name the file that belongs")
    return _recognise(table, path, first_row=first_row)


def unknown_rows(num_rows: int) -> pa.Table:
    """Rows of which nothing is known; their numbers are their ids.

    Args:
        num_rows: N.
    """
    return _table({"id": _numbers(0, num_rows)}, num_rows)


def expect_distinct(rows: pa.Table, *, name: str, by_caption: bool) -> None:
    """Refuse rows that cannot be told apart.

    Args:
        rows: of ``SCHEMA``.
        name: of their file, for the message.
        by_caption: whether captions of one clip may share its id.

    Raises:
        EmbeddingError: if an id repeats for one span of sound.
    """
    if len(rows.column("id").unique()) == rows.num_rows:
        return
    keys = ["id", "start_s", "end_s", *(["caption"] if by_caption else [])]
    seen: dict[tuple[Any, ...], int] = {}
    for row, key in enumerate(zip(*(rows.column(column).to_pylist() for column in keys), strict=True)):
        if key in seen:
            raise EmbeddingError(
                f"{name}: id {key[0]!r} repeats in rows {seen[key]} and {row}, expected one row per id, or spans that differ "
                f"(start_s, end_s); drop one"
            )
        seen[key] = row


def _read(path: Path) -> pa.Table:
    match path.suffix.lower():
        case ".parquet":
            with pq.ParquetFile(path) as file:
                return file.read(columns=_known(file.schema_arrow.names))
        case ".csv":
            return _read_csv(path, delimiter=",")
        case ".tsv":
            return _read_csv(path, delimiter="\t")
        case ".jsonl":
            return _read_json_lines(path)
    raise ValueError(f"unknown kind {path.suffix!r}, expected {', '.join(SUFFIXES)}")


def _read_csv(path: Path, *, delimiter: str) -> pa.Table:
    from pyarrow import csv as arrow_csv

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = _known(next(csv.reader(file, delimiter=delimiter), []))
    return arrow_csv.read_csv(
        path,
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        # As text, because ids such as 007 are no numbers.
        convert_options=arrow_csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    )


def _read_json_lines(path: Path) -> pa.Table:
    records = []
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"line {number}: {type(record).__name__}, expected an object")
            records.append(record)
    names = _known(list(dict.fromkeys(name for record in records for name in record)))
    return pa.table({name: pa.array([record.get(name) for record in records]) for name in names})


def _known(names: Sequence[str]) -> list[str]:
    """Those of the names of columns that are recognised, each once."""
    recognised = {known for alternatives in _NAMES.values() for known in alternatives}
    found = [name for name in names if name.lower() in recognised]
    if not found:
        raise ValueError(f"columns {', '.join(names) or 'none'}, expected id, path or caption among them")
    repeated = {name for name in found if [other.lower() for other in found].count(name.lower()) > 1}
    if repeated:
        raise ValueError(f"columns {', '.join(sorted(repeated))} have one name, expected each once")
    return found


def _recognise(table: pa.Table, path: Path, *, first_row: int) -> pa.Table:
    present = {name.lower(): name for name in table.schema.names}
    found = {
        field: present[next(name for name in names if name in present)]
        for field, names in _NAMES.items()
        if any(name in present for name in names)
    }
    columns = {field: _values(table.column(name), name, field, path) for field, name in found.items()}
    if "captions" in columns:
        columns["caption"] = _first_of_each(columns["captions"])
    if "id" not in columns:
        columns["id"] = columns.get("path", _numbers(first_row, table.num_rows))
    ids = columns["id"]
    if ids.null_count:
        row = ids.is_null().to_pylist().index(True)
        raise EmbeddingError(f"{path}: row {row} has no id; fill in {found.get('id', found.get('path'))}")
    return _table(columns, table.num_rows)


def _values(column: pa.ChunkedArray, name: str, field: str, path: Path) -> pa.ChunkedArray:
    """A column in the type of its field; a single text where there may be several becomes a list."""
    wanted = SCHEMA.field(field).type
    try:
        if pa.types.is_nested(column.type) or not pa.types.is_list(wanted):
            return column.cast(wanted)
        texts = column.cast(pa.string()).to_pylist()
    except pa.ArrowException as error:
        raise EmbeddingError(f"{path}: column {name}: {_one_line(error)}, expected {wanted}; write it again") from error
    lists = [None if text is None else _split(text) if field == "labels" else [text] for text in texts]
    return pa.chunked_array([pa.array(lists, wanted)])


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _first_of_each(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    firsts = [texts[0] if texts else None for texts in lists.to_pylist()]
    return pa.chunked_array([pa.array(firsts, pa.string())])


def _numbers(start: int, count: int) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([str(number) for number in range(start, start + count)], pa.string())])


def _table(columns: dict[str, pa.ChunkedArray], num_rows: int) -> pa.Table:
    whole = [columns[field.name] if field.name in columns else pa.nulls(num_rows, field.type) for field in SCHEMA]
    return pa.table(whole, schema=SCHEMA)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
