"""One training on several processes: ``torchrun`` starts the same command on each, the first one leads.

The first process owns the run directory, prints and decides; the others take the configuration from it, do their part of every
batch and write nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clapkit.config import TrainConfig
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.training.distributed import OneProcess, Processes, join, launched, leave, local_device


class FollowersRunDir(RunDir):
    """The run directory as processes other than the first see it: they read it, and leave all writing to the first.

    Args:
        path: of the directory.
        record: content of ``run.json``.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        super().__init__(path)
        self._record = dict(record)

    def _write_record(self) -> None:
        """Left to the first process."""

    def write_text(self, path: Path, text: str) -> None:
        """Left to the first process."""

    def append_metrics(self, values: Mapping[str, Any]) -> None:
        """Left to the first process."""

    def log(self, message: str) -> None:
        """Left to the first process."""

    def write_lines(self, path: Path, values: Sequence[Any]) -> None:
        """Left to the first process."""


def device_of(config: TrainConfig) -> str:
    """The device of this process; ``cuda`` is the one of its place on the machine."""
    return local_device(inputs.choose_device(config.device))


def processes_here() -> int:
    """How many processes share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched()[1] > 1 else 1


def lead(config: TrainConfig, run_dir: RunDir) -> Processes:
    """Start the work on all processes; called by the first one, in the run directory that it has made."""
    if launched()[1] == 1:
        return OneProcess()
    processes = join(device_of(config))
    processes.broadcast({"config": config, "path": os.fspath(run_dir.path), "record": run_dir.record})
    return processes


def dismiss(config: TrainConfig) -> None:
    """Send the other processes home, where the first one has found nothing to do."""
    if launched()[1] > 1:
        join(device_of(config)).broadcast(None)
        leave()


def follow(config: TrainConfig) -> tuple[Processes, TrainConfig, FollowersRunDir] | None:
    """Join the first process, and be told by it what to do; None if there is nothing."""
    processes = join(device_of(config))
    told = processes.broadcast(None)
    return None if told is None else (processes, told["config"], FollowersRunDir(Path(told["path"]), told["record"]))
