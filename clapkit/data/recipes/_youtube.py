"""Clips that were cut from YouTube videos: their ids, and the names under which people keep them.

An id has 11 characters, is always text (``1234567e890`` is no number), and may begin with ``-`` or ``_`` or hold one where a
name is split. One letter ``Y`` in front of it keeps programs from taking the name for an option; the id may begin with ``Y``,
too.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from clapkit.data.audio import AUDIO_SUFFIXES

_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_DIGITS = re.compile(r"[0-9]+")
_SUFFIXES = AUDIO_SUFFIXES | {".mp4", ".m4a", ".webm", ".mkv"}


@dataclass(frozen=True, slots=True)
class ClipName:
    """What the name of a clip says: the video, and where the clip starts in it (None if it does not say)."""

    youtube_id: str
    start_s: float | None = None


def is_youtube_id(text: str) -> bool:
    """Whether a text has the form of an id."""
    return _ID.fullmatch(text) is not None


def strip_prefix(name: str) -> str:
    """The name without one leading ``Y``, where it is an id with that letter in front of it (12 characters)."""
    return name[1:] if len(name) == 12 and name[0] == "Y" else name


def parse_name(name: str, *, unit: Literal["s", "ms"] = "s") -> ClipName | None:
    """Read ``{id}``, ``Y{id}``, ``{id}_{start}`` or ``Y{id}_{start}``, with or without folder and suffix.

    Args:
        name: of a file, or of a segment in a list.
        unit: of the start; AudioSet counts milliseconds in segment ids, VGGSound and AudioCaps whole seconds.

    Returns:
        None if it is no such name.
    """
    base = PurePosixPath(name)
    stem = base.stem if base.suffix.lower() in _SUFFIXES else base.name
    head, _, tail = stem.rpartition("_")  # the last underscore: the id may hold others
    if is_youtube_id(strip_prefix(head)) and _DIGITS.fullmatch(tail):
        return ClipName(strip_prefix(head), int(tail) / (1000 if unit == "ms" else 1))
    return ClipName(strip_prefix(stem)) if is_youtube_id(strip_prefix(stem)) else None


def candidate_names(youtube_id: str, start_s: float, end_s: float | None = None, *, is_only_clip: bool) -> list[str]:
    """Names, without suffix, under which a clip may lie, those that say most first.

    Args:
        youtube_id: of the video.
        start_s: of the clip in the video.
        end_s: of the clip in the video, for names that hold it.
        is_only_clip: whether the corpus has no other clip of the video; only then is a name without start its own.
    """
    spans = [f"{start_s:g}", f"{round(start_s * 1000)}"]
    if float(start_s).is_integer():
        spans.insert(1, f"{int(start_s):06d}")
    if end_s is not None:
        spans += [f"{start_s:g}_{end_s:g}", f"{round(start_s * 1000)}_{round(end_s * 1000)}"]
    names = [f"{prefix}{youtube_id}_{span}" for span in spans for prefix in ("", "Y")]
    bare = [youtube_id, f"Y{youtube_id}"] if is_only_clip else []
    return list(dict.fromkeys(names + bare))


def single_clip_ids(keys: Iterable[tuple[str, float]]) -> set[str]:
    """Videos with one clip in a corpus.

    Args:
        keys: id and start of every clip.
    """
    starts: dict[str, set[float]] = defaultdict(set)
    for youtube_id, start_s in keys:
        starts[youtube_id].add(start_s)
    return {youtube_id for youtube_id, found in starts.items() if len(found) == 1}
