"""The top of the page: what must be known first, one sentence, and the headline numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from clapkit.report._html import outside, table
from clapkit.report.numbers import At, Scales
from clapkit.report.pieces import NAME_CHARACTERS, heading, paragraph, row, run_name

Run = Mapping[str, Any]

HEADLINE = {
    "t2a_R@1": "captions that find their clip first",
    "a2t_R@1": "clips that find a caption of theirs first",
    "zero_shot_accuracy": "clips given the right class",
    "zero_shot_mAP": "mean average precision over classes",
}
"""Metrics that come first where there are such, and what they say."""

_MAX_SAID = 3
_MARKS = {
    "seen_clips": "The model has seen these clips",
    "selected_on_test": "The model was selected on these clips",
    "incomplete_split": "Clips are missing",
    "unknown_training": "The training is not known",
    "other_protocol": "Measured by another protocol",
}


def subtitle(runs: Sequence[Run]) -> str:
    """On which data."""
    places = dict.fromkeys(f"{run['protocol']['data']}, split {run['protocol']['split']}" for run in runs)
    return f'<p class="soft">clapkit eval on {outside("; ".join(places), limit=300)}</p>\n'


def marks(names: Sequence[str], runs: Sequence[Run]) -> str:
    """What a reader must know before believing the numbers; runs of which the same is to be said stand together."""
    said: dict[tuple[str, str], list[str]] = {}
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        for mark in run.get("marks", []):
            said.setdefault((mark["kind"], mark["text"]), []).append(run_name(name, number))
    parts = []
    for (kind, text), who in said.items():
        whose = f"{', '.join(who)}: " if len(names) > 1 else ""
        title = escape(_MARKS.get(kind, kind.replace("_", " ")))
        parts.append(f'<p class="mark"><b>⚠ {title}.</b> {whose}{outside(text, limit=600)}.</p>\n')
    return "".join(parts)


def headline_metrics(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Task and name of the metrics that come first: those of ``HEADLINE``, or the first of each task."""
    every = dict.fromkeys((task, metric) for run in runs for task, found in run["tasks"].items() for metric in found["metrics"])
    wanted = [pair for metric in HEADLINE for pair in every if pair[1] == metric]
    first = {task: (task, metric) for task, metric in reversed(every)}
    return wanted or list(reversed(first.values()))


def verdict(names: Sequence[str], runs: Sequence[Run], compared: str, scales: Scales) -> str:
    """One sentence about the numbers.

    Args:
        names: of the runs.
        runs: as in ``results.json``.
        compared: HTML, the end of the sentence where there are several.
        scales: of the metrics.
    """
    if len(runs) > 1:
        return _verdict_of_several(names, runs, compared, scales)
    said = [
        _said(runs[0], task, metric, scales)
        for task, metric in headline_metrics(runs)[:_MAX_SAID]
        if _has(runs[0], task, metric)
    ]
    return f'<p class="verdict">{run_name(names[0], 0)}: {"; ".join(said)}.</p>\n' if said else ""


def headline(names: Sequence[str], runs: Sequence[Run], comparison: Mapping[str, Any] | None, scales: Scales) -> str:
    """The headline numbers with intervals, chance and what difference the test set can show."""
    found = headline_metrics(runs)
    smallest = {metric: detectable(runs[0], comparison, metric) for _, metric in found}
    if not found:
        return ""
    if len(runs) == 1:
        tiles = [_tile(runs[0], task, metric, scales, smallest=smallest[metric]) for task, metric in found]
        return f'<div class="tiles">\n{"".join(tiles)}</div>\n'
    headings = [heading(metric) for _, metric in found]
    rows = [
        row(
            run_name(name, number),
            [_cell(run, number, task, metric, scales, best=_best(runs, task, metric, scales)) for task, metric in found],
        )
        for number, (name, run) in enumerate(zip(names, runs, strict=True))
    ]
    levels = {
        "chance": [_chance(runs[0], 0, task, metric) for task, metric in found],
        "smallest difference shown": list(smallest.values()),
    }
    for title, known in levels.items():
        if any(level is not None for level in known):
            cells = [
                "<td></td>" if level is None else f'<td class="number">{scales.number(metric, *level)}</td>'
                for (_, metric), level in zip(found, known, strict=True)
            ]
            rows.append(row(f'<span class="soft">{title}</span>', cells))
    note = "Percent, below each value its 95 % interval; bold: the highest, which need not be a real difference."
    if any(level is not None for level in smallest.values()):
        note += f" Smallest difference shown: {_DETECTABLE}."
    return table(headings, rows) + paragraph(note, kind="soft")


_DETECTABLE = (
    "between two independent results on this test set, found in 80 % of such tests at 0.05; pairing finds smaller ones"
)


def detectable(run: Run, comparison: Mapping[str, Any] | None, metric: str) -> tuple[float, At] | None:
    """The smallest difference that the test set shows between the first run and another result, and where it stands."""
    own = run.get("minimum_detectable") or {}
    if own.get(metric) is not None:
        return own[metric], ("runs", 0, "minimum_detectable", metric)
    rows = (comparison or {}).get("rows") or [{}]
    value = (rows[0].get("minimum_detectable") or {}).get(metric)
    return None if value is None else (value, ("comparison", "rows", 0, "minimum_detectable", metric))


