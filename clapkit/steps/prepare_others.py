"""Other prepare runs that a corpus is held against: ``--check-overlap`` and ``--subtract``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.data import file_table
from clapkit.data.audit import MAX_LISTED
from clapkit.data.file_table import FileRecord
from clapkit.data.inspection import Inspection
from clapkit.data.manifest import Manifest
from clapkit.data.overlap import Overlap, find_overlaps
from clapkit.errors import ManifestError, RunDirError
from clapkit.run_dir import RunDir
from clapkit.runs import open_run
from clapkit.steps.inputs import FILES
from clapkit.types import Clip, Rejection


@dataclass(frozen=True, slots=True)
class PreparedRun:
    """Another prepare run, or some splits of it.

    Attributes:
        address: as the user wrote it.
        path: of the run directory.
        fingerprint: of its manifest.
        clips: of the splits that are meant, those among them whose audio was missing.
        files: what is known of their audio; empty for runs of older versions, which compare by recording only.
    """

    address: str
    path: Path
    fingerprint: str
    clips: tuple[Clip, ...]
    files: Mapping[str, FileRecord]


def open_prepared(address: str, *, runs_root: Path) -> PreparedRun:
    """Open another prepare run.

    Args:
        address: path or name of the run, with ``:split`` or ``:split,split`` behind it for a part of it.
        runs_root: where runs live.

    Raises:
        RunDirError: if there is no such run.
        ManifestError: if its files cannot be read, or it has no such split.
    """
    run, splits = _find(address, runs_root)
    manifest = Manifest.load(run.manifest_path)
    # A clip that this copy lacks is in the corpus all the same: others are freed from it by the name of its recording.
    listed = [*manifest, *_missing(run.rejected_path)]
    known = sorted({clip.split for clip in listed if clip.split is not None})
    unknown = [split for split in splits if split not in known]
    if unknown:
        found = ", ".join(known) or "none"
        raise ManifestError(f"{address}: no clip in split {unknown[0]!r}, splits found: {found}; name one of them")
    clips = tuple(clip for clip in listed if not splits or clip.split in splits)
    table = run.path / FILES
    return PreparedRun(address, run.path, manifest.fingerprint, clips, file_table.read(table) if table.is_file() else {})


def _missing(path: Path) -> Iterator[Clip]:
    """Clips without audio that a run lists among its rejections with the recording that they are from."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if record.get("kind") == "missing" and record.get("source"):
                yield Clip(record["item"], audio="", split=record.get("split"), source=record["source"])


def records(clips: Sequence[Clip], found: Mapping[str, Inspection]) -> dict[str, FileRecord]:
    """What is known of the audio of clips, as ``files.parquet`` would say it."""
    inspections = {clip.audio: found[clip.audio] for clip in clips}
    return {
        audio: FileRecord(audio, inspection.num_bytes or 0, inspection.content, inspection.landmarks)
        for audio, inspection in inspections.items()
    }


def subtract(clips: Sequence[Clip], found: Mapping[str, Inspection], other: PreparedRun) -> list[Clip | Rejection]:
    """Leave out the clips that another run holds, too."""
    first: dict[str, Overlap] = {}
    for overlap in find_overlaps(clips, records(clips, found), other.clips, other.files):
        first.setdefault(overlap.id, overlap)
    return [_excluded(clip, first[clip.id], other) if clip.id in first else clip for clip in clips]


def report_overlap(clips: Sequence[Clip], found: Mapping[str, Inspection], other: PreparedRun) -> dict[str, Any]:
    """What a corpus shares with another run, for ``report.json``.

    Returns:
        ``run``, ``num_clips`` (of this corpus), ``splits`` (split here -> split there -> clips here), ``pairs`` (the first).
    """
    pairs = find_overlaps(clips, records(clips, found), other.clips, other.files)
    split_of = {clip.id: clip.split or "" for clip in clips}
    splits: dict[str, dict[str, int]] = {}
    for ours, theirs, _ in sorted({(split_of[pair.id], pair.other_split or "", pair.id) for pair in pairs}):
        row = splits.setdefault(ours, {})
        row[theirs] = row.get(theirs, 0) + 1
    return {
        "run": other.address,
        "fingerprint": other.fingerprint,
        "compared": "bytes, recordings and sound" if other.files else "recordings only",
        "num_clips": len({pair.id for pair in pairs}),
        "splits": splits,
        "pairs": [
            {
                "id": pair.id,
                "split": split_of[pair.id],
                "other": pair.other,
                "other_split": pair.other_split,
                "reason": pair.reason,
            }
            for pair in pairs[:MAX_LISTED]
        ],
    }


def _find(address: str, runs_root: Path) -> tuple[RunDir, list[str]]:
    try:
        return open_run(address, step="prepare", runs_root=runs_root), []
    except RunDirError:
        path, colon, splits = address.rpartition(":")
        if not colon:
            raise
    names = [name.strip() for name in splits.split(",") if name.strip()]
    return open_run(path, step="prepare", runs_root=runs_root), names


def _excluded(clip: Clip, overlap: Overlap, other: PreparedRun) -> Rejection:
    reason = f"{overlap.reason} as {overlap.other} ({overlap.other_split or 'no split'}) of {other.address}"
    return Rejection(clip.id, reason, "excluded", split=clip.split)
