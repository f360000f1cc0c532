"""Full-text search over the names, labels and captions of a table, with the SQLite of the standard library.

Words are found whatever their case, accents and English endings: ``barks`` finds ``Barking``. Names of files are cut at
everything but letters and digits, and where the case changes, so ``DogBark_01.wav`` is found by ``dog``. Rows in sequence
that say the same, such as the windows of one clip, are one document.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
import re
import sqlite3
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index.layout import TableInfo, replacing
from clapkit.index.table import EmbeddingTable

IntArray = npt.NDArray[np.int64]

FORMAT = 1
# A label is chosen to say what is heard; names and captions mention other things, too.
_WEIGHTS = {"names": 1.0, "labels": 2.0, "captions": 1.0}
_COLUMNS = ("id", "path", "labels", "captions")
_BATCH_ROWS = 16_384
_SCHEMA = f"""
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE repeated (first INTEGER PRIMARY KEY, num_rows INTEGER);
CREATE VIRTUAL TABLE words USING fts5({", ".join(_WEIGHTS)}, content='', tokenize="porter unicode61 remove_diacritics 2");
"""
_VOCABULARY = "CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, words, row)"
# A word that most documents have says nothing about any of them, and takes the longest to look up.
_COMMON_SHARE = 0.5
_WORD = re.compile(r"[^\W_]+")
_UPPER, _LOWER = "[A-ZÀ-ÖØ-Þ]", "[a-zß-öø-ÿ]"
# Dog|01, 01|Dog, dog|Bark, SFX|Door
_CHANGE = re.compile(rf"(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])|(?<={_LOWER})(?={_UPPER})|(?<={_UPPER})(?={_UPPER}{_LOWER})")


class TextRanking(NamedTuple):
    """Rows of a table, best first, and their ranks; rows that fit a query equally well have the same rank.

    Attributes:
        rows: int64 [M].
        ranks: int64 [M], from 1, without gaps.
    """

    rows: IntArray
    ranks: IntArray


class FullText:
    """A full-text index of a table, open for reading.

    Args:
        path: the index, made by ``write_index``.

    Raises:
        EmbeddingError: if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # Immutable: it is never written to, only replaced, so no lock is needed, nor a folder that can be written.
            self._connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
            self.table_id = self._about("table_id")
            self._num_documents = int(self._about("num_documents"))
            self._connection.execute(_VOCABULARY)
        except sqlite3.Error as error:
            raise EmbeddingError(f"{path}: cannot be read as a full-text index ({error}); delete it") from error
        self._terms = _TermReader()

    @classmethod
    def open(cls, folder: Path | None, table: EmbeddingTable, *, info: TableInfo, cache: Path) -> FullText:
        """Open the index of a table, and build it first where there is none, or one of another table.

        It lies beside the table; where that cannot be written, and for a table without a folder, in the cache.

        Args:
            folder: of the table.
            table: what to index.
            info: of the folder.
            cache: folder that can be written.

        Raises:
            ConfigError: if this SQLite has no full-text search.
            EmbeddingError: if the table cannot be read or the index be written anywhere.
        """
        check_available()
        places = [cache / "fulltext" / f"{info.id or 'table'}_{table.modality}.sqlite"]
        if folder is not None:
            places.insert(0, folder / "index" / f"fulltext_{table.modality}_{info.generation}.sqlite")
        for path in places:
            known = _open_known(path, table_id=info.id)
            if known is not None:
                return known
        for path in places:
            try:
                write_index(path, table, table_id=info.id)
            except OSError as error:
                failure = error
                continue
            return cls(path)
        raise EmbeddingError(
            f"{places[0]}: full-text index cannot be written ({failure.strerror}), nor in {cache}; "
            "set CLAPKIT_CACHE to a folder that can be written"
        )

    def search(self, query: str, limit: int) -> IntArray:
        """Rows with any word of a query, best first, int64 [M]; see ``ranking``.

        Args:
            query: words in any order.
            limit: documents to find.
        """
        return self.ranking(query, limit).rows

    def ranking(self, query: str, limit: int) -> TextRanking:
        """Rows with any word of a query, ranked by BM25.

        Args:
            query: words in any order; signs of no word are passed over.
            limit: documents to find; a document may have several rows.

        Returns:
            The ranking; empty if no word is known.
        """
        wanted = self._telling(query_words(query))
        if not wanted:
            return TextRanking(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
        # Quoted, a word is a word, also where FTS5 has a use for it: NOT, NEAR, AND, OR.
        expression = " OR ".join(f'"{word}"' for word in wanted)
        weights = ", ".join(map(str, _WEIGHTS.values()))
        found = self._connection.execute(
            f"SELECT rowid, bm25(words, {weights}) AS score FROM words WHERE words MATCH ? ORDER BY score, rowid LIMIT ?",
            (expression, limit),
        ).fetchall()
        firsts = np.array([first for first, _ in found], dtype=np.int64)
        scores = np.array([score for _, score in found])
        ranks = 1 + np.cumsum(np.diff(scores, prepend=scores[:1]) != 0)
        counts = np.array([self._num_rows(first) for first, _ in found], dtype=np.int64)
        starts = np.repeat(firsts - np.cumsum(counts) + counts, counts)  # less what comes before each document
        return TextRanking(starts + np.arange(counts.sum()), np.repeat(ranks, counts).astype(np.int64))

    def unknown_words(self, query: str) -> list[str]:
        """Words of a query that stand nowhere in the table.

        Args:
            query: as for ``search``.
        """
        return [word for word, count in self._counts(query_words(query)).items() if not count]

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
        self._terms.close()

    def _telling(self, words: list[str]) -> list[str]:
        """Known words but those that most documents have, unless there are no others."""
        counts = self._counts(words)
        known = [word for word, count in counts.items() if count]
        return [word for word in known if counts[word] <= _COMMON_SHARE * self._num_documents] or known

    def _counts(self, words: Sequence[str]) -> dict[str, int]:
        """How many documents have each word; of words of several terms, the most frequent."""
        counts = dict.fromkeys(words, 0)
        for word, term in self._terms.of(words):
            row = self._connection.execute("SELECT doc FROM temp.vocabulary WHERE term = ?", (term,)).fetchone()
            counts[word] = max(counts[word], 0 if row is None else int(row[0]))
        return counts

    def _num_rows(self, first: int) -> int:
        row = self._connection.execute("SELECT num_rows FROM repeated WHERE first = ?", (first,)).fetchone()
        return 1 if row is None else int(row[0])

    def _about(self, key: str) -> str:
        row = self._connection.execute("SELECT value FROM about WHERE key = ?", (f"{key}/{FORMAT}",)).fetchone()
        if row is None:
            raise sqlite3.DatabaseError(f"{key} is missing")
        return str(row[0])


def write_index(path: Path, table: EmbeddingTable, *, table_id: str) -> None:
    """Write the full-text index of a table; it appears whole or not at all.

    Indexes of the same folder that belong to an older generation of the table are deleted.

    Args:
        path: of the index.
        table: what to index; read in batches.
        table_id: hash of its content.

    Raises:
        EmbeddingError: if the table cannot be read.
        OSError: if the index cannot be written.
    """
    with replacing(path) as temporary:
        temporary.unlink(missing_ok=True)
        try:
            with contextlib.closing(sqlite3.connect(temporary)) as connection:
                _fill(connection, table, table_id=table_id)
        except sqlite3.OperationalError as error:  # a full disk, a folder that cannot be written
            raise OSError(0, str(error)) from error
    _remove_older(path, modality=table.modality)


def check_available() -> None:
    """Refuse a Python whose SQLite has no full-text search.

    Raises:
        ConfigError: naming the build.
    """
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        try:
            connection.execute("CREATE VIRTUAL TABLE words USING fts5(text)")
        except sqlite3.OperationalError as error:
            raise ConfigError(
                f"--hybrid: Python {platform.python_version()} has SQLite {sqlite3.sqlite_version} without full-text search "
                f"({error}), expected FTS5; use a Python that has it, or leave --hybrid out"
            ) from error


def query_words(query: str) -> list[str]:
    """Words of a query in lower case, each once, with the parts of those that are put together."""
    plain = unicodedata.normalize("NFC", query)
    return list(dict.fromkeys(word.lower() for word in _WORD.findall(split_names(plain))))


def split_names(text: str) -> str:
    """A text with the parts of its words behind it: ``DogBark01`` gives ``DogBark01 Dog Bark 01``.

    Args:
        text: names of files or labels.
    """
    parts = (part for word in _WORD.findall(text) if len(some := _CHANGE.split(word)) > 1 for part in some)
    return " ".join((text, *parts))


class _TermReader:
    """What the tokenizer of the index makes of a word; FTS5 only tells by way of an index."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.executescript(_SCHEMA)
        self._connection.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(words, instance)")

    def of(self, words: Sequence[str]) -> list[tuple[str, str]]:
        """Pairs of word and term."""
        self._connection.execute("BEGIN")
        self._connection.executemany("INSERT INTO words(rowid, names) VALUES (?, ?)", enumerate(words))
        terms = [(words[row], str(term)) for term, row in self._connection.execute("SELECT term, doc FROM terms")]
        self._connection.execute("ROLLBACK")
        return terms

    def close(self) -> None:
        self._connection.close()


def _open_known(path: Path, *, table_id: str) -> FullText | None:
    """The index at a path if it is of this table; a damaged one counts as missing, for it can be built again."""
    if not table_id or not path.is_file():
        return None
    try:
        known = FullText(path)
    except EmbeddingError:
        return None
    if known.table_id == table_id:
        return known
    known.close()
    return None


def _fill(connection: sqlite3.Connection, table: EmbeddingTable, *, table_id: str) -> None:
    # Whoever is interrupted starts again with another file.
    connection.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA}")
    names = ", ".join(_WEIGHTS)
    num_documents = 0
    with connection:
        for chunk in _chunks(_documents(table), _BATCH_ROWS):
            connection.executemany(
                f"INSERT INTO words(rowid, {names}) VALUES (?, ?, ?, ?)", ((first, *texts) for first, _, texts in chunk)
            )
            repeated = ((first, num_rows) for first, num_rows, _ in chunk if num_rows > 1)
            connection.executemany("INSERT INTO repeated VALUES (?, ?)", repeated)
            num_documents += len(chunk)
        about = {"table_id": table_id, "num_documents": str(num_documents)}
        connection.executemany("INSERT INTO about VALUES (?, ?)", ((f"{key}/{FORMAT}", text) for key, text in about.items()))
        connection.execute("INSERT INTO words(words) VALUES ('optimize')")


def _documents(table: EmbeddingTable) -> Iterator[tuple[int, int, tuple[str, str, str]]]:
    """First row, number of rows and texts of each run of rows that say the same."""
    first = 0
    for said, rows in itertools.groupby(_rows(table)):
        num_rows = sum(1 for _ in rows)
        yield first, num_rows, _texts(*said)
        first += num_rows


def _texts(name: str | None, path: str | None, labels: list[str] | None, captions: list[str] | None) -> tuple[str, str, str]:
    names = split_names(f"{name or ''} {path or ''}")
    return names, split_names(" ".join(_given(labels))), " ".join(_given(captions))


def _given(texts: list[str] | None) -> list[str]:
    return [text for text in texts or () if text]


def _remove_older(path: Path, *, modality: str) -> None:
    generations = re.compile(rf"fulltext_{modality}_\d+\.sqlite")
    if not generations.fullmatch(path.name):
        return  # in the cache, every file is of another table
    for other in path.parent.iterdir():
        if generations.fullmatch(other.name) and other != path:
            other.unlink(missing_ok=True)


def _rows(table: EmbeddingTable) -> Iterator[tuple[Any, ...]]:
    """The columns that are indexed, row by row; a file is read in blocks."""
    for _, block in table.blocks():
        columns = block.select(list(_COLUMNS)).to_pydict()
        yield from zip(*(columns[name] for name in _COLUMNS), strict=True)


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk
