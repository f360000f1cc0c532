"""Checkpoints of LAION-CLAP, written by an independent generator, embed as the ClapModel that they were made from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from clapkit.encoders import _originals, laion
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.pretrained import quiet_libraries
from clapkit.errors import CheckpointError

CAPTIONS = ["a dog barks in the rain", "rain falls!", "a tone " * 60]
RATE = 48000


@dataclass(frozen=True)
class Original:
    """A model of transformers, and its tensors under the names of LAION-CLAP."""

    model: Any
    state: dict[str, Tensor]
    tokenizer: Path


@pytest.fixture(scope="module")
def original(
    clap_folder: Path,
    htsat_config: dict[str, Any],
    htsat_state: Callable[..., dict[str, Tensor]],
    slaney_filters: Callable[..., Tensor],
    shake: Callable[[Any], None],
) -> Original:
    """Two heads of width 64 in the text branch, two stages in the audio branch, twelve numbers in the joint space."""
    from transformers import ClapConfig, ClapModel

    vocabulary = json.loads((clap_folder / "tokenizer.json").read_text())["model"]["vocab"]
    text_config = {
        "vocab_size": len(vocabulary),
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 90,
        "layer_norm_eps": 1e-5,  # of roberta-base
    }
    with quiet_libraries():
        model = ClapModel(ClapConfig(text_config=text_config, audio_config=htsat_config, projection_dim=12)).eval()
    shake(model)
    tensors = model.state_dict()

    def below(part: str) -> dict[str, Tensor]:
        return {name.removeprefix(part): tensor.clone() for name, tensor in tensors.items() if name.startswith(part)}

    audio = htsat_state(below("audio_model."), slaney_filters(RATE, 50, 14000))
    state = {"audio_branch." + name: tensor for name, tensor in audio.items()}
    text = {name: tensor for name, tensor in below("text_model.").items() if not name.endswith("_ids")}
    state |= {"text_branch." + name: tensor for name, tensor in text.items()}
    for side in ("audio", "text"):
        for number, layer in ((0, "linear1"), (2, "linear2")):
            for name, tensor in below(f"{side}_projection.{layer}.").items():
                state[f"{side}_projection.{number}.{name}"] = tensor
        for number in (0, 3):
            state[f"{side}_transform.sequential.{number}.weight"] = torch.zeros(12, 12)
            state[f"{side}_transform.sequential.{number}.bias"] = torch.zeros(12)
    state |= {"logit_scale_a": torch.tensor(3.0), "logit_scale_t": torch.tensor(3.0)}
    return Original(model, state, clap_folder / "tokenizer.json")


@pytest.fixture
def save(original: Original, tmp_path: Path) -> Callable[..., Path]:
    """Writes a checkpoint with the tokenizer beside it; the content is the bare tensors unless ``wrap`` says otherwise."""

    def write(state: Mapping[str, Any] | None = None, *, wrap: Callable[[dict[str, Any]], Any] = dict) -> Path:
        path = tmp_path / "630k-audioset-best.pt"
        torch.save(wrap(dict(original.state if state is None else state)), path)
        shutil.copy(original.tokenizer, path.with_name("tokenizer.json"))
        return path

    return write


def as_published(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint in the middle of a training: names of DataParallel, state of the optimizer, scores that are numpy's."""
    old = {"text_branch.embeddings.position_ids": torch.arange(90)[None]}
    return {
        "epoch": np.int64(7),
        "name": "630k",
        "state_dict": {"module." + name: tensor for name, tensor in (state | old).items()},
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "best": np.float64(0.91),
        "mean": np.float32(0.5),
    }


