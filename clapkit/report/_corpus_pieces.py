"""Pieces and style of the page of a corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from clapkit.report._html import MISSING, flat, outside, words

MAX_BARS = 30
_ITEM_CHARACTERS = 80

STYLE = """
:root { color-scheme: light dark; --good: #1d7f4f; --look: #b26a00; --bad: #c02b2b; --bar: #3f7fb5; --caution: #fff6e0; }
.verdict { max-width: none; margin: 1.1rem 0; padding: .8rem 1.1rem; font-size: 1.15rem; line-height: 1.45; border-radius: 6px;
  background: var(--tint); border-left: 6px solid var(--level); overflow-wrap: anywhere; }
.verdict.good { --level: var(--good); } .verdict.look { --level: var(--look); } .verdict.bad { --level: var(--bad); }
.verdict a { color: var(--link); }
.verdict .soft { display: block; margin-top: .3rem; }
.tiles { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0 1.3rem; }
.tiles div { flex: 1 1 8rem; padding: .55rem .9rem; border: 1px solid var(--line); border-radius: 6px; color: var(--soft);
  font-size: .85rem; }
.tiles b { display: block; color: var(--ink); font-size: 1.35rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.warning { background: var(--caution); overflow-wrap: anywhere; }
thead th { overflow-wrap: normal; }
tbody th { min-width: 8rem; max-width: 22rem; white-space: normal; overflow-wrap: anywhere; }
tr.calm th, tr.calm td { color: var(--soft); font-weight: 400; opacity: .75; }
td.about { min-width: 16rem; max-width: 38rem; overflow-wrap: anywhere; }
td.meter { width: 14rem; min-width: 6rem; vertical-align: middle; }
.items { font-size: .87rem; margin-top: .15rem; color: var(--soft); }
.items ul { max-height: 16rem; overflow-y: auto; margin: .3rem 0; padding-left: 1.2rem; }
.items summary { cursor: pointer; }
.group { font-size: .9rem; overflow-wrap: anywhere; max-width: none; margin: .25rem 0 .25rem 1rem; }
.bar { display: block; height: .8rem; border-radius: 2px; background: var(--tint); min-width: 0; }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--bar); min-width: 1px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); column-gap: 2.5rem; }
.row { display: grid; grid-template-columns: minmax(0, 11rem) minmax(0, 1fr) 4.5rem; gap: .8rem; align-items: center;
  font-size: .88rem; padding: .08rem 0; }
.row .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: right; }
.row .count { font-variant-numeric: tabular-nums; }
.charts .row { grid-template-columns: minmax(0, 6rem) minmax(0, 1fr) 4.5rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 236px), 1fr)); gap: 1rem; margin: .7rem 0; }
article { border: 1px solid var(--line); border-radius: 6px; overflow: hidden; font-size: .87rem; padding-bottom: .6rem;
  break-inside: avoid; min-width: 0; }
article > * { margin: .3rem .7rem 0; overflow-wrap: anywhere; }
article > img, article > .blank { display: block; width: 100%; height: 128px; margin: 0; }
article > .blank { display: flex; align-items: center; justify-content: center; background: var(--tint); color: var(--soft); }
article .what { font-weight: 600; margin-top: .5rem; }
article code { display: block; }
h3 .soft { font-weight: 400; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #333b47; --tint: #20262f; --link: #6db8ec; --good: #3fb27f; --look: #e0a030;
    --bad: #ec6a6a; --bar: #5a9fd6; --caution: #33290f; }
  body { background: #14181e; }
}
"""


def chart(title: str, counts: Mapping[str, int] | None) -> str:
    """Bars, the longest first; what has no room is counted below them."""
    if not counts:
        return ""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    shown, rest = ordered[:MAX_BARS], ordered[MAX_BARS:]
    longest = max(shown[0][1], 1)
    rows = "".join(
        f'<div class="row"><span class="name">{outside(name, limit=60)}</span>{bar(number / longest)}'
        f'<span class="count">{number:,}</span></div>\n'
        for name, number in shown
    )
    more = ""
    if rest:
        total = sum(number for _, number in rest)
        more = f'<p class="soft">and {len(rest):,} more with {rest[0][1]:,} or fewer each, {total:,} in all</p>\n'
    return f'<div class="chart"><h3>{escape(title)}</h3>\n{rows}{more}</div>\n'


def bar(share: float) -> str:
    """A bar that fills this share of its room."""
    return f'<span class="bar"><i style="width:{100 * min(max(share, 0.0), 1.0):.2f}%"></i></span>'


def unfolded(items: Sequence[str], total: int) -> str:
    """The first item, and the others for who wants to see them."""
    if not items:
        return ""
    if len(items) == 1:
        return f'<div class="items">{item_name(items[0])}</div>'
    every = f"the first {len(items)} of {total:,}" if total > len(items) else f"all {len(items)}"
    listed = "".join(f"<li>{item_name(item)}</li>" for item in items)
    return f'<details class="items"><summary>{item_name(items[0])} … {every}</summary><ul>{listed}</ul></details>'


def fact_list(values: Mapping[str, Any] | None) -> str:
    """Nested values, one line each."""
    pairs = [
        f"<div><dt>{outside(words(key), limit=60)}</dt><dd>{cut(_readable(text))}</dd></div>\n"
        for key, text in flat(values or {})
    ]
    return f"<dl>\n{''.join(pairs)}</dl>\n" if pairs else ""


def _readable(text: str) -> str:
    """Numbers without the digits that nobody reads; other text as it is."""
    if text == "None":
        return MISSING
    if re.fullmatch(r"-?\d+", text):
        return f"{int(text):,}"
    return f"{float(text):.4g}" if re.fullmatch(r"-?\d+\.\d+(e[-+]\d+)?", text) else text


def row(name: str, cells: Iterable[str], *, mark: str = "") -> str:
    """A row of a table; ``name`` and ``cells`` are HTML."""
    kind = f' class="{mark}"' if mark else ""
    return f'<tr{kind}><th scope="row">{name}</th>{"".join(cells)}</tr>\n'


def heading(name: str, *, is_number: bool = False) -> str:
    """The head of a column."""
    kind = ' class="number"' if is_number else ""
    return f'<th scope="col"{kind}>{escape(name)}</th>'


def number_cell(text: str) -> str:
    """A cell of a column of numbers."""
    return f'<td class="number">{escape(text)}</td>'


def text_cell(html: str) -> str:
    """A cell with text of any length."""
    return f'<td class="about">{html}</td>'


def item_name(name: str) -> str:
    """The id of a clip or the path of a file."""
    return f"<code>{outside(name, limit=_ITEM_CHARACTERS, keep_end=True)}</code>"


def cut(text: object, *, limit: int = 220) -> str:
    """A sentence from outside; nothing for None."""
    return outside("" if text is None else str(text), limit=limit)


def check_name(name: str) -> str:
    """The name of a check in words."""
    return outside(name.replace("_", " "), limit=40)


def split_name(name: str) -> str:
    """The name of a split; clips without one are counted under an empty name."""
    return outside(name, limit=40) if name else '<span class="soft">no split</span>'


def whole(value: int | None) -> str:
    """A count, or a dash where it is not known."""
    return MISSING if value is None else f"{value:,}"


def counted(number: int, noun: str) -> str:
    """A count with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def length(hours: float) -> str:
    """A length of time as a person says it."""
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{60 * hours:.1f} min" if 60 * hours >= 1 else f"{3600 * hours:.1f} s"
