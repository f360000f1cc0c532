"""The order and the footnotes of a leaderboard, whatever it is written in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clapkit.steps.comparison.numbers import lower_is_better, show, show_interval


@dataclass(frozen=True, slots=True)
class Place:
    """A method on the leaderboard.

    Attributes:
        name: of the method, with the number of its runs if there are several.
        is_baseline: whether the others were tested against it.
        notes: numbers of its footnotes, from 1.
        cells: headline metric -> what to show.
    """

    name: str
    is_baseline: bool
    notes: list[int]
    cells: dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Cell:
    """A number on the leaderboard.

    Attributes:
        value: in the unit of the metric.
        deviation: over seeds, empty for one run.
        interval: in brackets, or empty.
        leads: whether it is the best and really better than the second.
    """

    value: str
    deviation: str
    interval: str
    leads: bool


def places(compared: Mapping[str, Any]) -> tuple[list[Place], list[str]]:
    """Methods sorted by the first headline metric, best first, and the footnotes.

    Args:
        compared: from ``compare``.
    """
    notes: dict[str, int] = {}
    found = []
    for method in sorted(compared["methods"], key=lambda method: _rank(method, compared["headline"])):
        several = len(method["runs"]) > 1
        for mark in method["marks"]:
            text = f"{mark['run']}: {mark['text']}" if several else mark["text"]
            notes.setdefault(text, len(notes) + 1)
        texts = [f"{mark['run']}: {mark['text']}" if several else mark["text"] for mark in method["marks"]]
        cells = {metric: _cell(compared, method, metric) for metric in compared["headline"] if metric in method["metrics"]}
        name = f"{method['method']} ({len(method['runs'])} seeds)" if several else method["method"]
        found.append(Place(name, method["method"] == compared["baseline_method"], [notes[text] for text in texts], cells))
    return found, list(notes)


def measured_on(compared: Mapping[str, Any]) -> str:
    """The clips behind the numbers, as a sentence: no table says anything without them.

    Args:
        compared: from ``compare``.
    """
    protocol = compared["protocol"]
    clips = "every clip" if protocol["split"] == "all" else f"split {protocol['split']}"
    return f"Measured on {protocol['data']}, {clips}: {protocol['num_clips']} clips with {protocol['num_captions']} captions."


def _rank(method: Mapping[str, Any], headline: list[str]) -> tuple[bool, float]:
    """Key to sort by; methods that lack the metric come last."""
    value = method["metrics"].get(headline[0]) if headline else None
    if value is None:
        return True, 0.0
    return False, value if lower_is_better(headline[0]) else -value


def _cell(compared: Mapping[str, Any], method: Mapping[str, Any], metric: str) -> Cell:
    interval, spread = method["intervals"].get(metric), method["spread"].get(metric)
    leader = compared["leaders"][metric]
    return Cell(
        value=show(metric, method["metrics"][metric]),
        deviation="" if spread is None else show(metric, spread["deviation"]),
        interval="" if interval is None else show_interval(metric, interval),
        leads=leader["real"] and leader["best"] == method["method"],
    )
