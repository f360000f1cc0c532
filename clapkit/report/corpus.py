"""The verdict of ``prepare`` on a corpus as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clapkit.report._corpus_pieces import (
    STYLE,
    bar,
    chart,
    check_name,
    counted,
    cut,
    fact_list,
    heading,
    item_name,
    length,
    number_cell,
    row,
    split_name,
    text_cell,
    unfolded,
    whole,
)
from clapkit.report._html import MISSING, document, one_line, picture_source, table
from clapkit.report._verdict import verdict
from clapkit.report.spectrogram import thumbnail

MAX_GROUPS = 10
MAX_MEMBERS = 6
MAX_REJECTIONS = 50
MAX_CARDS_PER_CHECK = 6
MAX_CARDS = 60
_WARNING_CHARACTERS = 600
_CAPTION_CHARACTERS = 120
_NOT_LOOKED_AT = '<p class="soft">Not looked at.</p>\n'
_COVERAGE = ("official", "listed", "found", "missing")
# In the order in which they are shown: what cannot be used first.
_KINDS = {"bad": "rejected", "excluded": "left out on request", "missing": "missing"}
_LEGEND = (
    "Above: spectrogram on a mel axis to 24 kHz; black is 80 dB below full scale, grey is beyond the sample rate. "
    "Below: waveform, orange where it reaches full scale. Red: NaN or infinity."
)


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A clip that shows what a check found.

    Attributes:
        check: name of the check.
        item: id of the clip.
        detail: what was found, such as ``31 % of the samples at full scale``.
        caption: first caption of the clip, or nothing.
        waveform: float32 [T], mono; None where it cannot be decoded.
        sample_rate: in Hz, > 0 where there is a waveform.
    """

    check: str
    item: str
    detail: str
    caption: str
    waveform: np.ndarray | None
    sample_rate: int


def corpus_page(
    report: Mapping[str, Any],
    *,
    checks: Mapping[str, Mapping[str, Any]],
    rejections: Sequence[Mapping[str, Any]],
    worst: Sequence[WorstCase],
) -> str:
    """The whole page as HTML text.

    Args:
        report: as in ``report.json``; what is absent or None was not looked at.
        checks: name -> ``num_items`` (None: not looked at), ``items`` (the first of them), ``about``, ``effect``
            (``rejects``: what it finds is left out, or ``flags``), and ``threshold`` where there is one.
        rejections: all of them, each with ``item`` and ``reason``, and ``kind``, ``check`` and ``split`` where known.
        worst: examples of what the checks found, the worst of each check first.
    """
    sections = [
        ("warnings", "Warnings", _warnings(report.get("warnings") or ())),
        ("checks", "Checks", _checks(checks)),
        ("coverage", "Coverage", _coverage(report.get("coverage"))),
        ("splits", "Splits", _splits(report.get("splits"))),
        ("copies", "Copies and overlaps", _copies(report)),
        ("contents", "Contents", _contents(report)),
        ("facts", "Facts", fact_list(report.get("facts"))),
        ("rejected", "Rejected items", _rejected(rejections)),
        ("worst", "Worst cases", _worst(worst, checks)),
    ]
    header = _subtitle(report) + verdict(report, checks, rejections) + _key_numbers(report)
    title = one_line(f"Corpus {report.get('name') or ''}").strip()
    return document(title, header=header, sections=sections, style=STYLE)


def _subtitle(report: Mapping[str, Any]) -> str:
    parts = [f"clapkit prepare {cut(report.get('recipe'))}"]
    if report.get("check"):
        parts.append(f"check {cut(report['check'])}")
    if report.get("fingerprint"):
        parts.append(f"fingerprint <code>{cut(report['fingerprint'], limit=13)}</code>")
    return f'<p class="soft">{" · ".join(parts)}</p>\n'


def _key_numbers(report: Mapping[str, Any]) -> str:
    rates, labels = report.get("sample_rates") or {}, report.get("labels") or {}
    median_s = (report.get("durations_s") or {}).get("median")
    numbers = [(whole(report.get("num_clips")), "clips"), (whole(report.get("num_captions")), "captions")]
    numbers += [(length(report["hours"]), "of audio")] if report.get("hours") is not None else []
    numbers += [(f"{median_s:.3g} s", "median clip")] if median_s is not None else []
    numbers += [(f"{len(labels):,}", "labels")] if labels else []
    if rates:
        most = max(rates, key=lambda rate: rates[rate])
        numbers.append((f"{float(most) / 1000:g} kHz", "sample rate" if len(rates) == 1 else f"most of {len(rates)} rates"))
    return f'<div class="tiles">{"".join(f"<div><b>{number}</b>{what}</div>" for number, what in numbers)}</div>\n'


