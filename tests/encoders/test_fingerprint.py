import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clapkit.encoders.fingerprint import holds_model, model_fingerprint
from clapkit.errors import CheckpointError


def _folder_of_transformers(folder: Path, *, weights: str = "model.safetensors", **files: str) -> Path:
    folder.mkdir(parents=True)
    contents = {
        "config.json": '{"model_type": "clap"}',
        weights: "numbers",
        "preprocessor_config.json": '{"hop_length": 480}',
        "tokenizer.json": "{}",
        "README.md": "of no matter",
    }
    for name, content in (contents | files).items():
        (folder / name).write_text(content)
    return folder


def test_it_needs_no_torch() -> None:
    script = "import sys, clapkit.encoders.fingerprint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_models_of_clapkit_keep_the_fingerprint_that_tables_were_made_with(tmp_path: Path) -> None:
    config = b'{"clapkit_model": 1, "model_type": "not looked at"}'
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / "tokenizer.json").write_bytes(b"of no matter: the tokenizer is inside config.json")
    by_hand = hashlib.sha256(hashlib.sha256(b"weights").digest() + hashlib.sha256(config).digest())
    assert model_fingerprint(tmp_path) == by_hand.hexdigest()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"])
def test_every_file_that_decides_how_transformers_embeds_counts(tmp_path: Path, name: str) -> None:
    folder = _folder_of_transformers(tmp_path / "a")
    before = model_fingerprint(folder)
    (folder / name).write_text('{"model_type": "clap", "another": 1}')
    assert model_fingerprint(folder) != before


def test_other_files_and_the_name_of_the_folder_do_not_count(tmp_path: Path) -> None:
    before = model_fingerprint(_folder_of_transformers(tmp_path / "a"))
    again = _folder_of_transformers(tmp_path / "b")
    (again / "README.md").write_text("rewritten")
    assert model_fingerprint(again) == before


def test_content_that_changes_its_file_counts(tmp_path: Path) -> None:
    one = _folder_of_transformers(tmp_path / "a", **{"vocab.json": "same"})
    other = _folder_of_transformers(tmp_path / "b", **{"merges.txt": "same"})
    assert model_fingerprint(one) != model_fingerprint(other)


def test_links_as_in_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    folder = _folder_of_transformers(tmp_path / "a")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert holds_model(snapshot)
    assert model_fingerprint(snapshot) == model_fingerprint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model folder .*snapshot: model.safetensors cannot be read \(No such file"):
        model_fingerprint(snapshot)


def test_weights_in_several_files_all_count(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-1.safetensors"}})
    parts = {"part-1.safetensors": "one", "part-2.safetensors": "two"}
    folder = _folder_of_transformers(tmp_path / "a", weights="model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text(index)
    for name, content in parts.items():
        (folder / name).write_text(content)
    before = model_fingerprint(folder)
    (folder / "part-2.safetensors").write_text("2")
    assert model_fingerprint(folder) != before
    (folder / "part-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="part-2.safetensors cannot be read"):
        model_fingerprint(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": []}', '{"metadata": {}}'])
def test_a_damaged_index_is_named(tmp_path: Path, content: str) -> None:
    folder = _folder_of_transformers(tmp_path / "a", weights="model.safetensors.index.json")
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="model.safetensors.index.json: is no index of weights"):
        model_fingerprint(folder)


def test_the_old_format_of_weights_counts(tmp_path: Path) -> None:
    folder = _folder_of_transformers(tmp_path / "a", weights="pytorch_model.bin")
    before = model_fingerprint(folder)
    (folder / "pytorch_model.bin").write_text("other numbers")
    assert model_fingerprint(folder) != before


def test_a_checkpoint_file_goes_with_the_tokenizer_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "music.pt"
    path.write_bytes(b"weights")
    alone = model_fingerprint(path)
    shutil.copy(path, tmp_path / "renamed.pt")
    assert model_fingerprint(tmp_path / "renamed.pt") == alone
    (tmp_path / "tokenizer.json").write_text("{}")
    assert model_fingerprint(path) != alone


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        ({}, "model.safetensors"),
        ({"model.safetensors": ""}, "config.json"),
        ({"config.json": '{"model_type": "clap"}'}, "model.safetensors"),
        ({"config.json": '{"clapkit_model": 1}'}, "model.safetensors"),
        ({"config.json": "{"}, "model.safetensors"),
    ],
)
def test_an_incomplete_folder_is_refused(tmp_path: Path, files: dict[str, str], missing: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{missing} cannot be read .*expected model.safetensors and config.json"):
        model_fingerprint(tmp_path)


@pytest.mark.parametrize(
    ("name", "holds"),
    [
        ("folder/config.json", True),
        ("folder/model.safetensors", True),
        ("folder/pytorch_model.bin", True),
        ("folder/run.json", False),
        ("folder", False),
    ],
)
def test_a_folder_with_a_configuration_or_weights_is_meant_as_a_model(tmp_path: Path, name: str, holds: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / name).touch() if name != "folder" else None
    assert holds_model(tmp_path / "folder") == holds


@pytest.mark.parametrize(("name", "holds"), [("a.pt", True), ("a.pth", True), ("a.wav", False), ("config.json", False)])
def test_a_file_is_a_model_by_its_suffix(tmp_path: Path, name: str, holds: bool) -> None:
    assert not holds_model(tmp_path / name)
    (tmp_path / name).touch()
    assert holds_model(tmp_path / name) == holds
