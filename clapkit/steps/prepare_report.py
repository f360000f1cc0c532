"""The verdict of ``prepare``: ``report.json`` for scripts, ``report.html`` for people, and the warnings on the way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clapkit.data import audit
from clapkit.data.audio import load
from clapkit.data.inspection import Inspection
from clapkit.data.manifest import Manifest
from clapkit.data.splits import join_sources
from clapkit.errors import AudioError
from clapkit.files import atomic_path
from clapkit.report.corpus import WorstCase, corpus_page
from clapkit.run_dir import RunDir
from clapkit.types import Clip, CorpusDescription, Rejection, Reporter

# Worst cases of each finding, and of all, that the page shows.
_MAX_WORST, _MAX_WORST_IN_ALL = 6, 60
# A picture of a minute says enough, and an hour would not fit into memory.
_MAX_SHOWN_S = 60.0
_MAX_RATE_SHOWN = 48000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that a report is made of.

    Attributes:
        name: of the corpus.
        recipe: that read it.
        check: ``decode`` or ``header``.
        clips: that can be used, with splits.
        listed: clips that the recipe found audio for, as it gave them.
        rejections: what is not in the manifest.
        found: by ``Clip.audio``, what was found in the files.
        findings: what looks wrong with clips that are used.
        near_duplicates: pairs of ids that sound alike, with what was heard; None if nobody listened.
        description: what the recipe knows of the whole corpus.
        overlaps: with other runs.
    """

    name: str
    recipe: str
    check: str
    clips: Sequence[Clip]
    listed: Sequence[Clip]
    rejections: Sequence[Rejection]
    found: Mapping[str, Inspection]
    findings: Sequence[audit.Finding]
    near_duplicates: Sequence[tuple[str, str, str]] | None
    description: CorpusDescription
    overlaps: Sequence[Mapping[str, Any]]


def build_report(verdict: Verdict) -> dict[str, Any]:
    """What ``report.json`` holds, but for the fingerprint of the manifest, which is written before it."""
    kinds = Counter(rejection.kind for rejection in verdict.rejections)
    used = {clip.audio: verdict.found[clip.audio] for clip in verdict.clips}
    made = audit.looked_for(used, near_duplicates=verdict.near_duplicates is not None)
    report: dict[str, Any] = {"name": verdict.name, "recipe": verdict.recipe, "check": verdict.check}
    report |= audit.summarise(verdict.clips, verdict.found)
    report |= {
        "near_duplicates": _groups(verdict),
        "overlaps": list(verdict.overlaps),
        "checks": audit.count(verdict.findings, verdict.rejections, made=made),
        "num_rejected": kinds["bad"] + kinds["missing"],
        "num_missing": kinds["missing"],
        "num_excluded": kinds["excluded"],
        "coverage": _coverage(verdict),
        "facts": dict(verdict.description.facts),
        "warnings": list(verdict.description.warnings),
    }
    return report


def warn(report: Mapping[str, Any], reporter: Reporter, *, is_limited: bool = False) -> None:
    """Say what is allowed but may be wrong.

    Args:
        report: as ``build_report`` made it.
        reporter: told about it.
        is_limited: whether only the first clips of the corpus were asked for, so that its lists were not read to the end.
    """
    for sentence in report["warnings"]:
        reporter.warn(sentence)
    for split, counts in report["coverage"].items():
        # Lists that are cut short, or rows that cannot be used, make a gallery smaller, too; what was asked for does not count.
        is_short = not is_limited and (counts["official"] or 0) > counts["listed"] + counts["excluded"]
        if counts["missing"] or is_short:
            of = f"{counts['listed']} listed" + (f", {counts['official']} official" if counts["official"] else "")
            meaning = "there is less to train on" if split == "train" else "scores are of a smaller gallery"
            reporter.warn(f"{split or 'all'}: audio of {counts['found']} clips found ({of}); {meaning}")
    for key in ("silent", "clipped"):
        if report[key] and report[key]["num_clips"]:
            found = report[key]
            reporter.warn(f"{key} clips: {found['num_clips']}, first: {found['ids'][0]}; see report.json")
    for key, what in (("duplicates", "copies of one file"), ("near_duplicates", "one sound in several files")):
        found = report[key]
        if found and found["num_groups"]:
            across = found["num_groups_across_splits"]
            reporter.warn(
                f"groups of clips that are {what}: {found['num_groups']}, of these across splits: {across}, "
                f"first: {', '.join(found['groups'][0][:3])}; see report.json"
            )
    for overlap in report["overlaps"]:
        if overlap["num_clips"]:
            first = overlap["pairs"][0]
            reporter.warn(
                f"{overlap['run']} holds {overlap['num_clips']} of these clips, too, first: {first['id']} "
                f"({first['reason']} as {first['other']}); leave them out with --subtract"
            )


def result_of(report: Mapping[str, Any], manifest: Manifest) -> dict[str, Any]:
    """What ``result.json`` holds."""
    result: dict[str, Any] = {"manifest": "manifest.jsonl", "fingerprint": manifest.fingerprint, "report": "report.json"}
    result |= {key: report[key] for key in ("name", "recipe", "check", "num_clips", "num_captions", "hours")}
    result["splits"] = {name: size["num_clips"] for name, size in report["splits"].items()}
    result |= {key: report[key] for key in ("num_rejected", "num_missing", "num_excluded")}
    for key in ("silent", "clipped"):
        result[f"num_{key}"] = None if report[key] is None else report[key]["num_clips"]
    result["num_duplicate_groups"] = None if report["duplicates"] is None else report["duplicates"]["num_groups"]
    result["num_overlaps"] = sum(overlap["num_clips"] for overlap in report["overlaps"])
    result["checks"] = {name: entry["num_items"] for name, entry in report["checks"].items()}
    return result


