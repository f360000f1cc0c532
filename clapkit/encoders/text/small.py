"""Small Transformer text tower, trained from scratch; its subword tokenizer comes from the training captions."""

from __future__ import annotations

from collections.abc import Sequence

from clapkit.encoders.text._subwords import train_tokenizer
from clapkit.encoders.text._transformer import TransformerTextTower


def build(
    *, captions: Sequence[str] = (), tokenizer: str | None = None, vocab_size: int = 4000, dropout: float = 0.1
) -> TransformerTextTower:
    """The default tower.

    Args:
        captions: sentences to train the tokenizer on, where there is none yet.
        tokenizer: JSON text of a trained tokenizer.
        vocab_size: most subwords to learn.
        dropout: in training.
    """
    tokenizer = tokenizer or train_tokenizer(captions, vocab_size=vocab_size).to_str()
    return TransformerTextTower(tokenizer, width=192, num_layers=3, num_heads=6, max_tokens=77, dropout=dropout)
