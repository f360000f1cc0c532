"""Sentences to token ids with a ``tokenizer.json``, as the library transformers does it, without importing the library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from clapkit.encoders.pretrained import quiet_libraries, read_json
from clapkit.encoders.text._languages import Languages
from clapkit.encoders.text._pooling import read_sentence_length
from clapkit.errors import CheckpointError, ConfigError, ShapeError

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# Files that older tokenizers need, all of a line.
OLDER_FILES = (("vocab.txt",), ("vocab.json", "merges.txt"), ("*.model",))
# What is used of tokenizer_config.json; ``append_eos`` is our own.
KEYS = ("pad_token", "eos_token", "model_max_length", "truncation_side", "append_eos")
# Length of a caption in tokens where neither the tokenizer nor the model states one.
UNSTATED_LENGTH = 512


def read_tokenizer(folder: Path) -> tuple[str, dict[str, Any]]:
    """The text of ``tokenizer.json`` and what is used of ``tokenizer_config.json``.

    Folders with older files alone are converted once, by transformers.

    Raises:
        CheckpointError: if there is no tokenizer that can be used.
    """
    settings = read_settings(read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {})
    length = read_sentence_length(folder)
    if length is not None:
        settings["model_max_length"] = min(length, settings.get("model_max_length", length))
    if not (folder / TOKENIZER).is_file():
        return _convert(folder), settings
    try:
        return (folder / TOKENIZER).read_text(encoding="utf-8"), settings
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / TOKENIZER}: cannot be read ({error}); restore the file") from error


def read_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What is used of a ``tokenizer_config.json``; a special token may stand there as text, or with how it is matched."""
    settings = {key: config[key] for key in KEYS if config.get(key) is not None}
    for key in ("pad_token", "eos_token"):
        if isinstance(settings.get(key), dict):
            settings[key] = settings[key].get("content")
    length = settings.get("model_max_length")
    # Files without a limit say 1e30.
    if length is not None and not 0 < length < 1e9:
        del settings["model_max_length"]
    return settings


