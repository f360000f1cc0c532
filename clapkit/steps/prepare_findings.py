"""What the audit finds, and what becomes of it: sounds that are alike, and the clips that ``--drop`` leaves out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from clapkit.config import PrepareConfig
from clapkit.data import audit
from clapkit.data.inspection import Inspection
from clapkit.data.near_duplicates import find_matches
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.types import Clip, Rejection, Reporter

Pair = tuple[str, str, str]
"""Ids of two clips that sound alike, and how that shows."""


def read_checks(text: str | None, config: PrepareConfig) -> frozenset[str]:
    """Read the checks of ``--drop``.

    Raises:
        UnknownNameError: if there is no such check, or it rejects anyhow.
        ConfigError: if it is not made with ``--check header``.
    """
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    flags = [name for name, check in audit.CHECKS.items() if check.effect == "flags"]
    for name in names:
        if name not in flags:
            raise UnknownNameError("check of --drop", name, flags)
        if audit.CHECKS[name].needs_decoding and config.check == "header":
            raise ConfigError(f"--drop {name}: is not looked for with --check header; leave one of them out")
    return frozenset(names)


def near_duplicates(
    clips: Sequence[Clip], found: Mapping[str, Inspection], config: PrepareConfig, reporter: Reporter
) -> list[Pair] | None:
    """Pairs of clips that sound alike but are not the same bytes, with what was heard; None if nobody listened."""
    if config.check == "header":
        return None
    # One clip stands for its file; spans are not compared, because the rest of their file would speak for them.
    by_audio = {clip.audio: clip for clip in reversed(clips) if clip.start_s is None and clip.end_s is None}
    heard = [clip for clip in clips if by_audio.get(clip.audio) is clip and found[clip.audio].landmarks]
    with reporter.track("comparing sounds", None):
        matches = find_matches([found[clip.audio].landmarks or b"" for clip in heard])
    pairs = []
    for match in matches:
        first, second = heard[match.first], heard[match.second]
        if found[first.audio].content != found[second.audio].content:
            pairs.append((first.id, second.id, f"{match.offset_s:+.2f} s, {match.share:.0%} of its landmarks"))
    return pairs


def drop_findings(
    clips: Sequence[Clip], found: Mapping[str, Inspection], matches: Sequence[Pair] | None, drop: frozenset[str]
) -> Iterator[Clip | Rejection]:
    """Leave out what has a finding of some checks: clips, or single captions; of copies, the first one stays."""
    refused: dict[str, audit.Finding] = {}
    for finding in audit.find(clips, found, near_duplicates=matches):
        if finding.check in drop:
            refused.setdefault(finding.item, finding)

    def refusal(item: str, split: str | None) -> Rejection | None:
        finding = refused.get(item)
        if finding is None:
            return None
        return Rejection(item, f"{finding.detail} (--drop {finding.check})", "excluded", check=finding.check, split=split)

    for clip in clips:
        of_clip = refusal(clip.id, clip.split)
        if of_clip is not None:
            yield of_clip
            continue
        of_captions = [refusal(f"{clip.id} caption {k}", clip.split) for k in range(1, len(clip.captions) + 1)]
        yield from (rejection for rejection in of_captions if rejection is not None)
        captions = tuple(c for c, rejection in zip(clip.captions, of_captions, strict=True) if rejection is None)
        if captions or not clip.captions:
            yield replace(clip, captions=captions) if len(captions) < len(clip.captions) else clip
        else:
            check = next(rejection.check for rejection in of_captions if rejection is not None)
            yield Rejection(clip.id, f"no caption is left (--drop {check})", "excluded", check=check, split=clip.split)


def between(clips: Sequence[Clip], matches: Sequence[Pair] | None) -> list[Pair] | None:
    """The pairs of which both clips are still there."""
    if matches is None:
        return None
    ids = {clip.id for clip in clips}
    return [pair for pair in matches if pair[0] in ids and pair[1] in ids]
