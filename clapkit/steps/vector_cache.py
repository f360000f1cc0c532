"""Vectors of clips by the content of their files, kept in one SQLite file for this and later runs.

A scope says what a vector depends on besides the sound: the weights of the model and how audio is brought to it. Files that
were moved, renamed or copied keep their vectors; a file that was changed has another content and gets new ones.

Several processes may use one file at once: each writes in short transactions, and a reader never waits (write-ahead log; for
that the file must lie on a disk of this machine). What a killed process has committed is kept, the rest is embedded again.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import xxhash

from clapkit.errors import ClapkitError, EmbeddingError, RunDirError
from clapkit.steps.clip_vectors import FloatArray

FORMAT_VERSION = 1

Spans = Sequence[tuple[float, float]]

# In the header of the file, so that another program's database is not taken for ours: "clap".
_APPLICATION_ID = 0x636C6170
_TABLE = """
CREATE TABLE vectors (
    scope TEXT NOT NULL, content TEXT NOT NULL, start_s REAL NOT NULL, end_s REAL NOT NULL,
    vectors BLOB NOT NULL, spans BLOB NOT NULL, num_windows INTEGER NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (scope, content, start_s, end_s))
"""
# Keys must not be null, and no span ends there.
_END_OF_FILE = -1.0
# A commit costs about as much as so many clips; a kill loses at most those, or those of so many seconds.
_BATCH_CLIPS, _BATCH_BYTES, _BATCH_S = 256, 8 * 1024**2, 5.0
_WAIT_S = 60.0
_Key = tuple[str, str, float, float]
_Value = tuple[bytes, bytes, int, int]


def policy_scope(model_fingerprint: str, audio_policy: Mapping[str, Any]) -> str:
    """Name of everything that a vector depends on besides the sound.

    Args:
        model_fingerprint: of the weights.
        audio_policy: how audio is brought to the model; JSON values, in any order.

    Returns:
        64 hexadecimal digits.
    """
    facts = {"model": model_fingerprint, "policy": dict(audio_policy)}
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class VectorCache:
    """Vectors of one scope in a file; for the thread that made it. A context manager that closes itself.

    Args:
        path: of the file; made if it is missing, with its folder.
        scope: from ``policy_scope``.
        wait_s: how long to wait for other processes.

    Raises:
        EmbeddingError: if the file is damaged, or is no cache of this version.
        RunDirError: if it cannot be opened and written.
    """

    def __init__(self, path: Path, *, scope: str, wait_s: float = _WAIT_S) -> None:
        self.path, self.scope = path, scope
        self._pending: dict[_Key, _Value] = {}
        self._pending_bytes, self._flushed_at = 0, time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(f"{path}: the cache cannot be kept there ({error.strerror}); name another file") from error
        with self._named_errors():
            self._connection = sqlite3.connect(path, timeout=wait_s, isolation_level=None)
        try:
            with self._named_errors():
                self._prepare(wait_s)
        except ClapkitError:
            self._connection.close()
            raise

    def get(
        self, content: str, start_s: float | None, end_s: float | None
    ) -> tuple[FloatArray, list[tuple[float, float]], int] | None:
        """What was kept of a clip.

        Args:
            content: hash of the bytes of its file.
            start_s: where its span starts; None is the start of the file.
            end_s: where it ends; None is the end of the file.

        Returns:
            Vectors float32 [W, D], their spans, and the number of windows; None if it is not there.

        Raises:
            EmbeddingError: if the file is damaged.
            RunDirError: if it cannot be read.
        """
        key = self._key(content, start_s, end_s)
        found: _Value | None = self._pending.get(key)
        if found is None:
            with self._named_errors():
                found = self._connection.execute(
                    "SELECT vectors, spans, num_windows, checksum FROM vectors "
                    "WHERE scope = ? AND content = ? AND start_s = ? AND end_s = ?",
                    key,
                ).fetchone()
        if found is None:
            return None
        vectors, spans, num_windows, checksum = found
        pairs = np.frombuffer(spans, dtype="<f8").reshape(-1, 2) if len(spans) % 16 == 0 else np.empty((0, 2))
        if checksum != _checksum(vectors, spans) or not len(pairs) or len(vectors) % (4 * len(pairs)):
            raise EmbeddingError(f"{self.path}: the vectors of content {content} are damaged; delete the file")
        values = np.frombuffer(vectors, dtype="<f4").reshape(len(pairs), -1).astype(np.float32)  # [W, D]
        return values, [(float(start), float(end)) for start, end in pairs], num_windows

    def put(
        self, content: str, start_s: float | None, end_s: float | None, vectors: FloatArray, spans: Spans, num_windows: int
    ) -> None:
        """Keep a clip; it is written with others some clips or seconds later.

        Args:
            content: hash of the bytes of its file.
            start_s: where its span starts; None is the start of the file.
            end_s: where it ends; None is the end of the file.
            vectors: float32 [W, D].
            spans: start and end of each vector, [W].
            num_windows: windows that were encoded.

        Raises:
            EmbeddingError: if the file is damaged.
            RunDirError: if it cannot be written.
        """
        assert 0 < len(vectors) == len(spans), (len(vectors), len(spans))
        blob = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        places = np.array(spans, dtype="<f8").tobytes()
        self._pending[self._key(content, start_s, end_s)] = (blob, places, num_windows, _checksum(blob, places))
        self._pending_bytes += len(blob) + len(places)
        is_late = time.monotonic() - self._flushed_at > _BATCH_S
        if len(self._pending) >= _BATCH_CLIPS or self._pending_bytes >= _BATCH_BYTES or is_late:
            self.flush()

    def flush(self) -> None:
        """Write what is not written yet.

        Raises:
            EmbeddingError: if the file is damaged.
            RunDirError: if it cannot be written.
        """
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        with self._named_errors(), self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*key, *value) for key, value in self._pending.items()],
            )
        self._pending.clear()
        self._pending_bytes = 0

    def close(self) -> None:
        """Write what is not written yet, and close the file.

        Raises:
            EmbeddingError: if the file is damaged.
            RunDirError: if it cannot be written.
        """
        try:
            self.flush()
        finally:
            self._connection.close()

    def __enter__(self) -> VectorCache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def _key(self, content: str, start_s: float | None, end_s: float | None) -> _Key:
        return self.scope, content, float(start_s or 0.0), _END_OF_FILE if end_s is None else float(end_s)

    def _prepare(self, wait_s: float) -> None:
        """Make the table in a new file, or make sure that the file is ours."""
        self._use_write_ahead_log(wait_s)
        self._connection.execute("PRAGMA synchronous = NORMAL")
        with self._transaction():  # so that one of several processes makes it
            is_new = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            (found,) = self._connection.execute("PRAGMA application_id").fetchone()
            if is_new and found in (0, _APPLICATION_ID):
                self._connection.execute(_TABLE)
                self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            elif found != _APPLICATION_ID:
                raise EmbeddingError(f"{self.path}: is a database of another program, expected a cache; name another file")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version != FORMAT_VERSION:
            raise EmbeddingError(
                f"{self.path}: is a cache of format {version}, expected {FORMAT_VERSION}; name another file or delete it"
            )

    def _use_write_ahead_log(self, wait_s: float) -> None:
        """Switch the file over; SQLite does not wait for others that do the same at once, so this does."""
        until = time.monotonic() + wait_s
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
            time.sleep(0.01)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # a mistake of ours, not a file's
        except sqlite3.DatabaseError as error:
            raise _translated(self.path, error) from error


def _checksum(vectors: bytes, spans: bytes) -> int:
    """Of 63 bits, which fit into a signed number."""
    return xxhash.xxh3_64_intdigest(spans, seed=xxhash.xxh3_64_intdigest(vectors)) >> 1


def _code(error: sqlite3.DatabaseError) -> int:
    """What SQLite calls the error, without the details that it keeps in the upper bytes."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _translated(path: Path, error: sqlite3.DatabaseError) -> ClapkitError:
    reasons = {
        sqlite3.SQLITE_BUSY: "is locked by another process; wait for it, or name another file",
        sqlite3.SQLITE_READONLY: "cannot be written; allow it, or name another file",
        sqlite3.SQLITE_FULL: "cannot be written, the disk is full; make room, or leave the cache out",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened; expected a file, or a place for one, that may be written",
    }
    if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return EmbeddingError(f"{path}: is no cache, or a damaged one ({error}); delete it or name another file")
    reason = reasons.get(_code(error), "cannot be used; expected a cache on a disk of this machine, name another file")
    return RunDirError(f"{path}: the cache {reason} ({error})")