class HfTokenizer:
    """A tokenizer of transformers at work, and what it cut off.

    Args:
        text: content of ``tokenizer.json``; padding and truncation that it asks for are ignored.
        settings: content of ``tokenizer_config.json``. With ``append_eos`` the end token is put behind every sentence.
        positions: most tokens that the model takes; None if it takes any number.
        vocab_size: rows of the model's embedding table.
        pad_id: id of the padding, if the settings name no token.
        eos_id: id of the end token, likewise.
        with_languages: put the token of its language in front of every sentence, and the end token behind.
        max_tokens: cut captions at fewer tokens.

    Attributes:
        max_tokens: longer captions are cut to this many tokens, the special ones included.
        num_cut: captions cut so far.
        languages: that can be put in front.

    Raises:
        CheckpointError: if the text is no tokenizer, or that of another model.
        ConfigError: if ``max_tokens`` is out of range.
    """

    def __init__(
        self,
        text: str,
        *,
        settings: Mapping[str, Any],
        positions: int | None,
        vocab_size: int,
        pad_id: int | None,
        eos_id: int | None,
        with_languages: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self._tokenizer = _parse(text)
        settings = read_settings(settings)
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        highest = max(vocabulary.values(), default=-1)
        if highest >= vocab_size:
            raise CheckpointError(
                f"text tokenizer: has ids up to {highest}, but the model's table has {vocab_size} rows; "
                "it is another model's tokenizer, name its own"
            )
        self._pad_id = vocabulary.get(settings.get("pad_token", ""), pad_id) or 0
        self._eos_id = vocabulary.get(settings.get("eos_token", ""), eos_id)
        self.languages = Languages(vocabulary) if with_languages else None
        if self.languages is not None and not self.languages.ids:
            raise CheckpointError(
                "text tokenizer: has no token of a language such as eng_Latn or __en__, which the model reads first; "
                "name the model's own tokenizer"
            )
        self._append_eos = bool(settings.get("append_eos")) or with_languages
        if self._append_eos and self._eos_id is None:
            raise CheckpointError("text tokenizer: has no end token to append; name it as eos_token in the tokenizer_config")
        # Special tokens that the tokenizer adds itself, and those that are added here.
        self._num_special = 0 if with_languages else self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self._num_ours = self._append_eos + with_languages
        special = self._num_special + self._num_ours
        self.max_tokens = _choose_length(settings, positions, wanted=max_tokens, special=special)
        self._tokenizer.enable_truncation(self.max_tokens - self._num_ours, direction=settings.get("truncation_side", "right"))
        self.num_cut = 0

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before anything is cut, the special ones included."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=self.languages is None)
        # What is cut off comes in parts that have the special tokens of a sentence each.
        return [
            self._num_ours + len(encoding) + sum(len(part) - self._num_special for part in encoding.overflowing)
            for encoding in encodings
        ]

    def encode(self, captions: Sequence[str], languages: Sequence[str] | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Token ids of B captions, padded to the longest.

        Args:
            captions: the sentences.
            languages: ISO 639-1 tag of each, for tokenizers that put it in front; None is English.
            device: where the result goes.

        Returns:
            int64 [B, L], and bool [B, L] that is False behind the end of a caption.

        Raises:
            ConfigError: if a language is unknown.
            ShapeError: if there are not as many languages as captions.
        """
        encodings = self._tokenizer.encode_batch(list(captions), add_special_tokens=self.languages is None)
        self.num_cut += sum(bool(encoding.overflowing) for encoding in encodings)
        rows = [encoding.ids for encoding in encodings]
        if self.languages is not None:
            tags = ["en"] * len(rows) if languages is None else languages
            if len(tags) != len(rows):
                raise ShapeError(f"text tower: got {len(tags)} languages for {len(rows)} captions; give one for each")
            rows = [[self.languages.token_id(tag), *row] for tag, row in zip(tags, rows, strict=True)]
        # A caption without a token, where the tokenizer adds none, is read as one end token: nothing is followed by the end.
        end = [self._pad_id if self._eos_id is None else self._eos_id]
        rows = [row + end if self._append_eos else row or end for row in rows]
        length = max(map(len, rows), default=0)
        ids = torch.tensor([row + [self._pad_id] * (length - len(row)) for row in rows], dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        real = torch.arange(length) < lengths[:, None]  # [B, L]
        return ids.to(device), real.to(device)


def _parse(text: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(text)
    # The library raises a bare Exception for any damage.
    except Exception as error:
        raise CheckpointError(f"text tokenizer: cannot be read ({error}); expected the text of a tokenizer.json") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _choose_length(settings: Mapping[str, Any], positions: int | None, *, wanted: int | None, special: int) -> int:
    """The most tokens of a caption, of which ``special`` are not its own."""
    stated = [length for length in (settings.get("model_max_length"), positions) if length is not None]
    limit = int(min(stated, default=UNSTATED_LENGTH))
    if limit <= special:
        raise CheckpointError(
            f"text tokenizer: captions may have {limit} tokens, of which {special} are added; raise model_max_length"
        )
    if wanted is None:
        return limit
    if not special < wanted <= limit:
        raise ConfigError(
            f"option max_tokens={wanted}: expected {special + 1} to {limit}, "
            f"as the text encoder adds {special} tokens and takes {limit}"
        )
    return wanted


def _convert(folder: Path) -> str:
    # Asked for a tokenizer where there are no files of one, transformers makes an empty one.
    if not any(all(any(folder.glob(name)) for name in names) for names in OLDER_FILES):
        older = ", or ".join(" and ".join(names) for names in OLDER_FILES)
        raise CheckpointError(f"{folder}: has no tokenizer: expected {TOKENIZER}, or {older}; add the tokenizer of the model")
    from transformers import AutoTokenizer

    try:
        with quiet_libraries():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        text: str = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{folder}: has no {TOKENIZER}, and its older files cannot be converted ({reason}); "
            "save the tokenizer with a recent transformers where its packages, such as sentencepiece, are installed"
        ) from error
    return text
