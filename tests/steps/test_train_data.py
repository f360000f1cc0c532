import shutil

import pytest
import safetensors.torch

from clapkit.config import TrainConfig, resolve
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.errors import CheckpointError, ManifestError
from clapkit.run_dir import RunDir
from clapkit.steps.train_data import record_weights, splits
from clapkit.types import SilentReporter


@pytest.fixture
def model_copy(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def read(tmp_path):
    """Reads what a run reads, as the step does it: ``read(init=...)``; gives the splits and the recorded inputs."""

    def call(*, resume=False, **given):
        config = resolve(TrainConfig, {"runs_root": tmp_path / "runs"} | given)
        run_dir = RunDir.create(tmp_path / "run", step="train", config=config.resolved(), resume=resume)
        try:
            found = splits(config, run_dir, SilentReporter())
            record_weights(config, run_dir)
        finally:
            run_dir.release()
        return found, RunDir(tmp_path / "run").record["inputs"]

    return call


def change_weights(folder):
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")


def test_the_splits_are_those_that_are_named(read, tone_corpus):
    (train, val), _ = read(data=str(tone_corpus()), train_split="test", val_split="val")
    assert {clip.split for clip in train} == {"test"}
    assert {clip.split for clip in val} == {"val"}


def test_validation_data_may_lie_elsewhere(read, tone_corpus, tmp_path):
    one, other = tone_corpus(), tone_corpus(tmp_path / "others", val=3)
    (train, val), inputs = read(data=str(one), val_data=str(other))
    assert (len(train), len(val)) == (16, 3)
    assert [entry["path"] for entry in inputs] == [str(one), str(other)]
    (_, again), _ = read(data=str(one), val_data=str(other), resume=True)
    assert len(again) == 3


def test_weights_are_recorded_with_their_hash(read, tone_corpus, model_copy):
    _, inputs = read(data=str(tone_corpus()), init=str(model_copy))
    assert inputs[1] == {"path": str(model_copy), "fingerprint": model_fingerprint(model_copy)}


def test_weights_of_towers_are_recorded_each(read, tone_corpus, model_copy, clap_folder):
    _, inputs = read(data=str(tone_corpus()), audio_weights=str(clap_folder), text_weights=str(model_copy))
    assert [entry["path"] for entry in inputs[1:]] == [str(clap_folder), str(model_copy)]
    assert inputs[1]["fingerprint"] == model_fingerprint(clap_folder)


def test_a_run_from_weights_goes_on_with_what_it_read(read, tone_corpus, model_copy):
    given = {"data": str(tone_corpus()), "init": str(model_copy)}
    (train, _), first = read(**given)
    (again, _), second = read(**given, resume=True)
    assert first == second
    assert [clip.id for clip in again] == [clip.id for clip in train]


def test_a_run_that_was_stopped_before_it_read_weights_goes_on(read, tone_corpus, model_copy):
    given = {"data": str(tone_corpus())}
    read(**given)
    _, inputs = read(**given, init=str(model_copy), resume=True)
    assert len(inputs) == 2


def test_weights_that_changed_are_refused_on_resume(read, tone_corpus, model_copy):
    given = {"data": str(tone_corpus()), "init": str(model_copy)}
    read(**given)
    change_weights(model_copy)
    with pytest.raises(CheckpointError, match="model: has changed since this run was started; restore it or train anew"):
        read(**given, resume=True)


def test_weights_may_move_as_long_as_they_stay_the_same(read, tone_corpus, model_copy):
    given = {"data": str(tone_corpus())}
    read(**given, init=str(model_copy))
    moved = model_copy.rename(model_copy.with_name("moved"))
    _, inputs = read(**given, init=str(moved), resume=True)
    assert {entry["fingerprint"] for entry in inputs[1:]} == {model_fingerprint(moved)}


def test_data_that_changed_are_refused_on_resume(read, tone_corpus, model_copy):
    manifest = tone_corpus()
    given = {"data": str(manifest), "init": str(model_copy)}
    read(**given)
    manifest.write_text("".join(manifest.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ManifestError, match=r"manifest\.jsonl: has changed since this run was started; train anew"):
        read(**given, resume=True)


def test_weights_that_are_not_there_are_named(read, tone_corpus, tmp_path):
    with pytest.raises(CheckpointError, match="weights .*nowhere: no such file or folder"):
        read(data=str(tone_corpus()), audio_weights=str(tmp_path / "nowhere"))


def test_the_model_of_a_run_is_taken_by_name(read, tone_corpus, runs_root):
    _, inputs = read(data=str(tone_corpus()), init="first")
    folder = runs_root / "train" / "first" / "model"
    assert inputs[1] == {"path": str(folder), "fingerprint": model_fingerprint(folder)}
