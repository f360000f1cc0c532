import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from clapkit.encoders import pretrained
from clapkit.encoders.clap import PARTS, _tokenizer_config, exportable, from_transformers, to_transformers
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import CheckpointError, ConfigError

RATE = 48000
CAPTIONS = [
    "a dog barks",
    "Rain falls on a tin roof, and far away a dog barks.",
    "",
    "ünïcode <pad> 音",
    "a tone of 440 hertz " * 20,
]
Embeddings = tuple[Tensor, Tensor]


def _clips() -> list[Tensor]:
    """One second and shorter, down to one sample; none fills the window a whole number of times."""
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in (RATE, RATE - 1, 20000, 700, 1)]


def _embed(model: DualEncoder, clips: list[Tensor], captions: list[str]) -> Embeddings:
    waveform = torch.zeros(len(clips), RATE)
    for row, clip in zip(waveform, clips, strict=True):
        row[: len(clip)] = clip
    with torch.inference_mode():
        return model.encode_audio(waveform, torch.tensor([len(clip) for clip in clips])), model.encode_text(captions)


def _embed_with_transformers(folder: Path, clips: list[Tensor], captions: list[str]) -> Embeddings:
    """What the library makes of a folder, with nothing of clapkit."""
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    model = ClapModel.from_pretrained(folder)
    extractor, tokenizer = ClapFeatureExtractor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    sound = extractor([np.asarray(clip) for clip in clips], sampling_rate=RATE, return_tensors="pt")
    text = tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        return model.get_audio_features(**sound).pooler_output, model.get_text_features(**text).pooler_output


def _assert_equal(found: Embeddings, expected: Embeddings) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.fixture
def clap_copy(clap_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(clap_folder, tmp_path / "clap")


@pytest.fixture(scope="module")
def loaded(clap_folder: Path) -> DualEncoder:
    """The model of the fixture, which no test changes."""
    return from_transformers(clap_folder)


@pytest.fixture
def trained(clap_folder: Path) -> DualEncoder:
    """The model after two steps."""
    model = from_transformers(clap_folder).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):
        waveform = torch.stack([clip[:700].repeat(69)[:RATE] for clip in _clips()[:3]])
        audio, text = model(waveform, torch.full((3,), RATE), CAPTIONS[:3])
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(10 * audio @ text.T, torch.arange(3)).backward()
        optimizer.step()
    return model.eval()


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def _change_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def test_it_embeds_as_the_library_does(loaded: DualEncoder, clap_folder: Path) -> None:
    expected = _embed_with_transformers(clap_folder, _clips(), CAPTIONS)
    _assert_equal(_embed(loaded, _clips(), CAPTIONS), expected)
    # Clips and captions that all embed alike would be equal whatever was loaded.
    for embeddings in expected:
        assert (embeddings @ embeddings.T).min() < 0.95
    assert not loaded.training
    assert loaded.notes == []


def test_every_tensor_has_one_place(loaded: DualEncoder, clap_folder: Path) -> None:
    saved = safetensors.torch.load_file(clap_folder / "model.safetensors")
    ours = loaded.state_dict()
    for name, tensor in saved.items():
        part, _, rest = name.partition(".")
        if not name.startswith("logit_scale"):
            assert torch.equal(ours[f"{PARTS[part]}.{rest}"], tensor), name
    assert sum(tensor.numel() for tensor in loaded.parameters()) + 2 == sum(
        tensor.numel() for name, tensor in saved.items() if tensor.is_floating_point() and "running" not in name
    )


