"""``clapkit train``."""

from __future__ import annotations

import os
from typing import Any

from clapkit.cli import resume
from clapkit.cli.console import Console, Table, show_metric
from clapkit.cli.execute import console_for, execute
from clapkit.config import TrainConfig, resolve
from clapkit.run_dir import RunDir

HELP = """Train a dual encoder on a prepared corpus.

\b
    clapkit train
    clapkit train --loss svr --radius adaptive
    clapkit train --resume --name my-run
"""


def configure(given: dict[str, Any]) -> TrainConfig:
    """The configuration of a call; on ``--resume`` that of the unfinished run, which only the first process looks for.

    With ``--skip-existing`` beside it there need not be one: a line of a sweep starts a run, goes on with it, or finds it
    finished.
    """
    if _is_follower():
        return resolve(TrainConfig, given)
    return resume.configure("train", TrainConfig, given, may_start=bool(given.get("skip_existing")))


def run(config: TrainConfig, argv: list[str]) -> None:
    """Train, then print the metrics at the best step."""
    if _is_follower():
        from clapkit.steps.train import run_follower

        run_follower(config)
        return
    console = console_for(config)
    finished = resume.finished_already(config)
    if finished is not None:
        result = finished.result
        console.say(f"{finished.path}: finished already, nothing to resume")
        _dismiss_followers(config)
    else:
        from clapkit.steps import train

        begun: list[bool] = []

        def run_step(config: TrainConfig, run_dir: RunDir, reporter: Console) -> dict[str, Any]:
            begun.append(True)
            return train.run(config, run_dir, reporter)

        _, result = execute("train", config, argv, run_step, console)
        if not begun:  # --skip-existing
            _dismiss_followers(config)
    console.result(result, tables=[_summary(result)])


def _is_follower() -> bool:
    """Whether this is another process than the first one of a ``torchrun``; its marks are read without loading torch."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def _dismiss_followers(config: TrainConfig) -> None:
    """Send other processes home: there is nothing to do."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        from clapkit.steps.train_processes import dismiss

        dismiss(config)


def _summary(result: dict[str, Any]) -> Table:
    rows = [["best step", f"{result['best_step']} of {result['steps']}"]]
    rows += [[name, show_metric(name, value)] for name, value in result["best_metrics"].items()]
    rows += [["wall time", f"{result['wall_s']:.0f} s"]]
    return Table("Validation at the best step", ["", ">value"], rows)
