"""``comparison.tex``: the leaderboard as a table for a paper; needs the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clapkit.steps.comparison.leaderboard import Cell, measured_on, places
from clapkit.steps.comparison.numbers import unit

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "…": r"\ldots{}",
    **{character: f"\\{character}" for character in "{}$&#_%"},
}
_PATTERN = re.compile("|".join(map(re.escape, _SPECIAL)))


def latex(compared: Mapping[str, Any]) -> str:
    r"""The leaderboard as a ``table`` with its caption and ``\label{tab:comparison}``.

    Args:
        compared: from ``compare``.
    """
    headline = compared["headline"]
    rows, notes = places(compared)
    lines = [
        "% Needs \\usepackage{booktabs}.",
        r"\begin{table}",
        r"\centering",
        f"\\caption{{{_caption(compared)}}}",
        r"\label{tab:comparison}",
        f"\\begin{{tabular}}{{l{'r' * len(headline)}}}",
        r"\toprule",
        _line(["", *(escaped(f"{metric} ({unit(metric)})" if unit(metric) else metric) for metric in headline)]),
        r"\midrule",
    ]
    for place in rows:
        marks = f"$^{{{','.join(map(str, place.notes))}}}$" if place.notes else ""
        lines.append(_line([escaped(place.name) + marks, *(_cell(place.cells.get(metric)) for metric in headline)]))
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"\\par\\footnotesize $^{{{number}}}$ {escaped(text)}" for number, text in enumerate(notes, start=1)]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return _PATTERN.sub(lambda found: _SPECIAL[found[0]], " ".join(text.split()))


def _caption(compared: Mapping[str, Any]) -> str:
    """What the numbers are, and when one is bold."""
    several = any(len(method["runs"]) > 1 for method in compared["methods"])
    said = [measured_on(compared), "95 % bootstrap intervals over clips in brackets."]
    if several:
        said.append("Several seeds: mean and standard deviation over seeds, interval from clips and seeds.")
    covered = "p < 0.05 after Holm's correction"
    if several:
        covered += ", and the interval of the difference from clips and seeds without zero where there are several seeds"
    bold = f"Bold: the best, where it differs from the second best (paired sign-flip test over clips, {covered})."
    alone = any(len(method["runs"]) == 1 for method in compared["methods"])
    said.append(bold)
    if alone:
        said.append("With one run of each, the training seed is not covered.")
    return escaped(" ".join(said))


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    value = f"\\textbf{{{cell.value}}}" if cell.leads else cell.value
    deviation = f" $\\pm$ {cell.deviation}" if cell.deviation else ""
    # A bracket that follows a line break would be read as its optional argument, hence the group.
    interval = f" {{\\scriptsize {cell.interval}}}" if cell.interval else ""
    return value + deviation + interval


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
