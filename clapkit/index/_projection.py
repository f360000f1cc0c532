"""Vectors as an index holds them where their leading principal components say nearly all: a byte for each component.

Vectors and directions are rounded to whole numbers first. Their products and sums stay below 2 ** 24, where float32 is exact,
so that a row has the same codes in any block, with any number of threads and on any machine.

Reference: Jégou, Douze, Schmid and Pérez, Aggregating local descriptors into a compact image representation, 2010, section 4.
Deviation: components are bytes of one scale, not product codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from clapkit.index._codes import LARGEST_CODE, coded, coded_norm, coded_queries

FloatArray = npt.NDArray[np.floating[Any]]

# The products of two rows keep this share of their variance.
_KEPT_VARIANCE = 0.99
LEAST_COMPONENTS = 32
"""Their number is a multiple, where it is chosen: faiss computes with bytes there."""
# Beyond five deviations of the first component, components are cut.
_CODED_DEVIATIONS = 5
_FRACTION = 2**13
_EXACT = 2**24
_ROWS_PER_NUMBER = 10
_BLOCK_ROWS = 4096


class Projection:
    """Codes of the leading principal components.

    Attributes:
        directions: float32 [W, D], whole numbers.
        offset: float32 [W], whole numbers: the components of the mean.
    """

    is_lossy = True

    def __init__(self, directions: FloatArray, offset: FloatArray) -> None:
        self.directions, self.offset = directions, offset
        self._wide = directions.T.astype(np.float64)  # [D, W]

    @classmethod
    def fitted(cls, sample: Iterable[FloatArray], *, components: int | None) -> Self | None:
        """The projection of some rows; None if whole vectors are to be kept.

        Args:
            sample: unit norm float32, blocks [n, D], at least one row.
            components: W; None for a multiple of 32, as few as keep 99 % of the variance of products of two rows, and None
                is returned if that is more than half of D or the rows are too few to tell.
        """
        count, mean, covariance = _moments(sample)
        width = len(mean)
        variances, axes = np.linalg.eigh(covariance)
        variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
        if components is None:
            components = _enough(variances) if count >= _ROWS_PER_NUMBER * width else width
            if 2 * components > width:
                return None
        elif components == width:
            return None
        axes = axes[:, :components].T  # [W, D]
        largest = np.abs(axes).argmax(axis=1)
        axes = axes * np.sign(axes[np.arange(components), largest])[:, None]  # an axis has two directions
        # The sum of products of a row and a direction, whatever its order, is at most the product of their norms.
        longest = (_EXACT / 2) / coded_norm(width) - math.sqrt(width)
        deviation = max(math.sqrt(variances[0]), 1e-6)
        directions = np.rint(axes * min(_FRACTION * LARGEST_CODE / _CODED_DEVIATIONS / deviation, longest))
        return cls(directions.astype(np.float32), np.rint(directions @ mean).astype(np.float32))

    @classmethod
    def of_faiss(cls, transform: Any) -> Self:
        """The projection that ``to_faiss`` made something of."""
        import faiss

        directions = faiss.vector_to_array(transform.A).reshape(transform.d_out, transform.d_in)
        return cls(directions, faiss.vector_to_array(transform.b))

    def to_faiss(self) -> Any:
        """What faiss keeps it as; faiss does not apply it."""
        import faiss

        transform: Any = faiss.LinearTransform(self.directions.shape[1], self.directions.shape[0], True)
        faiss.copy_array_to_vector(self.directions.reshape(-1), transform.A)
        faiss.copy_array_to_vector(self.offset, transform.b)
        transform.is_trained = True
        return transform

    def rows(self, vectors: FloatArray) -> FloatArray:
        """Whole numbers from -127 to 127, float32 [n, W], of unit norm float32 vectors [n, D]."""
        components = coded(vectors) @ self.directions.T - self.offset
        scaled: FloatArray = np.rint(components / np.float32(_FRACTION))
        return scaled.clip(-LARGEST_CODE, LARGEST_CODE, out=scaled)

    def queries(self, queries: FloatArray) -> FloatArray:
        """Whole numbers from -127 to 127, float32 [Q, W], of queries [Q, D]; the offset is no matter of their order."""
        return coded_queries(queries.astype(np.float64) @ self._wide)


def _moments(sample: Iterable[FloatArray]) -> tuple[int, FloatArray, FloatArray]:
    """Number of rows, and mean [D] and covariance [D, D] of their codes, of sums of whole numbers that float64 holds."""
    count, total, products = 0, np.zeros(1), np.zeros((1, 1))
    for block in sample:
        for start in range(0, len(block), _BLOCK_ROWS):
            numbers = coded(block[start : start + _BLOCK_ROWS]).astype(np.float64)
            count, total, products = count + len(numbers), total + numbers.sum(axis=0), products + numbers.T @ numbers
    mean = total / count
    return count, mean, products / count - np.outer(mean, mean)


def _enough(variances: FloatArray) -> int:
    """How many components keep the variance of products: for independent rows, the sum of squares of the variances.

    Args:
        variances: of the components, the largest first [D].
    """
    shares = np.cumsum(variances**2)
    needed = int(np.searchsorted(shares, _KEPT_VARIANCE * shares[-1])) + 1
    return min(math.ceil(needed / LEAST_COMPONENTS) * LEAST_COMPONENTS, len(variances))
