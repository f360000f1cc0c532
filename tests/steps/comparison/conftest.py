"""Evaluated models without models: outcomes made of hits."""

import numpy as np
import pytest

from clapkit.config import TrainConfig
from clapkit.steps.evaluation.result import Outcome, TaskResult

PROTOCOL = {
    "data": "toy",
    "split": "test",
    "num_clips": 6,
    "num_captions": 12,
    "id_hash": "a" * 64,
    "audio_policy": {"sample_rate": 8000, "pool": "mean"},
}


@pytest.fixture(scope="session")
def make_outcome():
    def make(run="a", t2a=None, a2t=None, *, ids=None, captions=None, training=None, marks=(), protocol=None, **others):
        """``t2a`` is [clips, captions of a clip], ``a2t`` [clips]; both hits. ``others`` are metrics without queries."""
        metrics, per_query, tested, intervals = dict(others), {}, {}, {}
        for direction, values in (("t2a", t2a), ("a2t", a2t)):
            if values is None:
                continue
            hits = np.asarray(values, dtype=float)
            clip = np.repeat(np.arange(len(hits)), hits[0].size)
            names = ids or [f"clip{row}" for row in range(len(hits))]
            columns = {"id": [names[row] for row in clip], "clip": clip, "R@1": hits.ravel(), "rank": 2 - hits.ravel()}
            if direction == "t2a":
                columns["caption"] = captions or [f"caption {number}" for number in range(len(clip))]
            per_query[direction] = columns
            metrics |= {f"{direction}_R@1": hits.mean(), f"{direction}_MeanR": 2 - hits.mean()}
            intervals[f"{direction}_R@1"] = (0.25, 0.75)
            tested |= {f"{direction}_R@1": (direction, "R@1"), f"{direction}_MeanR": (direction, "rank")}
        result = TaskResult(
            metrics={name: float(value) for name, value in metrics.items()},
            intervals=intervals,
            chance={name: 0.125 for name in intervals},
            per_query=per_query,
            tested=tested,
        )
        return Outcome(
            run=run,
            model=None,
            model_fingerprint="f" * 64,
            protocol=PROTOCOL | (protocol or {}),
            training=training,
            marks=list(marks),
            tasks={"retrieval": result},
        )

    return make


@pytest.fixture(scope="session")
def training():
    """Configuration of a train run, as run.json has it."""
    return lambda **options: TrainConfig().resolved() | options
