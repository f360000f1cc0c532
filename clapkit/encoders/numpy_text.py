"""The text half of a saved model in NumPy, so that a query of words does not wait for torch.

Only towers that clapkit trains from scratch are small enough for this to pay; they are a few products of matrices. Tensors of
the audio half are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from clapkit.encoders._numpy_layers import FloatArray, Weights, gelu, gru, layer_norm, linear, transformer_layer
from clapkit.encoders.fingerprint import CONFIG, WEIGHTS
from clapkit.encoders.text._pieces import Pieces, expect_long_captions, split_captions
from clapkit.errors import CheckpointError, NumericalError, UnknownNameError

FORMAT = 1
PADDING = 0
TOWER, HEAD = "text_tower", "text_head"
Shapes = dict[str, tuple[int, ...]]

# Tokens in a batch: enough to spread the cost of a call, few enough that activations stay in the cache of the processor.
_BATCH_TOKENS = 1024
# Bytes in a piece, on average over a word, up to which a word is spelt rather than known.
_SPELT = 1.5
# A tokenizer that was held to fewer subwords than these, 256 of them bytes, spells words that it was trained on.
_ENOUGH_SUBWORDS = 1000
# Numbers that NumPy has; others are left to torch.
_READABLE = ("F16", "F32", "F64")


class Tower(Protocol):
    """A built-in text tower: what its tensors must look like, and what it makes of tokens."""

    @property
    def max_tokens(self) -> int:
        """Tokens at which sentences are cut."""

    @property
    def vocab_size(self) -> int:
        """Most subwords that its tokenizer learns where nothing else is said."""

    @property
    def embedding_dim(self) -> int:
        """Width of the output."""

    def shapes(self, num_subwords: int) -> Shapes:
        """Name of each tensor -> its shape."""

    def encode(self, weights: Weights, ids: Any) -> FloatArray:
        """Ids int64 [B, L], all of them real, to float32 [B, 1, embedding_dim]."""


@dataclass(frozen=True)
class TransformerTower:
    """``TransformerTextTower``."""

    width: int
    num_layers: int
    num_heads: int
    max_tokens: int
    vocab_size: int

    @property
    def embedding_dim(self) -> int:
        """Width of the output."""
        return self.width

    def shapes(self, num_subwords: int) -> Shapes:
        """Name of each tensor -> its shape."""
        width = self.width
        shapes = {
            f"{TOWER}.tokens.weight": (num_subwords, width),
            f"{TOWER}.positions": (self.max_tokens, width),
            **_vectors(f"{TOWER}.norm", width),
        }
        for number in range(self.num_layers):
            layer = f"{TOWER}.layers.{number}"
            shapes |= _vectors(f"{layer}.attention_norm", width) | _vectors(f"{layer}.feed_forward.0", width)
            shapes |= _matrix(f"{layer}.query_key_value", width, 3 * width) | _matrix(f"{layer}.attention_out", width, width)
            shapes |= _matrix(f"{layer}.feed_forward.1", width, 4 * width) | _matrix(
                f"{layer}.feed_forward.3", 4 * width, width
            )
        return shapes

    def encode(self, weights: Weights, ids: Any) -> FloatArray:
        """Ids int64 [B, L], all of them real, to float32 [B, 1, width]."""
        states = weights[f"{TOWER}.tokens.weight"][ids] + weights[f"{TOWER}.positions"][: ids.shape[1]]  # [B, L, width]
        for number in range(self.num_layers):
            states = transformer_layer(weights, f"{TOWER}.layers.{number}", states, num_heads=self.num_heads)
        mean: FloatArray = layer_norm(weights, f"{TOWER}.norm", states).mean(axis=1, keepdims=True)
        return mean


@dataclass(frozen=True)
class RecurrentTower:
    """``RecurrentTextTower``."""

    width: int
    max_tokens: int
    vocab_size: int

    @property
    def embedding_dim(self) -> int:
        """Width of the output, of both directions."""
        return 2 * self.width

    def shapes(self, num_subwords: int) -> Shapes:
        """Name of each tensor -> its shape."""
        width = self.width
        shapes = {f"{TOWER}.tokens.weight": (num_subwords, width), **_vectors(f"{TOWER}.norm", 2 * width)}
        for suffix in ("l0", "l0_reverse"):
            for side in ("ih", "hh"):
                shapes[f"{TOWER}.recurrent.weight_{side}_{suffix}"] = (3 * width, width)
                shapes[f"{TOWER}.recurrent.bias_{side}_{suffix}"] = (3 * width,)
        return shapes

    def encode(self, weights: Weights, ids: Any) -> FloatArray:
        """Ids int64 [B, L], all of them real, to float32 [B, 1, 2 * width]."""
        tokens = weights[f"{TOWER}.tokens.weight"][ids]  # [B, L, width]
        directions = [gru(weights, f"{TOWER}.recurrent", tokens, backward=backward) for backward in (False, True)]
        states = layer_norm(weights, f"{TOWER}.norm", np.concatenate(directions, axis=-1))  # [B, L, 2 * width]
        mean: FloatArray = states.mean(axis=1, keepdims=True)
        return mean


TOWERS: dict[str, Tower] = {
    "small": TransformerTower(width=192, num_layers=3, num_heads=6, max_tokens=77, vocab_size=4000),
    "tiny": TransformerTower(width=16, num_layers=1, num_heads=2, max_tokens=32, vocab_size=300),
    "light": RecurrentTower(width=128, max_tokens=77, vocab_size=4000),
}
"""Text towers that need no torch, by the name of their plug-in."""


@dataclass(frozen=True)
class Head:
    """A projection head: what its tensors must look like, from both widths, and what it makes of [B, 1, inputs]."""

    shapes: Callable[[int, int], Shapes]
    project: Callable[[Weights, FloatArray], FloatArray]


def _project_mlp(weights: Weights, features: FloatArray) -> FloatArray:
    projected = linear(weights, f"{HEAD}.project", features)
    return layer_norm(weights, f"{HEAD}.norm", projected + linear(weights, f"{HEAD}.refine", gelu(projected)))


def _project_clap(weights: Weights, features: FloatArray) -> FloatArray:
    return linear(weights, f"{HEAD}.linear2", np.maximum(linear(weights, f"{HEAD}.linear1", features), 0))


def _mlp_shapes(inputs: int, outputs: int) -> Shapes:
    matrices = _matrix(f"{HEAD}.project", inputs, outputs) | _matrix(f"{HEAD}.refine", outputs, outputs)
    return matrices | _vectors(f"{HEAD}.norm", outputs)


def _clap_shapes(inputs: int, outputs: int) -> Shapes:
    return _matrix(f"{HEAD}.linear1", inputs, outputs) | _matrix(f"{HEAD}.linear2", outputs, outputs)


def _matrix(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _vectors(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


HEADS = {"mlp": Head(_mlp_shapes, _project_mlp), "clap": Head(_clap_shapes, _project_clap)}
"""Projection heads, by the kind that a model's configuration names."""


