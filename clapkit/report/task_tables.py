"""The protocol box, and the metrics of every task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from clapkit.report._html import flat, outside, table, words
from clapkit.report.numbers import At, Scales
from clapkit.report.pieces import (
    Picture,
    figure,
    heading,
    metric_name,
    paragraph,
    row,
    run_headings,
    run_name,
    value_cell,
    value_text,
)

Run = Mapping[str, Any]
_ALWAYS = ("model fingerprint", "data", "split")
_CUT_RUNS = 12
_FIRST = ("retrieval", "zero-shot", "multilingual", "geometry")


def protocol_box(names: Sequence[str], runs: Sequence[Run]) -> str:
    """What was run on what: what differs as a table, what is common as a list, and the warnings."""
    facts = [_facts(run) for run in runs]
    keys = list(dict.fromkeys(key for found in facts for key in found))
    differing = [key for key in keys if any(found.get(key) != facts[0].get(key) for found in facts)]
    rows = [
        row(escape(key), [value_cell(found.get(key)) for found in facts], differs=key in differing and key != _ALWAYS[0])
        for key in keys
        if key in differing or key in _ALWAYS
    ]
    parts = [table(run_headings(names, is_number=False), rows)]
    protocols = [key for key in differing if key != _ALWAYS[0]]
    if protocols:
        parts.append(
            paragraph(
                f"The protocols differ in {', '.join(protocols)}; the metrics are comparable only if that is what is compared.",
                kind="warning",
            )
        )
    rest = [key for key in keys if key not in differing and key not in _ALWAYS]
    general = {words(key) for run in runs for key, _ in flat(run["protocol"])}
    common = _list(facts[0], [key for key in rest if key in general])
    parts.append(f"<h3>{'Protocol' if len(runs) == 1 else 'Common to all runs'}</h3>\n{common}")
    for task in dict.fromkeys(task for run in runs for task in run["tasks"]):
        listed = _list(facts[0], [key for key in rest if key not in general and key.startswith(f"{task} ")], drop=f"{task} ")
        if listed:
            parts.append(f"<details><summary>Protocol and counts of {outside(task, limit=80)}</summary>\n{listed}</details>\n")
    return "".join(parts) + _warnings(names, runs)


def _list(facts: Mapping[str, str], keys: Sequence[str], *, drop: str = "") -> str:
    """Facts one below the other; empty without any."""
    entries = "".join(
        f"<div><dt>{outside(key.removeprefix(drop), limit=80)}</dt><dd>{value_text(facts.get(key))}</dd></div>\n"
        for key in keys
    )
    return f"<dl>\n{entries}</dl>\n" if entries else ""


def _warnings(names: Sequence[str], runs: Sequence[Run]) -> str:
    warned: dict[str, list[str]] = {}
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        for text in (warning for task in run["tasks"].values() for warning in task.get("warnings", [])):
            warned.setdefault(text, []).append(run_name(name, number))
    parts = []
    for text, who in warned.items():
        whose = "" if len(names) == 1 else "all runs: " if len(who) == len(names) else f"{', '.join(who[:_CUT_RUNS])}: "
        parts.append(f'<p class="warning">{whose}{outside(text, limit=600)}</p>\n')
    return "".join(parts)


def _facts(run: Run) -> dict[str, str]:
    """What was run on what, as flat text; the fingerprint of the model comes first."""
    facts = {_ALWAYS[0]: str(run["model_fingerprint"])}
    facts |= {words(key): text for key, text in flat(run["protocol"])}
    for task, result in run["tasks"].items():
        facts |= {f"{task} {words(key)}": text for key, text in flat(result.get("protocol", {}))}
        facts |= {f"{task} {words(key)}": text for key, text in flat(result.get("counts", {}))}
    return facts


def metrics(names: Sequence[str], runs: Sequence[Run], scales: Scales, pictures: Mapping[str, Picture]) -> str:
    """The metrics of all tasks.

    Args:
        names: of the runs.
        runs: as in ``results.json``.
        scales: of the metrics.
        pictures: task -> figure below its table.
    """
    every = dict.fromkeys(task for run in runs for task in run["tasks"])
    tasks = dict.fromkeys([*(task for task in _FIRST if task in every), *every])
    note = "Percent where a metric is a fraction; MedR and MeanR are ranks (lower is better)"
    note += (
        "; below each value its 95 % interval."
        if any(t.get("intervals") for run in runs for t in run["tasks"].values())
        else "."
    )
    body = "".join(_task(names, runs, task, scales, pictures.get(task)) for task in tasks)
    if not body:
        return ""
    return paragraph(note, kind="soft") + (f'<div class="single">{body}</div>\n' if len(runs) == 1 else body)


def _task(names: Sequence[str], runs: Sequence[Run], task: str, scales: Scales, picture: Picture | None) -> str:
    found = [run["tasks"].get(task, {}) for run in runs]
    at: list[At] = [("runs", number, "tasks", task) for number in range(len(runs))]
    body = metric_table(names, found, at, scales)
    variants = dict.fromkeys(name for result in found for name in result.get("variants", {}))
    folded = "".join(
        f"<details><summary>{escape(task)}: {outside(name, limit=160)}</summary>\n"
        + metric_table(
            names,
            [result.get("variants", {}).get(name, {}) for result in found],
            [(*place, "variants", name) for place in at],
            scales,
        )
        + "</details>\n"
        for name in variants
    )
    title = f"<h3>{outside(task, limit=80)}</h3>\n"
    if not body and not folded:
        return ""
    # A figure needs the whole width, where tables of several tasks stand side by side.
    return f"<div{' class=all' if picture else ''}>{title}{body}{figure(picture)}{folded}</div>\n"


def metric_table(names: Sequence[str], found: Sequence[Mapping[str, Any]], at: Sequence[At], scales: Scales) -> str:
    """One row per metric, one column per run, and one for chance where it is known; empty without a metric.

    Args:
        names: of the runs.
        found: for each run ``metrics``, ``intervals`` and ``chance``, each of which may be missing.
        at: where each of them stands in ``results.json``.
        scales: of the metrics.
    """
    wanted = dict.fromkeys(metric for result in found for metric in result.get("metrics", {}))
    if not wanted:
        return ""
    has_chance = any(result.get("chance") for result in found)
    rows = []
    for metric in wanted:
        cells = [
            scales.cell(
                metric,
                result.get("metrics", {}).get(metric),
                (*place, "metrics", metric),
                (result.get("intervals") or {}).get(metric),
                (*place, "intervals", metric),
            )
            for result, place in zip(found, at, strict=True)
        ]
        rows.append(row(metric_name(metric), cells + ([_chance_cell(metric, found, at, scales)] if has_chance else [])))
    return table(run_headings(names) + ([heading("chance")] if has_chance else []), rows)


def _chance_cell(metric: str, found: Iterable[Mapping[str, Any]], at: Sequence[At], scales: Scales) -> str:
    """What guessing gives, of the first run of which it is known."""
    for result, place in zip(found, at, strict=True):
        value = result.get("chance", {}).get(metric)
        if value is not None:
            return f'<td class="number">{scales.number(metric, value, (*place, "chance", metric))}</td>'
    return '<td class="number"></td>'
