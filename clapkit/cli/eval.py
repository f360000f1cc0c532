"""``clapkit eval``."""

from __future__ import annotations

from typing import Any

from clapkit.cli.console import Table, show_metric
from clapkit.cli.execute import console_for, execute
from clapkit.config import EvalConfig

HELP = """Evaluate one model, or compare several, on a split.

\b
    clapkit eval
    clapkit eval --tasks zero-shot --prompt "{} can be heard."
    clapkit eval infonce svr --split test
"""


def run(config: EvalConfig, argv: list[str]) -> None:
    """Evaluate, then print metrics with their intervals."""
    from clapkit.steps import evaluate

    console = console_for(config)
    _, result = execute("eval", config, argv, evaluate.run, console)
    console.result(result, tables=[_metrics(run) for run in result["runs"]])


def _metrics(run: dict[str, Any]) -> Table:
    rows = [
        [name, show_metric(name, value), _interval(name, task["intervals"].get(name))]
        for task in run["tasks"].values()
        for name, value in task["metrics"].items()
    ]
    protocol = run["protocol"]
    title = f"{run['run']} on {protocol['data']} {protocol['split']}: {protocol['num_clips']} clips"
    return Table(title, ["metric", ">value", ">95 % interval"], rows)


def _interval(name: str, interval: list[float] | None) -> str:
    return "" if interval is None else f"{show_metric(name, interval[0])} – {show_metric(name, interval[1])}"
