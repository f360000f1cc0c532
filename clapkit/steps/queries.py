"""What ``clapkit retrieve`` is asked: words, sounds, items of the table or vectors, alone, combined, or less others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from clapkit.config import RetrieveConfig
from clapkit.errors import ConfigError, EmbeddingError, NumericalError
from clapkit.index.npy import open_array

FloatArray = npt.NDArray[np.floating[Any]]

# What is left when a query is subtracted from itself is noise.
_LEAST_NORM = 1e-6
_EXAMPLE = 'for example `clapkit retrieve "dog barking"`'


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a query.

    Attributes:
        kind: words, an audio file, an item of the table, or a vector.
        value: the words, path or id; for a vector its file and, behind the last blank, its row.
    """

    kind: Literal["text", "audio", "like", "vector"]
    value: str


@dataclass(frozen=True, slots=True)
class Query:
    """Something to look for: the mean of some parts, less others.

    Attributes:
        plus: what hits should be like; at least one.
        minus: what they should not be like.
    """

    plus: tuple[Part, ...]
    minus: tuple[Part, ...] = ()

    @property
    def name(self) -> str:
        """How results call it."""
        shown = " + ".join(part.value for part in self.plus)
        return shown + "".join(f" − {part.value}" for part in self.minus)

    @property
    def words(self) -> str:
        """All that it says in words, blank-separated."""
        return " ".join(part.value for part in self.plus if part.kind == "text")


def read_queries(config: RetrieveConfig) -> list[Query]:
    """The queries of a call: words, lines of a file, sounds, items, vectors, in this order.

    Raises:
        ConfigError: if there is none, one is empty, or a file cannot be read.
        EmbeddingError: if ``--vectors`` holds no vectors.
    """
    texts = [text.strip() for text in config.query]
    if not all(texts):
        raise ConfigError(f"query: is empty, expected words, {_EXAMPLE}")
    if config.queries is not None:
        texts += _query_file(config.queries)
    for text in (*texts, *config.minus, *config.like):
        if not _is_unicode(text):
            raise ConfigError(f"query {text!r}: holds signs that are no text; type it again")
    plus = [Part("text", text) for text in texts]
    plus += [Part("audio", file) for file in config.audio]
    plus += [Part("like", name) for name in config.like]
    if config.vectors is not None:
        plus += [Part("vector", f"{config.vectors} row {row}") for row in range(len(read_vectors(config.vectors)))]
    if not plus:
        raise ConfigError(f"no query: give words, --audio, --like, --vectors or --queries, {_EXAMPLE}")
    minus = tuple([Part("text", text) for text in config.minus] + [Part("audio", file) for file in config.minus_audio])
    if not all(part.value.strip() for part in minus):
        raise ConfigError('--minus: is empty, expected words, for example --minus "music"')
    if not 0 <= config.minus_weight < math.inf:
        raise ConfigError(f"--minus-weight {config.minus_weight}: expected 0 or more")
    groups = [tuple(plus)] if config.combine else [(part,) for part in plus]
    return [Query(group, minus) for group in groups]


def read_vectors(path: Path) -> FloatArray:
    """The vectors of ``--vectors`` [Q, D], float32, of unit norm.

    Raises:
        EmbeddingError: if the file holds no finite vectors.
    """
    try:
        vectors = open_array(path, remedy="name a .npy file of [queries, width]")
    except EmbeddingError as error:
        raise EmbeddingError(f"--vectors {error}") from error
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind != "f":
        raise EmbeddingError(
            f"--vectors {path}: {vectors.dtype} of shape {list(vectors.shape)}, expected floats [queries, width]; save them so"
        )
    return unit_rows(vectors, origin=f"--vectors {path}")


def compose(queries: Sequence[Query], vector_of: dict[Part, FloatArray], *, minus_weight: float) -> FloatArray:
    """One vector for each query: the mean of its parts, less the mean of the others.

    Args:
        queries: to be composed.
        vector_of: unit-norm vector [D] of every part.
        minus_weight: of what is subtracted.

    Returns:
        Unit norm, float32 [Q, D].

    Raises:
        NumericalError: if nothing is left of a query.
    """
    rows = [
        subtract(
            np.mean([vector_of[part].astype(np.float64) for part in query.plus], axis=0),
            [vector_of[part] for part in query.minus],
            weight=minus_weight,
        )
        for query in queries
    ]
    return unit_rows(np.stack(rows), names=[repr(query.name) for query in queries], origin="query")


def subtract(vector: FloatArray, others: Sequence[FloatArray], *, weight: float) -> FloatArray:
    """A vector [D] less a share of the mean of others."""
    if not others:
        return vector
    rest: FloatArray = vector - weight * np.mean([other.astype(np.float64) for other in others], axis=0)
    return rest


def all_parts(queries: Sequence[Query]) -> list[Part]:
    """The different parts of queries, in the order in which they come."""
    return list(dict.fromkeys(part for query in queries for part in (*query.plus, *query.minus)))


def of_line(line: str, config: RetrieveConfig) -> list[Query]:
    """The query of a line that was typed: words, or ``@FILE`` for a sound, with what the call subtracts.

    Raises:
        ConfigError: if it is empty, or no text.
    """
    texts, sounds = ((), (line[1:].strip(),)) if line.startswith("@") else ((line,), ())
    if sounds == ("",):
        raise ConfigError("@: names no file; write the file behind it, for example @door.wav")
    return read_queries(dataclasses.replace(config, query=texts, audio=sounds, queries=None, like=(), vectors=None))


def unit_rows(vectors: FloatArray, *, origin: str, names: Sequence[str] | None = None) -> FloatArray:
    """Rows [Q, D] scaled to unit norm, float32.

    Raises:
        NumericalError: if one has no direction.
    """
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    broken = ~(np.isfinite(norms) & (norms > _LEAST_NORM))
    if broken.any():
        row = int(np.argmax(broken))
        name = f"row {row}" if names is None else names[row]
        raise NumericalError(f"{origin}: {name} has norm {norms[row]:g}, expected a direction; ask for something else")
    unit: FloatArray = (wide / norms[:, None]).astype(np.float32)
    return unit


def _is_unicode(text: str) -> bool:
    """False where the terminal or a file gave bytes that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _query_file(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # some editors mark UTF-8
    except OSError as error:
        raise ConfigError(
            f"--queries {path}: cannot be read ({error.strerror}); name a text file, one query per line"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--queries {path}: cannot be read as UTF-8 (byte {error.start}), expected text with one query per line; convert it"
        ) from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ConfigError(f"--queries {path}: holds no query; expected one per line")
    return texts