def test_loading_and_writing_leave_the_random_numbers_alone(clap_folder: Path, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    to_transformers(from_transformers(clap_folder), tmp_path / "export")
    assert torch.equal(torch.get_rng_state(), state)


def test_embeddings_do_not_depend_on_the_batch(loaded: DualEncoder) -> None:
    together = _embed(loaded, _clips(), CAPTIONS)
    alone = [_embed(loaded, [clip], [caption]) for clip, caption in zip(_clips(), CAPTIONS, strict=True)]
    _assert_equal(together, (torch.cat([audio for audio, _ in alone]), torch.cat([text for _, text in alone])))


def test_what_lies_behind_the_end_of_a_clip_is_not_heard(loaded: DualEncoder) -> None:
    waveform = torch.zeros(1, RATE)
    waveform[0, :700] = _clips()[3]
    noisy = waveform.clone()
    noisy[0, 700:] = 1.0
    with torch.inference_mode():
        assert torch.equal(loaded.encode_audio(waveform, torch.tensor([700])), loaded.encode_audio(noisy, torch.tensor([700])))


def test_the_window_is_that_of_the_front_end(loaded: DualEncoder) -> None:
    assert (loaded.audio_spec.sample_rate, loaded.audio_spec.window_s) == (RATE, 1)


def test_two_steps_and_an_export_give_transformers_the_same_model(
    trained: DualEncoder, clap_folder: Path, tmp_path: Path
) -> None:
    to_transformers(trained, tmp_path / "export", logit_scale=20.0)
    expected = _embed(trained, _clips(), CAPTIONS)
    _assert_equal(_embed_with_transformers(tmp_path / "export", _clips(), CAPTIONS), expected)
    before = _embed_with_transformers(clap_folder, _clips(), CAPTIONS)
    assert all((new - old).abs().max() > 1e-2 for new, old in zip(expected, before, strict=True))
    _assert_equal(_embed(from_transformers(tmp_path / "export"), _clips(), CAPTIONS), expected)


def test_an_export_has_all_that_the_library_looks_for(loaded: DualEncoder, clap_folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer, ClapProcessor

    to_transformers(loaded, tmp_path / "export", logit_scale=20.0)
    assert sorted(path.name for path in (tmp_path / "export").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    processor = ClapProcessor.from_pretrained(tmp_path / "export")
    inputs = processor(text=CAPTIONS[:2], audio=np.zeros(100), sampling_rate=RATE, padding=True, return_tensors="pt")
    model = AutoModel.from_pretrained(tmp_path / "export")
    assert type(model).__name__ == "ClapModel"
    assert model(**inputs).logits_per_text.shape == (2, 1)
    torch.testing.assert_close(model.logit_scale_a.exp(), torch.tensor(20.0))
    torch.testing.assert_close(model.logit_scale_t.exp(), torch.tensor(20.0))
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "export", clap_folder))
    assert ours(CAPTIONS, truncation=True).input_ids == theirs(CAPTIONS, truncation=True).input_ids
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.model_max_length == theirs.model_max_length == 38


def test_special_tokens_have_their_roles_where_no_file_says_them(loaded: DualEncoder) -> None:
    options = loaded.config["text"]["options"] | {"tokenizer_config": {"append_eos": False}, "max_tokens": 20}
    tokens = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    expected: dict[str, object] = {f"{role}_token": token for role, token in tokens.items()}
    assert _tokenizer_config(options) == expected | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 20}


def test_a_saved_model_needs_no_file_of_the_folder(clap_copy: Path, tmp_path: Path) -> None:
    model = from_transformers(clap_copy)
    expected = _embed(model, _clips(), CAPTIONS)
    model.save(tmp_path / "saved")
    shutil.rmtree(clap_copy)
    again = DualEncoder.load(tmp_path / "saved")
    for found, embeddings in zip(_embed(again, _clips(), CAPTIONS), expected, strict=True):
        assert torch.equal(found, embeddings)
    assert exportable(again) is None
    to_transformers(again, tmp_path / "export")
    _assert_equal(_embed_with_transformers(tmp_path / "export", _clips(), CAPTIONS), expected)


def test_the_logit_scale_is_kept_for_training_and_export(clap_copy: Path, tmp_path: Path) -> None:
    # exp(3.0) = 20.0855, exp(3.2) = 24.5325
    _change_weights(clap_copy, lambda t: t | {"logit_scale_a": torch.tensor(3.0), "logit_scale_t": torch.tensor(3.2)})
    model = from_transformers(clap_copy)
    assert model.config["logit_scale"] == pytest.approx(20.0855, abs=1e-3)
    assert model.notes == ["clap: has two logit scales, 20.09 (audio) and 24.53 (text); training starts from the first"]
    to_transformers(model, tmp_path / "export")
    scales = safetensors.torch.load_file(tmp_path / "export" / "model.safetensors")
    assert (scales["logit_scale_a"].item(), scales["logit_scale_t"].item()) == pytest.approx((3.0, 3.0))


def test_what_the_model_does_not_use_is_noted(clap_copy: Path) -> None:
    _change_weights(clap_copy, lambda t: t | {"text_decoder.weight": torch.zeros(2)})
    assert from_transformers(clap_copy).notes == ["clap: 1 tensor is not used by ClapModel: text_decoder.weight"]


