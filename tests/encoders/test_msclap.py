"""Checkpoints of msclap 2023, written by an independent generator, embed as HTSAT and GPT-2 of transformers with its heads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional

from clapkit.encoders import _originals, msclap
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.pretrained import quiet_libraries
from clapkit.errors import CheckpointError

# "!" is the first token of the vocabulary, which the original takes for padding.
CAPTIONS = ["a dog barks", "rain! falls! on! a tin roof", "!", "birds sing " * 60]
RATE, WIDTH, OUTPUTS = 44100, 16, 12


@dataclass(frozen=True)
class Original:
    """Two towers of transformers, and the tensors under the names of msclap, its two projections included."""

    audio: Any
    text: Any
    state: dict[str, Tensor]
    filters: Callable[..., Tensor]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level pairs as those of GPT-2: the bytes first, the end of text last, no special tokens of its own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=sorted(alphabet), show_progress=False)
    made.train_from_iterator(["a dog barks", "rain falls on a tin roof", "birds sing"], trainer)
    made.add_special_tokens(["<|endoftext|>"])
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    assert made.token_to_id("!") == 0
    return made


@pytest.fixture(scope="module")
def original(
    tokenizer: Tokenizer,
    htsat_config: dict[str, Any],
    htsat_state: Callable[..., dict[str, Tensor]],
    slaney_filters: Callable[..., Tensor],
    shake: Callable[[Any], None],
) -> Original:
    from transformers import ClapAudioConfig, ClapAudioModel, GPT2Config, GPT2Model

    with quiet_libraries():
        audio = ClapAudioModel(ClapAudioConfig(**htsat_config)).eval()
        size = tokenizer.get_vocab_size()
        text_config = GPT2Config(
            vocab_size=size, n_positions=100, n_embd=128, n_layer=2, n_head=2, bos_token_id=size - 1, eos_token_id=size - 1
        )
        text = GPT2Model(text_config).eval()
    shake(audio)
    shake(text)
    state = {
        "audio_encoder.base.htsat." + name: tensor
        for name, tensor in htsat_state(audio.state_dict(), slaney_filters(32000, 50, 14000)).items()
    }
    state |= {"caption_encoder.base." + name: tensor.clone() for name, tensor in text.state_dict().items()}
    generator = torch.Generator().manual_seed(1)
    for side, width in (("audio", WIDTH), ("caption", 128)):
        state |= {
            f"{side}_encoder.projection.linear1.weight": 0.3 * torch.randn(OUTPUTS, width, generator=generator),
            f"{side}_encoder.projection.linear2.weight": 0.3 * torch.randn(OUTPUTS, OUTPUTS, generator=generator),
            f"{side}_encoder.projection.layer_norm.weight": 1 + 0.1 * torch.randn(OUTPUTS, generator=generator),
            f"{side}_encoder.projection.layer_norm.bias": 0.1 * torch.randn(OUTPUTS, generator=generator),
        }
    return Original(audio, text, state | {"logit_scale": torch.tensor(3.0)}, slaney_filters)


@pytest.fixture
def save(original: Original, tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint as it is published, with the tokenizer beside it."""

    def write(state: dict[str, Any] | None = None) -> Path:
        path = tmp_path / "CLAP_weights_2023.pth"
        torch.save({"model": original.state if state is None else state}, path)
        tokenizer.save(str(path.with_name("tokenizer.json")))
        return path

    return write


