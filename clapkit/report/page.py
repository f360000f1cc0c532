"""The report of an evaluation as one HTML page that needs nothing but itself: no script, no font, no file, no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from clapkit.report.curves import color_of

# A browser that obeys this loads nothing from anywhere, whatever a name in the data holds.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MISSING = "–"
# Ranks are counts; every other metric is a fraction and is shown in percent.
_RANK_METRICS = ("MedR", "MeanR")
_SIGNIFICANT = 0.05

_STYLE = """
:root { color-scheme: light; --ink: #1d2430; --soft: #5b6675; --line: #d9dee5; --tint: #f4f6f9; --link: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: #fff; color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .7rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 52rem; }
.soft, figcaption { color: var(--soft); font-size: .87rem; }
nav a { color: var(--link); margin-right: 1.1rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th, thead td { background: var(--tint); border-bottom: 2px solid var(--line); vertical-align: bottom; max-width: 16rem;
  overflow-wrap: anywhere; }
tbody th { font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
td.number .soft { display: block; font-size: .8rem; }
dl { columns: 2 20rem; column-gap: 2.5rem; font-size: .9rem; margin: .6rem 0; }
dl div { display: flex; gap: 1rem; padding: .25rem 0; border-bottom: 1px solid var(--line); break-inside: avoid; }
dt { flex: 0 0 13rem; font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
td.value { overflow-wrap: anywhere; max-width: 24rem; }
tr.differs th, tr.differs td, .warning { background: #fff6e0; }
.warning { border-left: 4px solid #e69f00; padding: .5rem .9rem; }
.run { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .45em; }
code { font: .85em ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
figure { margin: 1.2rem 0 1.8rem; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 4px; }
figcaption { margin-top: .4rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""


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
    kept = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in kept)
    body = "\n".join(
        f'<section id="{anchor}">\n<h2>{escape(heading)}</h2>\n{content}</section>' for anchor, heading, content in kept
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{escape(title)}</h1>\n{_subtitle(runs)}<nav>{links}</nav>\n</header>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


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
    parts = [_table([_heading(name, number) for number, name in enumerate(names)], rows)]
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
    facts |= {_words(key): text for key, text in _flat(run["protocol"])}
    for task, result in run["tasks"].items():
        facts |= {f"{task} {_words(key)}": text for key, text in _flat(result.get("protocol", {}))}
    return facts


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key} ")
        elif isinstance(value, list | tuple):
            found.append((prefix + key, ", ".join(map(str, value))))
        else:
            found.append((prefix + key, str(value)))
    return found


def _words(key: str) -> str:
    words = key.replace("num_", "number of ").replace("_", " ")
    return f"{words[:-2]} (s)" if words.endswith(" s") else words


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
    return f'<p class="soft">{escape(note)}</p>\n' + _table(headings, rows)


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
    return note + _table(headings, rows)


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
        parts.append(_table(headings, rows))
    return "".join(parts)


# Pieces -----------------------------------------------------------------------------------------------------------------


def _table(headings: Sequence[str], rows: Sequence[str]) -> str:
    head = f"<thead><tr><td></td>{''.join(headings)}</tr></thead>\n"
    return f'<div class="wide"><table>\n{head}<tbody>\n{"".join(rows)}</tbody>\n</table></div>\n'


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
        return f'<span class="soft">{_MISSING}</span>'
    # Hashes are compared by their beginnings; the whole one is in results.json and shows when pointed at.
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f'<code title="{text}">{text[:12]}</code>'
    return escape(text)


def _shown(metric: str, value: float) -> float:
    """A metric on the scale on which it is shown: ranks as they are, fractions in percent."""
    return value if metric.endswith(_RANK_METRICS) else 100 * value


def _measured(metric: str, value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return f'<td class="number">{_MISSING}</td>'
    below = ""
    if interval is not None:
        lower, upper = (_shown(metric, bound) for bound in interval)
        below = f'<span class="soft">{lower:.1f} – {upper:.1f}</span>'
    return f'<td class="number">{_shown(metric, value):.1f}{below}</td>'


def _tested(metric: str, test: Mapping[str, Any] | None) -> str:
    if test is None:
        return f'<td class="number">{_MISSING}</td>'
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
    data = base64.b64encode(picture.png).decode("ascii")
    note = f"<figcaption>{escape(picture.note)}</figcaption>" if picture.note else ""
    return f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">{note}</figure>\n'
