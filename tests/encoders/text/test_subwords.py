import pytest
import torch

from clapkit.encoders.text._subwords import Subwords, train_tokenizer
from clapkit.errors import CheckpointError

CAPTIONS = ["a dog is barking", "rain falls on a roof", "a dog barks while rain falls"]
CPU = torch.device("cpu")


def made(max_tokens: int = 8) -> Subwords:
    return Subwords(train_tokenizer(CAPTIONS, vocab_size=300).to_str(), max_tokens=max_tokens)


def test_training_the_tokenizer_is_deterministic() -> None:
    first = train_tokenizer(CAPTIONS, vocab_size=280).to_str()
    assert first == train_tokenizer(CAPTIONS, vocab_size=280).to_str()


def test_captions_are_padded_and_every_one_has_a_token() -> None:
    ids, real = made().encode(["a dog", ""], CPU)
    assert ids.shape == real.shape == (2, 2)
    assert real.tolist() == [[True, True], [True, False]]
    assert ids[1].tolist() == [0, 0]


def test_long_captions_are_cut_and_counted() -> None:
    subwords = made()
    ids, _ = subwords.encode(["dog " * 100, "a dog"], CPU)
    assert ids.shape[1] == 8
    assert subwords.num_cut == 1


def test_tokens_are_counted_before_anything_is_cut() -> None:
    subwords = made()
    # A lone letter is one token, and one more for the blank before it.
    assert subwords.count(["", "z", "z" * 20]) == [0, 2, 21]
    assert subwords.count([]) == []
    assert subwords.num_cut == 0


def test_a_damaged_tokenizer_is_named() -> None:
    with pytest.raises(CheckpointError, match="text tokenizer: cannot be read"):
        Subwords("{}", max_tokens=8)
