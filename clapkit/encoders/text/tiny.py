"""A few thousand parameters: for tests and for trying things, not for results."""

from __future__ import annotations

from collections.abc import Sequence

from clapkit.encoders.text._subwords import train_tokenizer
from clapkit.encoders.text._transformer import TransformerTextTower


def build(*, captions: Sequence[str] = (), tokenizer: str | None = None, vocab_size: int = 300) -> TransformerTextTower:
    """The smallest tower.

    Args:
        captions: sentences to train the tokenizer on, where there is none yet.
        tokenizer: JSON text of a trained tokenizer.
        vocab_size: most subwords to learn (the 256 bytes included).
    """
    tokenizer = tokenizer or train_tokenizer(captions, vocab_size=vocab_size).to_str()
    return TransformerTextTower(tokenizer, width=16, num_layers=1, num_heads=2, max_tokens=32, dropout=0.0)
