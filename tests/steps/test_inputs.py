import json

import pytest

from clapkit.errors import CheckpointError, ConfigError, EmbeddingError, ManifestError, RunDirError
from clapkit.steps import inputs


def test_a_model_is_found_by_path_by_name_as_a_folder_and_as_the_newest(runs_root, model_folder):
    by_path = inputs.resolve_model(str(runs_root / "train/first"), runs_root=runs_root)
    by_name = inputs.resolve_model("first", runs_root=runs_root)
    newest = inputs.resolve_model(None, runs_root=runs_root)
    folder = inputs.resolve_model(str(model_folder), runs_root=runs_root)
    assert by_path.folder == by_name.folder == newest.folder == runs_root / "train/first/model"
    assert newest.name == "first"
    assert folder.run is None
    assert folder.fingerprint == newest.fingerprint


def test_the_model_folder_of_a_run_still_knows_its_data(runs_root):
    model = inputs.resolve_model(str(runs_root / "train/first/model"), runs_root=runs_root)
    assert len(inputs.resolve_data(None, model=model, runs_root=runs_root).manifest) == 6


def test_the_data_of_a_model_are_those_it_was_trained_on(runs_root):
    model = inputs.resolve_model(None, runs_root=runs_root)
    data = inputs.resolve_data(None, model=model, runs_root=runs_root)
    assert data.path == runs_root / "prepare/toy/manifest.jsonl"


def test_data_are_found_by_run_and_by_manifest(runs_root):
    model = inputs.resolve_model(None, runs_root=runs_root)
    for address in ("toy", str(runs_root / "prepare/toy"), str(runs_root / "prepare/toy/manifest.jsonl")):
        assert len(inputs.resolve_data(address, model=model, runs_root=runs_root).manifest) == 6


def test_a_train_run_that_recorded_the_run_directory_works_as_well(runs_root, make_run, model):
    run = make_run("train", "other", inputs=[(runs_root / "prepare/toy", "x")])
    model.save(run.model_dir)
    run.finish({})
    source = inputs.resolve_model("other", runs_root=runs_root)
    assert len(inputs.resolve_data(None, model=source, runs_root=runs_root).manifest) == 6


def test_a_folder_without_a_run_has_no_data(runs_root, model_folder):
    source = inputs.resolve_model(str(model_folder), runs_root=runs_root)
    with pytest.raises(ManifestError, match="is no train run, so its data are not known"):
        inputs.resolve_data(None, model=source, runs_root=runs_root)


def test_a_run_without_recorded_data_says_so(runs_root, make_run, model):
    run = make_run("train", "bare")
    model.save(run.model_dir)
    run.finish({})
    with pytest.raises(ManifestError, match="run.json names no data"):
        inputs.resolve_data(None, model=inputs.resolve_model("bare", runs_root=runs_root), runs_root=runs_root)


def test_runs_that_are_missing_or_unfinished_are_refused(runs_root, make_run, tmp_path):
    with pytest.raises(RunDirError, match="no train run 'nothing'"):
        inputs.resolve_model("nothing", runs_root=runs_root)
    make_run("train", "open").release()
    with pytest.raises(RunDirError, match="not finished"):
        inputs.resolve_model("open", runs_root=runs_root)
    with pytest.raises(RunDirError, match="run `clapkit train` first"):
        inputs.resolve_model(None, runs_root=tmp_path / "empty")
    with pytest.raises(RunDirError, match="run `clapkit embed` first"):
        inputs.resolve_embeddings(None, runs_root=runs_root)
    with pytest.raises(RunDirError, match="run `clapkit prepare` first"):
        inputs.resolve_prepared(None, runs_root=tmp_path / "empty")


def test_a_run_without_weights_is_refused(runs_root):
    (runs_root / "train/first/model/model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model.safetensors"):
        inputs.resolve_model("first", runs_root=runs_root)


def test_embeddings_are_found_by_run_and_as_a_plain_folder(runs_root, make_run, tmp_path):
    run = make_run("embed", "one")
    run.finish({})
    assert inputs.resolve_embeddings(None, runs_root=runs_root) == run.path
    assert inputs.resolve_embeddings("one", runs_root=runs_root) == runs_root / "embed/one"
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "table.json").write_text(json.dumps({}))
    assert inputs.resolve_embeddings(str(plain), runs_root=runs_root) == plain


def test_a_table_of_another_model_is_refused(model_folder, tmp_path):
    with pytest.raises(EmbeddingError, match="was made by model 000000000000, but .* now holds"):
        inputs.check_table_model(tmp_path, model_path=model_folder, fingerprint="0" * 64)
    with pytest.raises(EmbeddingError, match="which is gone"):
        inputs.check_table_model(tmp_path, model_path=tmp_path / "gone", fingerprint="0" * 64)


def test_auto_names_a_device_that_exists():
    assert inputs.choose_device(inputs.choose_device("auto")) in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "expected auto, cpu"), ("cuda:x", "expected auto"), ("cuda:99", "use auto or cpu")]
)
def test_devices_that_do_not_exist_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        inputs.choose_device(name)
