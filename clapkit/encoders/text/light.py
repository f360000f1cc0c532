"""Recurrent text tower for sweeps of many runs on a laptop, which learns the order of words early."""

from __future__ import annotations

from collections.abc import Sequence

from clapkit.encoders.text._recurrent import RecurrentTextTower
from clapkit.encoders.text._subwords import train_tokenizer


def build(
    *, captions: Sequence[str] = (), tokenizer: str | None = None, vocab_size: int = 4000, dropout: float = 0.1
) -> RecurrentTextTower:
    """A tower that trains faster than ``small`` (docs/benchmarks.md).

    Args:
        captions: sentences to train the tokenizer on, where there is none yet.
        tokenizer: JSON text of a trained tokenizer.
        vocab_size: most subwords to learn.
        dropout: in training.
    """
    tokenizer = tokenizer or train_tokenizer(captions, vocab_size=vocab_size).to_str()
    return RecurrentTextTower(tokenizer, width=128, max_tokens=77, dropout=dropout)
