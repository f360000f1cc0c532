"""``clapkit prepare``."""

from __future__ import annotations

from typing import Any

from clapkit import registry
from clapkit.cli.console import Table
from clapkit.cli.execute import console_for, execute
from clapkit.config import PrepareConfig

HELP = """Turn a folder, a table or a known corpus into a checked manifest; without arguments, make the built-in corpus.

\b
    clapkit prepare
    clapkit prepare ~/sounds
    clapkit prepare table captions.csv --audio-dir clips
"""


def run(config: PrepareConfig, argv: list[str]) -> None:
    """Prepare, then print what stands in the manifest."""
    console = console_for(config)
    if config.list:
        names = registry.names("recipe")
        if config.json:
            console.result({"recipes": list(names)})
        else:
            console.write("\n".join(names))
        return
    from clapkit.steps import prepare

    _, result = execute("prepare", config, argv, prepare.run, console)
    console.result(result, tables=[_summary(result)])


def _summary(result: dict[str, Any]) -> Table:
    rows = [[name, str(count)] for name, count in result["splits"].items()]
    rows += [["all clips", str(result["num_clips"])], ["rejected", str(result["num_rejected"])]]
    title = f"{result['name']}: {result['hours']:.2f} hours, {result['num_captions']} captions"
    return Table(title, ["split", ">clips"], rows)
