"""What the page says of a zero-shot classification beside its metrics: confusions, classes, and what the prompt is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clapkit.report._html import MISSING, outside, table
from clapkit.report.numbers import At, count, known
from clapkit.report.pieces import Picture, figure, heading, paragraph, row, run_name

Run = Mapping[str, Any]
TASK = "zero-shot"
_NAME_CHARACTERS = 80
_MAX_CONFUSIONS = 12
_MAX_OPEN_CLASSES = 20


def classification(names: Sequence[str], runs: Sequence[Run], confusion: Picture | None) -> str:
    """The section; empty where no run was asked.

    Args:
        names: of the runs.
        runs: as in ``results.json``.
        confusion: figure of the matrices.
    """
    parts = [figure(confusion)]
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        result, at = run["tasks"].get(TASK, {}), ("runs", number, "tasks", TASK)
        body = _confusions(result, at) + _classes(result, at) + _prompts(result, at)
        if body and len(names) > 1:
            body = f"<details{' open' if number == 0 else ''}><summary>{run_name(name, number)}</summary>\n{body}</details>\n"
        parts.append(body)
    return "".join(parts)


def _percent(value: float | None, at: At) -> str:
    return f'<td class="number">{MISSING if value is None else known(f"{100 * value:.1f}", value, at)}</td>'


def _name(text: str) -> str:
    return outside(text, limit=_NAME_CHARACTERS)


def _confusions(result: Mapping[str, Any], at: At) -> str:
    """The wrong pairs that occur most."""
    pairs = _wrong_pairs(result.get("confusion") or {}, at)
    if not pairs:
        return ""
    rows = [
        row(_name(target), [f"<td>{_name(predicted)}</td>", f'<td class="number">{count(number, place)}</td>'])
        for target, predicted, number, place in pairs[:_MAX_CONFUSIONS]
    ]
    return "<h3>Confused most</h3>\n" + table([heading("taken for", is_number=False), heading("clips")], rows)


def _wrong_pairs(confusion: Mapping[str, Any], at: At) -> list[tuple[str, str, int, At]]:
    """Target, prediction, number of clips and where that stands; most clips first."""
    if "counts" in confusion:
        classes = confusion["classes"]
        found = [
            (classes[target], classes[predicted], number, (*at, "confusion", "counts", target, predicted))
            for target, counts in enumerate(confusion["counts"])
            for predicted, number in enumerate(counts)
            if number and target != predicted
        ]
        return sorted(found, key=lambda pair: -pair[2])
    return [
        (pair["target"], pair["predicted"], pair["count"], (*at, "confusion", "largest", place, "count"))
        for place, pair in enumerate(confusion.get("largest", []))
    ]


def _classes(result: Mapping[str, Any], at: At) -> str:
    """Each class, the worst recognised first; classes without clips are left out."""
    given = [(place, entry) for place, entry in enumerate(result.get("per_class", [])) if entry["num_clips"]]
    if not given:
        return ""
    given.sort(key=lambda pair: (pair[1]["recall"] is None, pair[1]["recall"]))
    rows = []
    for place, entry in given:
        where = (*at, "per_class", place)
        shares = [_percent(entry.get(key), (*where, key)) for key in ("recall", "precision", "average_precision")]
        other = entry.get("confused_with")
        taken = f"{_name(other)} ({count(entry['num_confused'], (*where, 'num_confused'))})" if other else MISSING
        clips = f'<td class="number">{count(entry["num_clips"], (*where, "num_clips"))}</td>'
        rows.append(row(_name(entry["class"]), [clips, *shares, f"<td>{taken}</td>"]))
    headings = [heading(name) for name in ("clips", "recall", "precision", "average precision")]
    body = table([*headings, heading("most often taken for", is_number=False)], rows)
    if len(rows) > _MAX_OPEN_CLASSES:
        return f"<details><summary>All {len(rows)} classes, the worst recognised first</summary>\n{body}</details>\n"
    return f"<h3>Classes, the worst recognised first</h3>\n{body}"


def _prompts(result: Mapping[str, Any], at: At) -> str:
    """What each prompt alone would have given."""
    parts = []
    for metric, found in (result.get("prompt_sensitivity") or {}).items():
        if not isinstance(found, Mapping) or "templates" not in found:
            continue
        where = (*at, "prompt_sensitivity", metric)
        rows = [
            row(title, [_percent(value, place)])
            for title, value, place in (
                ("all together", found.get("ensemble"), (*where, "ensemble")),
                ("mean of each alone", found.get("mean"), (*where, "mean")),
                ("standard deviation", found.get("std"), (*where, "std")),
            )
            if value is not None
        ]
        if (default := found.get("default")) is not None:
            rows.append(
                row(f"default: {_name(default['template'])}", [_percent(default["value"], (*where, "default", "value"))])
            )
        ordered = sorted(found["templates"].items(), key=lambda pair: -pair[1])
        rows += [row(_name(template), [_percent(value, (*where, "templates", template))]) for template, value in ordered]
        parts.append(f"<h3>What the prompt is worth</h3>\n{table([heading(metric)], rows)}")
        parts.append(paragraph("The best prompt was found on these clips: choose one on others.", kind="soft"))
    return "".join(parts)
