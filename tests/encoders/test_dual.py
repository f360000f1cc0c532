import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from clapkit import registry
from clapkit.encoders.clap import from_transformers
from clapkit.encoders.dual import DualEncoder, own_memory
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.errors import CheckpointError, ConfigError, UnknownNameError


class PolyglotTower(nn.Module):
    """A text tower with everything that one may have."""

    embedding_dim = 4
    takes_languages = True
    num_cut, max_tokens = 3, 9

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__()
        self.options, self.asked = options, []
        self.notes = ["two tensors were left out"]
        self.rebuild_options = {"weights": None, "config": {"width": 4}}
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight  # tied

    def forward(self, captions: Sequence[str], languages: Sequence[str]) -> Tensor:
        self.asked.append(list(languages))
        lengths = torch.tensor([[float(len(caption))] * 4 for caption in captions])
        told: Tensor = self.second(self.first(lengths)) + torch.tensor([[len(tag) * 1.0 + ord(tag[0])] for tag in languages])
        return told


@pytest.fixture
def polyglot(monkeypatch: pytest.MonkeyPatch) -> DualEncoder:
    """A tiny audio tower and a text tower that takes languages."""
    build = registry.build

    def make(kind: str, name: str, options: Any = None) -> Any:
        return PolyglotTower(dict(options)) if name == "polyglot" else build(kind, name, options)

    monkeypatch.setattr(registry, "build", make)
    torch.manual_seed(0)
    options = {"weights": "somewhere/else", "pooling": "mean", "captions": ["a"]}
    return DualEncoder("tiny", "polyglot", embedding_dim=8, text_options=options, text_head="clap").eval()


@pytest.fixture
def three_layers() -> DualEncoder:
    torch.manual_seed(0)
    options = {"captions": ["a dog barks"], "vocab_size": 300}
    return DualEncoder("tiny", "small", embedding_dim=8, text_options=options).eval()


def step(encoder: DualEncoder) -> None:
    length = encoder.audio_spec.window_samples
    audio, text = encoder(torch.randn(4, length), torch.full((4,), length), ["a", "b", "c", "a dog"])
    (audio @ text.T).square().sum().backward()


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


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


def test_a_frozen_tower_can_be_frozen_anew(three_layers: DualEncoder) -> None:
    three_layers.unfreeze_last("text", 2)
    three_layers.freeze("text")
    assert trained(three_layers.text_tower) == set()
    assert not any(module.training for module in three_layers.train().text_tower.modules())


def test_the_last_layers_and_the_norm_behind_them_are_trained(three_layers: DualEncoder) -> None:
    three_layers.train().freeze("text")
    three_layers.unfreeze_last("text", 2)
    tower = three_layers.text_tower
    expected = {name for name, _ in tower.named_parameters() if name.startswith(("layers.1.", "layers.2.", "norm."))}
    assert trained(tower) == expected
    step(three_layers)
    assert {name for name, p in tower.named_parameters() if p.grad is not None} == expected
    modes = [tower.dropout, *(layer.dropout for layer in tower.layers), tower.norm]
    assert [module.training for module in modes] == [False, False, True, True, True]
    assert not any(module.training for module in three_layers.eval().modules())
    three_layers.train()
    assert [module.training for module in modes] == [False, False, True, True, True]


def test_running_statistics_before_the_last_layers_hold_still(tiny_encoder: DualEncoder) -> None:
    tiny_encoder.train().unfreeze_last("audio", 1)
    tower = tiny_encoder.audio_tower
    assert {name.split(".")[0] for name in trained(tower)} == {"stages", "pool"}
    before = copy.deepcopy(tower.state_dict())
    step(tiny_encoder)
    changed = {name for name, tensor in tower.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("stages.1.") for name in changed)
    assert any("running_mean" in name for name in changed)


def test_a_deep_copy_keeps_what_is_frozen(three_layers: DualEncoder) -> None:
    three_layers.unfreeze_last("text", 1)
    other = copy.deepcopy(three_layers).train()
    assert other.text_tower.layers[2].training
    assert not other.text_tower.layers[1].training
    assert not three_layers.text_tower.layers[2].training


@pytest.mark.parametrize("count", [0, 4])
def test_more_layers_than_there_are_cannot_be_trained(three_layers: DualEncoder, count: int) -> None:
    with pytest.raises(ConfigError, match=f"--unfreeze-last {count}: the text tower small has 3 layers; choose 1 to 3"):
        three_layers.unfreeze_last("text", count)


def test_a_tower_without_layers_is_named(polyglot: DualEncoder) -> None:
    with pytest.raises(ConfigError, match="--unfreeze-last: the text tower polyglot has no layers"):
        polyglot.unfreeze_last("text", 1)
    with pytest.raises(ConfigError, match="--layer-decay: the text tower polyglot has no layers"):
        polyglot.learning_rate_scales(0.5)
    polyglot.freeze("text")  # then its rates do not matter
    assert min(polyglot.learning_rate_scales(0.5).values()) == 0.125


def test_learning_rates_decay_towards_the_input(three_layers: DualEncoder) -> None:
    scales = three_layers.learning_rate_scales(0.5)
    assert set(scales) == {name for name, _ in three_layers.named_parameters()}
    text = {name.removeprefix("text_tower."): scale for name, scale in scales.items() if name.startswith("text_tower.")}
    # 3 layers: the norm behind them 1, then 0.5, 0.5^2, 0.5^3 and what lies before them 0.5^4
    assert {text["norm.weight"], text["norm.bias"]} == {1.0}
    assert [text[f"layers.{k}.attention_out.weight"] for k in (2, 1, 0)] == [0.5, 0.25, 0.125]
    assert (text["tokens.weight"], text["positions"]) == (0.0625, 0.0625)
    # 2 stages: the pooling 1, then 0.5, 0.5^2 and stem and input norm 0.5^3
    assert scales["audio_tower.pool.key.weight"] == 1.0
    assert scales["audio_tower.stages.1.shortcut.1.weight"] == 0.5
    assert scales["audio_tower.stages.0.shortcut.1.weight"] == 0.25
    assert scales["audio_tower.stem.0.weight"] == scales["audio_tower.normalize.weight"] == 0.125
    assert {scale for name, scale in scales.items() if "_head." in name} == {1.0}


