"""``clapkit train``."""

from __future__ import annotations

import dataclasses
from typing import Any

from clapkit.cli.console import Table, show_metric
from clapkit.cli.execute import console_for, execute, run_path
from clapkit.config import TrainConfig, resolve
from clapkit.errors import ConfigError, RunDirError
from clapkit.run_dir import RunDir

HELP = """Train a dual encoder on a prepared corpus.

\b
    clapkit train
    clapkit train --loss svr --radius adaptive
    clapkit train --resume --name my-run
"""

# Options of a call rather than of the run: resuming does not take them over.
OF_THIS_CALL = ("run_dir", "name", "json", "quiet", "verbose", "config", "skip_existing", "overwrite", "resume")


def run(config: TrainConfig, argv: list[str]) -> None:
    """Train, then print the metrics at the best step."""
    console = console_for(config)
    if config.resume:
        config, finished = _resumed(config)
        if finished is not None:
            console.say(f"{finished.path}: finished already, nothing to resume")
            console.result(finished.result, tables=[_summary(finished.result)])
            return
    from clapkit.steps import train

    _, result = execute("train", config, argv, train.run, console)
    console.result(result, tables=[_summary(result)])


def _resumed(config: TrainConfig) -> tuple[TrainConfig, RunDir | None]:
    """The configuration that the unfinished run was started with, in its directory.

    Raises:
        RunDirError: if there is no run to resume.
        ConfigError: if a flag contradicts the run.
    """
    run = RunDir(run_path("train", config)) if config.run_dir or config.name else _newest_unfinished(config)
    if not run.run_json.is_file():
        raise RunDirError(f"--resume: {run.path} holds no run; start it without --resume, or name another with --run-dir")
    stored = {key: value for key, value in run.record["config"].items() if value is not None and key not in OF_THIS_CALL}
    defaults = resolve(TrainConfig, {})
    given = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    given = {key: value for key, value in given.items() if value != getattr(defaults, key)}
    resumed = resolve(TrainConfig, stored | given | {"run_dir": run.path})
    resumed = dataclasses.replace(resumed, name=None)
    started = resolve(TrainConfig, stored)
    contradicted = [key for key in sorted(resumed.identity()) if getattr(resumed, key) != getattr(started, key)]
    if contradicted:
        flags = ", ".join("--" + key.replace("_", "-") for key in contradicted)
        raise ConfigError(f"--resume: {flags} differ from what {run.path} was started with; leave them out")
    return resumed, run if run.finished else None


def _newest_unfinished(config: TrainConfig) -> RunDir:
    folders = (config.runs_root / "train").glob("*/run.json")
    runs = [RunDir(path.parent) for path in folders if not (path.parent / "result.json").exists()]
    if not runs:
        raise RunDirError(f"--resume: no unfinished train run under {config.runs_root / 'train'}; name one with --run-dir")
    return max(runs, key=lambda run: str(run.record.get("started_at")))


def _summary(result: dict[str, Any]) -> Table:
    rows = [["best step", f"{result['best_step']} of {result['steps']}"]]
    rows += [[name, show_metric(name, value)] for name, value in result["best_metrics"].items()]
    rows += [["wall time", f"{result['wall_s']:.0f} s"]]
    return Table("Validation at the best step", ["", ">value"], rows)
