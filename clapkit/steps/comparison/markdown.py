"""``comparison.md``: leaderboard, which differences are real, and every metric of every run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from clapkit.steps.comparison.leaderboard import Cell, measured_on, places
from clapkit.steps.comparison.numbers import show, show_difference, show_interval, unit

# Runs that fit beside each other; beyond, methods do.
_MAX_COLUMNS = 4
_SPECIAL = re.compile(r"[\\`*\[\]<>|~#&$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def markdown(compared: Mapping[str, Any]) -> str:
    """The comparison as Markdown.

    Args:
        compared: from ``compare``.
    """
    parts = ["# Comparison", *_warnings(compared), *_leaderboard(compared), *_differences(compared), *_all_metrics(compared)]
    return "\n\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line, inside a table too."""
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))


def _warnings(compared: Mapping[str, Any]) -> list[str]:
    return [f"**Warning:** {escaped(text)}" for text in compared["warnings"]]


def _leaderboard(compared: Mapping[str, Any]) -> list[str]:
    headline = compared["headline"]
    if not headline:
        return ["No headline metric was measured."]
    rows, notes = places(compared)
    lines = [_line(["run", *(f"{metric} ({unit(metric) or 'own unit'})" for metric in headline)]), _rule(len(headline))]
    for place in rows:
        name = escaped(place.name) + (" (baseline)" if place.is_baseline and len(rows) > 1 else "")
        marks = f"<sup>{', '.join(map(str, place.notes))}</sup>" if place.notes else ""
        lines.append(_line([name + marks, *(_cell(place.cells.get(metric)) for metric in headline)]))
    footnotes = [f"{number}. {escaped(text)}" for number, text in enumerate(notes, start=1)]
    return ["\n".join(lines), *(["\n".join(footnotes)] if notes else []), " ".join(_notes(compared))]


def _notes(compared: Mapping[str, Any]) -> list[str]:
    """Sentences under the leaderboard."""
    several = any(len(method["runs"]) > 1 for method in compared["methods"])
    notes = [
        escaped(measured_on(compared)),
        "Sorted by the first column. In brackets 95 % intervals, by a bootstrap over clips.",
    ]
    if several:
        notes.append("Methods of several seeds: mean ± standard deviation over seeds, interval from clips and seeds together.")
    notes.append("Bold: really better than the second, by the rule below.")
    baseline = next(row for row in compared["rows"] if row["label"] == compared["baseline"])
    detectable = {metric: baseline["minimum_detectable"].get(metric) for metric in compared["headline"]}
    smallest = [
        f"{metric} {show_difference(metric, value).lstrip('+')}" for metric, value in detectable.items() if value is not None
    ]
    if smallest:
        notes.append(
            f"Smallest true difference from an independent result that this test set shows with 80 % probability: "
            f"{', '.join(smallest)} (from {escaped(compared['baseline'])}; pairs on the same clips show smaller ones)."
        )
    return notes


def _differences(compared: Mapping[str, Any]) -> list[str]:
    others = [method for method in compared["methods"] if method["verdicts"]]
    if not others:
        return []
    lines = [
        f"* {_said(method, metric, compared['baseline_method'])}"
        for metric in compared["headline"]
        for method in others
        if metric in method["metrics"]
    ]
    return ["## Which differences are real", "\n".join(lines), escaped(compared["rule"])]


def _said(method: Mapping[str, Any], metric: str, baseline: str) -> str:
    """One difference in words."""
    judged, test = method["verdicts"][metric], method["tests"].get(metric)
    measured = ""
    if test is not None:
        measured = f" ({show_difference(metric, test['difference'])}"
        measured += f", {show_interval(metric, test['interval'])}" if test["interval"] is not None else ""
        measured += f", n = {test['num_clips']})"
    verdict = judged["verdict"] if judged["verdict"] == "no difference shown" else f"**{judged['verdict']}**"
    marks = "; marked, see above" if method["marks"] else ""
    against = f"{escaped(method['method'])} against {escaped(baseline)}"
    return f"{metric}, {against}: {verdict}{measured}; {escaped(judged['reason'])}{marks}."


def _all_metrics(compared: Mapping[str, Any]) -> list[str]:
    """Every metric: of every run where these fit into a table, of every method otherwise."""
    rows, methods = compared["rows"], compared["methods"]
    if len(rows) > _MAX_COLUMNS and len(methods) < len(rows):
        names = [escaped(method["method"]) for method in methods]
        cells = {name: [_averaged(method, name) for method in methods] for name in compared["metrics"]}
        note = "Means over the runs of a method ± standard deviation; single runs are in comparison.csv."
    else:
        names = [escaped(row["label"]) for row in rows]
        cells = {name: [_tested(row, name) for row in rows] for name in compared["metrics"]}
        note = (
            "95 % bootstrap intervals over clips. p: paired sign-flip test of single runs against "
            + escaped(compared["baseline"])
            + ", not corrected for the number of metrics and runs; it covers the choice of clips, not the training seed."
        )
    lines = [_line(["metric", "unit", *names]), _rule(len(names) + 1)]
    lines += [_line([name, unit(name), *cells[name]]) for name in compared["metrics"]]
    return ["## All metrics", "\n".join(lines), note]


def _averaged(method: Mapping[str, Any], name: str) -> str:
    value = method["metrics"].get(name)
    if value is None:
        return ""
    spread = method["spread"].get(name)
    return show(name, value) if spread is None else f"{show(name, value)} ± {show(name, spread['deviation'])}"


def _tested(row: Mapping[str, Any], name: str) -> str:
    value = row["metrics"].get(name)
    if value is None:
        return ""
    text = show(name, value)
    if name in row["intervals"]:
        text += f" {show_interval(name, row['intervals'][name])}"
    if name in row["tests"]:
        text += f", p = {row['tests'][name]['two_sided_p']:.4f}"
    return text


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    value = f"{cell.value} ± {cell.deviation}" if cell.deviation else cell.value
    return f"{f'**{value}**' if cell.leads else value} {cell.interval}".strip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(num_values: int) -> str:
    return "|---|" + "---|" * num_values
