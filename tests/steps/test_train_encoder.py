import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from clapkit.config import TrainConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.encoders import loading
from clapkit.encoders.adaptation import count_trainable
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import CheckpointError, ConfigError
from clapkit.run_dir import RunDir
from clapkit.steps import train
from clapkit.steps.train_encoder import build_encoder, prepare_for_device
from clapkit.steps.train_options import plugin_options
from clapkit.types import SilentReporter

TINY = {"audio_encoder": "tiny", "text_encoder": "tiny", "embedding_dim": 16}
SMALL_TEXT = TINY | {"text_encoder": "small"}


@pytest.fixture
def build(tones, reporter):
    """Builds the encoder of a run."""
    clips = Manifest.load(tones).split("train")

    def make(**given):
        config = resolve(TrainConfig, TINY | {"data": str(tones)} | given)
        return build_encoder(config, plugin_options(config), clips, reporter)

    return make


@pytest.fixture
def from_clap(tones, reporter, clap_folder):
    """Builds the encoder of a run that starts from a ``ClapModel``."""
    clips = Manifest.load(tones).split("train")

    def make(folder=clap_folder, **given):
        config = resolve(TrainConfig, {"data": str(tones), "init": str(folder)} | given)
        return build_encoder(config, plugin_options(config), clips, reporter)

    return make


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model of clapkit with towers that have layers."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    DualEncoder("tiny", "small", embedding_dim=16, text_options={"captions": ["a tone of 200 hertz"]}).save(folder)
    return folder


def trained_names(encoder):
    return {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}


# --init -----------------------------------------------------------------------------------------------------------------


def test_a_run_can_start_from_a_model_of_transformers(from_clap, clap_folder):
    encoder = from_clap()
    assert encoder.training
    expected = loading.load(clap_folder)
    waveform = 0.1 * torch.randn(2, 48000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for found, wanted in zip(
            encoder.eval()(waveform, torch.tensor([48000, 900]), ["a dog barks", "rain"]),
            expected(waveform, torch.tensor([48000, 900]), ["a dog barks", "rain"]),
            strict=True,
        ):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"embedding_dim": 8}, "--embedding-dim 8: --init .* brings its own, 12; leave --embedding-dim out"),
        ({"audio_encoder": "tiny"}, "--audio-encoder tiny: --init .* brings its own, hf; leave --audio-encoder out"),
        ({"text_encoder": "light"}, "--text-encoder light: --init .* brings its own, hf; leave --text-encoder out"),
        ({"options": ["audio.window_s=1"]}, "--init brings its own towers; leave out .* the -O options of the towers"),
        ({"audio_weights": "x/y"}, "--audio-weights x/y: --init brings its own towers with their weights; leave one out"),
        ({"text_weights": "x/y"}, "--text-weights x/y: --init brings its own towers with their weights; leave one out"),
        ({"audio_encoder": "ced", "audio_weights": "x/y"}, "--audio-weights x/y: --init brings its own towers"),
    ],
)
def test_what_a_model_brings_cannot_be_asked_for_besides(from_clap, given, message):
    with pytest.raises(ConfigError, match=message):
        from_clap(**given)


def test_what_a_model_brings_may_be_named(from_clap):
    assert from_clap(audio_encoder="hf", text_encoder="hf", embedding_dim=12).embedding_dim == 12


def test_notes_of_the_model_are_said(from_clap, clap_folder, tmp_path, reporter):
    folder = shutil.copytree(clap_folder, tmp_path / "clap")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    tensors["logit_scale_t"] += 1
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    from_clap(folder)
    assert [message for message in reporter.said if "has two logit scales" in message]


# What is trained --------------------------------------------------------------------------------------------------------


def test_all_is_trained_unless_told_otherwise(build, reporter):
    encoder = build()
    total = sum(parameter.numel() for parameter in encoder.parameters())
    assert count_trainable(encoder) == total
    assert reporter.said == [f"model: {total:,} parameters"]


def test_the_last_layers_of_a_frozen_tower_are_trained(build, reporter):
    encoder = build(**SMALL_TEXT, freeze="text", unfreeze_last=1)
    layers = encoder.text_tower.layers
    assert all(parameter.requires_grad for parameter in layers[-1].parameters())
    assert not any(parameter.requires_grad for layer in layers[:-1] for parameter in layer.parameters())
    assert [layer.training for layer in layers] == [False] * (len(layers) - 1) + [True]
    assert all(parameter.requires_grad for parameter in encoder.audio_tower.parameters())
    assert reporter.said[-1].endswith(f", {count_trainable(encoder):,} of them trained")


