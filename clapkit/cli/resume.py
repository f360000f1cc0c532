"""``--resume``: the configuration of an unfinished run, taken up again in its directory."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from clapkit.cli.execute import run_path
from clapkit.config import CommonConfig, resolve
from clapkit.errors import ConfigError, RunDirError
from clapkit.run_dir import RunDir

# Options of a call rather than of the run: resuming does not take them over.
OF_THIS_CALL = ("run_dir", "name", "json", "quiet", "verbose", "config", "skip_existing", "overwrite", "resume")


Config = TypeVar("Config", bound=CommonConfig)


def configure(
    step: str, config_class: type[Config], given: dict[str, Any], *, may_start: bool = False, may_change: Collection[str] = ()
) -> Config:
    """The configuration of a call; on ``--resume`` that of the unfinished run, in its directory.

    Args:
        step: the command.
        config_class: of the command, with a field ``resume``.
        given: explicit flags, None where a flag was not given.
        may_start: where there is no run to resume, the call starts one instead of failing.
        may_change: fields in which the call may differ from the run.

    Raises:
        RunDirError: if there is no run to resume.
        ConfigError: if a flag contradicts the run.
    """
    config = resolve(config_class, given)
    if not getattr(config, "resume", False):
        return config
    is_named = config.run_dir is not None or config.name is not None
    run = RunDir(run_path(step, config)) if is_named else _newest_unfinished(step, config)
    if run is None or not run.run_json.is_file():
        if may_start:
            return config
        if run is None:
            raise RunDirError(f"--resume: no unfinished {step} run under {config.runs_root / step}; name one with --run-dir")
        raise RunDirError(f"--resume: {run.path} holds no run; start it without --resume, or name another with --run-dir")
    stored = {key: value for key, value in run.record["config"].items() if value is not None and key not in OF_THIS_CALL}
    started = resolve(config_class, stored)
    explicit = {key: value for key, value in given.items() if value is not None}
    resumed = resolve(config_class, stored | explicit | {"run_dir": run.path, "name": None})
    identity = started.identity()
    contradicted = [
        key for key, value in sorted(resumed.identity().items()) if value != identity[key] and key not in may_change
    ]
    if contradicted:
        flags = ", ".join("--" + key.replace("_", "-") for key in contradicted)
        raise ConfigError(f"--resume: {flags} differ from what {run.path} was started with; leave them out")
    return resumed


def finished_already(config: CommonConfig) -> RunDir | None:
    """The run that a resuming call names, if nothing of it is left to do."""
    if not getattr(config, "resume", False) or config.run_dir is None:
        return None
    run = RunDir(config.run_dir)
    return run if run.finished else None


def _newest_unfinished(step: str, config: CommonConfig) -> RunDir | None:
    folders = (config.runs_root / step).glob("*/run.json")
    runs = [RunDir(path.parent) for path in folders if not (path.parent / "result.json").exists()]
    return max(runs, key=lambda run: str(run.record.get("started_at")), default=None)
