"""What an embedding table held before it is brought up to date: vectors by content, and which clips there were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from clapkit.index.table import EmbeddingTable
from clapkit.steps.clip_vectors import EmbeddedClip, FloatArray
from clapkit.types import Caption, Clip

# Ends of spans are rounded to samples, of the file and of the model.
_SPAN_TOLERANCE_S = 0.0005


class EarlierAudio:
    """Vectors of an audio table by the content of the file and the span of the clip.

    Args:
        table: its rows of one clip stand together.
        has_spans: whether a clip of it may be a part of its file; None if that is not known.
        num_windows: how many windows were made of a span of so many seconds, where they are pooled into one vector; None
            where each has its own.
    """

    def __init__(
        self, table: EmbeddingTable, *, has_spans: bool | None, num_windows: Callable[[float], int] | None = None
    ) -> None:
        columns = table.columns(["id", "start_s", "end_s", "content"])
        self._vectors, self._has_spans, self._num_windows = table.vectors, has_spans is not False, num_windows
        self._start_s = np.array(columns["start_s"], dtype=np.float64)
        self._end_s = np.array(columns["end_s"], dtype=np.float64)
        ids = columns["id"]
        first = [row for row, id in enumerate(ids) if row == 0 or ids[row - 1] != id]
        self._rows = list(zip(first, [*first[1:], len(ids)], strict=True))
        self.contents: dict[str, str | None] = {ids[row]: columns["content"][row] for row in first}
        """Clip id -> hash of its file."""
        self._groups: dict[str, list[int]] = {}
        for group, row in enumerate(first):
            if columns["content"][row] is not None:
                self._groups.setdefault(columns["content"][row], []).append(group)

    def find(self, clip: Clip, content: str) -> EmbeddedClip | None:
        """The vectors of the clip, if the table has them.

        Args:
            clip: looked for.
            content: hash of the bytes of its file.
        """
        for group in self._groups.get(content, ()):
            first, last = self._rows[group]
            if self._is_span_of(clip, float(self._start_s[first]), float(self._end_s[last - 1])):
                return self._clip(first, last, content)
        return None

    def _is_span_of(self, clip: Clip, start_s: float, end_s: float) -> bool:
        if start_s != (clip.start_s or 0.0):
            return False
        if clip.end_s is not None:
            return abs(end_s - clip.end_s) < _SPAN_TOLERANCE_S
        if not self._has_spans:
            return True  # whole files, both
        return clip.duration_s is not None and abs(end_s - start_s - clip.duration_s) < _SPAN_TOLERANCE_S

    def _clip(self, first: int, last: int, content: str) -> EmbeddedClip:
        spans = list(zip(self._start_s[first:last].tolist(), self._end_s[first:last].tolist(), strict=True))
        length_s = spans[-1][1] - spans[0][0]
        num_windows = len(spans) if self._num_windows is None else self._num_windows(length_s)
        return EmbeddedClip(0, self._vectors[first:last].astype(np.float32), spans, num_windows, content)


class EarlierCaptions:
    """Vectors of a text table by sentence and language.

    Args:
        table: the contents of its rows are what ``caption_content`` gives.
    """

    def __init__(self, table: EmbeddingTable) -> None:
        columns = table.columns(["id", "content"])
        self._vectors = table.vectors
        self._row = {content: row for row, content in enumerate(columns["content"]) if content is not None}
        self.contents: dict[str, str | None] = {}
        """Clip id -> hashes of its captions."""
        for id, content in zip(columns["id"], columns["content"], strict=True):
            self.contents[id] = joined([self.contents.get(id), content])

    def find(self, content: str) -> FloatArray | None:
        """The vector [D] of a caption, if the table has it."""
        row = self._row.get(content)
        return None if row is None else self._vectors[row].astype(np.float32)


def caption_content(caption: Caption) -> str:
    """Hash of what is embedded of a caption, XXH3-128, hexadecimal."""
    return xxhash.xxh3_128_hexdigest(f"{caption.lang}\0{caption.text}".encode())


def joined(contents: Sequence[str | None]) -> str:
    """Hashes of the captions of a clip as one text."""
    return " ".join(content for content in contents if content)


class Changes:
    """Counts what an update finds of each clip.

    A clip is *kept* if id and content are the same, *changed* if the id has another content (or span), *renamed* if the
    content had an id that is gone, *new* otherwise; what is left of the earlier clips is *gone*.

    Args:
        earlier: id -> hash of its content in the table so far.
    """

    def __init__(self, earlier: dict[str, str | None]) -> None:
        self._left = dict(earlier)
        self._kept = self._changed = 0
        self._unknown: list[str | None] = []

    def note(self, id: str, content: str | None, *, is_reused: bool) -> None:
        """A clip of the new table.

        Args:
            id: of the clip.
            content: hash of its content.
            is_reused: whether its vectors are those of the earlier table.
        """
        if id not in self._left:
            self._unknown.append(content)
        elif self._left.pop(id) == content and is_reused:
            self._kept += 1
        else:
            self._changed += 1

    def counts(self) -> dict[str, int]:
        """``kept``, ``new``, ``changed``, ``renamed`` and ``gone``."""
        gone = Counter(content for content in self._left.values() if content is not None)
        renamed = (Counter(content for content in self._unknown if content is not None) & gone).total()
        return {
            "kept": self._kept,
            "new": len(self._unknown) - renamed,
            "changed": self._changed,
            "renamed": renamed,
            "gone": len(self._left) - renamed,
        }
