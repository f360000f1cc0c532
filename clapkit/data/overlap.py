"""Which clips of a corpus are recordings of another one: by name of the recording, by bytes, by sound.

Corpora of this field are cut from the same few archives, and half of them are inside each other. A name of a recording is
global where the recipe knows its archive (``youtube/...``, ``freesound/...``); the sound tells where names do not.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clapkit.data.file_table import FileRecord
from clapkit.data.near_duplicates import find_matches
from clapkit.types import Clip


@dataclass(frozen=True, slots=True)
class Overlap:
    """One clip that another corpus holds, too.

    Attributes:
        id: of the clip.
        other: id of the clip over there.
        other_split: its split.
        reason: how it was found.
    """

    id: str
    other: str
    other_split: str | None
    reason: str


def find_overlaps(
    clips: Sequence[Clip], files: Mapping[str, FileRecord], others: Sequence[Clip], other_files: Mapping[str, FileRecord]
) -> list[Overlap]:
    """Find the clips of one corpus that another one holds.

    Args:
        clips: of this corpus.
        files: what is known of their audio, by ``Clip.audio``.
        others: clips of the other corpus.
        other_files: what is known of theirs.

    Returns:
        Pairs in the order of ``clips``; of each the most certain reason: same bytes, same recording, same sound.
    """
    found: dict[tuple[int, int], str] = {}
    for i, j in _equal([_content(clip, files) for clip in clips], [_content(clip, other_files) for clip in others]):
        if _share_sound(clips[i], others[j]):
            found.setdefault((i, j), "same bytes")
    for i, j in _equal([_recording(clip) for clip in clips], [_recording(clip) for clip in others]):
        found.setdefault((i, j), f"same recording {clips[i].source}")
    heard, other_heard = _heard(clips, files), _heard(others, other_files)
    matches = find_matches([heard[i] for i in heard], [other_heard[j] for j in other_heard])
    rows, other_rows = list(heard), list(other_heard)
    for match in matches:
        found.setdefault((rows[match.first], other_rows[match.second]), f"same sound, {match.offset_s:+.2f} s")
    return [Overlap(clips[i].id, others[j].id, others[j].split, reason) for (i, j), reason in sorted(found.items())]


def _equal(keys: Sequence[object | None], other_keys: Sequence[object | None]) -> list[tuple[int, int]]:
    """Pairs of rows with equal keys; None equals nothing."""
    rows: dict[object, list[int]] = defaultdict(list)
    for j, key in enumerate(other_keys):
        if key is not None:
            rows[key].append(j)
    return [(i, j) for i, key in enumerate(keys) if key is not None for j in rows.get(key, ())]


def _content(clip: Clip, files: Mapping[str, FileRecord]) -> str | None:
    record = files.get(clip.audio)
    return None if record is None else record.content


def _share_sound(clip: Clip, other: Clip) -> bool:
    """Whether two clips of one file have any of it in common; they need not be the same span."""
    starts_s = (clip.start_s or 0.0, other.start_s or 0.0)
    ends_s = (math.inf if clip.end_s is None else clip.end_s, math.inf if other.end_s is None else other.end_s)
    return max(starts_s) < min(ends_s)


def _recording(clip: Clip) -> str | None:
    """Name of the recording, if it says where the recording is from; a path in its own corpus does not.

    Decoded copies and exports put something behind the path of the file that a span was cut from.
    """
    if clip.source is None or "/" not in clip.source or clip.audio.startswith(clip.source):
        return None
    return clip.source


def _heard(clips: Sequence[Clip], files: Mapping[str, FileRecord]) -> dict[int, bytes]:
    """Row -> landmarks of whole files that were listened to; a span would be found by the rest of its file."""
    records = {i: files.get(clip.audio) for i, clip in enumerate(clips) if clip.start_s is None and clip.end_s is None}
    return {i: record.landmarks for i, record in records.items() if record is not None and record.landmarks}
