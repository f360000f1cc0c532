"""The Transformer text tower that ``small`` and ``tiny`` share, with a tokenizer trained on the training captions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from clapkit.encoders.initialization import preserve_variance
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


class TransformerTextTower(nn.Module):
    """Subword embeddings, pre-norm Transformer layers, mean over tokens.

    Args:
        tokenizer: its JSON text.
        width: of token embeddings and layers.
        num_layers: Transformer layers.
        num_heads: attention heads.
        max_tokens: longer captions are cut; ``num_cut`` counts them.
        dropout: in training.

    Attributes:
        embedding_dim: width of the output.
        tokenizer_json: the tokenizer, to save beside the weights.
        num_cut: captions cut since the tower was made.

    Raises:
        CheckpointError: if the tokenizer's text cannot be read.
    """

    def __init__(self, tokenizer: str, *, width: int, num_layers: int, num_heads: int, max_tokens: int, dropout: float) -> None:
        super().__init__()
        try:
            self._tokenizer = Tokenizer.from_str(tokenizer)
        # The library raises a bare Exception for any damage.
        except Exception as error:
            raise CheckpointError(f"text tokenizer: cannot be read ({error}); train the model again") from error
        self.tokenizer_json = tokenizer
        self.embedding_dim = width
        self.max_tokens = max_tokens
        self.num_cut = 0
        self.tokens = nn.Embedding(self._tokenizer.get_vocab_size(), width, padding_idx=0)
        self.positions = nn.Parameter(torch.zeros(max_tokens, width))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(TransformerLayer(width, num_heads, dropout=dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        preserve_variance(self)
        nn.init.normal_(self.tokens.weight, std=0.5)
        nn.init.normal_(self.positions, std=0.1)

    def tokenize(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids int64 [B, L] and which of them are real, bool [B, L]."""
        encodings = [encoding.ids for encoding in self._tokenizer.encode_batch(list(captions))]
        self.num_cut += sum(len(ids) > self.max_tokens for ids in encodings)
        encodings = [ids[: self.max_tokens] for ids in encodings]
        length = max(1, max(map(len, encodings)))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in encodings], device=self.positions.device)
        real = torch.tensor([[True] * max(1, len(row)) + [False] * (length - max(1, len(row))) for row in encodings])
        return ids, real.to(ids.device)

    def forward(self, captions: Sequence[str]) -> Tensor:
        """Encode B sentences to [B, embedding_dim]."""
        ids, real = self.tokenize(captions)  # [B, L]
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