class NumpyTextEncoder:
    """Embeds sentences as ``DualEncoder.encode_text`` does in evaluation mode.

    Attributes:
        embedding_dim: width D of the joint space.
        takes_languages: False: the built-in towers read all languages alike.
        max_tokens: longer sentences are cut, or split where the model does so.
        num_cut: sentences, or pieces of them, cut so far.
    """

    takes_languages = False

    def __init__(
        self,
        tokenizer: Tokenizer,
        tower: Tower,
        head: Head,
        *,
        weights: Weights,
        embedding_dim: int,
        vocab_size: int,
        splits: bool = False,
    ) -> None:
        """Put an encoder together.

        Args:
            tokenizer: of the tower.
            tower: that reads tokens.
            head: that projects to the joint space.
            weights: of tower and head, float32, by their names in the model.
            embedding_dim: width D of the joint space.
            vocab_size: most subwords that the tokenizer was to learn.
            splits: whether sentences that are too long are embedded from their pieces, as a model with ``long_captions`` of
                ``split`` does it.
        """
        self._spells = tokenizer.get_vocab_size() >= vocab_size and vocab_size < _ENOUGH_SUBWORDS
        self._tokenizer, self._tower, self._head, self._weights = tokenizer, tower, head, weights
        self.embedding_dim, self.max_tokens, self.num_cut = embedding_dim, tower.max_tokens, 0
        self._splits = splits

    @property
    def captions_cut(self) -> tuple[int, int]:
        """How many sentences were cut so far and at how many tokens, as a ``DualEncoder`` says it."""
        return self.num_cut, self.max_tokens

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """Embed Q sentences; gives unit-norm float32 [Q, D], each row independent of the others.

        Args:
            texts: the sentences.

        Raises:
            NumericalError: if an embedding is zero or not finite.
        """
        if not self._splits:
            return self._encode(texts)
        pieces = split_captions(texts, self._count_tokens, max_tokens=self.max_tokens)
        vectors = self._encode(pieces.texts)  # [M, D]
        return _mean_of_pieces(vectors, pieces, texts) if pieces.num_split else vectors

    def _encode(self, texts: Sequence[str]) -> FloatArray:
        """As ``encode``, of sentences that fit; the end of others is cut."""
        sentences = self._tokens(texts)
        vectors = np.empty((len(texts), self.embedding_dim), dtype=np.float32)
        by_length: dict[int, list[int]] = {}
        for row, ids in enumerate(sentences):
            by_length.setdefault(len(ids), []).append(row)
        # Sentences of one length share a batch, so that nothing has to be padded. Weights that overflow are told below.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for length, rows in by_length.items():
                step = max(1, _BATCH_TOKENS // length)
                for batch in (rows[start : start + step] for start in range(0, len(rows), step)):
                    vectors[batch] = self._embed(np.array([sentences[row] for row in batch]))
            unit: FloatArray = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        _expect_finite(unit, texts)
        return unit.astype(np.float32)

    def knows(self, text: str) -> bool:
        """Whether the tokenizer has learned something of one word at least.

        It spells any word by its bytes if need be; of a word in captions, or like those, it knows longer pieces. Without any,
        as for another script or a row of keys, the tower makes something of the text that means nothing. A tokenizer that was
        held to a few hundred subwords spells most words that it was trained on, and is taken to know all.

        Args:
            text: a sentence.
        """
        if self._spells:
            return True
        encoding = self._tokenizer.encode(text)
        pieces: dict[int, list[str]] = {}
        for word, piece in zip(encoding.word_ids, encoding.tokens, strict=True):
            if word is not None:
                pieces.setdefault(word, []).append(piece)  # the blank before a word counts as its first letter
        return any(sum(map(len, word)) > _SPELT * len(word) for word in pieces.values())

    def _count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, before anything is cut."""
        return [len(encoding) for encoding in self._tokenizer.encode_batch(list(texts))]

    def _tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each sentence; one at least, and ``max_tokens`` at most."""
        encoded = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        self.num_cut += sum(len(ids) > self.max_tokens for ids in encoded)
        return [ids[: self.max_tokens] or [PADDING] for ids in encoded]

    def _embed(self, ids: Any) -> FloatArray:
        """Ids int64 [B, L] to float32 [B, D]."""
        return self._head.project(self._weights, self._tower.encode(self._weights, ids))[:, 0]


def _mean_of_pieces(vectors: FloatArray, pieces: Pieces, texts: Sequence[str]) -> FloatArray:
    """Unit-norm rows of pieces [M, D] to those of sentences [Q, D]; one in one piece stays as it is."""
    counts = np.array(pieces.counts)
    first = np.cumsum(counts) - counts
    weights = np.array(pieces.tokens, dtype=np.float64)[:, None]
    sums = np.add.reduceat(vectors * weights, first)
    with np.errstate(invalid="ignore"):
        means: FloatArray = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    _expect_finite(means, texts)
    return np.where(counts[:, None] == 1, vectors[first], means.astype(np.float32))


def _expect_finite(vectors: FloatArray, texts: Sequence[str]) -> None:
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        raise NumericalError(
            f"{int(broken.sum())} of {len(texts)} embeddings are zero or not finite, the first of "
            f"{texts[int(np.argmax(broken))]!r}; the model is damaged or has diverged"
        )


def open_text_encoder(model_folder: Path) -> NumpyTextEncoder | None:
    """The text half of a saved model, without torch; only its tensors are read.

    Args:
        model_folder: of a model that ``DualEncoder.save`` wrote.

    Returns:
        The encoder, or None where torch is needed: the path is no folder of clapkit, or the text tower is not built in.

    Raises:
        CheckpointError: if a file is damaged, or the weights do not fit the configuration.
    """
    config = _read_config(model_folder / CONFIG)
    if config is None:
        return None
    try:
        tower = TOWERS.get(config["text"]["encoder"])
        if tower is None:
            return None
        options, width = config["text"]["options"], config["embedding_dim"]
        tokenizer_json, vocab_size = options["tokenizer"], int(options.get("vocab_size", tower.vocab_size))
        # Models of clapkit 0.1 had one kind of head and did not say so.
        head = _find_head(config["text"].get("head", "mlp"))
        splits = expect_long_captions(config.get("long_captions", "cut")) == "split"
    except (KeyError, TypeError, AttributeError, ValueError, UnknownNameError) as error:
        raise CheckpointError(
            f"{model_folder / CONFIG}: cannot be used ({type(error).__name__}: {error}); "
            "name a finished train run or a model folder"
        ) from error
    tokenizer = _read_tokenizer(tokenizer_json)
    expected = tower.shapes(tokenizer.get_vocab_size()) | head.shapes(tower.embedding_dim, width)
    weights = _read_weights(model_folder / WEIGHTS, expected)
    if weights is None:
        return None
    return NumpyTextEncoder(tokenizer, tower, head, weights=weights, embedding_dim=width, vocab_size=vocab_size, splits=splits)


def _read_config(path: Path) -> dict[str, Any] | None:
    """The configuration of a clapkit model; None if there is none, or it is of something else."""
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None  # who loads the model with torch says what is wrong with it
    if not isinstance(config, dict) or "clapkit_model" not in config:
        return None
    if config["clapkit_model"] != FORMAT:
        raise CheckpointError(
            f"{path}: model format {config['clapkit_model']!r}, this clapkit reads {FORMAT}; use the version that wrote it"
        )
    return config


def _find_head(kind: str) -> Head:
    if kind not in HEADS:
        raise UnknownNameError("projection head", kind, HEADS)
    return HEADS[kind]


def _read_tokenizer(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    # The library raises a bare Exception for any damage.
    except Exception as error:
        raise CheckpointError(f"text tokenizer: cannot be read ({error}); train the model again") from error


def _read_weights(path: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, FloatArray] | None:
    """The tensors of the text half in float32; None if they are kept in numbers that NumPy does not have."""
    try:
        with safe_open(path, framework="numpy") as file:
            found = {name: file.get_slice(name) for name in file.keys() if name.startswith((f"{TOWER}.", f"{HEAD}."))}
            _expect_shapes(path, {name: tuple(part.get_shape()) for name, part in found.items()}, expected)
            if any(part.get_dtype() not in _READABLE for part in found.values()):
                return None
            return {name: file.get_tensor(name).astype(np.float32, copy=False) for name in found}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read as safetensors ({error}); restore it or train again") from error


def _expect_shapes(path: Path, found: Shapes, expected: Mapping[str, tuple[int, ...]]) -> None:
    odd = sorted(expected.keys() ^ found.keys()) or sorted(name for name in expected if expected[name] != found[name])
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} tensors do not fit the configuration, first {odd[0]!r}; "
            "weights and config.json must come from the same run"
        )
