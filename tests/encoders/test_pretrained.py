import json
import logging
import pickle
import random
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from clapkit.encoders.pretrained import (
    WithoutDrawing,
    find,
    load_strictly,
    load_transformer,
    name_of,
    quiet_libraries,
    read_json,
    read_tensors,
    shorten,
)
from clapkit.errors import CheckpointError


class _Payload:
    """Makes a file when it is unpickled: what stands for code that must not run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def clap_copy(clap_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clap_folder, tmp_path / "clap")


@pytest.fixture
def clap_class() -> Any:
    from transformers import ClapModel

    return ClapModel


def _rewrite(folder: Path, change: Any) -> None:
    """Replace the weights of a folder by what ``change`` makes of them."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_or_file_is_found_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    assert find(str(tmp_path)) == tmp_path
    (tmp_path / "a.pt").touch()
    assert find(str(tmp_path / "a.pt")) == tmp_path / "a.pt"


def test_a_folder_goes_before_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    Path("owner/name").mkdir(parents=True)
    assert find("owner/name") == Path("owner/name")


def test_a_name_of_the_hub_is_downloaded_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").touch()
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find("owner/name") == tmp_path
    ((name, patterns),) = asked
    assert name == "owner/name"
    assert not any(pattern.endswith((".py", "*")) for pattern in patterns if pattern != "1_Pooling/*")


def test_a_name_that_the_hub_does_not_give_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find the files\nin the cache, and\noutgoing traffic is disabled.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"weights owner/name: no such folder here.*\(Cannot find the files\)") as caught:
        find("owner/name")
    assert "\n" not in str(caught.value)


def test_offline_a_name_that_is_not_in_the_cache_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="weights owner/never-there: .* the Hub did not give it"):
        find("owner/never-there")


@pytest.mark.parametrize("address", ["no-such-folder", "a/b/c", "/nowhere/at all"])
def test_what_is_neither_a_path_nor_a_name_of_the_hub_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(CheckpointError, match="no such file or folder, and no name of the Hugging Face Hub"):
        find(address)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("\xff", "cannot be read"),
        ("[1]", "holds list, expected a JSON object"),
    ],
)
def test_a_file_without_a_json_object_is_named(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=f"config.json: {reason}"):
        read_json(path)


def test_a_json_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"name": "Käfer"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"name": "Käfer"}


def test_both_formats_of_weights_are_read(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pt")
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["a"], tensors["a"])
    content = read_tensors(tmp_path / "a.pt")
    assert content["epoch"] == 3
    assert torch.equal(content["state_dict"]["a"], tensors["a"])


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, legacy: bool) -> None:
    path, mark = tmp_path / "poisoned.bin", tmp_path / "ran"
    torch.save({"a": torch.zeros(1), "b": _Payload(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="poisoned.bin: holds Python objects besides tensors, which could run code"):
        read_tensors(path)
    assert not mark.exists()
    # The same content does run where it is let: the payload is one.
    pickle.loads(pickle.dumps(_Payload(mark)))
    assert mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage", "folder"])
def test_damaged_weights_are_one_line(tmp_path: Path, name: str, damage: str) -> None:
    path, tensors = tmp_path / name, {"a": torch.arange(1000.0)}
    if name == "model.pt":
        torch.save(tensors, path)
    else:
        safetensors.torch.save_file(tensors, path)
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": content[:-100], "garbage": b"\x00not weights" * 100}[damage])
    with pytest.raises(CheckpointError, match=name) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)


def test_a_pickle_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="a.pt: holds list, expected a dictionary of tensors"):
        read_tensors(tmp_path / "a.pt")


def test_tensors_that_fit_are_loaded() -> None:
    module = nn.Linear(2, 3)
    load_strictly(module, {"weight": torch.ones(3, 2), "bias": torch.full((3,), 2.0)}, origin="here")
    assert torch.equal(module(torch.ones(1, 2)), torch.full((1, 3), 4.0))


