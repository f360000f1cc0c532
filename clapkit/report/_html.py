"""What the HTML pages share: one file that needs nothing but itself, its style, and text from outside made harmless."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# A browser that obeys this loads nothing from anywhere, whatever a name in the data holds.
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
MISSING = "–"
# What a tooltip shows of a text that was cut.
_TITLE_CHARACTERS = 600
# A part of a name with the mark behind it, or with the ellipsis that stands for what was cut.
_JOINED = re.compile(r"[^-_/=+…]*[-_/=+…]+|[^-_/=+…]+")
# Characters that turn the direction of what follows: with them a name can be made to look like another.
_DIRECTIONS = ("LRE", "LRO", "RLE", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")

STYLE = """
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
  h2, h3, h2 + p, h3 + p { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""


def document(title: str, *, header: str, sections: Sequence[tuple[str, str, str]], style: str = "") -> str:
    """A whole page.

    Args:
        title: plain text.
        header: HTML between the title and the links to the sections.
        sections: anchor, heading (plain text) and content (HTML); those without content are left out.
        style: rules behind the common ones.
    """
    kept = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in kept)
    body = "\n".join(
        f'<section id="{anchor}">\n<h2>{escape(heading)}</h2>\n{content}</section>' for anchor, heading, content in kept
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        f"<header>\n<h1>{breakable(title)}</h1>\n{header}<nav>{links}</nav>\n</header>\n"
        f"<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def table(headings: Sequence[str], rows: Sequence[str]) -> str:
    """A table that scrolls by itself where it is too wide; its corner is empty.

    Args:
        headings: ``<th>`` elements of the columns behind the first.
        rows: ``<tr>`` elements.
    """
    head = f"<thead><tr><td></td>{''.join(headings)}</tr></thead>\n"
    return f'<div class="wide"><table>\n{head}<tbody>\n{"".join(rows)}</tbody>\n</table></div>\n'


def picture_source(png: bytes) -> str:
    """The ``src`` of an image that lies in the page."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as pairs of a key in words, joined by blanks, and a text."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{prefix}{key} ")
        elif isinstance(value, list | tuple):
            found.append((prefix + key, ", ".join(map(str, value))))
        else:
            found.append((prefix + key, str(value)))
    return found


def words(key: str) -> str:
    """A key as it is read: ``num_clips`` is number of clips, ``window_s`` is window (s)."""
    text = key.replace("num_", "number of ").replace("_", " ")
    return f"{text[:-2]} (s)" if text.endswith(" s") else text


def one_line(text: str) -> str:
    """Text with single blanks; control characters, overrides of the direction and halves of surrogate pairs are replaced.

    Such halves are in the names of files that are not UTF-8; a page with them could not be written.
    """
    return "".join("\ufffd" if _is_harmful(character) else character for character in " ".join(text.split()))


def _is_harmful(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in _DIRECTIONS


def breakable(text: str) -> str:
    """Plain text as HTML that may be broken behind the marks which join the words of a name, so that words stay whole."""
    return "<wbr>".join(escape(part) for part in _JOINED.findall(text))


def outside(text: str, *, limit: int, keep_end: bool = False, is_name: bool = False) -> str:
    """Text that somebody else wrote, as HTML that can neither act nor break the layout.

    On one line, isolated from its surroundings where it is written from right to left, and cut; where it was cut, pointing at
    it shows more.

    Args:
        text: anything.
        limit: characters to show, > 2.
        keep_end: cut in the middle, because the end of a path tells more than its beginning.
        is_name: whether it is made of words joined by ``_``, ``-`` and the like, see ``breakable``.
    """
    line, write = one_line(text), breakable if is_name else escape
    if len(line) <= limit:
        return f"<bdi>{write(line)}</bdi>"
    head = limit // 3 if keep_end else limit - 1
    shown = f"{line[:head]}…{line[len(line) - (limit - 1 - head) :]}"
    more = line if len(line) <= _TITLE_CHARACTERS else f"{line[: _TITLE_CHARACTERS - 1]}…"
    return f'<bdi title="{escape(more)}">{write(shown)}</bdi>'
