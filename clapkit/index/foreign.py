"""Reads vectors that another program made: a ``.npy`` file of any model, or a folder as clip-retrieval leaves it.

What is known of each row comes from a file that is named, or that lies beside the vectors (``foreign_rows`` says how its
columns are recognised). Vectors are normalised here; a file of unit vectors is mapped into memory and not copied.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clapkit.errors import EmbeddingError
from clapkit.index.foreign_rows import SUFFIXES, expect_distinct, read_rows, unknown_rows
from clapkit.index.layout import Modality
from clapkit.index.npy import open_array
from clapkit.index.table import EmbeddingTable

FloatArray = npt.NDArray[np.floating[Any]]

_BLOCK_ROWS = 8192
# Vectors are kept as they are where their norms are 1 but for the rounding of their number format.
_ROUNDING = {np.dtype(np.float16): 2e-3, np.dtype(np.float32): 1e-5}
_FOLDERS: dict[str, tuple[str, ...]] = {"audio": ("audio_emb", "img_emb"), "text": ("text_emb",)}
_PART = re.compile(r"(?P<kind>(?:\w+_)?)emb_(?P<number>\d+)")


def read_foreign(vectors: Path, ids: Path | None, *, modality: Modality = "audio") -> EmbeddingTable:
    """Read vectors of another program.

    Args:
        vectors: ``.npy`` file [N, D], or a folder with ``audio_emb``, ``img_emb`` or ``text_emb`` in numbered parts.
        ids: metadata, one row per vector: Parquet, CSV, TSV or JSON lines. None looks beside every ``.npy`` file for one of
            the same stem, then for ``metadata_N`` of ``emb_N``; where there is none, row numbers are the ids.
        modality: what the vectors stand for.

    Returns:
        Unit-norm vectors and their metadata; what is not known is null.

    Raises:
        EmbeddingError: if a file is missing or damaged, the numbers of rows differ, ids repeat, or a vector is zero or not
            finite.
    """
    parts = _parts(vectors, modality) if vectors.is_dir() else [vectors]
    arrays = [_open(path) for path in parts]
    widths = sorted({array.shape[1] for array in arrays})
    if len(widths) > 1:
        raise EmbeddingError(f"{vectors}: parts are of widths {widths}, expected one; name a .npy file of one model")
    rows = _rows(vectors, parts, [len(array) for array in arrays], ids)
    expect_distinct(rows, name=str(ids or vectors), by_caption=modality == "text")
    units = [_unit(array, path) for array, path in zip(arrays, parts, strict=True)]
    return EmbeddingTable(modality, units[0] if len(units) == 1 else np.concatenate(units), metadata=rows)


def _parts(folder: Path, modality: Modality) -> list[Path]:
    """The numbered files of vectors in a folder, in the order of their numbers."""
    for place in (*(folder / name for name in _FOLDERS[modality]), folder):
        found = [path for path in place.glob("*.npy") if _PART.fullmatch(path.stem)]
        if found:
            return sorted(found, key=lambda path: (_number(path), path.name))
    raise EmbeddingError(
        f"{folder}: no {' or '.join(_FOLDERS[modality])} with numbered parts such as {_FOLDERS[modality][0]}_0.npy; "
        f"name a .npy file"
    )


def _number(path: Path) -> int:
    part = _PART.fullmatch(path.stem)
    assert part is not None, path
    return int(part["number"])


def _open(path: Path) -> FloatArray:
    array = open_array(path, remedy="write or copy it again")
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise EmbeddingError(
            f"{path}: {array.dtype} {list(array.shape)}, expected floats of shape [rows, width]; write one vector per row"
        )
    return array


def _rows(vectors: Path, parts: Sequence[Path], sizes: Sequence[int], ids: Path | None) -> pa.Table:
    if ids is not None:
        return read_rows(ids, num_rows=sum(sizes))
    beside = [_metadata_beside(path) for path in parts]
    if not any(beside):
        return unknown_rows(sum(sizes))
    starts = np.cumsum([0, *sizes]).tolist()
    tables = []
    for path, found, size, start in zip(parts, beside, sizes, starts, strict=False):
        if found is None:
            raise EmbeddingError(f"{path}: has no metadata beside it, as other parts of {vectors} have; add it or name --ids")
        tables.append(read_rows(found, num_rows=size, first_row=start))
    return pa.concat_tables(tables)


def _metadata_beside(vectors: Path) -> Path | None:
    """The file that describes the rows of a file of vectors, if there is one."""
    stems = [vectors.with_suffix("")]
    part = _PART.fullmatch(vectors.stem)
    if part is not None:
        name = f"metadata_{part['number']}"
        folders = ("text_metadata", "metadata") if part["kind"] == "text_" else ("metadata",)
        stems += [vectors.parent / name, *(vectors.parent.parent / folder / name for folder in folders)]
    candidates = (stem.with_name(stem.name + suffix) for stem in stems for suffix in SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def _unit(array: FloatArray, path: Path) -> FloatArray:
    """The vectors with unit norm [N, D], float16 or float32; the same array if they have it."""
    norms = np.empty(len(array))
    wide = np.float32 if array.dtype == np.float16 else np.float64  # no square of a float16 overflows a float32
    for start in range(0, len(array), _BLOCK_ROWS):
        block: FloatArray = array[start : start + _BLOCK_ROWS].astype(wide)
        norms[start : start + _BLOCK_ROWS] = np.sqrt(np.einsum("nd,nd->n", block, block))
    wrong = ~(np.isfinite(norms) & (norms > 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        what = "is zero" if norms[row] == 0 else "is not finite"
        raise EmbeddingError(f"{path}: vector of row {row} {what}, expected a direction; drop the row or embed it again")
    tolerance = _ROUNDING.get(array.dtype)
    if tolerance is not None and array.flags.c_contiguous and np.abs(norms - 1).max() <= tolerance:
        return array
    unit = np.empty(array.shape, dtype=np.float32)
    for start in range(0, len(array), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        unit[part] = array[part] / norms[part, None]
    return unit
