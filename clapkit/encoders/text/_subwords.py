"""Sentences to subword ids: the tokenizer that the towers trained from scratch share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from clapkit.errors import CheckpointError

PAD, UNKNOWN = "[PAD]", "[UNK]"


def train_tokenizer(captions: Sequence[str], *, vocab_size: int) -> Tokenizer:
    """Byte-pair subwords of lower-cased captions.

    Deterministic for the same captions in the same order. Sennrich et al., 2016, arXiv 1508.07909.

    Args:
        captions: the sentences of the training split.
        vocab_size: most subwords to learn.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, UNKNOWN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


class Subwords:
    """A trained tokenizer, and what it cut off.

    Args:
        tokenizer: its JSON text.
        max_tokens: longer captions are cut; ``num_cut`` counts them.

    Attributes:
        json: the JSON text.
        size: subwords in the vocabulary.
        num_cut: captions cut so far.

    Raises:
        CheckpointError: if the tokenizer's text cannot be read.
    """

    def __init__(self, tokenizer: str, *, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        # The library raises a bare Exception for any damage.
        except Exception as error:
            raise CheckpointError(f"text tokenizer: cannot be read ({error}); train the model again") from error
        self.json, self.max_tokens, self.num_cut = tokenizer, max_tokens, 0
        self.size: int = self._tokenizer.get_vocab_size()

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, before anything is cut."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch(list(texts))]

    def encode(self, captions: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, L] and which of them are real, bool [B, L]; every caption has one token at least."""
        encodings = [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
        self.num_cut += sum(len(ids) > self.max_tokens for ids in encodings)
        encodings = [ids[: self.max_tokens] for ids in encodings]
        length = max(1, max(map(len, encodings)))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in encodings], device=device)
        real = torch.tensor([[True] * max(1, len(row)) + [False] * (length - max(1, len(row))) for row in encodings])
        return ids, real.to(ids.device)
