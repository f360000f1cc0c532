"""``clapkit retrieve``."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clapkit.cli.console import Console, Table
from clapkit.cli.execute import console_for, execute
from clapkit.config import RetrieveConfig
from clapkit.errors import ClapkitError, ConfigError

HELP = """Find sounds (or captions) by text or by sound.

\b
    clapkit retrieve "dog barking"
    clapkit retrieve "rain on a roof" -k 3 --where "split == 'test'"
    clapkit retrieve glass --minus music --group-by file
    clapkit retrieve --audio door.wav --json
    clapkit retrieve --interactive
"""
PROMPT = "words, @FILE for a sound, or nothing to end: "


def run(config: RetrieveConfig, argv: list[str]) -> None:
    """Search, then print the hits; a run directory is written only where one is named or many queries come from a file."""
    from clapkit.steps import retrieve

    console = console_for(config)
    if config.interactive:
        _converse(config, console)
        return
    if config.run_dir or config.name or config.queries or config.copy_to:
        _, result = execute("retrieve", config, argv, retrieve.run, console)
    else:
        result = retrieve.run(config, None, console)
    console.result(result, tables=_tables(result))


def _converse(config: RetrieveConfig, console: Console) -> None:
    """Answer lines until the input ends; a line that cannot be answered is no end."""
    from clapkit.steps import retrieve

    if (
        config.query
        or config.queries
        or config.audio
        or config.like
        or config.vectors
        or config.copy_to
        or config.name
        or config.run_dir
    ):
        raise ConfigError("--interactive: asks for its queries; leave out queries, --copy-to, --name and --run-dir")
    for answer in retrieve.converse(config, _lines(console), console):
        if isinstance(answer, ClapkitError):
            console.error(str(answer))
        else:
            console.answer(answer, tables=_tables(answer))


def _lines(console: Console) -> Iterator[str]:
    """What is typed, or comes in over a pipe, line by line."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no text is refused like any other bad line
    while True:
        console.prompt(PROMPT)
        line = sys.stdin.readline()
        if not line or (sys.stdin.isatty() and not line.strip()):
            return
        if line.strip():
            yield line.strip()


def _tables(result: Mapping[str, Any]) -> list[Table]:
    return [_hits(answer) for answer in result["results"]]


def _hits(answer: Mapping[str, Any]) -> Table:
    hits, title = answer["hits"], f"“{answer['query']}”"
    if not hits:
        return Table(f"{title}: no hits", [], [])
    folder = _common_folder(hits)
    is_mixed = len({hit["modality"] for hit in hits}) > 1
    has_captions = any(hit["captions"] for hit in hits)
    rows = [
        [
            str(hit["rank"]),
            f"{hit['score']:.3f}",
            "" if hit["z_score"] is None else f"{hit['z_score']:+.1f}",
            *([hit["modality"]] if is_mixed else []),
            _spans(hit),
            hit["id"].removeprefix(folder) + (f"  (and {len(hit['also'])} more)" if hit["also"] else ""),
            *(["; ".join(hit["captions"][:1])] if has_captions else []),
        ]
        for hit in hits
    ]
    columns = [
        ">rank",
        ">score",
        ">unusual",
        *(["kind"] if is_mixed else []),
        "span",
        "id",
        *(["caption"] if has_captions else []),
    ]
    return Table(f"{title} in {folder}" if folder else title, columns, rows)


def _common_folder(hits: Sequence[Mapping[str, Any]]) -> str:
    """The folder, with its separator, below which all hits lie whose ids are absolute paths; empty if there is none."""
    if not all(os.path.isabs(hit["id"]) for hit in hits):
        return ""
    folder = os.path.commonpath([os.path.dirname(hit["id"]) for hit in hits])
    return "" if os.path.dirname(folder) == folder else folder + os.sep


def _spans(hit: Mapping[str, Any]) -> str:
    return ", ".join(f"{_time(span['start_s'])}–{_time(span['end_s'])}" for span in hit["spans"] if span["start_s"] is not None)


def _time(seconds: float) -> str:
    """``12.5`` below a minute, ``1:02:03`` above."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
