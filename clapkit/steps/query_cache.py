"""Text query embeddings on disk, so that a query that was asked before is answered without loading torch.

One small ``.npy`` per (model fingerprint, text, language). A file that is damaged counts as missing: it is computed and written
again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.files import atomic_path

FloatArray = npt.NDArray[np.floating[Any]]


def cache_dir(environment: Mapping[str, str]) -> Path:
    """Where query embeddings are kept: ``CLAPKIT_CACHE``, else ``$XDG_CACHE_HOME/clapkit``, else ``~/.cache/clapkit``.

    Args:
        environment: as ``os.environ``.
    """
    if environment.get("CLAPKIT_CACHE"):
        return Path(environment["CLAPKIT_CACHE"])
    base = environment.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "clapkit"


def lookup(folder: Path, text: str, *, fingerprint: str, width: int, language: str = "en") -> FloatArray | None:
    """The embedding of a text, or None if it is not there or cannot be used.

    Args:
        folder: from ``cache_dir``.
        text: the query.
        fingerprint: of the model.
        width: D.
        language: of the query, ISO 639-1.
    """
    try:
        vector = np.load(_path(folder, text, fingerprint, language), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if vector.shape != (width,) or vector.dtype != np.float32 or not abs(float(np.linalg.norm(vector)) - 1) < 1e-3:
        return None
    return vector  # type: ignore[no-any-return]


def store(folder: Path, text: str, vector: FloatArray, *, fingerprint: str, language: str = "en") -> None:
    """Keep the embedding of a text; a cache that cannot be written is left as it is.

    Args:
        folder: from ``cache_dir``.
        text: the query.
        vector: unit norm, float32 [D].
        fingerprint: of the model.
        language: of the query, ISO 639-1.
    """
    # The answer is already there; a full disk or a read-only home must not take it away.
    with contextlib.suppress(OSError), atomic_path(_path(folder, text, fingerprint, language)) as temporary:
        with temporary.open("wb") as file:
            np.save(file, vector.astype(np.float32))


def _path(folder: Path, text: str, fingerprint: str, language: str) -> Path:
    # English ones carry no tag: those of earlier versions are found.
    digest = hashlib.sha256(os.fsencode(text if language == "en" else f"{language}\0{text}")).hexdigest()
    return folder / "queries" / fingerprint[:32] / f"{digest}.npy"
