import json
import shutil
from pathlib import Path

import pytest
import torch

from clapkit.encoders import laion, msclap
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.loading import load
from clapkit.errors import CheckpointError

LAION = {"state_dict": {"audio_branch.bn0.weight": torch.zeros(1), "text_branch.embeddings.x": torch.zeros(1)}}
MSCLAP = {"model": {"audio_encoder.base.htsat.bn0.weight": torch.zeros(1), "caption_encoder.base.wte.weight": torch.zeros(1)}}


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch, tiny_encoder: DualEncoder) -> list[str]:
    """Which of the readers of checkpoint files was called."""
    called: list[str] = []
    for module in (laion, msclap):
        name = module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, "load", lambda path, name=name: (called.append(name), tiny_encoder.train())[1])
    return called


def test_a_model_of_clapkit_is_loaded_as_before(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path)
    model = load(tmp_path)
    assert torch.equal(model.encode_text(["a tone"]), tiny_encoder.encode_text(["a tone"]))
    assert not model.training


def test_a_clap_model_of_transformers_is_loaded(clap_folder: Path) -> None:
    model = load(clap_folder)
    assert model.config["audio"]["options"]["config"]["model_type"] == "clap_audio_model"
    assert not model.training


def test_the_model_goes_to_the_device(clap_folder: Path, tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path)
    assert {load(path, "meta").device.type for path in (clap_folder, tmp_path)} == {"meta"}


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize(("content", "reader"), [(LAION, "laion"), (MSCLAP, "msclap")])
def test_a_checkpoint_is_known_by_its_content(
    tmp_path: Path, readers: list[str], suffix: str, content: dict[str, object], reader: str
) -> None:
    torch.save(content, tmp_path / f"model{suffix}")
    model = load(tmp_path / f"model{suffix}")
    assert readers == [reader]
    assert not model.training


@pytest.mark.parametrize(("suffix", "reader"), [(".pt", "laion"), (".pth", "msclap")])
@pytest.mark.parametrize("content", ["legacy", "damaged", "of something else"])
def test_where_the_content_does_not_tell_the_suffix_does(
    tmp_path: Path, readers: list[str], suffix: str, reader: str, content: str
) -> None:
    path = tmp_path / f"model{suffix}"
    if content == "damaged":
        path.write_bytes(b"PK\x03\x04 and then nothing")
    else:
        torch.save({"weight": torch.zeros(1)}, path, _use_new_zipfile_serialization=content != "legacy")
    load(path)
    assert readers == [reader]


def _write(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path.parent if path.name == "config.json" else path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m/config.json", '{"model_type": "bert"}', "is of type 'bert', which is no audio-text model; .* as --text-weights"),
        ("m/config.json", "{", "config.json: cannot be read"),
        ("m/config.json", "{}", "is no clapkit model"),
        ("m/config.json", '{"clapkit_model": 99}', "model format 99"),
        ("a.safetensors", "", "is a .safetensors file; expected a clapkit model folder"),
        ("README", "", "is a file without a suffix; expected a clapkit model folder"),
    ],
)
def test_anything_else_is_refused_in_one_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = _write(tmp_path / name, content)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_audio_model_belongs_to_another_option(tmp_path: Path) -> None:
    folder = _write(tmp_path / "m" / "config.json", json.dumps({"model_type": "whisper"}))
    (folder / "preprocessor_config.json").touch()
    with pytest.raises(CheckpointError, match="is of type 'whisper', .* pass it as --audio-weights"):
        load(folder)


def test_a_path_with_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such file or folder; expected a clapkit model folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"has no config.json; expected a clapkit model folder"):
        load(tmp_path)


def test_a_fused_clap_model_is_refused_with_the_reason(clap_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clap_folder, tmp_path / "fused")
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["enable_fusion"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="fused: is a fused CLAP .*no embedding can be repeated"):
        load(folder)
