"""The identity of a saved model, without loading it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from clapkit.errors import CheckpointError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over weights and configuration: equal for models that embed equally.

    Raises:
        CheckpointError: if the folder holds no model.
    """
    digest = hashlib.sha256()
    for name in (WEIGHTS, CONFIG):
        path = folder / name
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise CheckpointError(
                f"model folder {folder}: {name} cannot be read ({error.strerror}); expected {WEIGHTS} and {CONFIG}, "
                "name a finished train run or a model folder"
            ) from error
    return digest.hexdigest()
