import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from clapkit.errors import CheckpointError, ConfigError, EmbeddingError, ManifestError, RunDirError
from clapkit.steps import inputs


def test_a_model_is_found_by_path_by_name_as_a_folder_and_as_the_newest(runs_root, model_folder):
    by_path = inputs.resolve_model(str(runs_root / "train/first"), runs_root=runs_root)
    by_name = inputs.resolve_model("first", runs_root=runs_root)
    newest = inputs.resolve_model(None, runs_root=runs_root)
    folder = inputs.resolve_model(str(model_folder), runs_root=runs_root)
    assert by_path.path == by_name.path == newest.path == runs_root / "train/first/model"
    assert newest.name == "first"
    assert folder.run is None
    assert folder.fingerprint == newest.fingerprint


def test_a_folder_of_transformers_is_a_model(runs_root, clap_folder):
    source = inputs.resolve_model(str(clap_folder), runs_root=runs_root)
    assert (source.path, source.name, source.run) == (clap_folder, str(clap_folder), None)
    assert inputs.load_model(source.path, device="cpu").tower_names == {"audio": "hf", "text": "hf"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_half_a_folder_of_transformers_is_refused(runs_root, clap_folder, tmp_path, name):
    folder = shutil.copytree(clap_folder, tmp_path / "half")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"half.*{name}"):
        inputs.resolve_model(str(folder), runs_root=runs_root)


def test_a_tower_is_no_model(runs_root, clap_folder, tmp_path):
    folder = shutil.copytree(clap_folder, tmp_path / "bert")
    (folder / "preprocessor_config.json").unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    source = inputs.resolve_model(str(folder), runs_root=runs_root)
    message = "is of type 'bert', which is no audio-text model; to train with it as a tower, pass it as --text-weights"
    with pytest.raises(CheckpointError, match=message):
        inputs.load_model(source.path, device="cpu")


def test_a_name_of_the_hub_is_asked_of_the_hub(runs_root, clap_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: asked.append(name) or str(clap_folder))
    source = inputs.resolve_model("laion/clap-htsat-unfused", runs_root=runs_root)
    assert asked == ["laion/clap-htsat-unfused"]
    assert (source.path, source.name, source.run) == (clap_folder, "laion/clap-htsat-unfused", None)
    assert source.fingerprint == inputs.resolve_model(str(clap_folder), runs_root=runs_root).fingerprint


