import json
from pathlib import Path

import pytest
import torch

from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.errors import CheckpointError, UnknownNameError


def test_outputs_have_unit_norm(tiny_encoder: DualEncoder) -> None:
    audio, text = tiny_encoder(torch.randn(3, 8000), torch.full((3,), 8000), ["a", "b", "c"])
    ones = torch.ones(3)
    torch.testing.assert_close(audio.norm(dim=1), ones)
    torch.testing.assert_close(text.norm(dim=1), ones)
    assert audio.shape == text.shape == (3, 16)


def test_two_files_rebuild_the_model_alone(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    again = DualEncoder.load(tmp_path)
    waveform, num_samples = torch.randn(2, 8000), torch.tensor([8000, 500])
    assert torch.equal(again.encode_audio(waveform, num_samples), tiny_encoder.encode_audio(waveform, num_samples))
    assert torch.equal(again.encode_text(["a tone"]), tiny_encoder.encode_text(["a tone"]))
    assert not again.training


def test_the_fingerprint_follows_the_weights(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path / "a")
    tiny_encoder.save(tmp_path / "b")
    assert model_fingerprint(tmp_path / "a") == model_fingerprint(tmp_path / "b")
    with torch.no_grad():
        tiny_encoder.audio_head.project.bias += 1e-3
    tiny_encoder.save(tmp_path / "b")
    assert model_fingerprint(tmp_path / "a") != model_fingerprint(tmp_path / "b")
    with pytest.raises(CheckpointError, match="nowhere: .* cannot be read"):
        model_fingerprint(tmp_path / "nowhere")


def test_a_frozen_tower_stays_as_it_is(tiny_encoder: DualEncoder) -> None:
    tiny_encoder.freeze("audio")
    tiny_encoder.train()
    before = {name: tensor.clone() for name, tensor in tiny_encoder.audio_tower.state_dict().items()}
    audio, text = tiny_encoder(torch.randn(4, 8000), torch.full((4,), 8000), ["a", "b", "c", "d"])
    (audio * text).sum().backward()
    assert all(p.grad is None for p in tiny_encoder.audio_tower.parameters())
    assert all(p.grad is not None for p in tiny_encoder.audio_head.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in tiny_encoder.audio_tower.state_dict().items())


def test_missing_and_damaged_files_are_named(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json: cannot be used \(FileNotFoundError"):
        DualEncoder.load(tmp_path)
    tiny_encoder.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match="model.safetensors: cannot be read as safetensors"):
        DualEncoder.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="config.json: cannot be used: is no clapkit model"):
        DualEncoder.load(tmp_path)


def test_weights_of_another_model_are_refused(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["embedding_dim"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="tensors do not fit the configuration, first 'audio_head"):
        DualEncoder.load(tmp_path)


def test_a_newer_format_is_refused(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"clapkit_model": 99}))
    with pytest.raises(CheckpointError, match="model format 99, this clapkit reads 1"):
        DualEncoder.load(tmp_path)


def test_an_unknown_tower_offers_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="unknown audio encoder 'smal': did you mean 'small'"):
        DualEncoder("smal", "tiny", embedding_dim=8)
