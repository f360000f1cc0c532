"""``clapkit train``."""

from __future__ import annotations

from typing import Any

from clapkit.cli import resume
from clapkit.cli.console import Table, show_metric
from clapkit.cli.execute import console_for, execute
from clapkit.config import TrainConfig

HELP = """Train a dual encoder on a prepared corpus.

\b
    clapkit train
    clapkit train --loss svr --radius adaptive
    clapkit train --resume --name my-run
"""


def configure(given: dict[str, Any]) -> TrainConfig:
    """The configuration of a call; on ``--resume`` that of the unfinished run."""
    return resume.configure("train", TrainConfig, given)


def run(config: TrainConfig, argv: list[str]) -> None:
    """Train, then print the metrics at the best step."""
    console = console_for(config)
    finished = resume.finished_already(config)
    if finished is not None:
        result = finished.result
        console.say(f"{finished.path}: finished already, nothing to resume")
    else:
        from clapkit.steps import train

        _, result = execute("train", config, argv, train.run, console)
    console.result(result, tables=[_summary(result)])


def _summary(result: dict[str, Any]) -> Table:
    rows = [["best step", f"{result['best_step']} of {result['steps']}"]]
    rows += [[name, show_metric(name, value)] for name, value in result["best_metrics"].items()]
    rows += [["wall time", f"{result['wall_s']:.0f} s"]]
    return Table("Validation at the best step", ["", ">value"], rows)
