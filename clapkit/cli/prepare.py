"""``clapkit prepare``."""

from __future__ import annotations

from typing import Any

from clapkit import registry
from clapkit.cli import resume
from clapkit.cli.console import Table
from clapkit.cli.execute import console_for, execute
from clapkit.config import PrepareConfig

HELP = """Turn a folder, a table or a known corpus into a checked manifest; without arguments, make the built-in corpus.

\b
    clapkit prepare
    clapkit prepare ~/sounds
    clapkit prepare table captions.csv --audio-dir clips
    clapkit prepare clotho ~/corpora/clotho --check-overlap wavcaps
    clapkit prepare manifest mix --exclude runs/train/noisy/suspects.csv:400 --name mix-clean
"""


def configure(given: dict[str, Any]) -> PrepareConfig:
    """The configuration of a call; on ``--resume`` that of the unfinished run, if there is one."""
    return resume.configure("prepare", PrepareConfig, given, may_start=True)


def run(config: PrepareConfig, argv: list[str]) -> None:
    """Prepare, then print what stands in the manifest and what needs a look."""
    console = console_for(config)
    if config.list:
        names = registry.names("recipe")
        if config.json:
            console.result({"recipes": list(names)})
        else:
            console.write("\n".join(names))
        return
    finished = resume.finished_already(config)
    if finished is not None:
        result = finished.result
        console.say(f"{finished.path}: finished already, nothing to resume")
    else:
        from clapkit.steps import prepare

        _, result = execute("prepare", config, argv, prepare.run, console)
    console.result(result, tables=[_summary(result), *_verdict(result)])


def _summary(result: dict[str, Any]) -> Table:
    rows = [[name, str(count)] for name, count in result["splits"].items()]
    rows += [["all clips", str(result["num_clips"])], ["rejected", str(result["num_rejected"])]]
    for key, shown in (("num_missing", "of these missing audio"), ("num_excluded", "left out as asked")):
        if result.get(key):
            rows.append([shown, str(result[key])])
    title = f"{result['name']}: {result['hours']:.2f} hours, {result['num_captions']} captions"
    return Table(title, ["split", ">clips"], rows)


def _verdict(result: dict[str, Any]) -> list[Table]:
    """What the audit found, if it found anything."""
    rows = [[check, str(count)] for check, count in result.get("checks", {}).items() if count]
    return [Table("Needs a look (report.html shows the worst)", ["finding", ">items"], rows)] if rows else []
