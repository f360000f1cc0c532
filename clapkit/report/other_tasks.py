"""What the page says of languages and of changed sounds beside the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clapkit.report._html import MISSING, outside, table
from clapkit.report.numbers import At, Scales, known
from clapkit.report.pieces import Picture, figure, row, run_headings

Run = Mapping[str, Any]
LANGUAGES, ROBUSTNESS = "multilingual", "robustness"
_NAME_CHARACTERS = 60


def languages(names: Sequence[str], runs: Sequence[Run], scales: Scales, picture: Picture | None) -> str:
    """Retrieval of every language, one table per metric, the first unfolded; empty without languages."""
    found = [run["tasks"].get(LANGUAGES, {}).get("per_language", {}) for run in runs]
    every = dict.fromkeys(language for run in found for language in run)
    metrics = dict.fromkeys(metric for run in found for entry in run.values() for metric in entry["metrics"])
    tables = []
    for metric in metrics:
        rows = [
            row(
                outside(language, limit=_NAME_CHARACTERS),
                [_language(run, number, language, metric, scales) for number, run in enumerate(runs)],
            )
            for language in every
        ]
        tables.append((metric, table(run_headings(names), rows)))
    return figure(picture) + _folded(tables, is_first_open=picture is None)


def _language(run: Run, number: int, language: str, metric: str, scales: Scales) -> str:
    at: At = ("runs", number, "tasks", LANGUAGES)
    result = run["tasks"].get(LANGUAGES, {})
    value = result.get("per_language", {}).get(language, {}).get("metrics", {}).get(metric)
    variant = f"language_{language}"
    interval = (result.get("variants", {}).get(variant, {}).get("intervals") or {}).get(metric)
    place: At = (*at, "per_language", language, "metrics", metric)
    return scales.cell(metric, value, place, interval, (*at, "variants", variant, "intervals", metric))


def robustness(names: Sequence[str], runs: Sequence[Run], scales: Scales, pictures: Sequence[Picture]) -> str:
    """Metrics of changed sounds, one table per metric; empty where no sound was changed."""
    points = [run["tasks"].get(ROBUSTNESS, {}).get("robustness", []) for run in runs]
    every = dict.fromkeys((point["change"], point["severity"], point.get("unit", "")) for found in points for point in found)
    metrics = dict.fromkeys(metric for found in points for point in found for metric in point["metrics"])
    tables = []
    for metric in metrics:
        rows = [row("unchanged", [_clean(run, number, metric, scales) for number, run in enumerate(runs)])]
        for change, severity, unit in every:
            shown = f"{severity:g}" if isinstance(severity, int | float) else str(severity)
            name = outside(f"{change.replace('_', ' ')} {shown} {unit}", limit=_NAME_CHARACTERS)
            key = (change, severity, unit)
            rows.append(row(name, [_point(found, number, key, metric, scales) for number, found in enumerate(points)]))
        tables.append((metric, table(run_headings(names), rows)))
    return "".join(map(figure, pictures)) + _folded(tables, is_first_open=not pictures)


def _clean(run: Run, number: int, metric: str, scales: Scales) -> str:
    value = run["tasks"].get(ROBUSTNESS, {}).get("clean", {}).get(metric)
    place: At = ("runs", number, "tasks", ROBUSTNESS, "clean", metric)
    return scales.cell(f"{ROBUSTNESS}_{metric}", value, place, None, ())


def _point(found: Sequence[Mapping[str, Any]], number: int, key: tuple[Any, Any, Any], metric: str, scales: Scales) -> str:
    """A value, and below it what was lost."""
    for place, point in enumerate(found):
        if (point["change"], point["severity"], point.get("unit", "")) == key and metric in point["metrics"]:
            at: At = ("runs", number, "tasks", ROBUSTNESS, "robustness", place)
            name = f"{ROBUSTNESS}_{metric}"
            value = scales.number(name, point["metrics"][metric], (*at, "metrics", metric))
            drop = point.get("drop", {}).get(metric)
            lost = ""
            if drop is not None:
                lost = f'<span class="soft">lost {known(scales.text(name, drop), drop, (*at, "drop", metric))}</span>'
            return f'<td class="number">{value}{lost}</td>'
    return f'<td class="number">{MISSING}</td>'


def _folded(tables: Sequence[tuple[str, str]], *, is_first_open: bool) -> str:
    parts = []
    for place, (metric, body) in enumerate(tables):
        opened = " open" if is_first_open and not place else ""
        parts.append(f"<details{opened}><summary>{outside(metric, limit=80)}</summary>\n{body}</details>\n")
    return "".join(parts)