def test_a_name_that_the_hub_does_not_give_is_refused(runs_root, monkeypatch):
    def refuse(name, **_):
        raise LocalEntryNotFoundError("there is no connection\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    message = r"weights a/b: no such folder here, and the Hub did not give it \(there is no connection\); check the name"
    with pytest.raises(CheckpointError, match=message):
        inputs.resolve_model("a/b", runs_root=runs_root)


@pytest.mark.parametrize("place", ["{root}/train/a/b", "{root}/a/b", "{here}/a/b"])
def test_what_is_here_is_not_asked_of_the_hub(runs_root, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: pytest.fail("the Hub was asked"))
    Path(place.format(root=runs_root, here=tmp_path)).mkdir(parents=True)
    with pytest.raises(RunDirError, match="no train run 'a/b'"):
        inputs.resolve_model("a/b", runs_root=runs_root)


def test_a_language_is_for_models_that_ask_for_it(model, polyglot):
    inputs.expect_languages(polyglot, "de", name="m")
    with pytest.raises(
        ConfigError, match="--lang de: the model m reads all languages alike and is told none; leave --lang out"
    ):
        inputs.expect_languages(model, "de", name="m")


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


# Prepare runs are checked against what prepare left ----------------------------------------------------------------------


@pytest.fixture
def prepared(tmp_path, call_prepare, write_melody):
    for key in range(2):
        write_melody(tmp_path / "sounds" / f"{key}.wav", key)
    return call_prepare(name="mine", recipe=str(tmp_path / "sounds"), split="test")


def test_a_prepare_run_is_taken_as_prepare_left_it(prepared, tmp_path):
    found = inputs.resolve_prepared("mine", runs_root=tmp_path / "runs")
    assert found.manifest.fingerprint == prepared.result["fingerprint"]


def test_a_manifest_that_was_edited_is_refused_unless_the_file_itself_is_named(prepared, tmp_path):
    path = prepared.path / "manifest.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    for address in ("mine", str(prepared.path), None):
        with pytest.raises(ManifestError, match=r"holds clips [0-9a-f]{12}, but prepare wrote [0-9a-f]{12}; prepare again, or"):
            inputs.resolve_prepared(address, runs_root=tmp_path / "runs")
    assert len(inputs.resolve_prepared(str(path), runs_root=tmp_path / "runs").manifest) == 1


def test_audio_that_was_replaced_is_refused(prepared, tmp_path):
    sound = tmp_path / "sounds" / "1.wav"
    sound.write_bytes(sound.read_bytes()[:-10])
    size = sound.stat().st_size
    message = rf"mine: 1 of 2 audio files changed .* first: 1\.wav has {size} bytes, {size + 10} when it was checked; restore"
    with pytest.raises(ManifestError, match=message):
        inputs.resolve_prepared("mine", runs_root=tmp_path / "runs")


def test_audio_that_is_gone_is_refused(prepared, tmp_path):
    (tmp_path / "sounds" / "0.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 2 audio files changed since they were checked, first: 0\.wav is gone"):
        inputs.resolve_prepared(None, runs_root=tmp_path / "runs")


def test_the_data_of_a_model_are_checked_as_well(prepared, tmp_path, make_run, model):
    train = make_run("train", "heard", inputs=[(prepared.path, prepared.result["fingerprint"])])
    model.save(train.model_dir)
    train.finish({})
    (tmp_path / "sounds" / "0.wav").unlink()
    source = inputs.resolve_model("heard", runs_root=tmp_path / "runs")
    with pytest.raises(ManifestError, match=r"0\.wav is gone"):
        inputs.resolve_data(None, model=source, runs_root=tmp_path / "runs")


def trained_on(prepared, make_run, model):
    train = make_run("train", "heard", inputs=[(prepared.path / "manifest.jsonl", prepared.result["fingerprint"])])
    model.save(train.model_dir)
    train.finish({})


def test_the_data_of_a_model_are_checked_where_it_recorded_the_manifest_as_train_does(prepared, tmp_path, make_run, model):
    trained_on(prepared, make_run, model)
    source = inputs.resolve_model("heard", runs_root=tmp_path / "runs")
    assert len(inputs.resolve_data(None, model=source, runs_root=tmp_path / "runs").manifest) == 2
    (tmp_path / "sounds" / "0.wav").unlink()
    with pytest.raises(ManifestError, match=r"1 of 2 audio files changed since they were checked, first: 0\.wav is gone"):
        inputs.resolve_data(None, model=source, runs_root=tmp_path / "runs")


def test_data_that_were_prepared_again_in_another_way_are_not_those_of_the_model(prepared, tmp_path, make_run, model):
    trained_on(prepared, make_run, model)
    path = prepared.path / "manifest.jsonl"
    path.write_text(path.read_text().replace('"split": "test"', '"split": "train"'))
    source = inputs.resolve_model("heard", runs_root=tmp_path / "runs")
    with pytest.raises(ManifestError, match=r"holds clips [0-9a-f]{12}, but heard was trained on [0-9a-f]{12}; restore them"):
        inputs.resolve_data(None, model=source, runs_root=tmp_path / "runs")
    assert len(inputs.resolve_data(str(path), model=source, runs_root=tmp_path / "runs").manifest) == 2


def test_originals_may_go_where_decoded_copies_are_kept(tmp_path, call_prepare, write_melody):
    sound = write_melody(tmp_path / "sounds" / "a.wav", 1)
    done = call_prepare(name="copied", recipe=str(tmp_path / "sounds"), split="test", cache_audio="flac")
    sound.unlink()
    assert len(inputs.resolve_prepared("copied", runs_root=tmp_path / "runs").manifest) == 1
    (done.path / "decoded" / "a.wav.flac").write_bytes(b"fLaC")
    with pytest.raises(ManifestError, match=r"a\.wav\.flac has 4 bytes"):
        inputs.resolve_prepared("copied", runs_root=tmp_path / "runs")


def test_runs_of_versions_without_a_table_of_files_still_load(prepared, tmp_path):
    (prepared.path / "files.parquet").unlink()
    (tmp_path / "sounds" / "0.wav").unlink()
    assert len(inputs.resolve_prepared("mine", runs_root=tmp_path / "runs").manifest) == 2


def test_a_damaged_table_of_files_is_refused(prepared, tmp_path):
    (prepared.path / "files.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"files\.parquet: cannot be read \(.*\); run prepare again"):
        inputs.resolve_prepared("mine", runs_root=tmp_path / "runs")
