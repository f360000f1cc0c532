"""A runs root in a folder of its own, and steps that do nothing but answer."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clapkit.run_dir import RunDir
from clapkit.types import Reporter

RESULTS: dict[str, dict[str, Any]] = {
    "prepare": {
        "name": "toy",
        "hours": 0.5,
        "num_captions": 6,
        "num_clips": 3,
        "num_rejected": 1,
        "splits": {"test": 1, "train": 2},
    },
    "train": {"best_step": 4, "steps": 8, "best_metrics": {"t2a_R@1": 0.25, "t2a_MedR": 3.0}, "wall_s": 12.4},
    "embed": {"counts": {"audio": 3, "text": 6}, "width": 16, "num_rejected": 0, "data": {"name": "toy"}},
    "retrieve": {
        "model": "m",
        "embeddings": "e",
        "num_items": 1,
        "results": [
            {
                "query": "dog barking",
                "hits": [
                    {
                        "rank": 1,
                        "score": 0.71,
                        "z_score": 2.34,
                        "modality": "audio",
                        "id": "toy/dog",
                        "path": "/x/dog.wav",
                        "start_s": 0.0,
                        "end_s": 5.0,
                        "spans": [{"start_s": 0.0, "end_s": 5.0, "score": 0.71}],
                        "captions": ["A dog [barks].", "Another."],
                        "labels": [],
                        "also": [],
                    }
                ],
            }
        ],
    },
    "eval": {
        "metrics": {"t2a_R@1": 0.5},
        "runs": [
            {
                "run": "svr",
                "protocol": {"data": "toy", "split": "test", "num_clips": 4},
                "tasks": {
                    "retrieval": {
                        "metrics": {"t2a_R@1": 0.5, "t2a_MedR": 1.5},
                        "intervals": {"t2a_R@1": [0.25, 0.75], "t2a_MedR": [1.0, 2.0]},
                        "chance": {"t2a_R@1": 0.125},
                    }
                },
            }
        ],
    },
}


class FakeStep:
    """Keeps the configurations that it was called with."""

    def __init__(self, result: dict[str, Any]) -> None:
        self.result = copy.deepcopy(result)
        self.configs: list[Any] = []
        self.run_dirs: list[RunDir | None] = []
        self.error: BaseException | None = None

    def __call__(self, config: Any, run_dir: RunDir | None, reporter: Reporter) -> dict[str, Any]:
        self.configs.append(config)
        self.run_dirs.append(run_dir)
        reporter.say("working on it")
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def fake_step(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], FakeStep]:
    """Puts a step that does nothing in place of a real one."""

    def put(command: str) -> FakeStep:
        module = importlib.import_module(f"clapkit.steps.{'evaluate' if command == 'eval' else command}")
        step = FakeStep(RESULTS[command])
        monkeypatch.setattr(module, "run", step)
        return step

    return put
