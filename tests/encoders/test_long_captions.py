"""Captions that are longer than the text tower reads, cut or split, in the dual encoder and in NumPy."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from clapkit.encoders.clap import from_transformers
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.numpy_text import open_text_encoder
from clapkit.encoders.text._pieces import split_captions
from clapkit.errors import CheckpointError, ConfigError, NumericalError, UnknownNameError

SHORT = ["a dog barks", "", "rain falls", "犬が吠える"]
# 300 words in 30 sentences, each of which tells something else.
LONG = " ".join(f"Sound {number} is a dog, then rain on roof {number * 7}." for number in range(30))
CHINESE = "狗在叫，雨落在屋顶上。" * 20
TOWERS = ["tiny", "small", "light", "hf"]


def shake(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.8 * parameter + (0.3 if parameter.dim() == 1 else 0.02) * noise)


@pytest.fixture
def make(clap_folder: Path) -> Callable[..., DualEncoder]:
    """Makes a model of a text tower: one of ours, or a ClapModel of transformers."""

    def model(tower: str, long_captions: Any = "split") -> DualEncoder:
        if tower == "hf":
            found = from_transformers(clap_folder)
            found.long_captions = long_captions
            return found
        torch.manual_seed(0)
        options = {"captions": [*SHORT, LONG[:200]]}
        found = DualEncoder("tiny", tower, embedding_dim=12, text_options=options, long_captions=long_captions)
        shake(found)
        return found.eval()

    return model


def embed(model: DualEncoder, captions: list[str], **options: Any) -> Tensor:
    with torch.inference_mode():
        return model.encode_text(captions, **options)


def test_the_long_caption_has_300_words() -> None:
    assert len(LONG.split()) == 300


@pytest.mark.parametrize("tower", TOWERS)
def test_captions_that_fit_are_embedded_as_before_to_the_last_bit(make: Callable[..., DualEncoder], tower: str) -> None:
    model = make(tower)
    assert torch.equal(embed(model, SHORT), embed(make(tower, "cut"), SHORT))
    assert model.captions_split == 0


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("caption", [LONG, CHINESE, LONG.replace(" ", "")], ids=["english", "chinese", "without blanks"])
def test_a_long_caption_is_the_mean_of_its_pieces_by_their_tokens(
    make: Callable[..., DualEncoder], tower: str, caption: str
) -> None:
    model, cutting = make(tower), make(tower, "cut")
    (whole,) = embed(model, [caption])
    assert model.captions_split == 1
    assert model.captions_cut == (0, model.text_tower.max_tokens)
    texts = split_captions([caption], model.text_tower.count_tokens, max_tokens=model.text_tower.max_tokens).texts
    added = model.text_tower.count_tokens([""])[0]
    mean = torch.zeros(model.embedding_dim)
    for text in texts:
        mean += (model.text_tower.count_tokens([text])[0] - added) * embed(cutting, [text])[0]
    assert cutting.captions_cut == (0, model.text_tower.max_tokens)
    torch.testing.assert_close(whole, mean / mean.norm(), rtol=0, atol=2e-6)
    torch.testing.assert_close(whole.norm(), torch.tensor(1.0))


@pytest.mark.parametrize("tower", TOWERS)
def test_the_end_of_a_long_caption_counts_when_it_is_split_and_not_when_it_is_cut(
    make: Callable[..., DualEncoder], tower: str
) -> None:
    captions = [LONG + " A bell rings.", LONG + " Wind blows."]
    split, cut = embed(make(tower), captions), embed(make(tower, "cut"), captions)
    assert torch.equal(cut[0], cut[1])
    assert (split[0] - split[1]).abs().max() > 1e-4


@pytest.mark.parametrize("tower", TOWERS)
def test_an_embedding_does_not_depend_on_the_batch(make: Callable[..., DualEncoder], tower: str) -> None:
    model = make(tower)
    captions = [SHORT[0], LONG, *SHORT[1:], CHINESE, LONG[:900]]
    together = embed(model, captions)
    alone = torch.cat([embed(model, [caption]) for caption in captions])
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    torch.testing.assert_close(embed(model, captions[::-1]).flip(0), together, rtol=0, atol=2e-6)


def test_all_pieces_go_through_the_tower_in_one_call(make: Callable[..., DualEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = make("tiny"), []
    forward = model.text_tower.forward
    monkeypatch.setattr(model.text_tower, "forward", lambda captions: calls.append(len(captions)) or forward(captions))
    embed(model, [LONG, *SHORT, CHINESE])
    assert len(calls) == 1
    assert calls[0] == sum(split_captions([LONG, *SHORT, CHINESE], model.text_tower.count_tokens, max_tokens=32).counts) > 30


def test_the_features_of_a_long_caption_point_where_its_embedding_does(make: Callable[..., DualEncoder]) -> None:
    model = make("tiny")
    captions = [*SHORT, LONG]
    features = embed(model, captions, features=True)
    torch.testing.assert_close(functional.normalize(features, dim=1), embed(model, captions))
    texts = split_captions([LONG], model.text_tower.count_tokens, max_tokens=32).texts
    lengths = embed(model, texts, features=True).norm(dim=1)
    assert lengths.min() <= features[-1].norm() <= lengths.max()


def test_the_tower_before_the_head_reads_pieces_too(make: Callable[..., DualEncoder]) -> None:
    model = make("tiny")
    pieces = split_captions([LONG], model.text_tower.count_tokens, max_tokens=32)
    with torch.inference_mode():
        found, parts = model.text_features([*SHORT, LONG]), model.text_tower(pieces.texts)
        torch.testing.assert_close(found[:-1], model.text_tower(SHORT))
    mean = (functional.normalize(parts, dim=1) * torch.tensor(pieces.tokens)[:, None]).sum(dim=0)
    torch.testing.assert_close(functional.normalize(found[-1], dim=0), functional.normalize(mean, dim=0))


def test_every_parameter_learns_from_a_long_caption(make: Callable[..., DualEncoder]) -> None:
    model = make("tiny").train()
    (model.encode_text([LONG, "a dog"]) * torch.arange(24.0).view(2, 12)).sum().backward()
    text = [(name, weight.grad) for name, weight in model.named_parameters() if name.startswith("text")]
    assert [name for name, gradient in text if gradient is None or not gradient.isfinite().all()] == []


class Speaking(nn.Module):
    """A text tower that reads three words and hears the language."""

    takes_languages = True
    embedding_dim = max_tokens = 3

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[str, str]] = []

    def count_tokens(self, texts: list[str]) -> list[int]:
        return [len(text.split()) for text in texts]

    def forward(self, captions: list[str], languages: list[str]) -> Tensor:
        self.heard += zip(captions, languages, strict=True)
        return torch.randn(len(captions), 3, generator=torch.Generator().manual_seed(len(self.heard)))


def test_every_piece_has_the_language_of_its_caption(tiny_encoder: DualEncoder) -> None:
    tiny_encoder.text_tower, tiny_encoder.text_head = Speaking(), nn.Identity()
    tiny_encoder.long_captions = "split"
    embed(tiny_encoder, ["one two", "eins zwei drei vier", "un"], languages=["en", "de", "fr"])
    heard = [("one two", "en"), ("eins zwei drei", "de"), ("vier", "de"), ("un", "fr")]
    assert tiny_encoder.text_tower.heard == heard
    embed(tiny_encoder, ["one two three four"])
    assert tiny_encoder.text_tower.heard[4:] == [("one two three", "en"), ("four", "en")]


# Saved models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tower", TOWERS)
def test_a_saved_model_splits_as_before(make: Callable[..., DualEncoder], tower: str, tmp_path: Path) -> None:
    model = make(tower)
    model.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["long_captions"] == "split"
    loaded = DualEncoder.load(tmp_path)
    assert loaded.long_captions == "split"
    assert torch.equal(embed(loaded, [LONG, "a dog"]), embed(model, [LONG, "a dog"]))


def test_a_model_that_cuts_says_nothing_of_it_as_before(make: Callable[..., DualEncoder], tmp_path: Path) -> None:
    model = make("tiny", "cut")
    model.save(tmp_path)
    assert "long_captions" not in (tmp_path / "config.json").read_text()
    assert DualEncoder.load(tmp_path).long_captions == "cut"


def test_it_may_be_changed_and_changed_back(make: Callable[..., DualEncoder]) -> None:
    model = make("tiny", "cut")
    before, cut = copy.deepcopy(model.config), embed(model, [LONG])
    model.long_captions = "split"
    assert model.config == before | {"long_captions": "split"}
    assert not torch.allclose(embed(model, [LONG]), cut, atol=1e-3)
    model.long_captions = "cut"
    assert model.config == before
    assert torch.equal(embed(model, [LONG]), cut)


def test_a_tower_that_does_not_count_tokens_can_only_cut(tiny_encoder: DualEncoder) -> None:
    tiny_encoder.text_tower = nn.Linear(2, 2)
    tiny_encoder.long_captions = "cut"
    with pytest.raises(
        ConfigError, match="^--long-captions split: the text tower tiny does not count its tokens; leave it out"
    ):
        tiny_encoder.long_captions = "split"
    assert tiny_encoder.long_captions == "cut"


def test_another_name_is_refused(make: Callable[..., DualEncoder], tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown treatment of long captions 'mean': known: cut, split"):
        make("tiny", "mean")
    make("tiny").save(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"split"', '["split"]'))
    message = (
        r"config\.json: cannot be used \(UnknownNameError: unknown treatment of long captions .*; name a finished train run"
    )
    with pytest.raises(CheckpointError, match=message) as theirs:
        DualEncoder.load(tmp_path)
    with pytest.raises(CheckpointError, match=message) as ours:
        open_text_encoder(tmp_path)
    assert str(ours.value) == str(theirs.value)


# NumPy ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("long_captions", ["cut", "split"])
@pytest.mark.parametrize("tower", ["tiny", "small", "light"])
def test_numpy_gives_the_vectors_of_torch(
    make: Callable[..., DualEncoder], tower: str, long_captions: str, tmp_path: Path
) -> None:
    model = make(tower, long_captions)
    model.save(tmp_path)
    encoder = open_text_encoder(tmp_path)
    assert encoder is not None
    captions = [LONG, *SHORT, CHINESE, LONG[:500], " " * 200, "z" * 200]
    vectors = encoder.encode(captions)
    np.testing.assert_allclose(vectors, embed(model, captions).numpy(), rtol=0, atol=2e-6)
    assert vectors.dtype == np.float32
    assert encoder.captions_cut == model.captions_cut
    assert (encoder.num_cut == 0) == (long_captions == "split")
    np.testing.assert_array_equal(encoder.encode(SHORT), vectors[1:5])
    assert encoder.encode([]).shape == (0, 12)


def test_numpy_tells_of_weights_that_diverged(make: Callable[..., DualEncoder], tmp_path: Path) -> None:
    model = make("tiny")
    with torch.no_grad():
        model.text_head.norm.weight.fill_(float("nan"))
    model.save(tmp_path)
    encoder = open_text_encoder(tmp_path)
    assert encoder is not None
    with pytest.raises(NumericalError, match="embeddings are zero or not finite, the first of 'Sound 0 is a dog"):
        encoder.encode([LONG])
