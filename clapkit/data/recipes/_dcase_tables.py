"""The tables of the DCASE retrieval sets, each known by its columns."""

from __future__ import annotations

import ast
import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from clapkit.data.recipes._split_names import SPLIT_OF
from clapkit.data.tables import Row, Table, read_table
from clapkit.errors import ManifestError
from clapkit.types import Rejection, Reporter

# The 2025 annotations are read by public programs as query and audio_filenames; the others are what people write.
_QUERY_COLUMNS = ("query", "caption", "text_query")
_CLIP_COLUMNS = ("audio_filenames", "file_name", "fname", "filename", "audio", "clip", "clip_id", "audio_filename")
_GRADE_COLUMNS = ("relevance", "grade", "score")
_WIDE_CAPTION = re.compile(r"caption_\d+")
_FREESOUND_LINK = re.compile(r".*/(\d+)/?")


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns that the user named; None where they go by their usual names.

    Attributes:
        query: of a table of relevance.
        clip: of a table of relevance.
        grade: of a table of relevance.
        text: of the caption table of the baseline.
    """

    query: str | None = None
    clip: str | None = None
    grade: str | None = None
    text: str = "raw_text"


@dataclass(slots=True)
class Named:
    """A clip that a table names, with what it says about it."""

    name: str
    split: str
    captions: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Corpus:
    """Everything that the tables say.

    Attributes:
        clips: (split, tidy name) -> clip, in the order of the tables.
        queries: that name no clip.
        judgements: query, name of a clip, grade.
        recordings: tidy name -> global name of the recording.
        rejections: rows that cannot be used.
        kinds: name of a table -> what it was taken for.
    """

    clips: dict[tuple[str, str], Named] = field(default_factory=dict)
    queries: list[str] = field(default_factory=list)
    judgements: list[tuple[str, str, float]] = field(default_factory=list)
    recordings: dict[str, str] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)


def tidy(name: str) -> str:
    """A file name for comparison: no folder, entities resolved, no blanks at its ends, no colons, no suffix of WAV."""
    base = html.unescape(PurePosixPath(name.strip()).name).replace(":", "_").strip()
    return re.sub(r"\.(wav|flac|mp3|ogg)$", "", base, flags=re.IGNORECASE).strip()


def read_corpus(source: Path, columns: Columns, reporter: Reporter) -> Corpus:
    """Read every table of a folder and of the folders in it, or one table.

    Args:
        source: the folder or table.
        columns: that the user named.
        reporter: told about tables that nobody knows.

    Raises:
        ManifestError: if no table is known, or none has a column that the user named.
    """
    corpus = Corpus()
    paths = [source] if source.is_file() else _table_files(source)
    tables = [(path, *_read(path)) for path in paths]
    for name in (columns.query, columns.clip, columns.grade):
        if name is not None and not any(name in table.columns for _, table, _ in tables):
            raise ManifestError(f"{source}: no table has the column {name!r}; correct the option, or name another folder")
    for path, table, kind in [(path, table, _kind(table, columns) or kind) for path, table, kind in tables]:
        if kind is None:
            reporter.say(f"{path}: passed over, its columns ({', '.join(table.columns)}) are those of no table of DCASE")
            continue
        corpus.kinds[path.name] = kind
        corpus.rejections += [Rejection(f"{path.name} {row.place}", row.problem) for row in table.rows if row.problem]
        _READERS[kind](corpus, path, [row for row in table.rows if not row.problem], table.columns, columns)
    if not set(corpus.kinds.values()) - {"metadata"}:
        raise ManifestError(
            f"{source}: no table of DCASE found, expected fname,raw_text,text or file_name,caption_1,... or caption or "
            "query,audio_filenames; name the folder that holds it, or the columns with -O query_column and -O clip_column"
        )
    return corpus


def _table_files(folder: Path) -> list[Path]:
    return [path for pattern in ("*.[ct]sv", "[!.]*/*.[ct]sv") for path in sorted(folder.glob(pattern))]


def _read(path: Path) -> tuple[Table, str | None]:
    """A table in UTF-8, or one of metadata, which are ISO-8859-1 and may separate cells with semicolons."""
    content = path.read_bytes()
    try:
        content.decode("utf-8-sig")
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "latin-1"
    header = content.partition(b"\n")[0]
    delimiter = ";" if header.count(b";") > header.count(b",") else None
    table = read_table(path, encoding=encoding, delimiter=delimiter)
    return table, "metadata" if {"file_name", "keywords"} <= set(table.columns) else None


def _kind(table: Table, columns: Columns) -> str | None:
    names = set(table.columns)
    if "keywords" in names:
        return None
    if columns.text in names and "fname" in names and columns.query not in names:
        return "captions"
    if any(_WIDE_CAPTION.fullmatch(name) for name in names) and "file_name" in names:
        return "wide captions"
    query, clip = _named(table, columns.query, _QUERY_COLUMNS), _named(table, columns.clip, _CLIP_COLUMNS)
    is_judged = query is not None and clip is not None
    if is_judged and (query != "caption" or columns.query is not None or _named(table, columns.grade, _GRADE_COLUMNS)):
        return "relevance"
    if query == "caption" and not any(name.startswith("file_name_") for name in names):  # a submission has ten of them
        return "queries"
    return None


def _named(table: Table, given: str | None, known: Sequence[str]) -> str | None:
    if given is not None:
        return given if given in table.columns else None
    return next((name for name in known if name in table.columns), None)


def _split_of(path: Path) -> str:
    """``development_captions.csv`` and ``clotho_captions_validation.csv`` name their split; all other tables are ``test``."""
    return next((SPLIT_OF[part] for part in re.split(r"[_.]", path.stem.lower()) if part in SPLIT_OF), "test")


def _clip(corpus: Corpus, split: str, name: str) -> Named:
    return corpus.clips.setdefault((split, tidy(name)), Named(name, split))


def _read_captions(corpus: Corpus, path: Path, rows: Sequence[Row], names: Sequence[str], columns: Columns) -> None:
    for row in rows:
        if _has_name(corpus, path, row, "fname"):
            _clip(corpus, _split_of(path), row.cells["fname"]).captions.append(row.cells[columns.text])


def _read_wide(corpus: Corpus, path: Path, rows: Sequence[Row], names: Sequence[str], columns: Columns) -> None:
    wide = [name for name in names if _WIDE_CAPTION.fullmatch(name)]
    for row in rows:
        if _has_name(corpus, path, row, "file_name"):
            _clip(corpus, _split_of(path), row.cells["file_name"]).captions.extend(row.cells[name] for name in wide)


def _read_queries(corpus: Corpus, path: Path, rows: Sequence[Row], names: Sequence[str], columns: Columns) -> None:
    clip = next((name for name in _CLIP_COLUMNS if name in names), None)
    for row in rows:
        text = row.cells["caption"].strip()
        if clip is not None and _has_name(corpus, path, row, clip):
            _clip(corpus, _split_of(path), row.cells[clip]).captions.append(text)
        elif clip is None and text:
            corpus.queries.append(text)
        elif clip is None:
            reason = "empty query, expected a sentence; drop the row"
            corpus.rejections.append(Rejection(f"{path.name} {row.place}", reason, check="empty_caption"))


def _read_relevance(corpus: Corpus, path: Path, rows: Sequence[Row], names: Sequence[str], columns: Columns) -> None:
    table = Table(list(names), list(rows))
    query, clip = _named(table, columns.query, _QUERY_COLUMNS), _named(table, columns.clip, _CLIP_COLUMNS)
    grade = _named(table, columns.grade, _GRADE_COLUMNS)
    assert query is not None, "the table was recognised by it"
    assert clip is not None, "the table was recognised by it"
    seen: set[tuple[str, str]] = set()
    for row in rows:
        text, clips = str(row.cells[query]).strip(), _clip_names(str(row.cells[clip]))
        value = 1.0 if grade is None else _grade(str(row.cells[grade]))
        if not text or not clips or value is None or any((text, tidy(name)) in seen for name in clips):
            reason = _relevance_problem(text, clips, value)
            corpus.rejections.append(Rejection(f"{path.name} {row.place}", reason, check="relevance"))
            continue
        for name in clips:
            seen.add((text, tidy(name)))
            corpus.judgements.append((text, name, value))
            if not any((split, tidy(name)) in corpus.clips for split in ("train", "val", "test")):
                _clip(corpus, "test", name)


def _relevance_problem(text: str, clips: Sequence[str], grade: float | None) -> str:
    if not text:
        return "empty query, expected a sentence; drop the row"
    if not clips:
        return "no clip, expected a file name or a printed list of them; drop the row"
    if grade is None:
        return "the grade is no number of at least 0; correct it"
    return "a clip is judged twice for the query, expected once; drop one of the rows"


def _clip_names(cell: str) -> list[str]:
    """One name, or those of a printed list: ``['a.wav', 'b.wav']``."""
    if cell.strip().startswith("[") and cell.strip().endswith("]"):
        try:
            listed = ast.literal_eval(cell.strip())
        except (ValueError, SyntaxError):
            listed = [cell]  # a name in brackets
        return [name for name in dict.fromkeys(str(item) for item in listed) if name.strip()]
    return [cell] if cell.strip() else []


def _grade(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return {"true": 1.0, "false": 0.0}.get(cell.strip().lower())
    return value if math.isfinite(value) and value >= 0 else None


def _read_metadata(corpus: Corpus, path: Path, rows: Sequence[Row], names: Sequence[str], columns: Columns) -> None:
    for row in rows:
        given = str(row.cells.get("sound_id", "")).strip()
        link = _FREESOUND_LINK.fullmatch(str(row.cells.get("sound_link", "")).strip())
        number = given if given.isdecimal() else link[1] if link else None
        if number is not None:
            corpus.recordings[tidy(row.cells["file_name"])] = f"freesound/{number}"


def _has_name(corpus: Corpus, path: Path, row: Row, column: str) -> bool:
    if str(row.cells[column]).strip():
        return True
    corpus.rejections.append(Rejection(f"{path.name} {row.place}", f"empty {column}, expected a file name; fill it in"))
    return False


_READERS = {
    "captions": _read_captions,
    "wide captions": _read_wide,
    "queries": _read_queries,
    "relevance": _read_relevance,
    "metadata": _read_metadata,
}
