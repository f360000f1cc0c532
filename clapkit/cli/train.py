"""``clapkit train``."""

from __future__ import annotations

import dataclasses
from typing import Any

from clapkit.cli.console import Table
from clapkit.cli.execute import console_for, execute, run_path
from clapkit.config import TrainConfig, read_config_file, resolve
from clapkit.errors import ConfigError, RunDirError
from clapkit.run_dir import RunDir

HELP = """Train a dual encoder on a prepared corpus.

\b
    clapkit train
    clapkit train --loss svr --radius adaptive
    clapkit train --resume --name my-run
"""


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
    stored = read_config_file(run.run_json, TrainConfig)
    defaults = resolve(TrainConfig, {})
    given = {f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(defaults, f.name)}
    kept = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if not f.metadata["identity"]}
    resumed = resolve(TrainConfig, stored | kept | {"run_dir": run.path, "name": None})
    contradicted = [k for k in sorted(given & config.identity().keys()) if getattr(config, k) != getattr(resumed, k)]
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
    rows += [[name, _shown(name, value)] for name, value in result["best_metrics"].items()]
    rows += [["wall time", f"{result['wall_s']:.0f} s"]]
    return Table("Validation at the best step", ["", ">value"], rows)


def _shown(name: str, value: float) -> str:
    return f"{value:.1f}" if name.endswith(("MedR", "MeanR")) else f"{100 * value:.1f} %"
