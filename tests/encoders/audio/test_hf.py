import copy
import inspect
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clapkit import registry
from clapkit.encoders.audio.hf import HfAudioTower, build
from clapkit.errors import CheckpointError, ConfigError, ShapeError
from tests.encoders.audio.conftest import PATHS, RECIPES, batch_of, sounds

DURATIONS_S = (1.0, 0.37, 0.53, 0.5301, 0.11)


def window_s(saved):
    """A second for all but AST, whose window its positions fix."""
    return None if hasattr(saved.model.config, "time_stride") else 1.0


def tower_of(saved, **options):
    return build(weights=str(saved.folder), **({"window_s": window_s(saved)} | options))


@pytest.fixture(scope="session")
def tower_for(saved_model):
    """Gives the tower of a kind; it is made once and nobody changes it."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tower_of(saved_model(kind))
        return made[kind]

    return get


@pytest.fixture(params=RECIPES)
def kind(request):
    """Every kind of model in turn."""
    return request.param


paths = pytest.mark.parametrize("kind", PATHS)


def clips_of(tower, *, whole=True):
    durations = [min(duration, tower.audio_spec.window_s) for duration in DURATIONS_S]
    return sounds(tower.audio_spec.sample_rate, *(durations if whole else durations[1:]))


def expected_embedding(saved, clip):
    """The library's own forward of one clip, pooled as the docs say."""
    out = saved.hidden(clip)
    if getattr(out, "pooler_output", None) is not None:
        return out.pooler_output[0]
    frames = out.last_hidden_state[0]
    kind = type(saved.model).__name__
    if "Whisper" in kind:  # a frame of the encoder stands for 320 samples
        return frames[: -(-len(clip) // 320)].mean(dim=0)
    if "Bert" in kind:
        return frames[saved.features(clip)["attention_mask"][0].bool()].mean(dim=0)
    if "SEW" in kind:  # an odd frame is filled up with zeros
        return frames[: len(frames) // 2 * 2].mean(dim=0)
    return frames.mean(dim=0)


@torch.no_grad()
def test_features_are_those_of_the_librarys_extractor(kind, saved_model, tower_for):
    saved, tower = saved_model(kind), tower_for(kind)
    clips = clips_of(tower)
    features, num_real = tower.features(*batch_of(clips, tower.audio_spec.window_samples))
    for row, clip in enumerate(clips):
        theirs = saved.features(clip)
        wanted = theirs.get("input_features", theirs.get("input_values"))[0]
        ours = features[row]
        if "Bert" in type(saved.model).__name__:
            assert int(theirs["attention_mask"].sum()) == int(num_real[row])
        if "Bert" in type(saved.model).__name__ or wanted.ndim == 1:
            ours = ours[: len(wanted)]
        assert ours.shape == wanted.shape
        # Relative to the scale of the features: decibels reach to -100, normalised ones to 3.
        torch.testing.assert_close(ours, wanted.float(), rtol=0, atol=1e-4 * float(wanted.abs().max()))


@torch.no_grad()
def test_embeddings_are_those_of_the_librarys_own_forward(kind, saved_model, tower_for):
    saved, tower = saved_model(kind), tower_for(kind)
    if kind == "wav2vec2-adapter":
        saved.model.adapter = None  # clapkit leaves it out and says so
    clips = clips_of(tower)
    ours = tower(*batch_of(clips))
    assert ours.shape == (len(clips), tower.embedding_dim)
    assert ours.dtype == torch.float32
    theirs = torch.stack([expected_embedding(saved, clip) for clip in clips])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs[0] - theirs[1]).abs().max() > 1e-3  # or nothing would be shown


@paths
@torch.no_grad()
def test_an_embedding_depends_neither_on_neighbours_nor_on_padding(kind, tower_for):
    tower = tower_for(kind)
    clips = clips_of(tower, whole=False)
    together = tower(*batch_of(clips, tower.audio_spec.window_samples))
    torch.testing.assert_close(tower(*batch_of(clips)), together, rtol=1e-5, atol=1e-5)
    alone = torch.cat([tower(*batch_of([clip])) for clip in clips])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    turned = tower(*batch_of(clips[::-1])).flip(0)
    torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-5)


@paths
@torch.no_grad()
def test_what_lies_behind_the_end_is_not_heard(kind, tower_for):
    tower = tower_for(kind)
    waveform, num_samples = batch_of(clips_of(tower, whole=False), tower.audio_spec.window_samples)
    noisy = waveform.clone()
    for row, length in enumerate(num_samples.tolist()):
        noisy[row, length:] = 1.0
    assert torch.equal(tower(noisy, num_samples), tower(waveform, num_samples))


@paths
@torch.no_grad()
def test_one_sample_has_a_finite_embedding(kind, tower_for):
    tower = tower_for(kind)
    embedded = tower(torch.tensor([[0.5]]), torch.tensor([1]))
    assert torch.isfinite(embedded).all()


@paths
@torch.no_grad()
def test_it_is_rebuilt_from_its_options_alone(kind, tower_for):
    tower = tower_for(kind)
    options = json.loads(json.dumps(tower.rebuild_options))
    assert set(options) == set(inspect.signature(build).parameters)
    again = build(**options)
    again.load_state_dict(tower.state_dict(), strict=True)
    batch = batch_of(clips_of(tower))
    assert torch.equal(again(*batch), tower(*batch))
    assert again.audio_spec == tower.audio_spec
    assert again.rebuild_options == tower.rebuild_options
    assert again.notes == []


@paths
def test_every_parameter_that_may_learn_gets_a_gradient_in_training(kind, saved_model):
    tower = tower_of(saved_model(kind)).train()
    # Clips of one frame, too: pretraining would mask more frames than they have.
    clips = sounds(tower.audio_spec.sample_rate, tower.audio_spec.window_s, 0.06)
    features = tower(*batch_of(clips))
    (features * torch.randn(features.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    unreached = [
        name
        for name, parameter in tower.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not torch.isfinite(parameter.grad).all())
    ]
    assert unreached == []
    assert all(name.startswith("model.") for name in tower.state_dict())


@paths
def test_training_skips_no_layer_and_masks_nothing(kind, saved_model):
    tower = tower_of(saved_model(kind))
    batch = batch_of(clips_of(tower))
    evaluated = tower(*batch)
    tower.train()
    for module in tower.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm2d):
            module.eval()
    for name in ("dropout", "activation_dropout", "attention_dropout"):
        for module in tower.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    torch.testing.assert_close(tower(*batch), evaluated, rtol=1e-5, atol=1e-5)


@paths
def test_layers_are_the_blocks_from_input_to_output(kind, saved_model):
    tower = tower_of(saved_model(kind))
    seen = []
    for number, layer in enumerate(tower.layers):
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))
    tower(*batch_of(clips_of(tower)[:1]))
    assert seen == list(range(len(tower.layers)))
    assert len(seen) == (4 if "Clap" in type(tower.model).__name__ else 2)