def test_all_that_does_not_fit_is_counted_and_the_first_named() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {"0.weight": torch.ones(3, 5), "1.weight": torch.ones(3, 3), "z": torch.ones(1), "y": torch.ones(1)}
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, tensors, origin="file.pt")
    assert str(caught.value) == (
        "file.pt: 2 tensors are missing (first 0.bias), 2 have no place (first y), 1 have another shape (first 0.weight: "
        "[3, 5], expected [3, 2]); the weights are of another model, name the right one"
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_model_of_transformers_is_loaded_whole(clap_folder: Path, clap_class: Any) -> None:
    model, notes = load_transformer(clap_class, clap_folder)
    saved = safetensors.torch.load_file(clap_folder / "model.safetensors")
    loaded = model.state_dict()
    assert loaded.keys() == saved.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    assert notes == []
    assert not model.training


def test_half_precision_weights_become_single(clap_copy: Path, clap_class: Any) -> None:
    _rewrite(clap_copy, lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()})
    config = json.loads((clap_copy / "config.json").read_text())
    (clap_copy / "config.json").write_text(json.dumps(config | {"dtype": "float16"}))
    model, _ = load_transformer(clap_class, clap_copy)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_a_missing_tensor_is_an_error_and_not_a_random_one(clap_copy: Path, clap_class: Any) -> None:
    _rewrite(clap_copy, lambda t: {k: v for k, v in t.items() if not k.startswith("text_model.pooler")})
    with pytest.raises(CheckpointError, match=r"2 tensors are missing for ClapModel, first text_model.pooler.dense.bias"):
        load_transformer(clap_class, clap_copy)


def test_missing_running_statistics_are_an_error(clap_copy: Path, clap_class: Any) -> None:
    _rewrite(clap_copy, lambda t: {k: v for k, v in t.items() if not k.endswith("running_mean")})
    with pytest.raises(CheckpointError, match="1 tensors are missing for ClapModel, first .*batch_norm.running_mean"):
        load_transformer(clap_class, clap_copy)


def test_buffers_that_a_model_computes_itself_may_be_missing(clap_copy: Path, clap_class: Any) -> None:
    whole, _ = load_transformer(clap_class, clap_copy)
    computed = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
    _rewrite(clap_copy, lambda t: {k: v for k, v in t.items() if not k.endswith(computed)})
    again, _ = load_transformer(clap_class, clap_copy)
    expected = whole.state_dict()
    assert sum(name.endswith(computed) for name in expected) >= 4
    assert all(torch.equal(tensor, expected[name]) for name, tensor in again.state_dict().items())


def test_a_tensor_of_another_shape_is_an_error(clap_copy: Path, clap_class: Any) -> None:
    _rewrite(clap_copy, lambda t: t | {"text_projection.linear1.weight": torch.zeros(12, 15)})
    with pytest.raises(CheckpointError, match="text_projection.linear1.weight"):
        load_transformer(clap_class, clap_copy)


def test_what_is_not_used_is_listed(clap_copy: Path, clap_class: Any) -> None:
    _rewrite(clap_copy, lambda t: t | {f"extra.{number}": torch.zeros(1) for number in range(8)})
    _, notes = load_transformer(clap_class, clap_copy)
    assert notes == [
        "clap: 8 tensors are not used by ClapModel: extra.0, extra.1, extra.2, extra.3, extra.4, extra.5 and 2 more"
    ]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_a_part_is_one_line(clap_copy: Path, clap_class: Any, name: str) -> None:
    (clap_copy / name).unlink()
    with pytest.raises(CheckpointError, match="clap: (has no config.json|cannot be loaded as ClapModel)") as caught:
        load_transformer(clap_class, clap_copy)
    assert "\n" not in str(caught.value)


