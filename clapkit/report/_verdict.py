"""The first sentence of the page of a corpus: what is usable, what was lost, what needs a look."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clapkit.report._corpus_pieces import counted
from clapkit.report._html import outside

# What stands in the sentence; the rest is counted, and shown in the sections.
_MAX_NAMED = 4
# Checks whose findings are groups of clips, and where the report has the groups; each thing is named once.
_GROUPS = {"duplicate": "duplicates", "near_duplicate": "near_duplicates"}
_LOST = {"bad": "rejected", "missing": "missing", "excluded": "left out on request"}


@dataclass(frozen=True, slots=True)
class _Finding:
    """Something that a person should look at: where it stands on the page, what it is, how many."""

    anchor: str
    name: str
    count: int
    is_leak: bool = False


def verdict(report: Mapping[str, Any], checks: Mapping[str, Mapping[str, Any]], rejections: Sequence[Mapping[str, Any]]) -> str:
    """One sentence with a colour: green for nothing to look at, red for nothing usable or test data among the training data.

    Args:
        report: as in ``report.json``.
        checks: as for ``corpus_page``.
        rejections: as for ``corpus_page``.
    """
    num_clips = report.get("num_clips") or 0
    lost = Counter(_kind(rejection) for rejection in rejections)
    findings = _findings(report, checks)
    parts = [_usable(num_clips, num_clips + lost["bad"] + lost["missing"])]
    if lost:
        parts.append(_gone(lost))
    if findings:
        parts.append(_to_look_at(findings))
    elif checks:
        parts.append("no check found anything to look at")
    if not num_clips or any(finding.is_leak for finding in findings):
        level = "bad"
    else:
        level = "look" if findings or set(lost) - {"excluded"} else "good"
    note = ""
    if report.get("check") == "header":
        note = ' <span class="soft">Only the headers of the files were read: how they sound was not looked at.</span>'
    return f'<p class="verdict {level}">{"; ".join(parts)}.{note}</p>\n'


def _usable(num_clips: int, total: int) -> str:
    if num_clips == total and total > 1:
        return f"All {total:,} clips are usable"
    return f"{num_clips:,} of {counted(total, 'clip')} {'is' if total == 1 else 'are'} usable"


def _gone(lost: Counter[str]) -> str:
    gone = [f"{lost[kind]:,} {'is' if lost[kind] == 1 else 'are'} {name}" for kind, name in _LOST.items() if lost[kind]]
    if lost["caption"]:
        gone.append(f"{counted(lost['caption'], 'empty caption')} {'is' if lost['caption'] == 1 else 'are'} dropped")
    return ", ".join(gone)


def _to_look_at(findings: Sequence[_Finding]) -> str:
    named = [
        f'<a href="#{f.anchor}">{outside(f.name, limit=44, keep_end=True)} ({f.count:,})</a>' for f in findings[:_MAX_NAMED]
    ]
    if len(findings) > _MAX_NAMED:
        named.append(f"{len(findings) - _MAX_NAMED} more")
    return f"{counted(len(findings), 'thing')} {'needs' if len(findings) == 1 else 'need'} a look: {', '.join(named)}"


def _kind(rejection: Mapping[str, Any]) -> str:
    """What is lost: a caption of a clip that stays, or a clip that is bad, missing or excluded."""
    if rejection.get("check") == "empty_caption" and re.search(r" caption \d+$", str(rejection["item"])):
        return "caption"
    return str(rejection.get("kind") or "bad")


def _findings(report: Mapping[str, Any], checks: Mapping[str, Mapping[str, Any]]) -> list[_Finding]:
    """What needs a look, leaks between splits and corpora first; what was rejected is settled."""
    found = []
    for key, name in (("duplicates", "copies"), ("near_duplicates", "near copies")):
        groups = report.get(key) or {}
        across = groups.get("num_groups_across_splits") or 0
        found.append(_Finding("copies", f"{name} across splits", across, is_leak=True))
        found.append(_Finding("copies", f"groups of {name}", (groups.get("num_groups") or 0) - across))
    for overlap in report.get("overlaps") or ():
        found.append(_Finding("copies", f"overlap with {overlap['run']}", overlap["num_clips"], is_leak=True))
    for name, check in checks.items():
        is_counted = check.get("effect") == "rejects" or report.get(_GROUPS.get(name, ""))
        if not is_counted:
            found.append(_Finding("checks", name.replace("_", " "), check.get("num_items") or 0))
    found.append(_Finding("warnings", "warnings", len(report.get("warnings") or ())))
    return sorted((finding for finding in found if finding.count), key=lambda finding: not finding.is_leak)