def _chance(run: Run, number: int, task: str, metric: str) -> tuple[float, At] | None:
    value = run["tasks"].get(task, {}).get("chance", {}).get(metric)
    return None if value is None else (value, ("runs", number, "tasks", task, "chance", metric))


def _has(run: Run, task: str, metric: str) -> bool:
    return metric in run["tasks"].get(task, {}).get("metrics", {})


def _value(run: Run, number: int, task: str, metric: str, scales: Scales) -> str:
    """A value with its unit."""
    shown = scales.number(metric, run["tasks"][task]["metrics"][metric], ("runs", number, "tasks", task, "metrics", metric))
    return shown + _unit(metric, scales)


def _unit(metric: str, scales: Scales) -> str:
    return "\N{NO-BREAK SPACE}%" if scales.is_fraction(metric) else ""


def _interval(run: Run, number: int, task: str, metric: str, scales: Scales) -> str | None:
    bounds = run["tasks"][task].get("intervals", {}).get(metric)
    if bounds is None:
        return None
    at: At = ("runs", number, "tasks", task, "intervals", metric)
    low, high = (scales.number(metric, bound, (*at, place)) for place, bound in enumerate(bounds))
    return f"{low} to {high}{_unit(metric, scales)}"


def _said(run: Run, task: str, metric: str, scales: Scales) -> str:
    """A metric, its interval and how it stands to chance."""
    text = f"<b>{escape(metric)} {_value(run, 0, task, metric, scales)}</b>"
    interval = _interval(run, 0, task, metric, scales)
    if interval:
        text += f" (95 % interval {interval})"
    chance = _chance(run, 0, task, metric)
    if chance is None:
        return text
    bounds = run["tasks"][task].get("intervals", {}).get(metric)
    value = run["tasks"][task]["metrics"][metric]
    low, high = bounds or (value, value)
    how = "better than" if low > chance[0] else "worse than" if high < chance[0] else "not shown to differ from"
    return f"{text}, {how} guessing ({scales.number(metric, *chance)}{_unit(metric, scales)})"


def _tile(run: Run, task: str, metric: str, scales: Scales, *, smallest: tuple[float, At] | None) -> str:
    lines = [f'<span class="what">{escape(metric)}</span>', f"<b>{_value(run, 0, task, metric, scales)}</b>"]
    if metric in HEADLINE:
        lines.append(f"{HEADLINE[metric]}<br>")
    if interval := _interval(run, 0, task, metric, scales):
        lines.append(f"95 % interval {interval}<br>")
    if chance := _chance(run, 0, task, metric):
        lines.append(f"chance {scales.number(metric, *chance)}{_unit(metric, scales)}<br>")
    if smallest is not None:
        shown = f"{scales.number(metric, *smallest)}{' points' if scales.is_fraction(metric) else ''}"
        lines.append(f'<span title="{_DETECTABLE}">smallest difference shown {shown}</span>')
    return f"<div>{''.join(lines)}</div>\n"


def _best(runs: Sequence[Run], task: str, metric: str, scales: Scales) -> str | None:
    """The highest value as it is shown; None where all are equal or it is not known which end is good."""
    values = [run["tasks"][task]["metrics"][metric] for run in runs if _has(run, task, metric)]
    shown = {scales.text(metric, value) for value in values}
    return scales.text(metric, max(values)) if scales.is_fraction(metric) and len(shown) > 1 else None


def _cell(run: Run, number: int, task: str, metric: str, scales: Scales, *, best: str | None) -> str:
    if not _has(run, task, metric):
        return '<td class="number">–</td>'
    shown = scales.number(metric, run["tasks"][task]["metrics"][metric], ("runs", number, "tasks", task, "metrics", metric))
    if scales.text(metric, run["tasks"][task]["metrics"][metric]) == best:
        shown = f"<b>{shown}</b>"
    interval = (_interval(run, number, task, metric, scales) or "").removesuffix(_unit(metric, scales))
    return f'<td class="number">{shown}<span class="soft">{interval}</span></td>'


def _verdict_of_several(names: Sequence[str], runs: Sequence[Run], compared: str, scales: Scales) -> str:
    found = headline_metrics(runs)
    if not found:
        return ""
    task, metric = found[0]
    having = [number for number, run in enumerate(runs) if _has(run, task, metric)]
    best = max(having, key=lambda number: runs[number]["tasks"][task]["metrics"][metric])
    text = (
        f"The highest {escape(metric)} of {len(runs)} runs is {_value(runs[best], best, task, metric, scales)}, "
        f"by {run_name(names[best], best)}"
    )
    shown = [scales.text(metric, runs[number]["tasks"][task]["metrics"][metric]) for number in having]
    if (equal := shown.count(shown[having.index(best)])) > 1:
        text += f" and {equal - 1} more"
    return f'<p class="verdict">{text}{f"; {compared}" if compared else ""}.</p>\n'


def short(name: str) -> str:
    """A name in a title."""
    return name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1]}…"
