"""The report of an evaluation as one HTML page that needs nothing but itself: no script, no font, no file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from clapkit.report._html import MISSING, document, flat, picture_source, table, words
from clapkit.report.curves import color_of

# Ranks are counts; every other metric is a fraction and is shown in percent.
_RANK_METRICS = ("MedR", "MeanR")
_SIGNIFICANT = 0.05


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure on the page.

    Attributes:
        title: of the figure; what is read out where it cannot be seen.
        png: its bytes.
        note: under it.
    """

    title: str
    png: bytes
    note: str = ""


def report_page(
    names: Sequence[str],
    runs: Sequence[Mapping[str, Any]],
    *,
    comparison: Mapping[str, Any] | None,
    bars: Picture | None,
    curves: Sequence[Picture],
    without_log: Sequence[str],
    configurations: Mapping[str, Sequence[str | None]],
    without_configuration: Sequence[str],
) -> str:
    """The whole page as HTML text.

    Args:
        names: of the runs; their order fixes the colours.
        runs: for each ``model_fingerprint``, ``protocol`` and ``tasks``, as in ``results.json``.
        comparison: as in ``results.json``, its rows in the order of the runs; None for a single run.
        bars: metrics with their intervals.
        curves: of the training.
        without_log: names of runs whose training was not found, so that the curves lack them.
        configurations: flag -> its value in each run (or its default, then the value, for a single run); None where
            the value is not known.
        without_configuration: names of runs whose configuration was not found.
    """
    title = f"Evaluation of {', '.join(names)}"
    sections = [
        ("evaluated", "What was evaluated", _evaluated(names, runs)),
        ("metrics", "Metrics", _metrics(names, runs) + _picture(bars)),
        ("comparison", "Comparison", _comparison(names, comparison)),
        ("curves", "Training curves", _curves(curves, without_log)),
        ("configuration", "Configuration", _configuration(names, configurations, without_configuration)),
    ]
    return document(title, header=_subtitle(runs), sections=sections)


# Sections ---------------------------------------------------------------------------------------------------------------


def _subtitle(runs: Sequence[Mapping[str, Any]]) -> str:
    places = dict.fromkeys(f"{run['protocol']['data']}, split {run['protocol']['split']}" for run in runs)
    return f'<p class="soft">clapkit eval on {escape("; ".join(places))}</p>\n'