@paths
def test_the_front_end_works_in_single_precision_under_autocast(kind, tower_for):
    tower = tower_for(kind)
    batch = batch_of(clips_of(tower))
    with torch.no_grad():
        plain, _ = tower.features(*batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside, _ = tower.features(*batch)
            assert torch.isfinite(tower(*batch)).all()
    assert inside.dtype == torch.float32
    assert torch.equal(inside, plain)


def test_waveforms_beyond_the_window_are_refused(saved_model):
    tower = tower_of(saved_model("hubert"))
    with pytest.raises(ShapeError, match="waveforms of 8001 samples, the tower takes windows of 8000"):
        tower(torch.zeros(1, 8001), torch.tensor([8001]))


@pytest.mark.parametrize(
    ("kind", "seconds", "rate"),
    [
        ("clap", 1.0, 8000),
        ("ast", 1.28, 16000),
        ("hubert", 10.0, 8000),
        ("wav2vec2-bert", 10.0, 16000),
        ("whisper", 1.0, 16000),
    ],
)
def test_the_window_is_what_the_model_was_made_for(kind, seconds, rate, saved_model):
    spec = build(weights=str(saved_model(kind).folder)).audio_spec
    assert (spec.window_s, spec.sample_rate) == (seconds, rate)


@torch.no_grad()
def test_ast_takes_other_windows_by_stretching_its_positions(saved_model):
    saved = saved_model("ast")
    tower = build(weights=str(saved.folder), window_s=0.8)
    assert tower.notes == ["AST positions for 1.28 s (128 frames) are stretched to 0.8 s (80 frames)"]
    assert tower.audio_spec.window_s == 0.8
    assert tower.model.config.max_length == tower.rebuild_options["front_end"]["max_length"] == 80
    # (80 - 16) // 10 + 1 = 7 patches in time, (32 - 16) // 10 + 1 = 2 in frequency, and two summary tokens.
    assert tower.model.embeddings.position_embeddings.shape == (1, 2 + 2 * 7, 16)
    assert torch.isfinite(tower(*batch_of(clips_of(tower)))).all()
    assert build(weights=str(saved.folder), window_s=2.0).model.config.max_length == 200


@torch.no_grad()
def test_clap_stretches_shorter_windows_and_refuses_longer_than_it_holds(saved_model):
    folder = str(saved_model("clap").folder)
    tower = build(weights=folder, window_s=0.8)
    assert "CLAP spectrograms of 0.8 s are stretched to the width of 1 s" in tower.notes
    clip = sounds(8000, 0.3)[0]
    repeated = np.concatenate([np.tile(clip, 2), np.zeros(6400 - 2 * len(clip), dtype=np.float32)])
    torch.testing.assert_close(tower(*batch_of([clip])), tower(*batch_of([repeated])), rtol=0, atol=0)
    # 256 frames: 64 wide, 64 / 16 = 4 rows; the 256th begins at sample 255 * 80, the 257th would at 20480.
    assert build(weights=folder, window_s=20479 / 8000).audio_spec.window_samples == 20479
    with pytest.raises(ConfigError, match="window_s=2.56: this CLAP model takes from 0.0161 to 2.5599 s"):
        build(weights=folder, window_s=2.56)
    with pytest.raises(ConfigError, match="window_s=0.01: this CLAP model takes from"):
        build(weights=folder, window_s=0.01)


def test_windows_that_a_model_cannot_take_are_refused(saved_model):
    with pytest.raises(ConfigError, match="window_s=3: this Whisper model takes at most 1 s"):
        build(weights=str(saved_model("whisper").folder), window_s=3.0)
    with pytest.raises(ConfigError, match="window_s=0.01: this model takes at least 0.06425 s"):
        build(weights=str(saved_model("hubert").folder), window_s=0.01)
    with pytest.raises(ConfigError, match="window of 10 frames is shorter than a patch of the model, 16 frames"):
        build(weights=str(saved_model("ast").folder), window_s=0.1)
    with pytest.raises(ConfigError, match="window_s=-1: expected more than 0 seconds"):
        build(weights="anything", window_s=-1.0)


@torch.no_grad()
def test_ast_can_take_the_mean_over_the_patches_of_real_sound(saved_model):
    saved = saved_model("ast")
    tower = build(weights=str(saved.folder), pooling="mean")
    clips = sounds(16000, 1.28, 0.5)
    patches = [saved.hidden(clip).last_hidden_state[0, 2:].reshape(2, 12, 16) for clip in clips]
    # 1.28 s: 126 frames reach into all 12 patches. 0.5 s: 1 + (8000 - 400) // 160 = 48 frames; patch 5 begins at frame 50.
    expected = torch.stack([patches[0].mean(dim=(0, 1)), patches[1][:, :5].mean(dim=(0, 1))])
    torch.testing.assert_close(tower(*batch_of(clips)), expected, rtol=1e-5, atol=1e-5)
    assert build(**tower.rebuild_options)._pool is tower._pool


@pytest.mark.parametrize(("kind", "name", "has"), [("hubert", "pooler", "mean"), ("clap", "mean", "pooler")])
def test_a_pooling_that_a_model_lacks_is_refused(kind, name, has, saved_model):
    with pytest.raises(ConfigError, match=f"pooling={name}: .* models have {has} \\(and auto\\)"):
        build(weights=str(saved_model(kind).folder), pooling=name)


def test_what_is_left_out_of_larger_models_is_noted(saved_model):
    clap = tower_of(saved_model("clap"))
    assert "are not used by ClapAudioModel: audio_projection.linear1.bias" in clap.notes[0]
    assert not any("text" in name or "projection" in name for name in clap.state_dict())
    assert "not used by WhisperEncoder" in tower_of(saved_model("whisper")).notes[0]
    assert "not used by ASTModel: classifier.dense.bias" in tower_of(saved_model("ast-classifier")).notes[0]
    assert "not used by Wav2Vec2Model: adapter.layers.0.conv.bias" in tower_of(saved_model("wav2vec2-adapter")).notes[0]
    assert tower_of(saved_model("clap-audio")).notes == []


def test_a_checkpoint_without_the_mask_vector_of_pretraining_loads(make_saved):
    saved = make_saved("wav2vec2-group")
    weights = load_file(saved.folder / "model.safetensors")
    del weights["masked_spec_embed"]
    save_file(weights, saved.folder / "model.safetensors", metadata={"format": "pt"})
    assert tower_of(saved).notes == []


def test_an_older_pickle_of_plain_tensors_loads(make_saved):
    saved = make_saved("wav2vec2-group")
    weights = load_file(saved.folder / "model.safetensors")
    convolution = "encoder.pos_conv_embed.conv"
    older = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): w
        for name, w in weights.items()
    }
    assert f"{convolution}.weight_g" in older
    (saved.folder / "model.safetensors").unlink()
    torch.save(older, saved.folder / "pytorch_model.bin")
    loaded = tower_of(saved).model.state_dict()
    name = f"{convolution}.parametrizations.weight.original0"
    assert torch.equal(loaded[name], weights[name])


