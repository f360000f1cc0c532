"""Audio out of containers: files below ``audio/`` of the run directory, under names that nobody else chose.

A manifest names files that can be read from any place; inside a tar or a Parquet file they cannot. So the stored bytes are
written out, unchanged. Files that are there already with the right size are left alone, so that an interrupted run goes on.
"""

from __future__ import annotations

import filecmp
import io
import os
import shutil
import unicodedata
from pathlib import Path
from typing import IO

from clapkit.data.safe_paths import safe_part, short_hash

ROOT_NAME = "audio"
"""Folder of the run directory that the audio is written to; what the manifest calls its files is relative to it."""

_BLOCK_BYTES = 1 << 20


class ExtractionError(Exception):
    """Why audio cannot be written; becomes the reason of a rejection."""


class Extraction:
    """Writes audio files below a folder.

    Args:
        root: the folder; made when the first file is written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._written: set[str] = set()
        self._chosen: set[str] = set()

    def choose(self, folders: str, name: str, suffix: str) -> str:
        """A path for audio that brings no safe one of its own; the same in every run.

        Args:
            folders: where it lies in the corpus, with ``/`` between the parts.
            name: what it is called there.
            suffix: of the file, with its dot.

        Returns:
            Path relative to the root, different from all others also where letters have no case.
        """
        parts = [safe_part(part) for part in f"{folders}/{name}".split("/") if part]
        path = "/".join(parts) + suffix
        for number in range(len(self._chosen) + 1):
            if _folded(path) not in self._chosen:
                break
            path = "/".join(parts) + f"-{short_hash(f'{number} {folders}/{name}')}{suffix}"
        self._chosen.add(_folded(path))
        return path

    def write(self, path: str, stream: IO[bytes], size: int) -> None:
        """Write a file, unless it is there.

        Args:
            path: relative to the root, from ``choose`` or found safe.
            stream: of the bytes.
            size: number of bytes that the stream must give.

        Raises:
            ExtractionError: if another audio file of this run has that path, or the stream ends early.
        """
        target = self._root / path
        is_known = path in self._written
        if not is_known and target.is_file() and target.stat().st_size == size:
            self._written.add(path)
            return
        temporary = self._root / f".{short_hash(path)}.tmp"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                shutil.copyfileobj(stream, file, _BLOCK_BYTES)
                num_bytes = file.tell()
            if num_bytes != size:
                raise ExtractionError(f"{num_bytes} bytes found, {size} expected; get the file again")
            if not is_known:
                temporary.replace(target)
                self._written.add(path)
            elif not filecmp.cmp(temporary, target, shallow=False):
                raise ExtractionError(f"another audio file is already called {path}; rename one of them")
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise ExtractionError(f"{path}: is both a file and a folder in this corpus; rename one of them") from error
        finally:
            temporary.unlink(missing_ok=True)

    def write_bytes(self, path: str, content: bytes) -> None:
        """Write a file that is in memory.

        Raises:
            ExtractionError: as ``write``.
        """
        self.write(path, io.BytesIO(content), len(content))

    def move(self, path: str, target: str) -> None:
        """Give a file that ``write`` wrote its own name, after all.

        Raises:
            ExtractionError: as ``write``.
        """
        source = self._root / path
        with source.open("rb") as stream:
            self.write(target, stream, os.fstat(stream.fileno()).st_size)
        self.drop(path)

    def drop(self, path: str) -> None:
        """Remove a file of a sample that is rejected."""
        (self._root / path).unlink(missing_ok=True)
        self._written.discard(path)


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
