import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from clapkit import registry
from clapkit.config import TrainConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.objectives import dbpm
from clapkit.run_dir import RunDir
from clapkit.steps import train
from clapkit.steps.train_suspects import COLUMNS, write_suspects
from clapkit.types import Caption, Clip, SilentReporter


@pytest.fixture
def data(tmp_path: Path) -> Manifest:
    clips = [
        Clip(id=f"c{row}", audio=f"{row}.wav", captions=(Caption(f"sound {row}"), Caption('a "bang", loud')))
        for row in range(7)
    ]
    (tmp_path / "data").mkdir()
    return Manifest.write(tmp_path / "data" / "manifest.jsonl", clips, root=tmp_path / "data", name="sounds")


@pytest.fixture
def run_dir(tmp_path: Path) -> Any:
    made = RunDir.create(tmp_path / "run", step="train", config={})
    yield made
    made.release()


def objective_with(losses: list[float]) -> torch.nn.Module:
    """A history in which a negative number stands for a row that was never seen."""
    objective = dbpm.build(num_rows=len(losses), c1=1.2, c2=1.2)
    with torch.no_grad():
        objective.loss_sum.copy_(torch.tensor(losses).clamp(min=0))
        objective.last_loss.copy_(objective.loss_sum)
        objective.counted.copy_(torch.tensor([float(loss >= 0) for loss in losses]))
    return objective


def read(run_dir: RunDir) -> list[dict[str, str]]:
    with (run_dir.path / "suspects.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_hardest_come_first_and_the_easiest_last(data: Manifest, run_dir: RunDir, reporter: Any) -> None:
    # Seen: 2, 5, 2, 2, -, 0, 2.5 with mean 2.25 and deviation 1.463: row 1 is 1.88 above, row 5 1.54 below.
    result = write_suspects(run_dir, objective_with([2.0, 5.0, 2.0, 2.0, -1.0, 0.0, 2.5]), data, reporter)
    assert result == {"file": "suspects.csv", "faulty": 1, "trivial": 1, "listed": 6, "unseen": 1}
    rows = read(run_dir)
    assert tuple(rows[0]) == COLUMNS
    assert [row["id"] for row in rows] == ["c1", "c6", "c0", "c2", "c3", "c5"]
    assert [row["kind"] for row in rows] == ["faulty", "", "", "", "", "trivial"]
    assert float(rows[0]["score"]) == pytest.approx(1.88, abs=0.005)
    assert float(rows[0]["mean_loss"]) == 5.0
    assert 0 < float(rows[0]["weight"]) < 1
    assert rows[1]["weight"] == "1"
    assert rows[0]["path"] == str(data.audio_path(data.clips[1]))
    assert rows[0]["caption"] == 'sound 1 | a "bang", loud'
    assert reporter.said == [
        "suspects.csv: of 6 clips, 1 are much harder to match than the others, as with a wrong caption, and 1 much easier; "
        "the hardest come first"
    ]


def test_a_loss_without_a_history_suspects_nobody(data: Manifest, run_dir: RunDir, reporter: Any) -> None:
    assert write_suspects(run_dir, registry.build("loss", "infonce"), data, reporter) is None
    assert not (run_dir.path / "suspects.csv").exists()
    assert reporter.said == []


def test_a_training_leaves_its_suspects(tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "plot_run", lambda run_dir: None)
    given: dict[str, Any] = {
        **{"audio_encoder": "tiny", "text_encoder": "tiny", "embedding_dim": 16, "batch_size": 4, "max_steps": 6, "workers": 1},
        **{"data": str(tones), "run_dir": tmp_path / "run", "loss": "dbpm", "base": "svr"},
    }
    config = resolve(TrainConfig, given)
    run_dir = RunDir.create(config.run_dir, step="train", config=config.resolved())
    run_dir.finish(train.run(config, run_dir, SilentReporter()))
    found = json.loads(run_dir.result_json.read_text())["suspects"]
    train_data = Manifest.load(tones).split("train")
    assert found["listed"] + found["unseen"] == len(train_data)
    rows = read(run_dir)
    assert {row["id"] for row in rows} <= {clip.id for clip in train_data.clips}
    assert len(rows) == found["listed"] > 0
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