def test_languages_reach_a_tower_that_asks_for_them(polyglot: DualEncoder, tiny_encoder: DualEncoder) -> None:
    german, english = polyglot.encode_text(["a", "a"], ["de", "en"])
    assert not torch.allclose(german, english)
    assert torch.equal(polyglot.encode_text(["a", "a"]), polyglot.encode_text(["a", "a"], ["en", "en"]))
    assert polyglot.text_tower.asked == [["de", "en"], ["en", "en"], ["en", "en"]]
    waveform, num_samples = torch.zeros(1, 8000), torch.tensor([8000])
    assert torch.equal(polyglot(waveform, num_samples, ["a"], ["de"])[1], polyglot.encode_text(["a"], ["de"]))
    assert torch.equal(tiny_encoder.encode_text(["a"], ["de"]), tiny_encoder.encode_text(["a"]))


def test_captions_cut_are_counted_where_the_tower_does(polyglot: DualEncoder, tiny_encoder: DualEncoder) -> None:
    assert polyglot.captions_cut == (3, 9)
    assert tiny_encoder.captions_cut == (0, 32)
    tiny_encoder.encode_text(["a tone", "z " * 40])
    assert tiny_encoder.captions_cut == (1, 32)
    light = DualEncoder("tiny", "light", embedding_dim=8, text_options={"captions": ["a"]})
    assert light.captions_cut == (0, 77)
    tiny_encoder.text_tower = nn.Linear(2, 2)
    assert tiny_encoder.captions_cut is None


def test_long_captions_can_be_told_without_embedding_them(polyglot: DualEncoder, tiny_encoder: DualEncoder) -> None:
    # The second has more than 32 tokens, the third is a letter that has more: it is cut where others are split.
    captions = ["a tone", "z " * 40, "\ufdfa"]
    assert tiny_encoder.long_among(captions) == (2, 0)
    tiny_encoder.long_captions = "split"
    assert tiny_encoder.long_among(captions) == (1, 1)
    assert (tiny_encoder.captions_cut, tiny_encoder.captions_split) == ((0, 32), 0)
    tiny_encoder.encode_text(captions)
    assert (tiny_encoder.captions_cut, tiny_encoder.captions_split) == ((1, 32), 1)
    assert polyglot.long_among(captions) is None


def test_notes_are_those_of_the_towers(polyglot: DualEncoder, tiny_encoder: DualEncoder) -> None:
    assert polyglot.notes == ["two tensors were left out"]
    assert tiny_encoder.notes == []


def test_a_saved_model_is_rebuilt_from_what_the_tower_says(polyglot: DualEncoder, tmp_path: Path) -> None:
    polyglot.save(tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())["text"]
    assert text == {"encoder": "polyglot", "options": {"pooling": "mean", "config": {"width": 4}}, "head": "clap"}
    again = DualEncoder.load(tmp_path)
    assert again.text_tower.options == text["options"]
    assert again.config == polyglot.config
    assert torch.equal(again.encode_text(["a"]), polyglot.encode_text(["a"]))


def test_tied_weights_are_written_under_both_names(polyglot: DualEncoder, tmp_path: Path) -> None:
    tensors = own_memory(polyglot.state_dict())
    first, second = tensors["text_tower.first.weight"], tensors["text_tower.second.weight"]
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()
    polyglot.save(tmp_path)
    assert torch.equal(safetensors.torch.load_file(tmp_path / "model.safetensors")["text_tower.second.weight"], first)
    tower = DualEncoder.load(tmp_path).text_tower
    assert tower.first.weight is tower.second.weight


def test_heads_are_chosen_per_tower_and_come_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"captions": ["a"]}
    model = DualEncoder("tiny", "tiny", embedding_dim=8, text_options=options, audio_head="clap", text_head="mlp").eval()
    model.save(tmp_path)
    again = DualEncoder.load(tmp_path)
    assert [type(again.audio_head).__name__, type(again.text_head).__name__] == ["ClapHead", "ProjectionHead"]
    waveform, num_samples = torch.randn(1, 8000), torch.tensor([8000])
    assert torch.equal(again.encode_audio(waveform, num_samples), model.encode_audio(waveform, num_samples))
    with pytest.raises(UnknownNameError, match="unknown projection head 'clop'"):
        DualEncoder("tiny", "tiny", embedding_dim=8, text_options=options, audio_head="clop")


def test_a_model_from_before_heads_had_names_loads(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    tiny_encoder.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["audio"]["head"], config["text"]["head"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(DualEncoder.load(tmp_path).encode_text(["a"]), tiny_encoder.encode_text(["a"]))


def test_weights_of_another_version_of_transformers_are_named_as_such(clap_folder: Path, tmp_path: Path) -> None:
    from_transformers(clap_folder).save(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights["audio_tower.model.renamed"] = weights.pop(next(name for name in weights if name.startswith("audio_tower.model.")))
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"must come from the same run$"):
        DualEncoder.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["audio"]["options"]["config"]["transformers_version"] = "4.0.1"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"saved with transformers 4\.0\.1, here is .*install that version"):
        DualEncoder.load(tmp_path)
