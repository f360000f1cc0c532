"""The checks of ``prepare``: does every file decode, is it silent or clipped, and is it there twice.

Files are inspected one by one, in worker processes where there are many; what was found is then counted over the clips.
Silence and clipping are measured on whole files, also where a clip is a span of one.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clapkit.data.audio import AudioInfo, AudioStatistics, examine, probe
from clapkit.errors import AudioError
from clapkit.types import Clip

# -80 dB below full scale: under the noise of any microphone, above the dither of an empty 16-bit file.
SILENT_RMS = 1e-4
# One sample in a thousand at full scale; a file that was merely normalised to its peak has a handful.
CLIPPED_SHARE = 1e-3
MAX_LISTED = 100

_MIN_FILES_FOR_PROCESSES = 64


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found in one audio file.

    Attributes:
        info: rate, frames and channels; None if the file cannot be used.
        statistics: of the samples; None if they were not decoded.
        content: SHA-256 of the bytes of the file; None if they were not read.
        problem: why the file cannot be used; None if it can.
    """

    info: AudioInfo | None = None
    statistics: AudioStatistics | None = None
    content: str | None = None
    problem: str | None = None

    @property
    def is_silent(self) -> bool:
        """Whether the sound is below -80 dB, any DC offset left aside."""
        return self.statistics is not None and self.statistics.rms < SILENT_RMS

    @property
    def is_clipped(self) -> bool:
        """Whether more than one sample in a thousand is at full scale."""
        return self.statistics is not None and self.statistics.clipped_share > CLIPPED_SHARE


def inspect(path: Path, decode: bool = True) -> Inspection:
    """Inspect one file.

    Args:
        path: of the file.
        decode: decode it whole and hash it; otherwise only look at its header.
    """
    try:
        if not decode:
            return Inspection(info=probe(path))
        info, statistics = examine(path)
    except AudioError as error:
        return Inspection(problem=str(error))
    with path.open("rb") as file:
        return Inspection(info, statistics, hashlib.file_digest(file, "sha256").hexdigest())


def inspect_files(paths: Sequence[Path], *, decode: bool, workers: int | None = None) -> Iterator[Inspection]:
    """Inspect files, several at a time; results come in the order of the paths.

    Args:
        paths: of the files.
        decode: as in ``inspect``.
        workers: processes to use; None is one per core. Few files are inspected in this process.

    Raises:
        AudioError: if a worker process dies, as it would on a file that crashes the decoder.
    """
    workers = workers or num_cores()
    if workers == 1 or len(paths) < _MIN_FILES_FOR_PROCESSES:
        yield from (inspect(path, decode) for path in paths)
        return
    # Spawned, because a process that is forked while threads run can hang.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(workers, len(paths)), context, initializer=_leave_interrupts_to_parent)
    try:
        yield from executor.map(inspect, paths, [decode] * len(paths), chunksize=16)
    except BrokenProcessPool as error:
        raise AudioError(
            "a decoding process died, expected it to finish; run with --workers 1 to see at which file, or with more memory"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def summarise(clips: Sequence[Clip], inspections: Mapping[str, Inspection]) -> dict[str, Any]:
    """Count what a corpus holds, for ``report.json``.

    Args:
        clips: with durations, rates and channels filled in.
        inspections: by the ``audio`` of the clips. Where they were not decoded, ``duplicates``, ``silent`` and ``clipped``
            are None: not known.
    """
    found = [inspections[clip.audio] for clip in clips]
    decoded = all(inspection.statistics is not None for inspection in found)
    return {
        "num_clips": len(clips),
        "num_captions": sum(len(clip.captions) for clip in clips),
        "hours": hours(clips),
        "sample_rates": _counts(str(clip.sample_rate) for clip in clips),
        "channels": _counts(str(clip.num_channels) for clip in clips),
        "languages": _counts(caption.lang for clip in clips for caption in clip.captions),
        "labels": _counts(label for clip in clips for label in clip.labels),
        "splits": split_sizes(clips),
        "duplicates": _duplicates(clips, found) if decoded else None,
        "silent": _listed(clip for clip, file in zip(clips, found, strict=True) if file.is_silent) if decoded else None,
        "clipped": _listed(clip for clip, file in zip(clips, found, strict=True) if file.is_clipped) if decoded else None,
    }


def split_sizes(clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """Clips and hours of every split, by name; clips without a split are counted under an empty name."""
    members: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        members[clip.split or ""].append(clip)
    return {name: {"num_clips": len(members[name]), "hours": hours(members[name])} for name in sorted(members)}


def hours(clips: Sequence[Clip]) -> float:
    """Total length of clips."""
    return sum(clip.duration_s or 0.0 for clip in clips) / 3600


def _duplicates(clips: Sequence[Clip], found: Sequence[Inspection]) -> dict[str, Any]:
    """Groups of clips with the same bytes and the same span."""
    same: dict[tuple[str | None, float | None, float | None], list[Clip]] = defaultdict(list)
    for clip, inspection in zip(clips, found, strict=True):
        same[inspection.content, clip.start_s, clip.end_s].append(clip)
    groups = [group for group in same.values() if len(group) > 1]
    return {
        "num_groups": len(groups),
        "num_groups_across_splits": sum(len({clip.split for clip in group}) > 1 for group in groups),
        "groups": [[clip.id for clip in group] for group in groups[:MAX_LISTED]],
    }


def _listed(clips: Iterator[Clip]) -> dict[str, Any]:
    ids = [clip.id for clip in clips]
    return {"num_clips": len(ids), "ids": ids[:MAX_LISTED]}


def _counts(values: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def _leave_interrupts_to_parent() -> None:
    """Ctrl-C reaches every process of the terminal; only the parent should speak."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
