"""What every command does around its step: a run directory, its lock, its end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clapkit.cli.console import Console
from clapkit.config import CommonConfig
from clapkit.errors import ClapkitError, RunDirError
from clapkit.run_dir import RunDir
from clapkit.runs import default_name, newest_run

Step = Callable[[Any, RunDir, Console], dict[str, Any]]

# What a command reads when nothing is named: the field that would name it, and the step whose newest run is taken.
NEWEST_INPUT = {
    "train": ("data", "prepare"),
    "embed": ("model", "train"),
    "retrieve": ("embeddings", "embed"),
    "eval": ("runs", "train"),
}


def is_follower() -> bool:
    """Whether this is another process than the first one of a ``torchrun``; its marks are read without loading torch."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


def console_for(config: CommonConfig) -> Console:
    """The console that a configuration asks for."""
    return Console(json_mode=config.json, quiet=config.quiet)


def execute(step: str, config: CommonConfig, argv: list[str], run: Step, console: Console) -> tuple[RunDir, dict[str, Any]]:
    """Run a step in its run directory; gives the directory and the result.

    With ``skip_existing`` a finished run of the same configuration is returned as it is.

    Raises:
        RunDirError: if the directory cannot be used.
    """
    if config.skip_existing:
        existing = _existing(step, config)
        if existing is not None:
            console.say(f"{existing.path}: finished already, skipped")
            return existing, existing.result
    run_dir = _open(step, config, argv)
    console.attach(run_dir)
    try:
        result = run(config, run_dir, console)
    except KeyboardInterrupt:
        run_dir.fail("interrupted")
        raise
    except BaseException as error:
        run_dir.log(f"error: {error if isinstance(error, ClapkitError) else repr(error)}")
        run_dir.fail("failed")
        if isinstance(error, ClapkitError):
            run_dir.discard_if_empty()
        raise
    run_dir.finish(result)
    console.say(f"run directory: {run_dir.path}")
    return run_dir, result


def _open(step: str, config: CommonConfig, argv: list[str]) -> RunDir:
    """The run directory of a call: a new one, one that is gone on with, or a finished one that is brought up to date."""
    path = run_path(step, config)
    if getattr(config, "update", False):
        return RunDir.reopen(path, step=step, config=config.resolved(), argv=argv)
    return RunDir.create(
        path,
        step=step,
        config=config.resolved(),
        argv=argv,
        seed=config.seed,
        overwrite=config.overwrite,
        resume=getattr(config, "resume", False),
    )


def run_path(step: str, config: CommonConfig) -> Path:
    """Where a call writes.

    Raises:
        RunDirError: if ``--name`` is a path.
    """
    if config.run_dir is not None:
        return config.run_dir
    if config.name is not None:
        if config.name in ("", "..") or Path(config.name).name != config.name:
            raise RunDirError(f"--name {config.name!r}: expected a plain name; use --run-dir for a path")
        return config.runs_root / step / config.name
    name = default_name(config.identity())
    candidates = (config.runs_root / step / (name if n == 1 else f"{name}-{n}") for n in range(1, 1000))
    return next(path for path in candidates if not path.exists())


def _existing(step: str, config: CommonConfig) -> RunDir | None:
    """The finished run of this configuration, if there is one.

    Raises:
        RunDirError: if the named directory holds a finished run of another configuration.
    """
    if config.run_dir is None and config.name is None:
        finished = (RunDir(path.parent) for path in sorted((config.runs_root / step).glob("*/result.json"), reverse=True))
        return next((run for run in finished if not _differences(step, config, run)), None)
    run = RunDir(run_path(step, config))
    if not run.finished:
        return None
    differences = _differences(step, config, run)
    if differences:
        raise RunDirError(
            f"{run.path}: holds a finished run of another configuration (differs in {', '.join(differences)}); "
            "choose another --run-dir or --name, or pass --overwrite without --skip-existing"
        )
    return run


def _differences(step: str, config: CommonConfig, run: RunDir) -> list[str]:
    """Fields in which a finished run is another experiment than this call; empty if it is the same.

    A run that was recorded before an option existed did what is its default now.
    """
    recorded = type(config)().identity() | run.record.get("config", {})
    different = [key for key, value in config.identity().items() if recorded[key] != value]
    if step in NEWEST_INPUT and not getattr(config, "merge", False):  # what is merged is named
        field, needed = NEWEST_INPUT[step]
        if not getattr(config, field) and not _read_newest(run, needed, runs_root=config.runs_root):
            different.append(f"{field}: there is a newer {needed} run")
    return sorted([*different, *_changed_lists(config, run)])


def _changed_lists(config: CommonConfig, run: RunDir) -> list[str]:
    """Lists of ``prepare --exclude`` that hold something else than a finished run has read."""
    read = run.record.get("config", {}).get("exclude", ())
    lists = [name for name in getattr(config, "exclude", ()) if name in read]
    if not lists:
        return []
    from clapkit.steps.prepare_exclude import changed_lists

    return [f"exclude: {name} has changed since" for name in changed_lists(lists, run.record)]


def _read_newest(run: RunDir, step: str, *, runs_root: Path) -> bool:
    """Whether a run has read the newest run of a step; also if there is none any more."""
    if not any((runs_root / step).glob("*/result.json")):
        return True
    newest = newest_run(step, runs_root=runs_root).path.resolve()
    return any(Path(entry["path"]).resolve().is_relative_to(newest) for entry in run.record.get("inputs", []))
