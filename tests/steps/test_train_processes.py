"""One training on two processes, started as a user starts it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

OPTIONS = [
    *("--audio-encoder", "tiny", "--text-encoder", "tiny", "--embedding-dim", "16", "--loss", "svr", "--radius", "adaptive"),
    *("--batch-size", "8", "--captions-per-clip", "2", "--max-steps", "6", "--log-every", "1", "--workers", "1", "--seed", "1"),
    *("--schedule", "constant"),
]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if "loss" in record]


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "result.json").read_text())["best_metrics"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_tones, clapkit_call):
    """The same training on one process, this one, and on two."""
    place = tmp_path_factory.mktemp("processes")
    manifest = make_tones(place / "tones", train=16, val=5)
    command = ["train", "--data", str(manifest), *OPTIONS]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        alone = clapkit_call(*command, "--name", "alone")
    assert alone.exit_code == 0, alone.stderr
    together = run(*TORCHRUN, "clapkit", *command, "--name", "together", "--json", cwd=place)
    assert together.returncode == 0, together.stderr
    return place / "runs" / "train", together


def test_two_processes_train_the_model_that_one_trains(trained):
    runs, _ = trained
    assert losses(runs / "together") == pytest.approx(losses(runs / "alone"), abs=2e-5)
    one, two = (
        safetensors.torch.load_file(runs / name / "checkpoints/last/model.safetensors") for name in ("alone", "together")
    )
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4)
    assert metrics(runs / "together").keys() == metrics(runs / "alone").keys()


def test_the_first_process_alone_prints_and_writes(trained):
    runs, together = trained
    assert json.loads(together.stdout)["num_processes"] == 2  # one document
    assert together.stderr.count("training on 2 processes") == 1
    assert sorted(path.name for path in runs.iterdir()) == ["alone", "together"]
    assert sum("loss" in json.loads(line) for line in (runs / "together" / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_a_call_with_nothing_to_do_ends_on_all_processes(trained):
    runs, _ = trained
    again = run(*TORCHRUN, "clapkit", "train", "--resume", "--name", "together", cwd=runs.parent.parent)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("finished already") == 1


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_evenly_is_an_error_and_not_a_hang(trained):
    runs, _ = trained
    odd = [option if option != "8" else "6" for option in OPTIONS]
    refused = run(*TORCHRUN, "clapkit", "train", *odd, "--data", "../tones/manifest.jsonl", "--name", "odd", cwd=runs.parent)
    assert refused.returncode != 0
    assert "error: --batch-size 6" in refused.stderr


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(trained, clapkit_call, monkeypatch):
    runs, _ = trained
    monkeypatch.chdir(runs.parent.parent)
    longer = [option if option != "6" else "9" for option in OPTIONS]
    result = clapkit_call("train", "--data", runs.parent.parent / "tones/manifest.jsonl", *longer, "--name", "longer")
    assert result.exit_code == 0, result.stderr
    # As if the run of two had been asked for nine steps and stopped after six.
    half = shutil.copytree(runs / "together", runs / "half")
    (half / "result.json").unlink()
    record = json.loads((half / "run.json").read_text())
    record["config"]["max_steps"] = 9
    (half / "run.json").write_text(json.dumps(record))
    resumed = clapkit_call("train", "--resume", "--name", "half")
    assert resumed.exit_code == 0, resumed.stderr
    assert "resuming at step 6" in resumed.stderr
    assert losses(runs / "half") == pytest.approx(losses(runs / "longer"), abs=1e-4)
    assert len(losses(runs / "half")) == 9
