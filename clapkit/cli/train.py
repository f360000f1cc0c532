"""``clapkit train``."""

from __future__ import annotations

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


def configure(given: dict[str, Any]) -> TrainConfig:
    """The configuration of a call; on ``--resume`` that of the unfinished run, in its directory.

    Args:
        given: explicit flags, None where a flag was not given.

    Raises:
        RunDirError: if there is no run to resume.
        ConfigError: if a flag contradicts the run.
    """
    config = resolve(TrainConfig, given)
    if not config.resume:
        return config
    run = RunDir(run_path("train", config)) if config.run_dir or config.name else _newest_unfinished(config)
    if not run.run_json.is_file():
        raise RunDirError(f"--resume: {run.path} holds no run; start it without --resume, or name another with --run-dir")
    stored = {key: value for key, value in run.record["config"].items() if value is not None and key not in OF_THIS_CALL}
    started = resolve(TrainConfig, stored)
    explicit = {key: value for key, value in given.items() if value is not None}
    resumed = resolve(TrainConfig, stored | explicit | {"run_dir": run.path, "name": None})
    contradicted = [key for key in sorted(resumed.identity()) if getattr(resumed, key) != getattr(started, key)]
    if contradicted:
        flags = ", ".join("--" + key.replace("_", "-") for key in contradicted)
        raise ConfigError(f"--resume: {flags} differ from what {run.path} was started with; leave them out")
    return resumed


def run(config: TrainConfig, argv: list[str]) -> None:
    """Train, then print the metrics at the best step."""
    console = console_for(config)
    if config.resume and config.run_dir is not None and RunDir(config.run_dir).finished:
        result = RunDir(config.run_dir).result
        console.say(f"{config.run_dir}: finished already, nothing to resume")
    else:
        from clapkit.steps import train

        _, result = execute("train", config, argv, train.run, console)
    console.result(result, tables=[_summary(result)])


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
