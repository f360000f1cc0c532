"""Vectors as ``.npy``: a header of fixed size, so that it can be written last, and an opening that trusts no header.

The files are plain ``.npy`` of version 1.0, which every tool reads; opening one maps it into memory and reads no vector.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from clapkit.errors import EmbeddingError

HEADER_BYTES = 128
"""Size of a header that is written here: the shape of any matrix fits into it."""


def header(num_rows: int, width: int, *, dtype: str) -> bytes:
    """The first ``HEADER_BYTES`` of a file of vectors.

    Args:
        num_rows: N.
        width: D.
        dtype: number format, for example ``float16``.
    """
    descr = np.dtype(dtype).newbyteorder("<").str
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': ({num_rows}, {width}), }}"
    prefix = npy_format.magic(1, 0)
    length = HEADER_BYTES - len(prefix) - 2  # two bytes hold the length itself
    return prefix + struct.pack("<H", length) + text.ljust(length - 1).encode("latin1") + b"\n"


def open_array(path: Path, *, remedy: str) -> npt.NDArray[Any]:
    """Map a ``.npy`` file into memory after comparing its header with its size; no number of it is read.

    Args:
        path: of the file.
        remedy: how an error ends: what to do about a file that cannot be used.

    Returns:
        A read-only array, of the shape and the number format of the file.

    Raises:
        EmbeddingError: if the file is missing, no ``.npy`` file of numbers, or shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            shape, is_fortran, dtype = _read_header(file)
            start, size = file.tell(), os.fstat(file.fileno()).st_size
            if dtype.hasobject:
                raise ValueError("pickled Python objects, expected numbers")
            expected = start + dtype.itemsize * math.prod(shape)
            if size != expected:
                what = "cut short" if size < expected else "too long"
                raise ValueError(f"{what}: {size:,} bytes, expected {expected:,} for {dtype} {list(shape)}")
            # Mapped from the open file: an update of the table may unlink its name meanwhile.
            return np.memmap(file, dtype=dtype, mode="r", offset=start, shape=shape, order="F" if is_fortran else "C")
    except FileNotFoundError as error:
        raise EmbeddingError(f"{path}: no such file; {remedy}") from error
    except (OSError, ValueError, EOFError) as error:
        raise EmbeddingError(f"{path}: cannot be read ({' '.join(str(error).split())}); {remedy}") from error


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns lie together, and number format; the file is left at the first number."""
    version = npy_format.read_magic(file)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(file)
    if version == (2, 0):
        return npy_format.read_array_header_2_0(file)
    raise ValueError(f".npy version {'.'.join(map(str, version))}, expected 1.0 or 2.0")
