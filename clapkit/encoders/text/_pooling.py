"""How the vectors of a sentence's tokens, or of a caption's pieces, become one.

And what a folder of sentence-transformers says about it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from clapkit.encoders.pretrained import name_of, read_json
from clapkit.errors import CheckpointError

Pooling = Literal["mean", "cls", "last", "pooler"]
MODULES = "modules.json"
SENTENCE_CONFIG = "sentence_bert_config.json"
PROMPTS = "config_sentence_transformers.json"
# Names of sentence-transformers, in the newer and the older form of its file.
POOLINGS: dict[str, Pooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def pool(states: Tensor, real: Tensor, pooling: Pooling) -> Tensor:
    """One vector per sentence.

    Args:
        states: of the tokens [B, L, width].
        real: bool [B, L], False behind the end of a sentence; every sentence has one token at least.
        pooling: ``mean`` over the real tokens, ``cls`` for the first, ``last`` for the last real one.

    Returns:
        [B, width].
    """
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        rows = torch.arange(len(states), device=states.device)
        return states[rows, real.sum(dim=1) - 1]
    return (states * real[:, :, None]).sum(dim=1) / real.sum(dim=1, keepdim=True)


def mean_of_pieces(vectors: Tensor, counts: Sequence[int], tokens: Sequence[int]) -> Tensor:
    """One vector per caption, from those of its pieces.

    Its direction is that of the mean of the pieces' directions, weighted by their tokens, and its length the mean of their
    lengths; so no piece counts more than another for being long. The vector of a caption in one piece stays as it is.

    Args:
        vectors: of the pieces [M, D], those of a caption side by side.
        counts: pieces of each of the B captions.
        tokens: of each piece, > 0.

    Returns:
        [B, D].
    """
    rows = torch.arange(len(vectors)).split_with_sizes(list(counts))
    places = pad_sequence(list(rows), batch_first=True).to(vectors.device)  # [B, P]
    num_tokens = torch.tensor(tokens, dtype=torch.float32).split_with_sizes(list(counts))
    weights = pad_sequence(list(num_tokens), batch_first=True)[:, :, None].to(vectors.device)  # [B, P, 1], 0 behind the last
    weights = weights / weights.sum(dim=1, keepdim=True)
    lengths = (vectors.norm(dim=1, keepdim=True)[places] * weights).sum(dim=1)  # [B, 1]
    directions = (functional.normalize(vectors, dim=1)[places] * weights).sum(dim=1)  # [B, D]
    is_whole = (torch.tensor(counts) == 1)[:, None].to(vectors.device)  # [B, 1]
    return torch.where(is_whole, vectors[places[:, 0]], functional.normalize(directions, dim=1) * lengths)


def read_sentence_transformer(folder: Path) -> tuple[Pooling | None, list[str]]:
    """The pooling that a folder of sentence-transformers names, and what the tower leaves out of it.

    Returns:
        None and no notes if the folder is an ordinary one of transformers.

    Raises:
        CheckpointError: if the folder has modules or a pooling that the tower does not have.
    """
    if not (folder / MODULES).is_file():
        return None, []
    pooling: Pooling | None = None
    notes = []
    for module in _read_modules(folder / MODULES):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _read_pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            notes.append(f"{name_of(folder)}: the embeddings get unit norm behind the projection head, not behind the tower")
        elif kind != "Transformer":
            raise CheckpointError(
                f"{folder}: has a module {kind} behind the tower, which is not applied, so that its embeddings would differ; "
                "give pooling=mean to take the tower without it"
            )
    if (folder / PROMPTS).is_file() and read_json(folder / PROMPTS).get("default_prompt_name"):
        notes.append(f"{name_of(folder)}: the prompt that the folder puts in front of sentences is left out")
    return pooling, notes


def read_sentence_length(folder: Path) -> int | None:
    """The length in tokens at which sentence-transformers cuts, where a folder says so.

    Raises:
        CheckpointError: if the folder asks for sentences in lower case, which its tokenizer should do.
    """
    if not (folder / SENTENCE_CONFIG).is_file():
        return None
    config = read_json(folder / SENTENCE_CONFIG)
    if config.get("do_lower_case"):
        raise CheckpointError(
            f"{folder / SENTENCE_CONFIG}: do_lower_case is true, expected false; let the normalizer of tokenizer.json do it"
        )
    length = config.get("max_seq_length")
    return length if isinstance(length, int) else None


def _read_modules(path: Path) -> list[dict[str, Any]]:
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore the file") from error
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise CheckpointError(f"{path}: expected a list of modules; restore the file")
    return modules


def _read_pooling(path: Path) -> Pooling:
    config = read_json(path)
    modes = [config["pooling_mode"]] if "pooling_mode" in config else [FLAGS[flag] for flag in FLAGS if config.get(flag)]
    if len(modes) != 1 or modes[0] not in list(POOLINGS):
        found = " and ".join(map(str, modes)) or "nothing"
        raise CheckpointError(
            f"{path}: pools by {found}, expected one of {', '.join(POOLINGS)}; "
            "give pooling=mean to take another one than the folder was trained with"
        )
    return POOLINGS[modes[0]]
