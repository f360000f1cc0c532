"""Real processes for the tests of training on several of them; each start costs seconds, so that tests share one."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("worker.py")
Seen = dict[str, list[dict[str, Any]]]
"""Scenario -> what each process saved."""
Launch = Callable[..., Seen]


@pytest.fixture(scope="session")
def launch(processes: Any, group_of: Callable[[int], Any]) -> Launch:
    """Runs scenarios of ``worker.py`` on several processes, as torchrun would start them."""

    def run(size: int, folder: Path, *scenarios: str) -> Seen:
        said = [folder / f"said-{rank}.txt" for rank in range(size)]
        with group_of(size) as members:
            children = [
                processes.start(folder, *scenarios, program=WORKER, folder=folder, stdout="/dev/null", stderr=log, **member)
                for log, member in zip(said, members, strict=True)
            ]
            codes = [processes.wait(child) for child in children]
        assert not any(codes), (codes, "\n".join(log.read_text() for log in said))
        return {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(size)] for name in scenarios}

    return run


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Seen:
    """What two processes saw in every scenario but that of a resumed run; started once, however many tests run at once."""
    names = ("exchange", "losses", "detached", "combined", "normalised", "together", "left_alone")
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "two_processes"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            launch(2, folder, *names)
            (folder / "done").touch()
    seen = {name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)] for name in names}
    seen["folder"] = [{"path": folder}]
    return seen


@pytest.fixture(scope="session")
def resumed_by(
    two_processes: Seen, tmp_path_factory: pytest.TempPathFactory, launch: Launch
) -> Callable[[int], list[dict[str, Any]]]:
    """What some other number of processes saw when it went on with the checkpoint of the two."""

    def resume(size: int) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("resumed")
        shutil.copytree(two_processes["folder"][0]["path"] / "stopped", folder / "two")
        return launch(size, folder, "resume_of_two")["resume_of_two"]

    return resume


@pytest.fixture(scope="session")
def left_alone(two_processes: Seen) -> list[dict[str, Any]]:
    """What two processes saw when the second one could not go on."""
    return two_processes["left_alone"]


@pytest.fixture(scope="session")
def told_to_two(tmp_path_factory: pytest.TempPathFactory, launch: Launch) -> Seen:
    """What two processes saw of losses that are told more than the pairs."""
    return launch(2, tmp_path_factory.mktemp("told"), "told_together")


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    """``worker.py`` as a module: the encoder, batches and runs of its scenarios, for tests in this process."""
    spec = importlib.util.spec_from_file_location("clapkit_test_worker", WORKER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look it up
    spec.loader.exec_module(module)
    return module
