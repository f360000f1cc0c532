"""The verdict of ``prepare``: what a corpus holds, and what looks wrong with it.

``clapkit.data.inspection`` looks into every file, ``clapkit.data.acoustic`` compares what they sound like,
``clapkit.data.caption_audit`` reads the captions; here their findings are put together. Silence, clipping and the like are
measured on whole files, also where a clip is a span of one.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from clapkit.data.caption_audit import find_caption_problems, num_words
from clapkit.data.findings import CHECKS as CHECKS
from clapkit.data.findings import (
    COMMON_SHARE,
    HEARD_RMS,
    MAX_DC_OFFSET,
    MAX_LENGTH_DIFFERENCE_S,
    TOO_SHORT_S,
    USUAL_SAMPLE_RATES,
)
from clapkit.data.findings import Finding as Finding
from clapkit.data.inspection import SILENT_RMS, Inspection
from clapkit.types import Clip, Rejection

MAX_LISTED = 100
# Of fewer clips none is the rule.
_MIN_COMMON = 10

_FORMATS_OF_SUFFIX = {
    ".wav": ("WAV", "WAVEX", "RF64"),
    ".wave": ("WAV", "WAVEX", "RF64"),
    ".rf64": ("RF64",),
    ".w64": ("W64",),
    ".flac": ("FLAC",),
    ".ogg": ("OGG",),
    ".oga": ("OGG",),
    ".opus": ("OGG",),
    ".mp3": ("MP3",),
    ".mp2": ("MP3",),
    ".aif": ("AIFF",),
    ".aiff": ("AIFF",),
    ".aifc": ("AIFF",),
    ".au": ("AU",),
    ".snd": ("AU",),
    ".caf": ("CAF",),
    ".voc": ("VOC",),
}


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
        "formats": _counts(f"{file.info.format} {file.info.subtype}".strip() for file in found if file.info),
        "captions": _captions(clips),
        "durations_s": _durations(clips),
        "duplicates": _duplicates(clips, found) if decoded else None,
        "silent": _listed(clip for clip, file in zip(clips, found, strict=True) if file.is_silent) if decoded else None,
        "clipped": _listed(clip for clip, file in zip(clips, found, strict=True) if file.is_clipped) if decoded else None,
    }


def looked_for(inspections: Mapping[str, Inspection], *, near_duplicates: bool) -> list[str]:
    """Names of the checks that were made, in the order of ``CHECKS``.

    Args:
        inspections: where these are of headers only, checks that need decoding were not made.
        near_duplicates: whether clips that sound the same were looked for.
    """
    decoded = all(inspection.statistics is not None for inspection in inspections.values() if inspection.info)
    left_out = {name for name, check in CHECKS.items() if check.needs_decoding and not decoded}
    return [name for name in CHECKS if name not in left_out and (near_duplicates or name != "near_duplicate")]


def find(
    clips: Sequence[Clip],
    inspections: Mapping[str, Inspection],
    *,
    near_duplicates: Sequence[tuple[str, str, str]] | None,
) -> list[Finding]:
    """Everything that looks wrong with usable clips, by check in the order of ``CHECKS``, the worst first.

    Args:
        clips: with durations and rates filled in.
        inspections: by the ``audio`` of the clips. Where files were not decoded, only headers and captions are judged.
        near_duplicates: (id of a clip, id of one that sounds the same, how that shows); None if they were not looked for.
    """
    found = [inspections[clip.audio] for clip in clips]
    findings = [finding for clip, file in zip(clips, found, strict=True) for finding in _of_clip(clip, file)]
    findings += _odd_durations(clips)
    same = _same_files(clips, found)
    findings += _copies(same)
    findings += _near_copies(clips, same, near_duplicates or ())
    findings += find_caption_problems(clips)
    order = {name: place for place, name in enumerate(CHECKS)}
    return sorted(findings, key=lambda finding: (order[finding.check], -finding.severity))


def count(
    findings: Sequence[Finding], rejections: Sequence[Rejection], *, made: Collection[str] | None = None
) -> dict[str, dict[str, Any]]:
    """Count findings and rejections by check, for ``report.json``.

    Args:
        findings: as ``find`` gives them.
        rejections: those that name a check are counted under it.
        made: names of the checks that were made, as ``looked_for`` gives them; the others are absent, not 0. None is all.

    Returns:
        Name of a check -> ``about``, ``effect``, ``threshold``, ``num_items``, and the first ``items``. A check that only a
        recipe knows comes last.
    """
    items: dict[str, dict[str, None]] = {name: {} for name in CHECKS if made is None or name in made}
    for check, item in [(r.check, r.item) for r in rejections] + [(f.check, f.item) for f in findings]:
        if check is not None:
            items.setdefault(check, {})[item] = None
    report = {}
    for name, ids in items.items():
        check_made = CHECKS.get(name)
        report[name] = {
            "about": check_made.about if check_made else "The recipe refused it.",
            "effect": check_made.effect if check_made else "rejects",
            "threshold": check_made.threshold if check_made else "",
            "num_items": len(ids),
            "items": list(ids)[:MAX_LISTED],
        }
    return report


def split_sizes(clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """Clips and hours of every split, by name; clips without a split are counted under an empty name."""
    members: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        members[clip.split or ""].append(clip)
    return {name: {"num_clips": len(members[name]), "hours": hours(members[name])} for name in sorted(members)}


def hours(clips: Sequence[Clip]) -> float:
    """Total length of clips."""
    return sum(clip.duration_s or 0.0 for clip in clips) / 3600


def _of_clip(clip: Clip, file: Inspection) -> Iterator[Finding]:
    """What the length, the header and the samples of one clip show."""
    if clip.duration_s is not None and clip.duration_s < TOO_SHORT_S:
        yield Finding("too_short", clip.id, f"{clip.duration_s:g} s", -clip.duration_s)
    if clip.sample_rate is not None and clip.sample_rate not in USUAL_SAMPLE_RATES:
        distance = min(abs(clip.sample_rate - rate) / rate for rate in USUAL_SAMPLE_RATES)
        yield Finding("odd_sample_rate", clip.id, f"{clip.sample_rate} Hz", distance)
    problem = _header_problem(clip, file)
    if problem:
        yield Finding("wrong_header", clip.id, problem)
    samples = file.statistics
    if samples is None:
        return
    if samples.is_constant and samples.peak > 0:
        # That it is silent and has an offset says nothing more.
        yield Finding("constant", clip.id, f"all samples are {samples.dc_offset:.6g}", samples.peak)
        return
    if file.is_silent:
        yield Finding("silent", clip.id, f"RMS {samples.rms:.2g}", -samples.rms)
    if file.is_clipped:
        yield Finding("clipped", clip.id, f"{samples.clipped_share:.2%} of the samples", samples.clipped_share)
    offset = max(samples.channel_dc_offsets or (samples.dc_offset,), key=abs)
    if abs(offset) > MAX_DC_OFFSET:
        yield Finding("dc_offset", clip.id, f"{offset:.3g} of full scale", abs(offset))
    if samples.channel_rms and min(samples.channel_rms) < SILENT_RMS and max(samples.channel_rms) >= HEARD_RMS:
        dead = [str(channel) for channel, rms in enumerate(samples.channel_rms, start=1) if rms < SILENT_RMS]
        yield Finding("dead_channel", clip.id, f"channel {', '.join(dead)} of {len(samples.channel_rms)}", len(dead))


def _odd_durations(clips: Sequence[Clip]) -> Iterator[Finding]:
    """Clips that are not as long as nearly all others are; none where lengths vary."""
    durations_s = [clip.duration_s for clip in clips if clip.duration_s is not None]
    if not durations_s:
        return
    common_s, num_common = Counter(durations_s).most_common(1)[0]
    if num_common < COMMON_SHARE * len(clips) or num_common < _MIN_COMMON:
        return
    for clip in clips:
        difference_s = abs((clip.duration_s or 0.0) - common_s)
        if difference_s > MAX_LENGTH_DIFFERENCE_S:
            yield Finding("odd_duration", clip.id, f"{clip.duration_s:.6g} s, others {common_s:.6g} s", difference_s)


def _header_problem(clip: Clip, file: Inspection) -> str:
    if file.info is None:
        return ""
    suffix = os.path.splitext(clip.audio)[1].lower()
    formats = _FORMATS_OF_SUFFIX.get(suffix)
    if formats and file.info.format and file.info.format not in formats:
        return f"named {suffix}, holds {file.info.format}"
    if suffix == ".opus" and file.info.subtype and file.info.subtype != "OPUS":
        return f"named {suffix}, holds {file.info.subtype}"
    return file.info.length_problem


def _same_files(clips: Sequence[Clip], found: Sequence[Inspection]) -> list[list[Clip]]:
    """Groups of two or more clips with the same bytes and the same span."""
    same: dict[tuple[str, float | None, float | None], list[Clip]] = defaultdict(list)
    for clip, inspection in zip(clips, found, strict=True):
        if inspection.content is not None:
            same[inspection.content, clip.start_s, clip.end_s].append(clip)
    return [group for group in same.values() if len(group) > 1]


def _copies(same: Sequence[Sequence[Clip]]) -> Iterator[Finding]:
    for first, *copies in same:
        for clip in copies:
            yield Finding("duplicate", clip.id, f"the same file as {_named(first, clip)}", float(first.split != clip.split))


def _near_copies(
    clips: Sequence[Clip], same: Sequence[Sequence[Clip]], pairs: Sequence[tuple[str, str, str]]
) -> Iterator[Finding]:
    """Each clip that sounds like an earlier one, once; copies of one file are found as such."""
    place = {clip.id: number for number, clip in enumerate(clips)}
    group_of = {clip.id: number for number, group in enumerate(same) for clip in group}
    seen: set[str] = set()
    for one, other, detail in pairs:
        early, late = (clips[number] for number in sorted((place[one], place[other])))
        is_copy = early.id in group_of and group_of[early.id] == group_of.get(late.id)
        if is_copy or late.id in seen:
            continue
        seen.add(late.id)
        phrase = f"sounds like {_named(early, late)}{': ' + detail if detail else ''}"
        yield Finding("near_duplicate", late.id, phrase, float(early.split != late.split))


def _named(first: Clip, clip: Clip) -> str:
    return first.id if first.split == clip.split else f"{first.id} ({first.split}, this is {clip.split})"


def _captions(clips: Sequence[Clip]) -> dict[str, Any]:
    """How many captions there are, which stand for several clips, and how long they are."""
    clips_of: dict[str, set[int]] = defaultdict(set)
    words = []
    for number, clip in enumerate(clips):
        for caption in clip.captions:
            clips_of[caption.text].add(number)
            words.append(num_words(caption))
    shared = [numbers for numbers in clips_of.values() if len(numbers) > 1]
    return {
        "num_distinct": len(clips_of),
        "num_shared": len(shared),
        "num_shared_across_splits": sum(len({clips[number].split for number in numbers}) > 1 for numbers in shared),
        "words": {"min": min(words), "median": statistics.median(words), "max": max(words)} if words else None,
    }


def _durations(clips: Sequence[Clip]) -> dict[str, float] | None:
    seconds = [clip.duration_s for clip in clips if clip.duration_s is not None]
    if not seconds:
        return None
    mean, median = statistics.fmean(seconds), statistics.median(seconds)
    return {"min": min(seconds), "mean": mean, "median": median, "max": max(seconds)}


def _duplicates(clips: Sequence[Clip], found: Sequence[Inspection]) -> dict[str, Any]:
    # Those across splits first, because the list is cut.
    groups = sorted(_same_files(clips, found), key=lambda group: len({clip.split for clip in group}) == 1)
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