def test_the_older_format_of_weights_loads(clap_copy: Path, loaded: DualEncoder) -> None:
    tensors = safetensors.torch.load_file(clap_copy / "model.safetensors")
    (clap_copy / "model.safetensors").unlink()
    torch.save(tensors, clap_copy / "pytorch_model.bin")
    expected = loaded.state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in from_transformers(clap_copy).state_dict().items())


def test_half_precision_weights_become_single(clap_copy: Path) -> None:
    _change_weights(clap_copy, lambda t: {k: v.half() if v.is_floating_point() else v for k, v in t.items()})
    assert {tensor.dtype for tensor in from_transformers(clap_copy).parameters()} == {torch.float32}


def test_a_front_end_that_was_saved_with_its_processor_is_found(clap_copy: Path, clap_folder: Path) -> None:
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapProcessor

    parts = ClapFeatureExtractor.from_pretrained(clap_copy), AutoTokenizer.from_pretrained(clap_copy)
    (clap_copy / "preprocessor_config.json").unlink()
    ClapProcessor(*parts).save_pretrained(clap_copy)
    assert not (clap_copy / "preprocessor_config.json").exists()
    _assert_equal(
        _embed(from_transformers(clap_copy), _clips(), CAPTIONS), _embed_with_transformers(clap_folder, _clips(), CAPTIONS)
    )


def test_links_as_in_the_cache_of_the_hub_load(clap_folder: Path, loaded: DualEncoder, tmp_path: Path) -> None:
    for path in clap_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    assert from_transformers(tmp_path).config == loaded.config


