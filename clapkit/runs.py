"""Finding runs: by path, by name, or the newest finished one."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clapkit.errors import RunDirError
from clapkit.files import to_json
from clapkit.run_dir import RunDir


def open_run(address: str, *, step: str, runs_root: Path) -> RunDir:
    """Open a finished run by its path or by its name under the runs root.

    Args:
        address: a path, a name, or ``command/name``.
        step: the command that must have made it.
        runs_root: where runs live.

    Raises:
        RunDirError: if there is none, it is of another step, or it is not finished.
    """
    places = [Path(address), runs_root / step / address, runs_root / address]
    for place in places:
        if (place / "run.json").is_file():
            run = RunDir(place)
            found = run.record.get("step")
            if found != step:
                raise RunDirError(f"{place}: is a {found} run, expected a {step} run; name another")
            if not run.finished:
                raise RunDirError(f"{place}: the {step} run is not finished (no result.json); {_remedy(step)}")
            return run
    looked = ", ".join(os.fspath(place) for place in places)
    raise RunDirError(f"no {step} run {address!r}: looked for run.json in {looked}; name a path or a run's name")


def newest_run(step: str, *, runs_root: Path) -> RunDir:
    """The finished run of a step that started last.

    Raises:
        RunDirError: if there is none; the message names the command to run first.
    """
    runs = [RunDir(path.parent) for path in (runs_root / step).glob("*/result.json")]
    if not runs:
        raise RunDirError(f"no finished {step} run under {runs_root / step}: run `clapkit {step}` first")
    return max(runs, key=lambda run: (str(run.record.get("finished_at")), run.result_json.stat().st_mtime_ns, run.path.name))


def default_name(config: Mapping[str, Any]) -> str:
    """Date-time plus a short hash of the resolved configuration."""
    digest = hashlib.sha256(to_json(config).encode()).hexdigest()[:6]
    return f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{digest}"


def _remedy(step: str) -> str:
    return "continue it with --resume or run it again" if step == "train" else "run it again with --overwrite"
