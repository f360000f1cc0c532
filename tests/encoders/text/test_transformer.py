import pytest
import torch

from clapkit.encoders.text._transformer import TransformerTextTower, train_tokenizer
from clapkit.encoders.text.tiny import build
from clapkit.errors import CheckpointError

CAPTIONS = ["a dog is barking", "rain falls on a roof", "a dog barks while rain falls"]


def test_a_sentence_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    tower = build(captions=CAPTIONS).eval()
    together = tower(CAPTIONS)
    alone = torch.cat([tower([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_case_does_not_matter_and_order_of_words_does() -> None:
    torch.manual_seed(0)
    tower = build(captions=CAPTIONS).eval()
    upper, lower, turned = tower(["A Dog, Rain", "a dog, rain", "rain, a dog"])
    assert torch.equal(upper, lower)
    assert (lower - turned).abs().max() > 1e-3


def test_training_the_tokenizer_is_deterministic() -> None:
    first = train_tokenizer(CAPTIONS, vocab_size=280).to_str()
    assert first == train_tokenizer(CAPTIONS, vocab_size=280).to_str()


def test_any_text_can_be_encoded() -> None:
    tower = build(captions=CAPTIONS).eval()
    embedded = tower(["", "Ünïcödé 犬の声 🐕", "x" * 500])
    assert torch.isfinite(embedded).all()


def test_long_captions_are_cut_and_counted() -> None:
    tower = build(captions=CAPTIONS).eval()
    tower(["dog " * 100, "a dog"])
    assert tower.num_cut == 1


def test_a_damaged_tokenizer_is_named() -> None:
    with pytest.raises(CheckpointError, match="text tokenizer: cannot be read"):
        TransformerTextTower("{}", width=8, num_layers=1, num_heads=1, max_tokens=8, dropout=0.0)
