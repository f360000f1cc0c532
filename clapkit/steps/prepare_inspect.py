"""Every audio file of a corpus looked into once, in parallel, with a journal for ``--resume``."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clapkit.config import PrepareConfig
from clapkit.data.audio import AudioInfo
from clapkit.data.copies import CopyPolicy, copy_name
from clapkit.data.inspection import Inspection, Job, inspect_files
from clapkit.errors import ConfigError
from clapkit.run_dir import RunDir
from clapkit.steps.inspection_journal import InspectionJournal
from clapkit.types import Clip, Rejection, Reporter

COPIES_DIR = "decoded"
_JOURNAL = ".inspections.jsonl"


def copy_policy(config: PrepareConfig) -> CopyPolicy | None:
    """How decoded copies are made, None if none are.

    Raises:
        ConfigError: if the options contradict each other.
    """
    if config.cache_audio is None:
        if config.cache_rate is not None:
            raise ConfigError(f"--cache-rate {config.cache_rate}: no copies are kept; add --cache-audio flac or wav")
        return None
    if config.check == "header":
        raise ConfigError("--cache-audio: copies are decoded, but --check header decodes nothing; leave one of them out")
    if config.cache_rate is not None and config.cache_rate < 1:
        raise ConfigError(f"--cache-rate {config.cache_rate}: expected a sample rate in Hz, for example 16000")
    return CopyPolicy(config.cache_audio, config.cache_rate)


def journal_of(run_dir: RunDir) -> InspectionJournal:
    """What was found before this process was started, and where more is noted."""
    return InspectionJournal(run_dir.path / _JOURNAL)


def inspect_clips(
    clips: Sequence[Clip],
    root: Path,
    *,
    config: PrepareConfig,
    copies: CopyPolicy | None,
    copies_dir: Path,
    journal: InspectionJournal,
    reporter: Reporter,
) -> dict[str, Inspection]:
    """Look into every file of some clips once, also where several clips are spans of it.

    Args:
        clips: with audio relative to the root, or absolute.
        root: where relative paths start from.
        config: of the command.
        copies: how decoded copies are made, None if none are.
        copies_dir: where they go.
        journal: of files that were looked into before, and for those that are now.
        reporter: told about progress.

    Returns:
        ``Clip.audio`` -> what was found.
    """
    names = list(dict.fromkeys(clip.audio for clip in clips))
    folder = str(root)
    jobs = {name: Job(_join(folder, name), _copy_path(name, copies, copies_dir)) for name in names}
    decode = config.check == "decode"
    # Reading a header costs less than noting it.
    found = {name: journal.find(job) for name, job in jobs.items()} if decode else dict.fromkeys(names)
    left = [name for name, inspection in found.items() if inspection is None]
    if len(left) < len(names):
        reporter.say(f"files looked at before: {len(names) - len(left)} of {len(names)}")
    with reporter.track("checking audio", len(left), "files") as tracker:
        inspections = inspect_files([jobs[name] for name in left], decode=decode, workers=config.workers, copies=copies)
        for name, inspection in zip(left, inspections, strict=True):
            if decode:
                journal.add(jobs[name], inspection)
            found[name] = inspection
            tracker.advance()
    return {name: inspection for name, inspection in found.items() if inspection is not None}


def fill(clip: Clip, inspection: Inspection) -> Clip | Rejection:
    """Fill in what the file says, or refuse the clip."""
    if inspection.info is None:
        return Rejection(clip.id, inspection.problem or "cannot be used", check=inspection.check, split=clip.split)
    info = inspection.info
    start_s = clip.start_s or 0.0
    end_s = info.duration_s if clip.end_s is None else clip.end_s
    # Counted in samples, because spans are cut at the nearest one.
    if not round(start_s * info.sample_rate) < round(end_s * info.sample_rate) <= info.num_frames:
        found = f"span from {start_s:g} s to {end_s:g} s"
        reason = f"{found}, expected it inside the {info.duration_s:g} s of {clip.audio}; correct it"
        return Rejection(clip.id, reason, split=clip.split)
    return clip.measured(end_s - start_s, info.sample_rate, info.num_channels)


def use_copies(clips: Sequence[Clip], found: Mapping[str, Inspection], policy: CopyPolicy) -> list[Clip]:
    """Make clips point at the decoded copies of their files, relative to the folder of the copies."""
    return [_use_copy(clip, found[clip.audio].copy, policy) for clip in clips]


def drop_copies(names: Iterable[str], copies_dir: Path, policy: CopyPolicy) -> None:
    """Delete the copies of files of which no clip is left: filters choose after every file was decoded."""
    for name in names:
        (copies_dir / copy_name(name, policy.format)).unlink(missing_ok=True)


def drop_unused(root: Path, *, kept: Collection[str]) -> None:
    """Delete what was unpacked for clips that were left out, and folders that are empty then.

    Args:
        root: folder below the run directory that holds nothing but what was unpacked.
        kept: paths of the files that stay, relative to it.
    """
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.relpath(path, root) not in kept:
                os.unlink(path)
        if not os.listdir(folder):
            os.rmdir(folder)


def _use_copy(clip: Clip, copy: AudioInfo | None, policy: CopyPolicy) -> Clip:
    assert copy is not None, f"{clip.audio} has no copy"
    # Resampling rounds the length of a file to whole samples: a span may not end behind it.
    end_s = None if clip.end_s is None else min(clip.end_s, copy.duration_s)
    duration_s = copy.duration_s if end_s is None else end_s
    return replace(
        clip,
        audio=copy_name(clip.audio, policy.format),
        duration_s=duration_s - (clip.start_s or 0.0),
        end_s=end_s,
        sample_rate=copy.sample_rate,
        num_channels=1,
    )


def _join(folder: str, name: str) -> str:
    return name if name.startswith("/") else f"{folder}/{name}"


def _copy_path(name: str, copies: CopyPolicy | None, copies_dir: Path) -> str | None:
    return None if copies is None else str(copies_dir / copy_name(name, copies.format))