def test_truncated_weights_of_a_folder_are_one_line(clap_copy: Path, clap_class: Any) -> None:
    weights = clap_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="clap: cannot be loaded as ClapModel") as caught:
        load_transformer(clap_class, clap_copy)
    assert "\n" not in str(caught.value)


def test_code_in_the_pickle_of_a_folder_does_not_run(clap_copy: Path, clap_class: Any, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(clap_copy / "model.safetensors")
    (clap_copy / "model.safetensors").unlink()
    torch.save(tensors | {"logit_scale_a": _Payload(tmp_path / "ran")}, clap_copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="clap: cannot be loaded as ClapModel") as caught:
        load_transformer(clap_class, clap_copy)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_that_asks_for_code_gets_none(clap_copy: Path, clap_class: Any, tmp_path: Path) -> None:
    config = json.loads((clap_copy / "config.json").read_text())
    (clap_copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    (clap_copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    model, _ = load_transformer(clap_class, clap_copy)
    assert type(model) is clap_class
    assert not (tmp_path / "ran").exists()


def test_names_are_shortened_only_where_there_are_many() -> None:
    assert shorten(["a", "b"], most=2) == "a, b"
    assert shorten(["a", "b", "c"], most=2) == "a, b and 1 more"


def test_the_libraries_are_quiet_inside_and_as_before_behind(capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level = logger.level
    showed = transformers_logging.is_progress_bar_enabled()

    def load() -> None:
        with quiet_libraries():
            logging.getLogger("transformers.modeling_utils").error("not to be seen")
            list(transformers_logging.tqdm([1, 2]))
            raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        load()
    assert logger.level == level != logging.CRITICAL
    assert transformers_logging.is_progress_bar_enabled() == showed
    assert capfd.readouterr().err == ""


def test_loading_prints_nothing(clap_copy: Path, clap_class: Any, capfd: pytest.CaptureFixture[str]) -> None:
    _rewrite(clap_copy, lambda t: t | {"extra": torch.zeros(1)})
    load_transformer(clap_class, clap_copy)
    assert capfd.readouterr() == ("", "")


def test_modules_are_made_without_drawing_and_loaded_as_ever() -> None:
    weights = nn.Linear(3, 4).state_dict()
    state = torch.get_rng_state()
    with WithoutDrawing():
        module = nn.Sequential(nn.Linear(3, 4), nn.Embedding(5, 2), nn.LayerNorm(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(module[2].weight, torch.ones(2))
    load_strictly(module[0], weights, origin="here")
    assert torch.equal(module[0].weight, weights["weight"])
    nn.Linear(3, 4)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("there", "downloads"), [("model.safetensors", 1), ("config.json", 2)])
def test_a_pickle_is_downloaded_only_where_there_is_no_safetensors_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, downloads: int
) -> None:
    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        (tmp_path / there).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find("owner/name") == tmp_path
    assert len(asked) == downloads
    assert not any(pattern.endswith(".bin") for pattern in asked[0])
    assert any(pattern.endswith(".bin") for pattern in asked[-1]) is (downloads == 2)


def test_an_empty_address_is_not_the_folder_one_is_in() -> None:
    with pytest.raises(CheckpointError, match="weights '': no such file or folder"):
        find("")


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("cache/models--laion--clap-htsat/snapshots/8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a", "laion/clap-htsat"),
        ("cache/models--own--a--b/snapshots/1", "own/a--b"),
        ("here/snapshots/mine", "mine"),
        ("mine", "mine"),
    ],
)
def test_a_note_calls_a_folder_of_the_cache_by_its_address(folder: str, name: str) -> None:
    assert name_of(Path(folder)) == name


def test_bytes_that_are_no_weights_are_one_line(tmp_path: Path) -> None:
    generator = random.Random(0)
    contents = [b"junk", b"", *(b"\x80\x02" + generator.randbytes(30) for _ in range(100))]
    for content in contents:
        (tmp_path / "a.pt").write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_tensors(tmp_path / "a.pt")
        assert "\n" not in str(caught.value)
