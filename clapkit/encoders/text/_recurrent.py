"""The recurrent text tower of ``light``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from clapkit.encoders.text._subwords import Subwords


class RecurrentTextTower(nn.Module):
    """Subword embeddings, one bidirectional GRU layer, mean over tokens.

    A recurrent layer reads "a, then b" and "b, then a" differently from the first step on; a Transformer has to find out
    first what its positions are for.

    Reference: Cho et al., Learning phrase representations using RNN encoder-decoder, 2014, arXiv 1406.1078.

    Args:
        tokenizer: its JSON text.
        width: of token embeddings and of each direction.
        max_tokens: longer captions are cut.
        dropout: on token embeddings, in training.

    Attributes:
        embedding_dim: width of the output.
        rebuild_options: the tokenizer, to save beside the weights.
        subwords: the tokenizer at work.

    Raises:
        CheckpointError: if the tokenizer's text cannot be read.
    """

    def __init__(self, tokenizer: str, *, width: int, max_tokens: int, dropout: float) -> None:
        super().__init__()
        self.subwords = Subwords(tokenizer, max_tokens=max_tokens)
        self.rebuild_options = {"tokenizer": tokenizer}
        self.embedding_dim = 2 * width
        self.tokens = nn.Embedding(self.subwords.size, width, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.recurrent = nn.GRU(width, width, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(self.embedding_dim)
        nn.init.normal_(self.tokens.weight, std=0.5)

    @property
    def layers(self) -> list[nn.Module]:
        """The recurrent layer."""
        return [self.recurrent]

    @property
    def num_cut(self) -> int:
        """Captions cut so far."""
        return self.subwords.num_cut

    @property
    def max_tokens(self) -> int:
        """Tokens at which captions are cut."""
        return self.subwords.max_tokens

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, before anything is cut."""
        return self.subwords.count(texts)

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Encode B sentences to [B, embedding_dim]."""
        ids, real = self.subwords.encode(captions, self.tokens.weight.device)  # [B, L]
        lengths = real.sum(dim=1)  # [B]
        # Packed, so that the backward direction starts at the last word instead of behind it.
        packed = pack_padded_sequence(self.dropout(self.tokens(ids)), lengths.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)  # [B, L, embedding_dim]
        mean: Tensor = (self.norm(states) * real[:, :, None]).sum(dim=1) / lengths[:, None]
        return mean
