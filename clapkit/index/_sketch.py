"""A table in one byte per number, beside the table: it tells which rows may be hits, the table itself scores them.

Number d of every row x is kept as x_d = o_d + s_d c_d + e_d, with an integer c_d of 8 bits and an offset o_d and a step s_d
that all rows share. A query q is folded into these steps and rounded too, q_d s_d = t i_d + r_d with integers i_d, so that

    q.x = q.o + t (i.c) + r.c + q.e,        |r.c + q.e| <= |r| max |c| + |q| max |e|    (Cauchy-Schwarz)

where the maxima are those of the rows. i.c is a product of integers of 8 bits, which reads half of the bytes of float16.
Rows with an infinity or a NaN cannot be kept.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import EmbeddingError
from clapkit.index import _half
from clapkit.index.layout import TableInfo, read_info, replacing, sketch_files
from clapkit.index.npy import header, open_array

FloatArray = npt.NDArray[np.floating[Any]]
CodeArray = npt.NDArray[np.uint8]

FEWEST_ROWS = 1 << 18
"""A smaller table is searched fast enough without."""
_BLOCK_ROWS = 2048
_ZERO = 128  # the byte that stands for the integer 0
_LARGEST_QUERY = 127
_ROUNDING = 2.0**-24
_ANY_PRODUCT = 1e30  # no product of integers is as large, and float32 holds it


@dataclass(frozen=True, slots=True)
class FoldedQuery:
    """A query to be compared with codes.

    Attributes:
        integers: float32 [D], whole numbers from -127 to 127.
        scale: a score is ``constant`` plus this times the product with the integers of a row.
        constant: see ``scale``.
        error: no score is farther from the true one than this, rounding included.
    """

    integers: npt.NDArray[np.float32]
    scale: float
    constant: float
    error: float

    def scores(self, products: FloatArray) -> npt.NDArray[np.float32]:
        """Scores of products with the integers of rows [n]."""
        return (self.constant + self.scale * products.astype(np.float64)).astype(np.float32)

    def product_below(self, score: float) -> float:
        """A product that every row of this score or a higher one exceeds."""
        product = (score - self.constant) / self.scale
        rounding = 4 * _ROUNDING * (abs(product) + (abs(score) + abs(self.constant)) / self.scale)
        return min(max(product - 2 - rounding, -_ANY_PRODUCT), _ANY_PRODUCT)


@dataclass(frozen=True, slots=True)
class Sketch:
    """All rows in 8 bits.

    Attributes:
        codes: [N, D], the integer plus 128.
        offsets: float32 [D].
        steps: float32 [D]; 0 where all rows are equal.
        error: no row is farther from what its codes say than this.
        reach: no row of integers has a larger norm.
    """

    codes: CodeArray
    offsets: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32]
    error: float
    reach: float

    def fold(self, query: npt.NDArray[np.float32]) -> FoldedQuery:
        """Bring a query into these steps.

        Args:
            query: [D], finite.
        """
        exact = query.astype(np.float64)
        folded = exact * self.steps
        scale = float(np.abs(folded).max(initial=0.0)) / _LARGEST_QUERY or 1.0
        integers = np.rint(folded / scale)
        norm, rest = float(np.linalg.norm(exact)), float(np.linalg.norm(folded - scale * integers))
        # Products beyond 2 ** 24 are rounded, and so are scores; the table's own are rounded to float32 when they are ranked.
        rounded = (len(query) + 8) * _ROUNDING * (norm + scale * float(np.linalg.norm(integers)) * self.reach)
        return FoldedQuery(
            integers=integers.astype(np.float32),
            scale=scale,
            constant=float(exact @ self.offsets),
            error=norm * self.error + rest * self.reach + rounded,
        )


def make(vectors: FloatArray) -> Sketch:
    """A sketch in memory.

    Args:
        vectors: [N, D], float16 or float32.

    Raises:
        EmbeddingError: if a row holds an infinity or a NaN.
    """
    scale = _Scale.of(vectors)
    codes = [codes for codes in scale.codes(vectors)]
    whole = np.concatenate(codes) if codes else np.empty(vectors.shape, dtype=np.uint8)
    return Sketch(whole, scale.offsets, scale.steps, scale.error, scale.reach)


def write_sketch(folder: Path, modality: str, *, generation: int, table_id: str, vectors: FloatArray) -> None:
    """Write the sketch of a table, block by block.

    Args:
        folder: of the table.
        modality: which table.
        generation: of its files.
        table_id: which content.
        vectors: [N, D], may be memory-mapped.

    Raises:
        EmbeddingError: if a row holds an infinity or a NaN.
    """
    codes_path, scale_path = (folder / name for name in sketch_files(modality, generation))
    scale = _Scale.of(vectors)
    with replacing(codes_path) as temporary, temporary.open("wb") as file:
        file.write(header(*vectors.shape, dtype="uint8"))
        for codes in scale.codes(vectors):
            file.write(codes.data)
    with replacing(scale_path) as temporary, temporary.open("wb") as file:
        numbers: dict[str, Any] = {"offsets": scale.offsets, "steps": scale.steps, "error": scale.error, "reach": scale.reach}
        np.savez(file, table=table_id, **numbers)


def load_sketch(folder: Path, modality: str, info: TableInfo) -> Sketch | None:
    """The sketch of a table, memory-mapped.

    Args:
        folder: of the table.
        modality: which table.
        info: of the folder.

    Returns:
        None where there is none.

    Raises:
        EmbeddingError: if it is damaged or of another table, or the table was updated since ``info`` was read.
    """
    codes_path, scale_path = (folder / name for name in sketch_files(modality, info.generation))
    if not codes_path.exists() and not scale_path.exists():
        if read_info(folder).generation != info.generation:
            raise EmbeddingError(f"{folder}: was updated while it was read; ask again")
        return None
    remedy = f"delete {codes_path.parent} to search without, or embed again"
    codes = open_array(codes_path, remedy=remedy)
    try:
        with scale_path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            table_id = str(arrays["table"])
            offsets, steps = arrays["offsets"], arrays["steps"]
            error, reach = float(arrays["error"]), float(arrays["reach"])
    except FileNotFoundError as missing:
        raise EmbeddingError(f"{scale_path}: no such file; {remedy}") from missing
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as damage:
        raise EmbeddingError(f"{scale_path}: cannot be read ({' '.join(str(damage).split())}); {remedy}") from damage
    if table_id != info.id:
        raise EmbeddingError(f"{scale_path}: sketch of table {table_id}, expected {info.id}; {remedy}")
    expected = (info.counts[modality], info.width)
    if codes.shape != expected or codes.dtype != np.uint8 or not codes.flags.c_contiguous:
        raise EmbeddingError(f"{codes_path}: {codes.dtype} {list(codes.shape)}, expected uint8 {list(expected)}; {remedy}")
    numbers_are_right = all(part.shape == (info.width,) and np.isfinite(part).all() for part in (offsets, steps))
    if not numbers_are_right or not (np.isfinite([error, reach]).all() and error >= 0 and reach >= 0 and (steps >= 0).all()):
        raise EmbeddingError(f"{scale_path}: expected finite offsets and steps [{info.width}]; {remedy}")
    return Sketch(np.asarray(codes), offsets, steps, error, reach)


class _Scale:
    """Offsets and steps, and the worst row met while rows are turned into codes."""

    def __init__(self, least: npt.NDArray[np.float32], largest: npt.NDArray[np.float32]) -> None:
        exact_steps = (largest.astype(np.float64) - least) / 255
        self.steps = exact_steps.astype(np.float32)
        self.offsets = (least + _ZERO * exact_steps).astype(np.float32)
        # Errors are found in float32, where three roundings of numbers of at most twice this size make them.
        extent = np.maximum(np.abs(least.astype(np.float64)), np.abs(largest))
        self._rounding = 16 * _ROUNDING * float(np.linalg.norm(extent))
        self._sum_rounding = 1 + 2 * (len(least) + 8) * _ROUNDING
        self.error, self.reach = self._rounding, 0.0

    @classmethod
    def of(cls, vectors: FloatArray) -> _Scale:
        """Fit to all rows, in a pass over them."""
        width = vectors.shape[1]
        least, largest = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        for block in _decoded(vectors):
            np.minimum(least, block.min(axis=0), out=least)
            np.maximum(largest, block.max(axis=0), out=largest)
        return cls(least, largest) if len(vectors) else cls(np.zeros(width, np.float32), np.zeros(width, np.float32))

    def codes(self, vectors: FloatArray) -> Iterator[CodeArray]:
        """Codes [n, D] of all rows, block by block."""
        factors = np.divide(1.0, self.steps, out=np.zeros_like(self.steps), where=self.steps > 0)
        factors[~np.isfinite(factors)] = 0.0  # the steps are denormal
        for block in _decoded(vectors):
            integers = block - self.offsets
            np.multiply(integers, factors, out=integers)
            np.rint(integers, out=integers)
            np.clip(integers, -_ZERO, 255 - _ZERO, out=integers)
            yield (integers + _ZERO).astype(np.uint8)
            self.reach = max(self.reach, _largest_norm(integers) * self._sum_rounding)
            np.multiply(integers, self.steps, out=integers)
            np.add(integers, self.offsets, out=integers)
            np.subtract(block, integers, out=integers)
            self.error = max(self.error, _largest_norm(integers) * self._sum_rounding + self._rounding)


def _largest_norm(rows: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.einsum("nd,nd->n", rows, rows).max(initial=0.0)))


def _decoded(vectors: FloatArray) -> Iterator[npt.NDArray[np.float32]]:
    """Blocks of rows in float32."""
    space = np.empty((min(_BLOCK_ROWS, len(vectors)), vectors.shape[1]), dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK_ROWS):
        rows = np.asarray(vectors[start : start + _BLOCK_ROWS])
        block = space[: len(rows)]
        if rows.dtype == np.float16:
            wrong = _half.decode(rows, block)
        else:
            block[...] = rows
            finite = np.isfinite(block).all(axis=1)
            wrong = None if finite.all() else int(np.argmin(finite))
        if wrong is not None:
            raise EmbeddingError(
                f"sketch: row {start + wrong} holds an infinity or a NaN, expected finite numbers; embed again"
            )
        yield block