def test_a_frozen_tower_leaves_its_head_trained(build):
    names = trained_names(build(freeze="audio"))
    assert {name.split(".")[0] for name in names} == {"audio_head", "text_tower", "text_head"}


def test_adapters_of_rank_eight_are_trained_in_place_of_their_tower(build):
    encoder = build(**SMALL_TEXT, lora="text")
    in_text = {name for name in trained_names(encoder) if name.startswith("text_tower.")}
    assert in_text
    assert all("lora_" in name for name in in_text)
    shapes = {name: tuple(dict(encoder.named_parameters())[name].shape) for name in in_text}
    assert {min(shape) for shape in shapes.values()} == {8}
    assert {"audio_tower", "audio_head", "text_head"} < {name.split(".")[0] for name in trained_names(encoder)}


def test_the_rank_of_adapters_can_be_chosen(build):
    encoder = build(**SMALL_TEXT, lora="text", lora_rank=3)
    assert {min(p.shape) for name, p in encoder.named_parameters() if "lora_" in name} == {3}


def test_activations_are_computed_again_in_both_towers_and_gradients_stay(saved, build):
    def gradients(**given):
        encoder = build(init=str(saved), audio_encoder="tiny", text_encoder="small", embedding_dim=16, **given).eval()
        calls = []
        encoder.train()
        for side in ("audio", "text"):
            for layer in encoder.tower(side).layers:
                part = next(module for module in layer.modules() if not list(module.children()))
                part.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(0)
        audio, text = encoder(torch.sin(torch.arange(8000.0))[None], torch.tensor([8000]), ["a tone of 200 hertz"])
        (audio * text).sum().backward()
        return {name: parameter.grad for name, parameter in encoder.named_parameters()}, len(calls)

    plain, num_plain = gradients()
    again, num_again = gradients(grad_checkpointing=True)
    assert num_again == 2 * num_plain
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"freeze": "text", "unfreeze_last": 99}, r"--unfreeze-last 99: the text tower small has \d+ layers; choose 1 to"),
        (
            {"audio_weights": "x/y"},
            "--audio-weights x/y: the tower tiny is trained from scratch; pass --audio-encoder ced or hf",
        ),
        ({"text_weights": "x/y"}, "--text-weights x/y: the tower small is trained from scratch; pass --text-encoder hf"),
        ({"audio_encoder": "hf"}, "audio encoder hf: expected either weights or a configuration; pass --audio-weights"),
        ({"text_encoder": "hf"}, "text encoder hf: got neither of weights and config; name a folder or Hub model with --text"),
    ],
)
def test_towers_that_cannot_do_what_is_asked_say_so(build, given, message):
    with pytest.raises(ConfigError, match=message):
        build(**SMALL_TEXT | given)


# How long inputs are read -----------------------------------------------------------------------------------------------


def test_windows_are_put_together_as_the_run_says(build):
    assert build().fusion == "mean"
    assert build(windows=2).fusion == "mean"
    # A softmax is a matter of the loss: the model that is kept means.
    assert build(windows=2, fusion="softmax").fusion == "mean"
    attentive = build(windows=2, fusion="attention")
    assert attentive.fusion == "attention"
    assert {name for name in trained_names(attentive) if name.startswith("window_attention.")}


@pytest.fixture(scope="module")
def saved_attentive(tmp_path_factory):
    """A model that puts windows together by its attention and reads long captions in parts."""
    folder = tmp_path_factory.mktemp("attentive")
    encoder = DualEncoder("tiny", "small", embedding_dim=16, text_options={"captions": ["a tone of 200 hertz"]})
    encoder.add_window_attention()
    encoder.long_captions = "split"
    encoder.save(folder)
    return folder


@pytest.mark.parametrize("fusion", ["mean", "softmax"])
def test_a_model_with_an_attention_over_windows_keeps_it(build, saved_attentive, fusion):
    given = SMALL_TEXT | {"init": str(saved_attentive), "windows": 2}
    with pytest.raises(
        ConfigError, match=f"--fusion {fusion}: the model of --init fuses windows by its attention; leave --fus"
    ):
        build(**given, fusion=fusion)
    for kept in (build(**given), build(**given, fusion="attention")):
        assert torch.equal(
            kept.window_attention.hidden.weight, DualEncoder.load(saved_attentive).window_attention.hidden.weight
        )


def test_long_captions_are_read_as_the_run_or_else_the_model_says(build, saved_attentive):
    given = SMALL_TEXT | {"init": str(saved_attentive)}
    assert build().long_captions == "cut"
    assert build(long_captions="split").long_captions == "split"
    assert build(**given).long_captions == "split"
    assert build(**given, long_captions="cut").long_captions == "cut"