def write_page(run_dir: RunDir, verdict: Verdict, report: Mapping[str, Any], root: Path) -> None:
    """Write ``report.html``, with the spectrograms of the worst cases."""
    rejections = [{"item": r.item, "reason": r.reason, "kind": r.kind, "check": r.check} for r in verdict.rejections]
    shown = {**report, "overlaps": [_there(overlap) for overlap in report["overlaps"]]}
    page = corpus_page(shown, checks=report["checks"], rejections=rejections, worst=_worst(verdict, root))
    run_dir.write_text(run_dir.path / "report.html", page)


def write_relevance(run_dir: RunDir, description: CorpusDescription) -> None:
    """Write ``relevance.parquet``, where a corpus brings judgements."""
    if not description.relevance:
        return
    import pandas as pd

    rows = [(judged.query, judged.clip_id, judged.grade) for judged in description.relevance]
    with atomic_path(run_dir.path / "relevance.parquet") as temporary:
        pd.DataFrame(rows, columns=["query", "id", "grade"]).to_parquet(temporary, index=False)


def _there(overlap: Mapping[str, Any]) -> dict[str, Any]:
    """An overlap as the page shows it: how many clips are in each split over there."""
    counts: Counter[str] = Counter()
    for row in overlap["splits"].values():
        counts.update(row)
    return {**overlap, "splits": dict(sorted(counts.items()))}


def _coverage(verdict: Verdict) -> dict[str, dict[str, int | None]]:
    """Of every split, how many clips the complete corpus has, this copy lists, have audio, and the recipe left out."""
    missing = Counter(r.split or "" for r in verdict.rejections if r.kind == "missing")
    found = Counter(clip.split or "" for clip in verdict.listed)
    ids = {clip.id for clip in verdict.listed}
    # By an option of the recipe: what other options leave out was found before.
    excluded = Counter(r.split or "" for r in verdict.rejections if r.kind == "excluded" and r.item not in ids)
    official = verdict.description.official
    if not official and not missing:
        return {}
    names = [*official, *sorted((set(missing) | set(found)) - set(official))]
    return {
        name: {
            "official": official.get(name),
            "listed": found[name] + missing[name],
            "found": found[name],
            "missing": missing[name],
            "excluded": excluded[name],
        }
        for name in names
    }


def _groups(verdict: Verdict) -> dict[str, Any] | None:
    """Clips that sound alike, in groups."""
    if verdict.near_duplicates is None:
        return None
    pairs = [(first, second) for first, second, _ in verdict.near_duplicates]
    involved = {id for pair in pairs for id in pair}
    split_of = {clip.id: clip.split for clip in verdict.clips if clip.id in involved}
    pairs = [pair for pair in pairs if all(id in split_of for id in pair)]
    ids = list(split_of)
    members: dict[str, list[str]] = defaultdict(list)
    for id, group in zip(ids, join_sources(ids, ids, pairs), strict=True):
        members[group].append(id)
    groups = [group for group in members.values() if len(group) > 1]
    across = [group for group in groups if len({split_of[id] for id in group}) > 1]
    # The worst first, because the list is cut.
    groups = sorted(groups, key=lambda group: len({split_of[id] for id in group}) == 1)
    return {
        "num_groups": len(groups),
        "num_groups_across_splits": len(across),
        "groups": groups[: audit.MAX_LISTED],
    }


def _worst(verdict: Verdict, root: Path) -> list[WorstCase]:
    """The worst findings of every check, with their sound."""
    clip_of = {clip.id: clip for clip in verdict.clips}
    shown: Counter[str] = Counter()
    cases: list[WorstCase] = []
    for finding in verdict.findings:
        if shown[finding.check] >= _MAX_WORST or len(cases) >= _MAX_WORST_IN_ALL:
            continue
        shown[finding.check] += 1
        clip = clip_of.get(finding.item)
        caption = clip.captions[0].text if clip is not None and clip.captions else ""
        waveform, rate = (None, _MAX_RATE_SHOWN) if clip is None else _hear(clip, root)
        cases.append(WorstCase(finding.check, finding.item, finding.detail, caption, waveform, rate))
    return cases


def _hear(clip: Clip, root: Path) -> tuple[np.ndarray | None, int]:
    """The first minute of a clip, float32 [T], and its sample rate; None if it cannot be decoded."""
    # At its own rate where that can be, because a resampler would ring around what is broken.
    rate = min(clip.sample_rate or _MAX_RATE_SHOWN, _MAX_RATE_SHOWN)
    start_s = clip.start_s or 0.0
    end_s = clip.end_s
    if clip.duration_s is not None and clip.duration_s > _MAX_SHOWN_S:
        end_s = start_s + _MAX_SHOWN_S
    try:
        return load(root / clip.audio, sample_rate=rate, start_s=start_s, end_s=end_s), rate
    except AudioError:
        return None, rate
