"""``clapkit retrieve``."""

from __future__ import annotations

from typing import Any

from clapkit.cli.console import Table
from clapkit.cli.execute import console_for, execute
from clapkit.config import RetrieveConfig

HELP = """Find sounds (or captions) by text or by sound.

\b
    clapkit retrieve "dog barking"
    clapkit retrieve "rain on a roof" -k 3 --where "split == 'test'"
    clapkit retrieve --audio door.wav --json
"""


def run(config: RetrieveConfig, argv: list[str]) -> None:
    """Search, then print the hits; a run directory is written only where one is named or many queries come from a file."""
    from clapkit.steps import retrieve

    console = console_for(config)
    if config.run_dir or config.name or config.queries:
        _, result = execute("retrieve", config, argv, retrieve.run, console)
    else:
        result = retrieve.run(config, None, console)
    console.result(result, tables=[_hits(answer) for answer in result["results"]])


def _hits(answer: dict[str, Any]) -> Table:
    rows = [
        [str(hit["rank"]), f"{hit['score']:.3f}", _span(hit), hit["id"], "; ".join(hit["captions"][:1])]
        for hit in answer["hits"]
    ]
    return Table(f"“{answer['query']}”", [">rank", ">score", "span", "id", "caption"], rows)


def _span(hit: dict[str, Any]) -> str:
    if hit["start_s"] is None or hit["end_s"] is None:
        return ""
    return f"{hit['start_s']:.1f}–{hit['end_s']:.1f} s"