def _warnings(sentences: Sequence[str]) -> str:
    return "".join(f'<p class="warning">{cut(sentence, limit=_WARNING_CHARACTERS)}</p>\n' for sentence in sentences)


def _checks(checks: Mapping[str, Mapping[str, Any]]) -> str:
    if not checks:
        return _NOT_LOOKED_AT
    # Findings first, then what was not looked at, then what is fine; in the given order within each.
    order = sorted(checks.items(), key=lambda entry: (not entry[1].get("num_items"), entry[1].get("num_items") == 0))
    rows = []
    for name, check in order:
        number = check.get("num_items")
        effect = ("left out" if check.get("effect") == "rejects" else "kept, look") if number else ""
        threshold = f' <span class="soft">({cut(check["threshold"])})</span>' if check.get("threshold") else ""
        about = cut(check.get("about")) + threshold + unfolded([str(item) for item in check.get("items") or ()], number or 0)
        cells = [number_cell("not looked at" if number is None else f"{number:,}"), f"<td>{effect}</td>", text_cell(about)]
        rows.append(row(check_name(name), cells, mark="" if number else "calm"))
    return table([heading("found", is_number=True), heading("effect"), heading("what it looks for")], rows)


def _coverage(coverage: Mapping[str, Mapping[str, Any]] | None) -> str:
    if not coverage:
        return ""
    rows = []
    for split, counts in coverage.items():
        expected = counts.get("official") or counts.get("listed") or 0
        share = (counts.get("found") or 0) / expected if expected else None
        cells = [number_cell(whole(counts.get(key))) for key in _COVERAGE]
        rows.append(row(split_name(split), [*cells, *_share_cells(share)]))
    note = "Official: clips of the complete corpus. Listed: in its tables. Found: listed, and the audio is here."
    return f'<p class="soft">{note}</p>\n' + table([heading(name, is_number=True) for name in (*_COVERAGE, "", "share")], rows)


def _splits(splits: Mapping[str, Mapping[str, Any]] | None) -> str:
    if not splits:
        return ""
    total = max(sum(size["num_clips"] for size in splits.values()), 1)
    rows = []
    for name, size in splits.items():
        cells = [number_cell(f"{size['num_clips']:,}"), number_cell(length(size.get("hours") or 0.0))]
        rows.append(row(split_name(name), [*cells, *_share_cells(size["num_clips"] / total)]))
    return table([heading(name, is_number=True) for name in ("clips", "length", "", "share")], rows)


def _share_cells(share: float | None) -> list[str]:
    if share is None:
        return ["<td></td>", number_cell(MISSING)]
    return [f'<td class="meter">{bar(share)}</td>', number_cell(f"{100 * share:.1f} %")]


def _copies(report: Mapping[str, Any]) -> str:
    parts = [
        f"<h3>Copies of one file</h3>\n{_groups(report.get('duplicates'))}",
        f"<h3>Clips that sound alike</h3>\n{_groups(report.get('near_duplicates'))}",
    ]
    if report.get("overlaps"):
        parts.append(f"<h3>Overlap with other corpora</h3>\n{''.join(map(_overlap, report['overlaps']))}")
    shared = (report.get("captions") or {}).get("num_shared_across_splits")
    if shared:
        stand = "stands" if shared == 1 else "stand"
        parts.append(f"<h3>Equal captions</h3>\n<p>{counted(shared, 'caption')} {stand} in more than one split.</p>\n")
    return "".join(parts)


def _groups(groups: Mapping[str, Any] | None) -> str:
    if groups is None:
        return _NOT_LOOKED_AT
    if not groups["num_groups"]:
        return '<p class="soft">None.</p>\n'
    across = groups.get("num_groups_across_splits") or 0
    mark = ' class="warning"' if across else ""
    text = f"<p{mark}>{counted(groups['num_groups'], 'group')}, of these across splits: {across:,}.</p>\n"
    shown = list(groups.get("groups") or ())[:MAX_GROUPS]
    return text + "".join(f'<p class="group">{_members(group)}</p>\n' for group in shown)


def _members(group: Sequence[str]) -> str:
    more = f" … {len(group) - MAX_MEMBERS:,} more" if len(group) > MAX_MEMBERS else ""
    return " = ".join(item_name(str(item)) for item in group[:MAX_MEMBERS]) + more


