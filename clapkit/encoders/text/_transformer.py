"""The Transformer text tower that ``small`` and ``tiny`` share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clapkit.encoders.initialization import preserve_variance
from clapkit.encoders.text._subwords import Subwords


class TransformerTextTower(nn.Module):
    """Subword embeddings, pre-norm Transformer layers, mean over tokens.

    Args:
        tokenizer: its JSON text.
        width: of token embeddings and layers.
        num_layers: Transformer layers.
        num_heads: attention heads.
        max_tokens: longer captions are cut.
        dropout: in training.

    Attributes:
        embedding_dim: width of the output.
        rebuild_options: the tokenizer, to save beside the weights.
        subwords: the tokenizer at work.

    Raises:
        CheckpointError: if the tokenizer's text cannot be read.
    """

    def __init__(self, tokenizer: str, *, width: int, num_layers: int, num_heads: int, max_tokens: int, dropout: float) -> None:
        super().__init__()
        self.subwords = Subwords(tokenizer, max_tokens=max_tokens)
        self.rebuild_options = {"tokenizer": tokenizer}
        self.embedding_dim = width
        self.tokens = nn.Embedding(self.subwords.size, width, padding_idx=0)
        self.positions = nn.Parameter(torch.zeros(max_tokens, width))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(width, num_heads, dropout=dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        preserve_variance(self)
        nn.init.normal_(self.tokens.weight, std=0.5)
        nn.init.normal_(self.positions, std=0.1)

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
        ids, real = self.subwords.encode(captions, self.positions.device)  # [B, L]
        states = self.dropout(self.tokens(ids) + self.positions[: ids.shape[1]])  # [B, L, width]
        for layer in self.layers:
            states = layer(states, real)
        states = self.norm(states) * real[:, :, None]
        mean: Tensor = states.sum(dim=1) / real.sum(dim=1, keepdim=True)  # [B, width]
        return mean


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward (Xiong et al., 2020, arXiv 2002.04745)."""

    def __init__(self, width: int, num_heads: int, *, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        """States [B, L, width] with ``real`` bool [B, L] to the same shape."""
        batch, length, width = states.shape
        parts = self.query_key_value(self.attention_norm(states)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [B, heads, L, width / heads]
        attended = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
        states = states + self.dropout(self.attention_out(attended.transpose(1, 2).reshape(batch, length, width)))
        out: Tensor = states + self.dropout(self.feed_forward(states))
        return out