class _Payload:
    """Makes a file when it is unpickled: what stands for code that must not run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_weights_does_not_run(clap_copy: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(clap_copy / "model.safetensors")
    (clap_copy / "model.safetensors").unlink()
    torch.save(tensors | {"logit_scale_a": _Payload(tmp_path / "ran")}, clap_copy / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="clap: cannot be loaded as ClapModel"):
        from_transformers(clap_copy)
    assert not (tmp_path / "ran").exists()


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _set_text(folder: Path, **values: Any) -> None:
    _edit(folder / "config.json", lambda c: c | {"text_config": c["text_config"] | values})


def _set_audio(folder: Path, **values: Any) -> None:
    _edit(folder / "config.json", lambda c: c | {"audio_config": c["audio_config"] | values})


def _add_tokens(folder: Path) -> None:
    more = {"id": 300, "content": "<more>", "single_word": False, "lstrip": False, "rstrip": False}
    more |= {"normalized": False, "special": True}
    _edit(folder / "tokenizer.json", lambda t: t | {"added_tokens": [*t["added_tokens"], more]})


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensors": (
        lambda f: _change_weights(f, lambda t: {k: v for k, v in t.items() if not k.startswith("audio_projection.linear2")}),
        "2 tensors are missing for ClapModel, first audio_projection.linear2.bias",
    ),
    "truncated weights": (_truncate, "cannot be loaded as ClapModel"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded as ClapModel"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json: cannot be read"),
    "damaged configuration": (lambda f: (f / "config.json").write_text("{"), "config.json: cannot be read"),
    "no front end": (lambda f: (f / "preprocessor_config.json").unlink(), "has no preprocessor_config.json that can be used"),
    "damaged front end": (
        lambda f: (f / "preprocessor_config.json").write_text("{"),
        "has no preprocessor_config.json that can be used",
    ),
    "front end of other mel bins": (
        lambda f: _edit(f / "preprocessor_config.json", lambda c: c | {"feature_size": 32}),
        "mel bins",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer"),
    "damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "text tokenizer: cannot be read"),
    "tokenizer with more tokens than the model": (
        _add_tokens,
        "text tokenizer: has ids up to 300, but the model's table has 300",
    ),
    "tokenizer that pads otherwise": (
        lambda f: _edit(f / "tokenizer_config.json", lambda c: c | {"pad_token": "<unk>"}),
        r"the tokenizer pads with <unk> \(id 3\), but the text model expects id 1",
    ),
    "fused": (lambda f: _set_audio(f, enable_fusion=True), "is a fused CLAP"),
    "other activation": (
        lambda f: _edit(f / "config.json", lambda c: c | {"projection_hidden_act": "gelu"}),
        "its projection has the activation 'gelu', expected 'relu'",
    ),
    "deeper model": (lambda f: _set_text(f, num_hidden_layers=3), "16 tensors are missing for ClapModel"),
    "wider model": (lambda f: _set_text(f, intermediate_size=64), "for ClapModel"),
    "shallower model": (lambda f: _set_audio(f, depths=[1], num_attention_heads=[2]), "for ClapModel"),
    "another architecture": (
        lambda f: _edit(f / "config.json", lambda c: {"model_type": "bert"}),
        "is a model of type 'bert', expected 'clap'",
    ),
    "nonsense in the configuration": (lambda f: _set_text(f, hidden_size="wide"), "as ClapModel .*'hidden_size' expected int"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_is_refused_in_one_line(clap_copy: Path, wrong: str) -> None:
    damage, message = WRONG[wrong]
    damage(clap_copy)
    with pytest.raises(CheckpointError, match=message) as caught:
        from_transformers(clap_copy)
    assert str(clap_copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exports_replace_each_other_and_nothing_else(loaded: DualEncoder, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    to_transformers(loaded, folder, logit_scale=10.0)
    (folder / "leftover.txt").touch()
    to_transformers(loaded, folder, logit_scale=20.0)
    assert not (folder / "leftover.txt").exists()
    assert safetensors.torch.load_file(folder / "model.safetensors")["logit_scale_a"].exp().item() == pytest.approx(20)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ConfigError, match="photos is something else than an earlier export"):
        to_transformers(loaded, tmp_path / "photos")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file is something else than an earlier export"):
        to_transformers(loaded, tmp_path / "file")
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_an_export_that_fails_leaves_the_earlier_one(
    loaded: DualEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    to_transformers(loaded, folder, logit_scale=10.0)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("clapkit.encoders.clap._tokenizer_config", fail)
    with pytest.raises(OSError, match="No space left"):
        to_transformers(loaded, folder, logit_scale=20.0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_export_loads_without_a_message(loaded: DualEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    to_transformers(loaded, tmp_path / "export")
    _embed_with_transformers(tmp_path / "export", _clips(), CAPTIONS)
    assert caplog.messages == []


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_that_has_no_logarithm_is_refused(loaded: DualEncoder, tmp_path: Path, scale: float) -> None:
    with pytest.raises(ConfigError, match="logit_scale .*, expected more than 0"):
        to_transformers(loaded, tmp_path / "export", logit_scale=scale)
    assert not (tmp_path / "export").exists()


def test_models_of_other_towers_are_refused_with_the_reason(tiny_encoder: DualEncoder, tmp_path: Path) -> None:
    assert exportable(tiny_encoder) == (
        "the audio tower is tiny, but a ClapModel has hf (clap_audio_model); only models that start from one can be written "
        "(the folder model/ of a train run is the portable form of any model)"
    )
    with pytest.raises(ConfigError, match="export hf: the audio tower is tiny"):
        to_transformers(tiny_encoder, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("side", "changes", "reason"),
    [
        ("text", {"encoder": "small"}, "the text tower is small, but a ClapModel has hf"),
        ("audio", {"head": "mlp"}, "the audio head is mlp, but a ClapModel has clap"),
        ("text", {"options": {"config": {"model_type": "bert"}}}, r"the text tower is hf \(bert\)"),
        ("text", {"options": {"config": {"model_type": "clap_text_model"}, "pooling": "mean"}}, "pooling=mean"),
        (
            "audio",
            {"options": {"config": {"model_type": "clap_audio_model"}, "front_end": {"max_length_s": 10}, "window_s": 5.0}},
            r"hears 5.0 s, but its front end, which is written, 10 s",
        ),
    ],
)
def test_every_part_that_a_clap_model_has_not_is_named(
    loaded: DualEncoder, monkeypatch: pytest.MonkeyPatch, side: str, changes: dict[str, Any], reason: str
) -> None:
    monkeypatch.setitem(loaded.config, side, loaded.config[side] | changes)
    with pytest.raises(ConfigError, match=reason):
        to_transformers(loaded, Path("never-written"))


def test_adapters_are_refused(trained: DualEncoder) -> None:
    trained.text_tower.model.pooler.register_parameter("lora_A", torch.nn.Parameter(torch.zeros(1)))
    assert "carry adapters" in str(exportable(trained))


def test_loading_prints_nothing(clap_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to_transformers(from_transformers(clap_folder), tmp_path / "export")
    assert capfd.readouterr() == ("", "")


def test_a_name_of_the_hub_loads_as_its_folder(clap_folder: Path, loaded: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(clap_folder))
    assert from_transformers(pretrained.find("owner/clap")).config == loaded.config