@pytest.mark.parametrize(("encoder", "flag"), [("hf", "audio"), ("ced", "audio"), ("hf", "text")])
def test_weights_that_are_not_there_are_named(build, tmp_path, encoder, flag):
    with pytest.raises(CheckpointError, match=r"nowhere: no such file or folder"):
        build(**{f"{flag}_encoder": encoder, f"{flag}_weights": str(tmp_path / "nowhere")})


def test_cached_gradients_of_batch_norms_are_warned_of(build, reporter):
    def warned(**given):
        reporter.warned.clear()
        config = resolve(TrainConfig, TINY | {"audio_encoder": "light"} | given)
        prepare_for_device(config, build(audio_encoder="light", freeze=config.freeze), reporter)
        return reporter.warned

    (warning,) = warned(grad_cache_chunk=4)
    assert "--grad-cache-chunk 4: " in warning
    assert "batch norms (first audio_tower." in warning
    assert warned() == []
    assert warned(grad_cache_chunk=4, freeze="audio") == []  # fixed statistics


# --export hf ------------------------------------------------------------------------------------------------------------


def run(folder, tones, **given):
    shared = {"data": str(tones), "run_dir": folder, "batch_size": 4, "log_every": 1, "workers": 1}
    config = resolve(TrainConfig, shared | given)
    run_dir = RunDir.create(folder, step="train", config=config.resolved(), resume=config.resume)
    try:
        result = train.run(config, run_dir, SilentReporter())
        run_dir.finish(result)
    finally:
        run_dir.release()
    return run_dir, result


def test_towers_that_cannot_be_exported_are_refused_before_training(tones, tmp_path):
    with pytest.raises(ConfigError, match="--export hf: the audio tower is tiny, but a ClapModel has hf"):
        run(tmp_path / "run", tones, **TINY, export="hf")
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"windows": 2, "fusion": "attention"}, "--export hf: it puts windows together by an attention of its own"),
        ({"long_captions": "split"}, "--export hf: it reads long captions in parts"),
    ],
)
def test_what_a_run_would_add_to_a_model_is_refused_before_training_too(from_clap, given, message):
    with pytest.raises(ConfigError, match=message):
        from_clap(export="hf", **given)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, tones, clap_folder):
    """A run with adapters that started from a ``ClapModel`` and wrote one."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    return run(folder, tones, init=str(clap_folder), export="hf", max_steps=2, lr=1e-2, lora="both")


def test_the_best_model_is_exported_with_the_embeddings_that_it_has(exported):
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

    run_dir, result = exported
    assert result["export"] == "export"
    folder = run_dir.path / result["export"]
    clip = 0.1 * torch.randn(48000, generator=torch.Generator().manual_seed(0))
    ours = DualEncoder.load(run_dir.model_dir)
    theirs = ClapModel.from_pretrained(folder)
    sound = ClapFeatureExtractor.from_pretrained(folder)([np.asarray(clip)], sampling_rate=48000, return_tensors="pt")
    words = AutoTokenizer.from_pretrained(folder)(["a dog barks"], return_tensors="pt")
    with torch.inference_mode():
        audio, text = ours(clip[None], torch.tensor([48000]), ["a dog barks"])
        torch.testing.assert_close(audio, theirs.get_audio_features(**sound).pooler_output, atol=1e-5, rtol=0)
        torch.testing.assert_close(text, theirs.get_text_features(**words).pooler_output, atol=1e-5, rtol=0)
    # 1 / tau of the best step, which the model keeps.
    assert theirs.logit_scale_a.detach().exp().item() == pytest.approx(ours.config["logit_scale"], rel=1e-5)


def test_what_was_exported_is_a_model_to_start_from(exported, tones, tmp_path, clap_folder):
    run_dir, result = exported
    again, _ = run(tmp_path / "again", tones, init=str(run_dir.path / "export"), max_steps=1, lr=1e-12)
    first, second = DualEncoder.load(run_dir.model_dir), DualEncoder.load(again.model_dir)
    torch.testing.assert_close(second.text_head.state_dict(), first.text_head.state_dict(), atol=1e-6, rtol=0)
    assert not (again.path / "export").exists()


def test_the_result_counts_what_was_trained(exported):
    run_dir, result = exported
    whole = sum(p.numel() for p in DualEncoder.load(run_dir.model_dir).parameters())
    assert 0 < result["num_trained"] < whole < result["num_parameters"]  # the adapters come on top


def test_a_trained_model_has_changed(exported, clap_folder):
    run_dir, _ = exported
    before, after = loading.load(clap_folder).state_dict(), DualEncoder.load(run_dir.model_dir).state_dict()
    changed = {Path(name).name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"audio_tower", "text_tower", "audio_head", "text_head"} <= changed
