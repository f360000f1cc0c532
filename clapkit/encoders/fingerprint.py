"""Where a model lies and which one it is, without loading it; needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from clapkit.errors import CheckpointError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
TOKENIZER = "tokenizer.json"
# In the order in which transformers looks for them; an index lists the files that the weights are spread over.
WEIGHT_FILES = (WEIGHTS, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# What else decides how a folder of transformers embeds: the front end and the tokenizer. None of them must be there.
SIDE_FILES = (
    "preprocessor_config.json",
    "processor_config.json",
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
CHECKPOINT_SUFFIXES = (".pt", ".pth")


def holds_model(path: Path) -> bool:
    """Whether a path is meant as a model: a checkpoint file, or a folder with a configuration or weights, whole or not."""
    if path.is_dir():
        return any((path / name).is_file() for name in (CONFIG, *WEIGHT_FILES))
    return path.suffix in CHECKPOINT_SUFFIXES and path.is_file()


def model_fingerprint(path: Path) -> str:
    """SHA-256 over all that decides how a model embeds, hexadecimal: equal for copies, whatever their folders are called.

    Of a clapkit model these are weights and configuration, of a folder of transformers also front end and tokenizer, of a
    checkpoint file its content and that of a ``tokenizer.json`` beside it.

    Raises:
        CheckpointError: if the folder holds no model, or not all of it.
    """
    digest = hashlib.sha256()
    try:
        if path.is_file():
            beside = path.with_name(TOKENIZER)
            for file in (path, beside) if beside.is_file() else (path,):
                digest.update(_content_hash(file))
        elif _is_of_transformers(path):
            for file in _files_of_transformers(path):
                digest.update(file.name.encode() + b"\0" + _content_hash(file))
        else:
            for name in (WEIGHTS, CONFIG):
                digest.update(_content_hash(path / name))
    except OSError as error:
        name = Path(error.filename).name if error.filename else path.name
        raise CheckpointError(
            f"model folder {path}: {name} cannot be read ({error.strerror}); expected {WEIGHTS} and {CONFIG}, "
            "name a finished train run or a model folder"
        ) from error
    return digest.hexdigest()


def _content_hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _is_of_transformers(folder: Path) -> bool:
    """Whether a configuration names a model type, which clapkit's own do not."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and "model_type" in config and "clapkit_model" not in config


def _files_of_transformers(folder: Path) -> Iterator[Path]:
    """The files that are loaded, in a fixed order; a part that an index lists is named even if it is not there."""
    yield folder / CONFIG
    found = next((name for name in WEIGHT_FILES if (folder / name).is_file()), WEIGHTS)
    yield folder / found
    if found.endswith(".index.json"):
        yield from (folder / part for part in _parts(folder / found))
    yield from (folder / name for name in SIDE_FILES if (folder / name).is_file())


def _parts(index: Path) -> list[str]:
    """The files that the weights are spread over.

    Raises:
        CheckpointError: if the index is damaged.
    """
    try:
        return sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{index}: is no index of weights ({type(error).__name__}: {error}); copy or download the model again"
        ) from error