def _evaluated(names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> str:
    facts = [_facts(run) for run in runs]
    keys = list(dict.fromkeys(key for found in facts for key in found))
    rows, common = [], []
    for key in keys:
        values = [found.get(key) for found in facts]
        differs = any(value != values[0] for value in values)
        if differs or key in ("model fingerprint", "data", "split"):
            rows.append(_row(key, [_value(value) for value in values], differs=differs and key != "model fingerprint"))
        else:
            common.append(f"<div><dt>{escape(key)}</dt><dd>{_text(values[0])}</dd></div>\n")
    parts = [table([_heading(name, number) for number, name in enumerate(names)], rows)]
    differing = [key for key in keys[1:] if any(found.get(key) != facts[0].get(key) for found in facts)]
    if differing:
        text = f"The protocols differ in {', '.join(differing)}; the metrics are comparable only if that is what is compared."
        parts.append(f'<p class="warning">{escape(text)}</p>\n')
    scope = "Protocol" if len(runs) == 1 else "Common to all runs"
    parts.append(f"<h3>{scope}</h3>\n<dl>\n{''.join(common)}</dl>\n")
    warned: dict[str, list[str]] = {}
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        for text in (warning for task in run["tasks"].values() for warning in task["warnings"]):
            warned.setdefault(text, []).append(_swatch(number) + escape(name))
    parts += [f'<p class="warning">{", ".join(who)}: {escape(text)}</p>\n' for text, who in warned.items()]
    return "".join(parts)


def _facts(run: Mapping[str, Any]) -> dict[str, str]:
    """What was run on what, as flat text; the fingerprint of the model comes first."""
    facts = {"model fingerprint": str(run["model_fingerprint"])}
    facts |= {words(key): text for key, text in flat(run["protocol"])}
    for task, result in run["tasks"].items():
        facts |= {f"{task} {words(key)}": text for key, text in flat(result.get("protocol", {}))}
    return facts


def _metrics(names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> str:
    values = [_joined(run, "metrics") for run in runs]
    intervals = [_joined(run, "intervals") for run in runs]
    rows = [
        _row(metric, [_measured(metric, v.get(metric), i.get(metric)) for v, i in zip(values, intervals, strict=True)])
        for metric in dict.fromkeys(metric for found in values for metric in found)
    ]
    note = "Percent, except MedR and MeanR, which are ranks (lower is better)"
    note += "; below each value its 95 % interval." if any(intervals) else "."
    headings = [_heading(name, number, number_column=True) for number, name in enumerate(names)]
    return f'<p class="soft">{escape(note)}</p>\n' + table(headings, rows)


def _joined(run: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for task in run["tasks"].values() for name, value in task[key].items()}


def _comparison(names: Sequence[str], comparison: Mapping[str, Any] | None) -> str:
    if comparison is None:
        return ""
    others = list(enumerate(zip(names, comparison["rows"], strict=True)))[1:]
    tested = [metric for metric in comparison["metrics"] if any(metric in row["tests"] for _, (_, row) in others)]
    if not tested:
        return (
            f"<p>No run was evaluated on the same clips and captions as {_swatch(0)}{escape(names[0])}, "
            "so nothing is tested.</p>\n"
        )
    rows = [_row(metric, [_tested(metric, row["tests"].get(metric)) for _, (_, row) in others]) for metric in tested]
    note = (
        f"<p>Difference from {_swatch(0)}<b>{escape(names[0])}</b>, mean over clips, with its 95 % interval, and p of the "
        "two-sided paired sign-flip test.</p>\n"
        f'<p class="soft">Percentage points, ranks for MeanR. Bold: p below {_SIGNIFICANT}, not corrected for the number of '
        "metrics. The test covers the choice of clips, not the training seed.</p>\n"
    )
    headings = [_heading(name, number, number_column=True) for number, (name, _) in others]
    return note + table(headings, rows)


def _curves(curves: Sequence[Picture], without_log: Sequence[str]) -> str:
    parts = [_picture(picture) for picture in curves]
    if without_log:
        text = f"Without curves, because no metrics.jsonl of a train run lies beside the model: {', '.join(without_log)}."
        parts.insert(0, f"<p>{escape(text)}</p>\n")
    return "".join(parts)


def _configuration(
    names: Sequence[str], configurations: Mapping[str, Sequence[str | None]], without_configuration: Sequence[str]
) -> str:
    parts = []
    if without_configuration:
        text = f"Not known, because no run.json of a train run lies beside the model: {', '.join(without_configuration)}."
        parts.append(f"<p>{escape(text)}</p>\n")
    if len(names) == 1:
        headings = ['<th scope="col">default</th>', _heading(names[0], 0)]
        says, none = "Training options that are not at their default.", "All training options are at their defaults."
    else:
        headings = [_heading(name, number) for number, name in enumerate(names)]
        says, none = "Training options that differ between the runs.", "No training option differs between the runs."
    if len(without_configuration) == len(names):
        return "".join(parts)
    parts.append(f'<p class="soft">{says if configurations else none}</p>\n')
    if configurations:
        rows = [_row(flag, [_value(value) for value in values]) for flag, values in configurations.items()]
        parts.append(table(headings, rows))
    return "".join(parts)


# Pieces -----------------------------------------------------------------------------------------------------------------


def _row(name: str, cells: Sequence[str], *, differs: bool = False) -> str:
    mark = ' class="differs"' if differs else ""
    return f'<tr{mark}><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>\n'


def _heading(name: str, number: int, *, number_column: bool = False) -> str:
    kind = ' class="number"' if number_column else ""
    return f'<th scope="col"{kind}>{_swatch(number)}{escape(name)}</th>'


def _swatch(number: int) -> str:
    return f'<span class="run" style="background:{color_of(number)}"></span>'


def _value(text: str | None) -> str:
    return f'<td class="value">{_text(text)}</td>'


def _text(text: str | None) -> str:
    if text is None:
        return f'<span class="soft">{MISSING}</span>'
    # Hashes are compared by their beginnings; the whole one is in results.json and shows when pointed at.
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f'<code title="{text}">{text[:12]}</code>'
    return escape(text)


def _shown(metric: str, value: float) -> float:
    """A metric on the scale on which it is shown: ranks as they are, fractions in percent."""
    return value if metric.endswith(_RANK_METRICS) else 100 * value


def _measured(metric: str, value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return f'<td class="number">{MISSING}</td>'
    below = ""
    if interval is not None:
        lower, upper = (_shown(metric, bound) for bound in interval)
        below = f'<span class="soft">{lower:.1f} – {upper:.1f}</span>'
    return f'<td class="number">{_shown(metric, value):.1f}{below}</td>'


def _tested(metric: str, test: Mapping[str, Any] | None) -> str:
    if test is None:
        return f'<td class="number">{MISSING}</td>'
    between = ""
    if test["interval"] is not None:
        lower, upper = (_signed(_shown(metric, bound)) for bound in test["interval"])
        between = f"{lower} to {upper}, "
    difference = _signed(_shown(metric, test["difference"]))
    if test["two_sided_p"] < _SIGNIFICANT:
        difference = f"<b>{difference}</b>"
    return f'<td class="number">{difference}<span class="soft">{between}p = {test["two_sided_p"]:.4f}</span></td>'


def _signed(value: float) -> str:
    """One decimal with its sign; what rounds to zero has none."""
    return f"{value:+.1f}" if round(value, 1) else "0.0"


def _picture(picture: Picture | None) -> str:
    if picture is None:
        return ""
    note = f"<figcaption>{escape(picture.note)}</figcaption>" if picture.note else ""
    return f'<figure><img alt="{escape(picture.title)}" src="{picture_source(picture.png)}">{note}</figure>\n'
