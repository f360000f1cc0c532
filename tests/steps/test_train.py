import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from typer.testing import Result

from clapkit.cli.console import Console
from clapkit.config import TrainConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import CheckpointError, ConfigError, ManifestError, RunDirError, UnknownNameError
from clapkit.run_dir import RunDir
from clapkit.steps import train
from clapkit.types import Caption, SilentReporter

TINY: dict[str, Any] = {
    "audio_encoder": "tiny",
    "text_encoder": "tiny",
    "embedding_dim": 16,
    "batch_size": 4,
    "epochs": 2,
    "log_every": 1,
    "workers": 1,
}


@pytest.fixture(autouse=True)
def _no_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time of a run this small; one test looks at them."""
    if request.function is not test_a_run_leaves_what_the_contract_names:
        monkeypatch.setattr(train, "plot_run", lambda run_dir: None)


def start(tmp_path: Path, manifest: Path, name: str = "run", **options: Any) -> tuple[RunDir, dict[str, Any]]:
    given = TINY | {"data": str(manifest), "run_dir": tmp_path / name} | options
    config = resolve(TrainConfig, given)
    run_dir = RunDir.create(config.run_dir, step="train", config=config.resolved(), resume=config.resume)
    try:
        result = train.run(config, run_dir, SilentReporter())
    except BaseException:
        run_dir.fail("failed")
        raise
    run_dir.finish(result)
    return run_dir, result


def test_a_run_leaves_what_the_contract_names(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    run, result = start(tmp_path, tone_corpus(), loss="svr", radius="adaptive")
    assert result["steps"] == 8
    assert {"t2a_R@1", "a2t_mAP@10"} <= result["best_metrics"].keys()
    assert result["wall_s"] > 0
    records = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert all("step" in record for record in records)
    assert [r["step"] for r in records if "t2a_R@1" in r] == [0, 4, 8]
    assert {"mean_radius", "mean_rho", "mean_distance"} <= next(r for r in records if "loss" in r).keys()
    model = DualEncoder.load(run.model_dir)
    assert model.embedding_dim == 16
    best = safetensors.torch.load_file(run.checkpoint_dir / "best" / "model.safetensors")
    assert all(torch.equal(best[k], v) for k, v in model.state_dict().items())
    assert sorted(path.name for path in run.plot_dir.iterdir()) == [
        *("loss.png", "radius.png", "retrieval.png", "rho.png", "temperature.png")
    ]
    recorded = run.record
    assert recorded["inputs"][0]["path"].endswith("manifest.jsonl")
    assert recorded["device"] == "cpu"


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    manifest = tone_corpus()
    contents = [
        (start(tmp_path, manifest, str(n), seed=seed)[0].checkpoint_dir / "last" / "model.safetensors").read_bytes()
        for n, seed in enumerate((0, 0, 1))
    ]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "clapkit", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"{text!r} was never said")


def finish(process: subprocess.Popen[str]) -> str:
    """The rest of what a process says."""
    assert process.stderr is not None
    with process.stderr:
        said = process.stderr.read()
    process.wait(timeout=60)
    return said


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights_bit_for_bit(
    tone_corpus: Callable[..., Path], clapkit_call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "train --audio-encoder tiny --text-encoder tiny --batch-size 4 --epochs 5 --loss svr --radius adaptive".split()
    flags += ["--data", str(tone_corpus()), "--save-every", "3", "--log-every", "1"]
    killed = command(*flags, "--name", "killed", cwd=tmp_path)
    wait_for(killed, "step 8 of 20")
    killed.kill()
    finish(killed)
    runs = tmp_path / "runs" / "train"
    assert not (runs / "killed" / "result.json").exists()
    # The rest goes on in this process: another one than that which was killed.
    resumed = clapkit_call("train", "--resume", "--name", "killed")
    assert resumed.exit_code == 0, resumed.stderr
    assert "resuming at step" in resumed.stderr
    whole = clapkit_call(*flags, "--name", "whole")
    assert whole.exit_code == 0, whole.stderr
    for name in ("model/model.safetensors", "checkpoints/last/model.safetensors", "checkpoints/last/objective.safetensors"):
        assert (runs / "whole" / name).read_bytes() == (runs / "killed" / name).read_bytes(), name

    def losses(name: str) -> list[tuple[int, float]]:
        records = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text().splitlines()]
        return [(record["step"], record["loss"]) for record in records if "loss" in record]

    assert losses("whole") == losses("killed")


def test_sigterm_saves_and_ends_with_130(
    tone_corpus: Callable[..., Path], clapkit_call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    say = Console.say

    def say_and_be_asked_to_stop(console: Console, message: str) -> None:
        say(console, message)
        if message.startswith("step 8 of"):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Console, "say", say_and_be_asked_to_stop)
    flags = "train --audio-encoder tiny --text-encoder tiny --batch-size 4 --epochs 500 --name t".split()
    result = clapkit_call(*flags, "--data", tone_corpus())
    assert result.exit_code == 130
    assert "clapkit train --resume --run-dir" in result.stderr
    run = RunDir(tmp_path / "runs" / "train" / "t")
    assert run.record["status"] == "interrupted"
    assert not run.finished
    assert (run.checkpoint_dir / "last" / "state.pt").exists()


def test_init_takes_up_the_weights_of_a_model(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    manifest = tone_corpus()
    first, _ = start(tmp_path, manifest, "first")
    second, _ = start(tmp_path, manifest, "second", init=str(first.path), max_steps=1, lr=1e-12)
    a, b = DualEncoder.load(first.model_dir), DualEncoder.load(second.model_dir)
    assert torch.allclose(a.text_head.project.weight, b.text_head.project.weight, atol=1e-6)
    with pytest.raises(ConfigError, match="--init brings its own towers"):
        start(tmp_path, manifest, "third", init=str(first.path), options=["window_s=0.5"])
    with pytest.raises(ConfigError, match="--embedding-dim 8: --init .* brings its own, 16; leave --embedding-dim out"):
        start(tmp_path, manifest, "fourth", init=str(first.path), embedding_dim=8)


def test_the_model_keeps_the_factor_on_similarities_and_hands_it_on(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    manifest = tone_corpus()

    def stored(run: RunDir) -> float | None:
        return json.loads((run.model_dir / "config.json").read_text()).get("logit_scale")

    first, _ = start(tmp_path, manifest, "first", max_steps=1, lr=1e-12, tau=0.05)
    assert stored(first) == pytest.approx(20)
    second, _ = start(tmp_path, manifest, "second", max_steps=1, lr=1e-12, init=str(first.path))
    assert stored(second) == pytest.approx(20)
    scheduled, _ = start(tmp_path, manifest, "third", max_steps=10, init=str(first.path), temperature="cosine")
    assert stored(scheduled) is None


def test_a_frozen_tower_is_not_trained(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    manifest = tone_corpus()
    first, _ = start(tmp_path, manifest, "first")
    second, _ = start(tmp_path, manifest, "second", init=str(first.path), freeze="audio")
    a = DualEncoder.load(first.model_dir).state_dict()
    b = safetensors.torch.load_file(second.checkpoint_dir / "last" / "model.safetensors")
    changed = {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])}
    assert changed == {"text_tower", "audio_head", "text_head"}


def test_a_corrupt_checkpoint_is_named_and_kept(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    run, _ = start(tmp_path, tone_corpus())
    run.result_json.unlink()
    state = run.checkpoint_dir / "last" / "state.pt"
    state.write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be read"):
        start(tmp_path, tmp_path / "tones" / "manifest.jsonl", resume=True)
    assert state.read_bytes() == b"garbage"


def test_data_that_changed_are_refused_on_resume(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    manifest = tone_corpus()
    run, _ = start(tmp_path, manifest)
    run.result_json.unlink()
    lines = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines[:-1]))
    with pytest.raises(ManifestError, match="has changed since this run was started"):
        start(tmp_path, manifest, resume=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"radius": "static"}, ConfigError, "--radius does not apply to --loss infonce; it belongs to --loss svr"),
        ({"loss": "infonec"}, UnknownNameError, "did you mean 'infonce'"),
        ({"batch_size": 1}, ConfigError, "--batch-size 1: a contrastive batch needs negatives"),
        ({"batch_size": 99}, ConfigError, "--batch-size 99: the training split has 16 clips"),
        ({"val_split": "test"}, ConfigError, "selected on the test split"),
        ({"val_split": "dev"}, ManifestError, "dev.*train"),
        ({"keep_best": "t2a_R1"}, UnknownNameError, "did you mean 't2a_R@1'"),
        ({"epochs": 0}, ConfigError, "--epochs 0: expected more than 0"),
        ({"clip_grad": -1.0}, ConfigError, "--clip-grad -1.0: expected 0 or more"),
        ({"options": ["audio.windows=3"]}, UnknownNameError, "did you mean 'audio.window_s'"),
        ({"options": ["nonsense=3"]}, UnknownNameError, "unknown option -O 'nonsense'"),
        ({"options": ["vocab_size=many"]}, ConfigError, "vocab_size=many: expected a whole number"),
        ({"device": "cuda:77"}, ConfigError, "--device 'cuda:77'"),
        ({"tau": 0.1, "options": ["tau=0.2"]}, ConfigError, "-O tau: is also given as --tau"),
        ({"data": "nowhere"}, RunDirError, "no prepare run 'nowhere'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(
    options: dict[str, Any], error: type[Exception], message: str, tone_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        start(tmp_path, tone_corpus(), **options)


def test_a_split_too_small_to_rank_is_refused(tone_corpus: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="split 'val': found 1 clip, expected at least 2"):
        start(tmp_path, tone_corpus(val=1))


@pytest.mark.parametrize("long_captions", ["cut", "split"])
def test_long_captions_are_counted_once_whatever_else_reads_them(
    long_captions: str, tone_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    data = Manifest.load(manifest := tone_corpus(train=4, val=2, test=1))
    long = " and a loud bell rings" * 20
    clips = [
        dataclasses.replace(clip, captions=tuple(Caption(caption.text + long) for caption in clip.captions))
        for clip in data.clips
    ]
    Manifest.write(manifest, clips, root=data.root, name="long")  # those of the validation split among them
    options: dict[str, Any] = {"loss": "compa", "true_variants": 1, "grad_cache_chunk": 3, "long_captions": long_captions}
    _, result = start(tmp_path, manifest, max_steps=2, **options)
    expected = (0, 8) if long_captions == "split" else (8, 0)  # 2 steps of 4 captions, all of them long
    assert (result["captions_cut"], result["captions_split"]) == ((expected[0], 32), expected[1])


def test_long_captions_are_counted_by_all_processes_together(tiny_encoder: DualEncoder) -> None:
    class Counting:
        def long_captions(self) -> dict[str, int]:
            return {"captions_cut": 3, "captions_split": 2}

    assert train._long_captions(tiny_encoder, Counting()) == {"captions_cut": (3, 32), "captions_split": 2}
    tiny_encoder.text_tower = nn.Linear(2, 2)
    assert train._long_captions(tiny_encoder, Counting()) == {"captions_cut": None, "captions_split": 2}