def test_half_precision_files_load_in_single_precision(make_saved):
    saved = make_saved("hubert")
    weights = load_file(saved.folder / "model.safetensors")
    save_file({k: v.half() for k, v in weights.items()}, saved.folder / "model.safetensors", metadata={"format": "pt"})
    assert {p.dtype for p in tower_of(saved).parameters()} == {torch.float32}


def test_a_front_end_saved_with_a_tokenizer_is_found(make_saved):
    saved = make_saved("clap")
    path = saved.folder / "preprocessor_config.json"
    (saved.folder / "processor_config.json").write_text(
        json.dumps({"processor_class": "ClapProcessor", "feature_extractor": json.loads(path.read_text())})
    )
    path.unlink()
    assert tower_of(saved).audio_spec.sample_rate == 8000
    (saved.folder / "processor_config.json").unlink()
    with pytest.raises(CheckpointError, match="has no preprocessor_config.json, so the numbers of its front end are not known"):
        tower_of(saved)


def test_the_front_end_can_be_given_instead_of_the_file(saved_model):
    saved = saved_model("hubert")
    tower = tower_of(saved, front_end={"sampling_rate": 16000, "do_normalize": False})
    assert tower.audio_spec.sample_rate == 16000
    assert not tower.front_end.normalize


# Wrong checkpoints ------------------------------------------------------------------------------------------------------


