"""What several runs show together: methods and their seeds, which differences are real, and the tests of single runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from clapkit.report._html import MISSING, outside, table
from clapkit.report.numbers import At, Scales, known
from clapkit.report.pieces import NAME_CHARACTERS, heading, metric_name, paragraph, row, run_name, swatch

Comparison = Mapping[str, Any]
_SIGNIFICANT = 0.05
_REAL = ("better", "worse")
_AT: At = ("comparison",)


def study(names: Sequence[str], comparison: Comparison | None, scales: Scales) -> str:
    """The section; empty for a single run.

    Args:
        names: of the runs, in the order of the rows.
        comparison: as in ``results.json``.
        scales: of the metrics.
    """
    if comparison is None or len(comparison.get("rows", [])) < 2:
        return ""
    parts = [f'<p class="warning">{outside(text, limit=600)}</p>\n' for text in comparison.get("warnings", [])]
    parts += [_leaderboard(comparison, scales), _claims(comparison, scales), _seeds(comparison, scales)]
    return "".join(parts) + _runs(names, comparison, scales)


def summary(comparison: Comparison | None, scales: Scales) -> str:
    """The end of a sentence about which differences in headline metrics are real, as HTML; empty where nothing was judged."""
    judged = [
        (place, method, metric, found["verdict"])
        for place, method in enumerate((comparison or {}).get("methods", []))
        for metric, found in method.get("verdicts", {}).items()
    ]
    if comparison is None or not judged:
        return ""
    baseline = outside(comparison.get("baseline_method", ""), limit=NAME_CHARACTERS, is_name=True)
    real = [entry for entry in judged if entry[3] in _REAL]
    if not real:
        return f"no difference from {baseline} is shown in {_listed(comparison.get('headline', []))}"
    said = [
        f"{outside(method['method'], limit=NAME_CHARACTERS, is_name=True)} is {verdict} than {baseline} in {escape(metric)}"
        f" ({_difference(method, place, metric, scales)})"
        for place, method, metric, verdict in real[:3]
    ]
    more = f", and {len(real) - 3} further real differences" if len(real) > 3 else ""
    return f"{'; '.join(said)}{more}; of {len(judged)} differences tested {len(real)} {'is' if len(real) == 1 else 'are'} real"


def _listed(metrics: Sequence[str]) -> str:
    return escape(", ".join(metrics))


def _difference(method: Mapping[str, Any], place: int, metric: str, scales: Scales) -> str:
    at: At = (*_AT, "methods", place, "tests", metric, "difference")
    points = " points" if scales.is_fraction(metric) else ""
    return scales.difference(metric, method["tests"][metric]["difference"], at) + points


def _leaderboard(comparison: Comparison, scales: Scales) -> str:
    """One row per method, the best in the first headline metric above."""
    methods, headline = comparison.get("methods", []), comparison.get("headline", [])
    if not methods or not headline:
        return ""
    order = list(range(len(methods)))
    order.sort(key=lambda place: -methods[place]["metrics"].get(headline[0], float("-inf")))
    leaders = comparison.get("leaders", {})
    rows = []
    for place in order:
        method = methods[place]
        cells = [f'<td class="number">{len(method["runs"])}</td>'] if len(methods) < len(comparison["rows"]) else []
        for metric in headline:
            leader = leaders.get(metric) or {}
            is_first = bool(leader.get("real")) and leader.get("best") == method["method"]
            cells.append(_leader_cell(method, place, metric, scales, is_first=is_first))
        mark = "⚠ " if method.get("marks") else ""
        base = ' <span class="soft">baseline</span>' if method["method"] == comparison.get("baseline_method") else ""
        rows.append(row(f"{mark}{outside(method['method'], limit=NAME_CHARACTERS, is_name=True)}{base}", cells))
    heads = [heading("runs")] if len(methods) < len(comparison["rows"]) else []
    note = (
        "Percent; runs that differ only in their seed are one method: its mean ± the deviation of its seeds; below, the 95 % "
        "interval, from clips and seeds together where there are several. Bold: the best, and really better than the second."
    )
    note += " ⚠ marked, see above." if any(method.get("marks") for method in methods) else ""
    board = table(heads + [heading(metric) for metric in headline], rows)
    return f"<h3>Leaderboard</h3>\n{board}{paragraph(note, kind='soft')}"


def _leader_cell(method: Mapping[str, Any], place: int, metric: str, scales: Scales, *, is_first: bool) -> str:
    value = method["metrics"].get(metric)
    if value is None:
        return f'<td class="number">{MISSING}</td>'
    at: At = (*_AT, "methods", place)
    text = scales.number(metric, value, (*at, "metrics", metric))
    text = f"<b>{text}</b>" if is_first else text
    spread = method.get("spread", {}).get(metric)
    if spread:
        text += f" ± {scales.number(metric, spread['deviation'], (*at, 'spread', metric, 'deviation'))}"
    bounds = method.get("intervals", {}).get(metric)
    below = ""
    if bounds is not None:
        low, high = (scales.number(metric, bound, (*at, "intervals", metric, end)) for end, bound in enumerate(bounds))
        below = f'<span class="soft">{low} to {high}</span>'
    return f'<td class="number">{text}{below}</td>'


def _claims(comparison: Comparison, scales: Scales) -> str:
    """What is claimed, in words, and the rule by which."""
    items = []
    baseline = outside(comparison.get("baseline_method", ""), limit=NAME_CHARACTERS, is_name=True)
    for place, method in enumerate(comparison.get("methods", [])):
        for metric, found in method.get("verdicts", {}).items():
            verdict = found["verdict"]
            is_real = verdict in _REAL
            text = f"<b>{escape(verdict)}</b>" if is_real else escape(verdict)
            measured = ""
            if metric in method.get("tests", {}):
                measured = f"{' by' if is_real else ', measured'} {_difference(method, place, metric, scales)}"
            name = outside(method["method"], limit=NAME_CHARACTERS, is_name=True)
            reason = outside(found["reason"], limit=400)
            items.append(f"<li>{escape(metric)}: {name} against {baseline}: {text}{measured}; {reason}.</li>\n")
    if not items:
        return ""
    rule = paragraph(comparison["rule"], kind="soft") if comparison.get("rule") else ""
    return f"<h3>Which differences are real</h3>\n<ul>\n{''.join(items)}</ul>\n{rule}"


def _seeds(comparison: Comparison, scales: Scales) -> str:
    """Methods with several seeds: how runs differ, and which part of the error is of the clips and which of the seeds."""
    rows = []
    for place, method in enumerate(comparison.get("methods", [])):
        for metric in comparison.get("headline", []):
            spread = method.get("spread", {}).get(metric)
            if not spread:
                continue
            at: At = (*_AT, "methods", place, "spread", metric)
            mean = scales.number(metric, method["metrics"][metric], (*_AT, "methods", place, "metrics", metric))
            cells = [
                f"<td>{escape(metric)}</td>",
                f'<td class="number">{len(method["runs"])}</td>',
                f'<td class="number">{mean}</td>',
            ]
            for key in ("deviation", "worst", "best", "test_error", "seed_error"):
                text = MISSING if spread.get(key) is None else scales.number(metric, spread[key], (*at, key))
                cells.append(f'<td class="number">{text}</td>')
            rows.append(row(outside(method["method"], limit=NAME_CHARACTERS, is_name=True), cells))
    if not rows:
        return ""
    names = ("seeds", "mean", "deviation of seeds", "worst seed", "best seed", "error from clips", "error from seeds")
    headings = [heading("metric", is_number=False), *map(heading, names)]
    note = (
        "Percent. The two errors are standard errors of the mean: from clips, as if others had been drawn; from seeds, as if "
        "others had been trained."
    )
    return f"<h3>Seeds</h3>\n{table(headings, rows)}{paragraph(note, kind='soft')}"


def _runs(names: Sequence[str], comparison: Comparison, scales: Scales) -> str:
    """Paired tests of single runs against the baseline run."""
    rows_of_runs = comparison["rows"]
    base = next(
        (n for n, entry in enumerate(rows_of_runs) if entry.get("label", entry.get("run")) == comparison["baseline"]), 0
    )
    others = [number for number in range(len(names)) if number != base]
    metrics = [metric for metric in comparison["metrics"] if any(metric in rows_of_runs[n]["tests"] for n in others)]
    if not metrics:
        name = run_name(names[base], base)
        return f"<p>No run was evaluated on the same clips and captions as {name}, so nothing is tested between runs.</p>\n"
    rows = [row(metric_name(metric), [_tested(metric, n, rows_of_runs[n], scales) for n in others]) for metric in metrics]
    note = (
        f"<p>Difference from {run_name(names[base], base)}, mean over clips, with its 95 % interval, and p of the two-sided "
        'paired sign-flip test.</p>\n<p class="soft">Percentage points where a metric is a fraction. Bold: p below '
        f"{_SIGNIFICANT}, not corrected for the number of metrics and runs; the test covers the choice of clips, not the "
        "training seed.</p>\n"
    )
    headings = [f'<th scope="col" class="number">{run_name(names[n], n)}</th>' for n in others]
    body = note + table(headings, rows)
    if len(comparison.get("methods", [])) == len(names):
        return f"<h3>Tests of single runs</h3>\n{body}"
    return f"<details><summary>Tests of single runs against {swatch(base)}the baseline run</summary>\n{body}</details>\n"


def _tested(metric: str, number: int, entry: Mapping[str, Any], scales: Scales) -> str:
    test = entry["tests"].get(metric)
    if test is None:
        return f'<td class="number">{MISSING}</td>'
    at: At = (*_AT, "rows", number, "tests", metric)
    between = ""
    if test["interval"] is not None:
        low, high = (scales.difference(metric, bound, (*at, "interval", end)) for end, bound in enumerate(test["interval"]))
        between = f"{low} to {high}, "
    difference = scales.difference(metric, test["difference"], (*at, "difference"))
    if test["two_sided_p"] < _SIGNIFICANT:
        difference = f"<b>{difference}</b>"
    p = known(f"{test['two_sided_p']:.4f}", test["two_sided_p"], (*at, "two_sided_p"))
    return f'<td class="number">{difference}<span class="soft">{between}p = {p}</span></td>'