def _overlap(overlap: Mapping[str, Any]) -> str:
    run, number = item_name(str(overlap["run"])), overlap["num_clips"]
    if not number:
        return f'<p class="soft">{run}: none.</p>\n'
    splits = ", ".join(f"{split_name(split)} {count:,}" for split, count in (overlap.get("splits") or {}).items())
    text = f"{counted(number, 'clip')} of this corpus {'is' if number == 1 else 'are'} in it"
    pairs = [
        f'<p class="group">{item_name(str(pair["id"]))} = {item_name(str(pair["other"]))} '
        f'<span class="soft">{cut(pair.get("reason"))}</span></p>\n'
        for pair in list(overlap.get("pairs") or ())[:MAX_GROUPS]
    ]
    return f'<p class="warning">{run}: {text}{f" (there in {splits})" if splits else ""}.</p>\n{"".join(pairs)}'


def _contents(report: Mapping[str, Any]) -> str:
    rates = {f"{float(rate):,.0f} Hz": count for rate, count in (report.get("sample_rates") or {}).items()}
    small = [
        chart("Sample rates", rates),
        chart("Channels", report.get("channels")),
        chart("Formats", report.get("formats")),
        chart("Languages of the captions", report.get("languages")),
    ]
    parts = [f'<div class="charts">{"".join(small)}</div>\n' if any(small) else "", chart("Labels", report.get("labels"))]
    for title, key in (("Durations in seconds", "durations_s"), ("Captions", "captions")):
        if facts := fact_list(report.get(key)):
            parts.append(f"<h3>{title}</h3>\n{facts}")
    return "".join(parts)


def _rejected(rejections: Sequence[Mapping[str, Any]]) -> str:
    if not rejections:
        return ""
    by_kind: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in _KINDS}
    for rejection in rejections:
        by_kind[rejection.get("kind") or "bad"].append(rejection)
    numbers = ", ".join(f"{len(found):,} {_KINDS[kind]}" for kind, found in by_kind.items() if found)
    shown = [(kind, rejection) for kind, found in by_kind.items() for rejection in found][:MAX_REJECTIONS]
    rows = [
        row(
            item_name(str(rejection["item"])),
            [
                f"<td>{_KINDS[kind]}</td>",
                f"<td>{check_name(rejection.get('check') or '')}</td>",
                text_cell(cut(rejection["reason"])),
            ],
        )
        for kind, rejection in shown
    ]
    only = f"; the first {len(shown)} are shown, all are in rejected.jsonl" if len(rejections) > len(shown) else ""
    text = f'<p class="soft">{counted(len(rejections), "item")}: {numbers}{only}.</p>\n'
    return text + table([heading(name) for name in ("outcome", "check", "why")], rows)


def _worst(worst: Sequence[WorstCase], checks: Mapping[str, Mapping[str, Any]]) -> str:
    by_check: dict[str, list[WorstCase]] = {}
    for case in worst:
        by_check.setdefault(case.check, []).append(case)
    parts, room = [], MAX_CARDS
    for name, cases in by_check.items():
        shown = cases[: min(MAX_CARDS_PER_CHECK, room)]
        room -= len(shown)
        if shown:
            total = checks.get(name, {}).get("num_items") or len(cases)
            title = f'{check_name(name)} <span class="soft">{len(shown)} of {total:,}</span>'
            parts.append(f'<h3>{title}</h3>\n<div class="cards">\n{"".join(map(_card, shown))}</div>\n')
    return f'<p class="soft">{_LEGEND}</p>\n{"".join(parts)}' if parts else ""


def _card(case: WorstCase) -> str:
    if case.waveform is None:
        picture, facts = '<div class="blank">cannot be decoded</div>', ""
    else:
        source = picture_source(thumbnail(case.waveform, case.sample_rate, width=256, height=128))
        picture = f'<img alt="Spectrogram and waveform" width="256" height="128" src="{source}">'
        facts = f'<div class="soft">{case.waveform.size / case.sample_rate:.3g} s, {case.sample_rate / 1000:g} kHz</div>'
    caption = f"<div>{cut(case.caption, limit=_CAPTION_CHARACTERS)}</div>" if case.caption.strip() else ""
    return f'<article>{picture}<div class="what">{cut(case.detail)}</div>{caption}{item_name(case.item)}{facts}</article>\n'