def sounds() -> list[np.ndarray]:
    """Half a second, three and a half, and ten, none like another."""
    generator = np.random.default_rng(0)
    time = np.arange(10 * RATE) / RATE
    noise = 0.1 * generator.standard_normal(len(time))
    return [
        noise[: RATE // 2].astype(np.float32),
        np.sin(2 * np.pi * 300 * (1 + time) * time)[: 7 * RATE // 2].astype(np.float32),
        (noise * (np.sin(8 * time) > 0)).astype(np.float32),
    ]


def embed(model: DualEncoder) -> tuple[Tensor, Tensor]:
    clips = sounds()
    waveform = torch.zeros(len(clips), model.audio_spec.window_samples)
    for row, clip in zip(waveform, clips, strict=True):
        row[: len(clip)] = torch.from_numpy(clip)
    with torch.inference_mode():
        return model.encode_audio(waveform, torch.tensor([len(clip) for clip in clips])), model.encode_text(CAPTIONS)


@pytest.fixture(scope="module")
def expected(original: Original) -> tuple[Tensor, Tensor]:
    """What transformers embeds the sounds and the captions as."""
    from tokenizers import Tokenizer
    from transformers import ClapFeatureExtractor

    extractor = ClapFeatureExtractor(frequency_min=50, truncation="rand_trunc")
    features = extractor(sounds(), sampling_rate=RATE, return_tensors="pt")["input_features"]
    tokenizer = Tokenizer.from_file(str(original.tokenizer))
    tokenizer.enable_truncation(77)
    with torch.inference_mode():
        audio = original.model.get_audio_features(input_features=features.float()).pooler_output
        ids = [torch.tensor([tokenizer.encode(caption).ids]) for caption in CAPTIONS]
        text = torch.cat([original.model.get_text_features(input_ids=row).pooler_output for row in ids])
    return functional.normalize(audio, dim=1), functional.normalize(text, dim=1)


@pytest.mark.parametrize("wrap", [as_published, dict, lambda state: {"state_dict": state}])
def test_a_checkpoint_embeds_as_the_model_of_transformers_whatever_lies_around_its_tensors(
    expected: tuple[Tensor, Tensor], save: Callable[..., Path], wrap: Callable[[dict[str, Any]], Any]
) -> None:
    audio, text = embed(laion.load(save(wrap=wrap)))
    torch.testing.assert_close(audio, expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(text, expected[1], rtol=0, atol=1e-5)
    assert (audio @ audio.T).min() < 0.99, "the clips embed alike, so that the comparison shows nothing"
    assert (text @ text.T).min() < 0.99


def test_half_precision_is_read_as_single_precision(
    original: Original, expected: tuple[Tensor, Tensor], save: Callable[..., Path]
) -> None:
    halves = {
        name: tensor.half() if tensor.dim() > 1 and "melW" not in name else tensor for name, tensor in original.state.items()
    }
    model = laion.load(save(halves))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    torch.testing.assert_close(embed(model)[1], expected[1], rtol=0, atol=5e-3)


def test_the_architecture_follows_from_the_shapes(save: Callable[..., Path], htsat_config: dict[str, Any]) -> None:
    model = laion.load(save())
    audio, text = (model.config[side]["options"]["config"] for side in ("audio", "text"))
    assert {key: audio[key] for key in htsat_config} == htsat_config
    assert (text["num_hidden_layers"], text["num_attention_heads"], text["intermediate_size"]) == (2, 2, 24)
    assert (model.audio_spec.sample_rate, model.audio_spec.window_s, model.embedding_dim) == (48000, 10, 12)
    assert model.text_tower.max_tokens == 77
    assert not model.training


def test_a_saved_model_needs_the_checkpoint_no_longer(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save()
    model = laion.load(path)
    model.save(tmp_path / "model")
    path.unlink()
    path.with_name("tokenizer.json").unlink()
    for ours, theirs in zip(embed(DualEncoder.load(tmp_path / "model")), embed(model), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_left_out_is_noted_by_kind(save: Callable[..., Path]) -> None:
    notes = laion.load(save()).notes
    # 3 indices, a mask, 3 of the spectrogram, 4 of the classifier, 8 of the second projections.
    assert [note for note in notes if note.startswith("630k-audioset-best.pt: 19 tensors are not needed to embed: ")]
    assert "audio_branch.layers.*.blocks.*.attn.relative_position_index" in notes[-1]


def test_the_logit_scale_is_kept_and_a_second_one_that_differs_is_noted(original: Original, save: Callable[..., Path]) -> None:
    model = laion.load(save())
    assert model.config["logit_scale"] == pytest.approx(20.0855, abs=1e-3)  # e^3
    assert not [note for note in model.notes if "logit scales" in note]
    model = laion.load(save(original.state | {"logit_scale_t": torch.tensor(2.0)}))
    assert model.notes[-1] == "630k-audioset-best.pt: logit scales are 20.09 (audio) and 7.389 (text); the first is kept"


def test_laion_is_told_from_others_by_its_names(original: Original) -> None:
    assert laion.is_laion(original.state)
    assert not laion.is_laion({"audio_encoder.base.htsat.bn0.weight": torch.zeros(1)})


PROJECTION = "audio_branch.patch_embed.proj.weight"
MEL = "audio_branch.logmel_extractor.melW"
TYPES = "text_branch.embeddings.token_type_embeddings.weight"
NO_TYPES = {TYPES: None}
TENSOR = torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio_branch.extra.weight": TENSOR}, r"1 tensors are no part of the model \(first audio_branch.extra.weight\)"),
        ({"audio_branch.norm.bias": None}, r"1 tensors are missing \(first audio_tower.model.audio_encoder.norm.bias\)"),
        ({"audio_branch.bn0.running_var": None}, r"1 tensors are missing \(first .*batch_norm.running_var\)"),
        ({"text_branch.pooler.dense.bias": None}, r"1 tensors are missing \(first text_tower.model.pooler.dense.bias\)"),
        ({"audio_projection.0.bias": torch.zeros(3)}, r"1 have another shape \(first audio_head.linear1.bias: \[3\]"),
        ({"audio_branch.layers.0.blocks.0.attn.qkv.bias": torch.zeros(27)}, "3 have another shape"),
        ({"audio_branch.layers.0.blocks.0.attn.qkv.bias": torch.tensor(1.0)}, "no place"),
        ({PROJECTION: None}, f"has no tensor {PROJECTION}, so its architecture is not known"),
        ({PROJECTION: torch.zeros(8)}, rf"{PROJECTION} has shape \[8\], expected 4 axes"),
        ({PROJECTION: torch.zeros(9, 1, 4, 4)}, r"2 stages of \[2, 4\] heads from width 9, which is no HTSAT"),
        ({PROJECTION: torch.zeros(8, 4, 4, 4)}, "fuses features: .* depends on the other clips of its batch"),
        ({"audio_branch.patch_embed.mel_conv2d.weight": TENSOR}, "fuses features: its long clips are cropped at random"),
        ({"audio_branch.fusion_model.local_att.0.weight": TENSOR}, "fuses features"),
        ({"audio_branch.conv_block1.conv1.weight": TENSOR}, "its audio branch is a PANN"),
        ({TYPES: torch.zeros(2, 128)}, "its text branch is BERT, expected RoBERTa"),
        (NO_TYPES | {"text_branch.resblocks.0.ln_1.bias": TENSOR}, "its text branch is the transformer of CLIP"),
        (NO_TYPES | {"text_branch.shared.weight": TENSOR}, "its text branch is BART"),
        (NO_TYPES, "its text branch is unknown"),
        ({"text_branch.embeddings.word_embeddings.weight": torch.zeros(9, 100)}, "is 100 wide, expected a multiple of 64"),
        ({MEL: torch.zeros(513, 64)}, "its mel filters are not 50 to 14000 Hz at 48000 Hz"),
        ({MEL: torch.zeros(257, 64)}, "its mel filters are not 50 to 14000 Hz at 48000 Hz"),
        ({MEL: None}, f"has no tensor {MEL}"),
        ({"logit_scale_a": None}, "has no tensor logit_scale_a"),
        ({"logit_scale_t": torch.tensor(float("nan"))}, "logit_scale_t is nan, expected a number below 20"),
        ({"logit_scale_a": torch.tensor(1e9)}, "logit_scale_a is 1000000000.0, expected"),
        ({"audio_branch.norm.bias": "text"}, "audio_branch.norm.bias is str, expected a tensor"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused_in_one_line(
    original: Original, save: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    state = {name: value for name, value in (original.state | change).items() if value is not None}
    path = save(state)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: .*{message}") as error:
        laion.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no named tensors"),
        ({"state_dict": {}}, "holds no named tensors"),
        ({"state_dict": {3: torch.zeros(1)}}, "holds no named tensors"),
        ([torch.zeros(1)], "holds list, expected a dictionary"),
        (
            {"model": {"audio_encoder.base.bn0.weight": torch.zeros(1)}},
            "is no checkpoint of LAION-CLAP; files of msclap end in",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=message):
        laion.load(tmp_path / "model.pt")


class Code:
    """Makes a file when a pickle with it is loaded as pickles usually are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_is_not_run(original: Original, save: Callable[..., Path], tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    path = save(wrap=lambda state: {"state_dict": state, "callback": Code(touched)})
    with pytest.raises(CheckpointError, match="holds Python objects besides tensors, which could run code and are not loaded"):
        laion.load(path)
    assert not touched.exists()
    torch.load(path, weights_only=False)
    assert touched.exists(), "the file does run code where nobody forbids it"


def test_arrays_of_numpy_are_not_loaded(save: Callable[..., Path]) -> None:
    path = save(wrap=lambda state: {"state_dict": state, "history": np.arange(3)})
    with pytest.raises(CheckpointError, match="holds Python objects besides tensors"):
        laion.load(path)


def test_numbers_of_numpy_are_allowed_for_the_one_file_alone(save: Callable[..., Path]) -> None:
    path, before = save(wrap=as_published), set(torch.serialization.get_safe_globals())
    laion.load(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(Exception, match="numpy"):
        torch.load(path, weights_only=True)


def test_a_truncated_and_a_missing_file_are_named(save: Callable[..., Path]) -> None:
    path = save()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: cannot be read as weights"):
        laion.load(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: cannot be read as weights"):
        laion.load(path)


def test_without_a_tokenizer_beside_the_file_that_of_roberta_base_is_asked_for_and_nothing_else(
    original: Original, save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    (tmp_path / "hub").mkdir()
    shutil.copy(original.tokenizer, tmp_path / "hub")

    def find(address: str, *, files: tuple[str, ...]) -> Path:
        asked.append((address, files))
        return tmp_path / "hub"

    path = save()
    path.with_name("tokenizer.json").unlink()
    monkeypatch.setattr(_originals, "find", find)
    assert laion.load(path).text_tower.tokenizer.encode(["a dog"], None, torch.device("cpu"))[0].shape[0] == 1
    assert asked == [("FacebookAI/roberta-base", ("tokenizer.json",))]


def test_without_a_tokenizer_and_a_connection_the_message_says_where_to_put_one(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(address: str, *, files: tuple[str, ...]) -> Path:
        raise CheckpointError(f"weights {address}: the Hub did not give it")

    path = save()
    path.with_name("tokenizer.json").unlink()
    monkeypatch.setattr(_originals, "find", find)
    with pytest.raises(CheckpointError, match=r"put the tokenizer.json of FacebookAI/roberta-base beside the file$"):
        laion.load(path)


def test_the_tokenizer_of_another_model_is_refused(save: Callable[..., Path]) -> None:
    path = save()
    beside = path.with_name("tokenizer.json")
    content = json.loads(beside.read_text())
    content["added_tokens"].append(content["added_tokens"][-1] | {"id": 4000, "content": "<more>"})
    beside.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"tokenizer.json: has 4001 tokens, but the embedding table .* rows"):
        laion.load(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"model": {"vocab": {}}}', '{"model": {"vocab": ["a"]}}', '{"model": 3}'])
def test_a_damaged_tokenizer_is_named(save: Callable[..., Path], text: str) -> None:
    path = save()
    path.with_name("tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="tokenizer.json: cannot be read as a tokenizer") as error:
        laion.load(path)
    assert "\n" not in str(error.value)


def test_a_tokenizer_that_the_library_cannot_read_is_named_with_the_checkpoint(save: Callable[..., Path]) -> None:
    path = save()
    beside = path.with_name("tokenizer.json")
    content = json.loads(beside.read_text())
    content["model"]["type"] = "no such model"
    beside.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}: text tokenizer: cannot be read"):
        laion.load(path)