def sounds() -> list[np.ndarray]:
    """Half a second, three and a half, and seven."""
    generator = np.random.default_rng(0)
    time = np.arange(7 * RATE) / RATE
    noise = 0.1 * generator.standard_normal(len(time))
    return [
        noise[: RATE // 2].astype(np.float32),
        np.sin(2 * np.pi * 300 * (1 + time) * time)[: 7 * RATE // 2 + 1].astype(np.float32),
        (noise * (np.sin(8 * time) > 0)).astype(np.float32),
    ]


def embed_sounds(model: DualEncoder) -> Tensor:
    clips = sounds()
    waveform = torch.zeros(len(clips), model.audio_spec.window_samples)
    for row, clip in zip(waveform, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    with torch.inference_mode():
        return model.encode_audio(waveform, torch.tensor([len(clip) for clip in clips]))


def project(original: Original, side: str, features: Tensor) -> Tensor:
    """The projection of msclap, which has no biases."""
    weights = {
        name: original.state[f"{side}_encoder.projection.{name}.weight"] for name in ("linear1", "linear2", "layer_norm")
    }
    first = features @ weights["linear1"].T
    summed = first + functional.gelu(first) @ weights["linear2"].T
    bias = original.state[f"{side}_encoder.projection.layer_norm.bias"]
    normed = (summed - summed.mean(dim=1, keepdim=True)) / (summed.var(dim=1, correction=0, keepdim=True) + 1e-5).sqrt()
    return functional.normalize(normed * weights["layer_norm"] + bias, dim=1)


def embed_sounds_with_transformers(original: Original, filters: Tensor) -> Tensor:
    """Clips repeated to seven seconds, log-mel by the library's own function, one clip at a time."""
    from transformers.audio_utils import spectrogram, window_function

    window, vectors = window_function(1024, "hann"), []
    for clip in sounds():
        repeated = np.tile(clip, 7 * RATE // len(clip) + 1)[: 7 * RATE]
        decibels = spectrogram(repeated, window, 1024, 320, power=2.0, mel_filters=filters.double().numpy(), log_mel="dB").T
        with torch.inference_mode():
            features = torch.from_numpy(decibels).float()[None, None]  # [1, 1, F, M]
            vectors.append(original.audio(input_features=features).pooler_output)
    return project(original, "audio", torch.cat(vectors))


def embed_captions_with_transformers(original: Original, tokenizer: Tokenizer) -> Tensor:
    """A caption, a blank and the end of the text, read at the last token, one caption at a time."""
    vectors = []
    for caption in CAPTIONS:
        ids = tokenizer.encode(caption.rstrip() + " <|endoftext|>").ids
        # What is cut is the caption: the blank and the end stay.
        ids = ids if len(ids) <= 77 else ids[:75] + ids[-2:]
        with torch.inference_mode():
            vectors.append(original.text(input_ids=torch.tensor([ids])).last_hidden_state[:, -1])
    return project(original, "caption", torch.cat(vectors))


@pytest.mark.parametrize("edges", [(32000, 50, 14000), (44100, 50, 8000)])
def test_sounds_embed_as_with_the_filters_that_the_checkpoint_was_trained_with(
    original: Original, save: Callable[..., Path], edges: tuple[int, int, int]
) -> None:
    filters = original.filters(*edges)
    model = msclap.load(save(original.state | {"audio_encoder.base.htsat.logmel_extractor.melW": filters}))
    ours = embed_sounds(model)
    torch.testing.assert_close(ours, embed_sounds_with_transformers(original, filters), rtol=0, atol=1e-5)
    assert (ours @ ours.T).min() < 0.99, "the clips embed alike, so that the comparison shows nothing"


def test_captions_are_read_at_their_end_exclamation_marks_or_not(
    original: Original, tokenizer: Tokenizer, save: Callable[..., Path]
) -> None:
    model = msclap.load(save())
    captions = [caption.rstrip() for caption in CAPTIONS]
    with torch.inference_mode():
        together, alone = model.encode_text(captions), torch.cat([model.encode_text([caption]) for caption in captions])
    expected = embed_captions_with_transformers(original, tokenizer)
    torch.testing.assert_close(together, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5)
    assert (together @ together.T).min() < 0.99
    assert model.text_tower.num_cut == 2  # the last one, twice


def test_the_architecture_follows_from_the_shapes(save: Callable[..., Path], htsat_config: dict[str, Any]) -> None:
    model = msclap.load(save())
    audio, text = (model.config[side]["options"]["config"] for side in ("audio", "text"))
    assert {key: audio[key] for key in htsat_config} == htsat_config
    assert (text["n_layer"], text["n_head"], text["n_inner"], text["n_positions"]) == (2, 2, 512, 100)
    assert (model.audio_spec.sample_rate, model.audio_spec.window_s, model.embedding_dim) == (44100, 7, OUTPUTS)
    assert model.config["logit_scale"] == pytest.approx(20.0855, abs=1e-3)  # e^3
    assert not model.training


def test_a_saved_model_needs_the_checkpoint_no_longer(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save()
    model = msclap.load(path)
    model.save(tmp_path / "model")
    path.unlink()
    path.with_name("tokenizer.json").unlink()
    again = DualEncoder.load(tmp_path / "model")
    assert torch.equal(embed_sounds(again), embed_sounds(model))
    with torch.inference_mode():
        assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))


def test_masks_that_old_versions_of_transformers_stored_are_left_out(original: Original, save: Callable[..., Path]) -> None:
    masks = {
        "caption_encoder.base.h.0.attn.bias": torch.ones(1, 1, 100, 100).tril(),
        "caption_encoder.base.h.0.attn.masked_bias": torch.tensor(-1e4),
    }
    model = msclap.load(save(original.state | masks))
    # 3 indices, a mask, 3 of the spectrogram, 4 of the classifier, and these 2.
    assert model.notes[-1].startswith("CLAP_weights_2023.pth: 13 tensors are not needed to embed: ")


def test_msclap_is_told_from_others_by_its_names(original: Original) -> None:
    assert msclap.is_msclap(original.state)
    assert msclap.is_msclap({"clap.base.htsat.bn0.weight": torch.zeros(1)})
    assert not msclap.is_msclap({"audio_branch.bn0.weight": torch.zeros(1)})


MEL = "audio_encoder.base.htsat.logmel_extractor.melW"
TENSOR = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption_encoder.extra": TENSOR}, r"1 tensors are no part of the model \(first caption_encoder.extra\)"),
        ({"caption_encoder.base.ln_f.bias": None}, r"1 tensors are missing \(first text_tower.model.ln_f.bias\)"),
        ({"audio_encoder.projection.layer_norm.bias": None}, r"1 tensors are missing \(first audio_head.norm.bias\)"),
        ({"caption_encoder.base.h.1.ln_1.bias": torch.zeros(3)}, "1 have another shape"),
        ({"caption_encoder.base.wte.weight": torch.zeros(9, 100)}, "is 100 wide, expected a multiple of 64"),
        ({"caption_encoder.base.wte.weight": None}, "has no tensor caption_encoder.base.wte.weight"),
        ({"logit_scale": torch.zeros(2)}, r"logit_scale has shape \[2\], expected 0 axes"),
        ({MEL: torch.zeros(513, 64)}, "are not 50 to 14000 Hz at 32000 Hz or 50 to 8000 Hz at 44100 Hz"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_in_one_line(
    original: Original, save: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    state = {name: value for name, value in (original.state | change).items() if value is not None}
    path = save(state)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: .*{message}") as error:
        msclap.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["audio_encoder.base.conv_block1.conv1.weight", "caption_encoder.base.embeddings.LayerNorm.bias"], "is msclap 2022"),
        (["clap.base.htsat.bn0.weight", "clap_project.linear.weight", "gpt.transformer.wte.weight"], "is clapcap"),
        (["audio_branch.bn0.weight"], "is no checkpoint of msclap; files of LAION-CLAP end in .pt"),
    ],
)
def test_other_versions_and_projects_are_refused_with_the_reason(tmp_path: Path, names: list[str], message: str) -> None:
    torch.save({"model": {name: torch.zeros(1) for name in names}}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        msclap.load(tmp_path / "model.pth")


def test_a_truncated_file_is_named(save: Callable[..., Path]) -> None:
    path = save()
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: cannot be read as weights"):
        msclap.load(path)


def test_without_a_tokenizer_and_a_connection_the_message_says_where_to_put_one(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(address: str, *, files: tuple[str, ...]) -> Path:
        raise CheckpointError(f"weights {address}: the Hub did not give it")

    path = save()
    path.with_name("tokenizer.json").unlink()
    monkeypatch.setattr(_originals, "find", find)
    with pytest.raises(CheckpointError, match=r"put the tokenizer.json of openai-community/gpt2 beside the file$"):
        msclap.load(path)


def test_a_tokenizer_without_the_end_of_the_text_is_refused(save: Callable[..., Path]) -> None:
    path = save()
    beside = path.with_name("tokenizer.json")
    content = json.loads(beside.read_text())
    content["added_tokens"][0]["content"] = "</s>"
    beside.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"its tokenizer has no token '<\|endoftext\|>'"):
        msclap.load(path)