def test_neither_or_both_of_weights_and_configuration_are_refused():
    for options in ({}, {"weights": "x", "config": {}}):
        with pytest.raises(ConfigError, match="expected either weights or a configuration; pass --audio-weights"):
            build(**options)


def one_line(error):
    return "\n" not in str(error.value)


def edit_config(saved, **entries):
    path = saved.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_missing_tensors_are_refused(make_saved):
    saved = make_saved("hubert")
    weights = load_file(saved.folder / "model.safetensors")
    del weights["encoder.layers.1.final_layer_norm.bias"]
    save_file(weights, saved.folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors are missing for HubertModel, first encoder\.layers\.1") as error:
        tower_of(saved)
    assert one_line(error)


def test_truncated_weights_are_refused(make_saved):
    saved = make_saved("hubert")
    path = saved.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded as HubertModel") as error:
        tower_of(saved)
    assert one_line(error)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_and_does_not_run(make_saved, tmp_path):
    saved = make_saved("hubert")
    (saved.folder / "model.safetensors").unlink()
    (saved.folder / "pytorch_model.bin").write_bytes(pickle.dumps({"encoder.weight": Payload(tmp_path / "ran")}, protocol=2))
    with pytest.raises(CheckpointError, match="cannot be loaded as HubertModel") as error:
        tower_of(saved)
    assert one_line(error)
    assert not (tmp_path / "ran").exists()


def test_a_configuration_without_weights_is_refused(make_saved):
    saved = make_saved("hubert")
    (saved.folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded as HubertModel") as error:
        tower_of(saved)
    assert one_line(error)


def test_weights_without_a_configuration_are_refused(make_saved):
    saved = make_saved("hubert")
    (saved.folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json, so its architecture is not known"):
        tower_of(saved)
    with pytest.raises(CheckpointError, match="has no config.json"):
        build(weights=str(saved.folder / "model.safetensors"))


def test_weights_of_another_architecture_are_refused(make_saved, saved_model):
    saved = make_saved("wavlm")
    other = saved_model("hubert").folder
    (saved.folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="tensors are missing for WavLMModel") as error:
        tower_of(saved)
    assert one_line(error)


def test_weights_of_another_size_are_refused(make_saved):
    saved = make_saved("hubert")
    edit_config(saved, intermediate_size=32)
    with pytest.raises(CheckpointError, match="tensors have another shape for HubertModel|cannot be loaded") as error:
        tower_of(saved)
    assert one_line(error)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (
            {"model_type": "encodec"},
            "unknown audio model 'encodec'; known: audio-spectrogram-transformer, clap, clap_audio_model",
        ),
        ({"model_type": None}, "unknown audio model None"),
        ({"auto_map": {"AutoModel": "modeling.Mine"}}, "clapkit never runs code that comes with weights"),
        ({"model_type": "roberta", "vocab_size": 50}, "roberta is a text model; pass it as --text-weights"),
        ({"intermediate_size": "many"}, "config.json cannot be used for HubertModel"),
    ],
)
def test_configurations_that_cannot_be_used_are_named(entries, message, make_saved):
    saved = make_saved("hubert")
    path = saved.folder / "config.json"
    content = json.loads(path.read_text())
    content.pop("vocab_size")
    path.write_text(json.dumps(content | entries))
    with pytest.raises(CheckpointError, match=message) as error:
        tower_of(saved)
    assert one_line(error)


def test_clap_with_fusion_is_refused_with_the_reason(make_saved):
    saved = make_saved("clap")
    config = json.loads((saved.folder / "config.json").read_text())
    edit_config(saved, audio_config=config["audio_config"] | {"enable_fusion": True})
    with pytest.raises(CheckpointError, match="crops long clips at random and fuses a clip that its batch decides") as error:
        tower_of(saved)
    assert one_line(error)


def test_it_is_a_plugin_whose_text_options_are_read(saved_model):
    options = {"weights": str(saved_model("ast").folder), "window_s": "0.8", "pooling": "mean"}
    tower = registry.build("audio encoder", "hf", options)
    assert isinstance(tower, HfAudioTower)
    assert tower.audio_spec.window_s == 0.8


def test_a_copy_of_the_tower_is_independent(saved_model):
    tower = tower_of(saved_model("hubert"))
    other = copy.deepcopy(tower)
    with torch.no_grad():
        next(other.parameters()).add_(1)
    assert not torch.equal(next(other.parameters()), next(tower.parameters()))


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_what_wav2vec2_bert_computed_in_inference_is_neither_trained_with_nor_heard_again(make_saved, positions):
    saved = make_saved("wav2vec2-bert", position_embeddings_type=positions)
    tower, untouched = tower_of(saved), tower_of(saved)
    batch = batch_of(clips_of(tower))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        tower(*batch)
    tower(*batch).sum().backward()
    with torch.no_grad():
        assert torch.equal(tower(*batch), untouched(*batch))
