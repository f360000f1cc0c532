"""Pieces of the page of an evaluation: pictures, names of runs, rows, and what its style adds to the common one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from clapkit.report._html import MISSING, outside, picture_source
from clapkit.report.canvas import color_of

NAME_CHARACTERS = 60
_METRIC_CHARACTERS = 120

STYLE = """
body { max-width: 76rem; }
.verdict { max-width: none; margin: 1.1rem 0; padding: .8rem 1.1rem; font-size: 1.15rem; line-height: 1.45; border-radius: 6px;
  background: var(--tint); border-left: 6px solid var(--link); overflow-wrap: anywhere; }
.mark { max-width: none; margin: 1rem 0; padding: .8rem 1.1rem; font-size: 1.1rem; border: 2px solid #c02b2b;
  border-left-width: 10px; border-radius: 6px; background: #fdf0f0; overflow-wrap: anywhere; }
.mark b { color: #a01f1f; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 1.3rem; }
.tiles div { flex: 1 1 13rem; max-width: 24rem; padding: .7rem 1rem; border: 1px solid var(--line); border-radius: 6px;
  color: var(--soft); font-size: .87rem; break-inside: avoid; }
.tiles b { display: block; color: var(--ink); font-size: 1.9rem; font-variant-numeric: tabular-nums; line-height: 1.25; }
.tiles .what { color: var(--ink); font-weight: 600; }
tbody th { min-width: 8.5rem; max-width: 18rem; white-space: normal; overflow-wrap: anywhere; background: #fff; }
thead th { min-width: 6.5rem; overflow-wrap: anywhere; }
.single { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); column-gap: 2.5rem; }
.single > * { min-width: 0; }
.single > .all { grid-column: 1 / -1; }
@media screen { .wide thead td, .wide tbody th { position: sticky; left: 0; } }
.run { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.best { font-weight: 700; }
.worse { color: #a01f1f; }
ul { max-width: 60rem; padding-left: 1.3rem; }
li { margin: .3rem 0; overflow-wrap: anywhere; }
details { margin: .7rem 0; }
summary { cursor: pointer; color: var(--link); }
.query { margin: 1.3rem 0 1.9rem; break-inside: avoid; }
.query h4 { margin: 0 0 .5rem; font-size: 1rem; overflow-wrap: anywhere; font-weight: 600; }
.query h4 .soft { font-weight: 400; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15.5rem), 1fr)); gap: 1rem; margin: .6rem 0;
  align-items: start; }
article { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; font-size: .87rem; padding-bottom: .6rem;
  min-width: 0; break-inside: avoid; }
article.right { border-color: #009e73; border-width: 2px; }
article.wrong { border-color: #d55e00; }
article > * { margin: .3rem .7rem 0; overflow-wrap: anywhere; }
article > img, article > .blank { display: block; width: 100%; height: 112px; margin: 0; }
article > .blank { display: flex; align-items: center; justify-content: center; background: var(--tint); color: var(--soft); }
article audio { display: block; width: calc(100% - 1.4rem); height: 2rem; }
article .what { font-weight: 600; }
article .what .soft { font-weight: 400; }
article a { color: var(--link); }
article .words { font-size: 1rem; margin-top: .8rem; }
@media (max-width: 40rem) {
  body { padding: 1.2rem .9rem 3rem; }
  h1 { font-size: 1.4rem; }
  dl div { display: block; }
  tbody th { min-width: 7.5rem; max-width: 9rem; }
  th, td { padding: .3rem .5rem; }
}
@media print {
  article audio, .nosound { display: none; }
  .wide { font-size: 8pt; }
  table { font-size: 7.5pt; }
  th, td { padding: .2rem .35rem; }
  .cards { grid-template-columns: repeat(4, 1fr); gap: .5rem; }
  article { font-size: 7.5pt; }
  article .words { font-size: 9pt; }
  td .soft, th .soft, td.number .soft, article .soft { font-size: .9em; }
  figure img { max-height: 20cm; width: auto; }
  thead { display: table-header-group; }
  summary { color: inherit; }
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


def figure(picture: Picture | None) -> str:
    """A picture with its note; nothing for None."""
    if picture is None:
        return ""
    note = f"<figcaption>{escape(picture.note)}</figcaption>" if picture.note else ""
    return f'<figure><img alt="{escape(picture.title)}" src="{picture_source(picture.png)}">{note}</figure>\n'


def swatch(number: int) -> str:
    """The colour of a run."""
    return f'<span class="run" style="background:{color_of(number)}"></span>'


def run_name(name: str, number: int) -> str:
    """A run with its colour."""
    return swatch(number) + outside(name, limit=NAME_CHARACTERS, keep_end=True, is_name=True)


def run_headings(names: Sequence[str], *, is_number: bool = True) -> list[str]:
    """The heads of the columns of all runs."""
    kind = ' class="number"' if is_number else ""
    return [f'<th scope="col"{kind}>{run_name(name, number)}</th>' for number, name in enumerate(names)]


def heading(name: str, *, is_number: bool = True) -> str:
    """The head of another column; plain text."""
    kind = ' class="number"' if is_number else ""
    return f'<th scope="col"{kind}>{escape(name)}</th>'


def row(name: str, cells: Sequence[str], *, differs: bool = False) -> str:
    """A row of a table; ``name`` and ``cells`` are HTML."""
    mark = ' class="differs"' if differs else ""
    return f'<tr{mark}><th scope="row">{name}</th>{"".join(cells)}</tr>\n'


def metric_name(name: str) -> str:
    """A metric, which may be broken behind an underscore."""
    return outside(name, limit=_METRIC_CHARACTERS, is_name=True)


def value_cell(text: str | None) -> str:
    """A cell with text of any length."""
    return f'<td class="value">{value_text(text)}</td>'


def value_text(text: str | None) -> str:
    """A value of a protocol or an option; hashes by their beginnings, the whole one shows when pointed at."""
    if text is None:
        return f'<span class="soft">{MISSING}</span>'
    if len(text) == 64 and set(text) <= set("0123456789abcdef"):
        return f'<code title="{text}">{text[:12]}</code>'
    return outside(text, limit=300)


def paragraph(text: str, *, kind: str = "") -> str:
    """A sentence from anywhere, escaped."""
    mark = f' class="{kind}"' if kind else ""
    return f"<p{mark}>{outside(text, limit=1000)}</p>\n"
