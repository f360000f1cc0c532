"""How the scores of a query are spread over all items of a table, so that a score can be called unusual.

A cosine of 0.4 is much in one library and nothing in another. With the mean m [D] and the covariance C [D, D] of the
vectors of a table, the cosines of a query q with all of its items have, exactly, the mean q.m and the variance qCq:
no item has to be looked at. The calibrated score is the number of standard deviations above that mean.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import EmbeddingError, ShapeError
from clapkit.index.layout import read_info, replacing, statistics_file

if TYPE_CHECKING:
    from clapkit.index.layout import TableInfo
    from clapkit.index.table import EmbeddingTable

FloatArray = npt.NDArray[np.floating[Any]]

_BLOCK_ROWS = 8192
# A spread below what float32 resolves of a cosine is rounding, not a spread.
_LEAST_STD = 1e-6


class ScoreStatistics:
    """Number, mean and covariance of the vectors of a table.

    Attributes:
        count: N.
        mean: float64 [D].
    """

    def __init__(self, count: int, mean: FloatArray, covariance: FloatArray) -> None:
        """Put statistics together.

        Args:
            count: N.
            mean: [D].
            covariance: [D, D], the mean of the products of deviations, divided by N.
        """
        self.count = count
        self.mean = np.asarray(mean, dtype=np.float64)
        self._products = np.asarray(covariance, dtype=np.float64) * count

    @classmethod
    def empty(cls, width: int) -> ScoreStatistics:
        """Statistics of no vectors yet.

        Args:
            width: D.
        """
        return cls(0, np.zeros(width), np.zeros((width, width)))

    @property
    def covariance(self) -> FloatArray:
        """Float64 [D, D], divided by N."""
        return self._products / max(self.count, 1)

    def add(self, vectors: FloatArray) -> None:
        """Take more vectors into account.

        Reference: Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample variances,
        1979, Eq. 2.1, for vectors.

        Args:
            vectors: [n, D].

        Raises:
            ShapeError: if they are not of width D.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ShapeError(f"vectors: shape {list(vectors.shape)}, expected [items, {len(self.mean)}]")
        for start in range(0, len(vectors), _BLOCK_ROWS):
            self._add_block(vectors[start : start + _BLOCK_ROWS].astype(np.float32, copy=False))

    def _add_block(self, block: npt.NDArray[np.float32]) -> None:
        mean = block.mean(axis=0, dtype=np.float64)
        # Deviations are small, so float32 is enough for their products, at a third of the time.
        deviations = (block - mean).astype(np.float32)  # [n, D]
        shift = mean - self.mean
        total = self.count + len(block)
        self._products += deviations.T @ deviations
        self._products += np.outer(shift, shift) * (self.count * len(block) / total)
        self.mean = self.mean + shift * (len(block) / total)
        self.count = total

    def of(self, queries: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and standard deviation of the cosines of each query with all items.

        Args:
            queries: unit norm [Q, D].

        Returns:
            Float64 [Q] and float64 [Q].

        Raises:
            ShapeError: if the widths differ.
            EmbeddingError: if there are no items.
        """
        if queries.ndim != 2 or queries.shape[1] != len(self.mean):
            raise ShapeError(f"queries: shape {list(queries.shape)}, expected [queries, {len(self.mean)}]")
        if self.count == 0:
            raise EmbeddingError("score statistics: of no items; embed something first")
        exact = queries.astype(np.float64)
        variance = np.einsum("qd,qd->q", exact @ self.covariance, exact)
        return exact @ self.mean, np.sqrt(np.maximum(variance, 0.0))  # rounding can leave a variance below zero

    def save(self, path: Path) -> None:
        """Write the statistics; the file appears whole or not at all.

        Args:
            path: of the ``.npz`` file.
        """
        with replacing(path) as temporary, temporary.open("wb") as file:
            # A relative error of 1e-7 of a covariance changes no calibrated score that is shown.
            np.savez(file, count=self.count, mean=self.mean, covariance=self.covariance.astype(np.float32))

    @classmethod
    def load(cls, path: Path) -> ScoreStatistics:
        """Read statistics.

        Args:
            path: of the ``.npz`` file.

        Raises:
            EmbeddingError: if the file is missing or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                count, mean, covariance = int(arrays["count"]), arrays["mean"], arrays["covariance"]
        except FileNotFoundError as error:
            raise EmbeddingError(f"{path}: no such file; embed again") from error
        except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise EmbeddingError(f"{path}: cannot be read ({' '.join(str(error).split())}); embed again") from error
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise EmbeddingError(
                f"{path}: mean {list(mean.shape)} and covariance {list(covariance.shape)} do not fit; embed again"
            )
        return cls(count, mean, covariance)


def calibrated(scores: FloatArray, mean: FloatArray, std: FloatArray) -> list[list[float | None]]:
    """How many standard deviations above the mean of its query every score is.

    Args:
        scores: cosines [Q, K].
        mean: of the cosines of each query with all items, [Q].
        std: their standard deviation, [Q].

    Returns:
        Q lists of K numbers; None where all items score the same, as in a table of one row.
    """
    return [
        [None if spread < _LEAST_STD else float((score - middle) / spread) for score in row]
        for row, middle, spread in zip(scores, mean, std, strict=True)
    ]


def statistics_of(table: EmbeddingTable) -> ScoreStatistics:
    """Statistics of a table, by a pass over its vectors.

    Args:
        table: in memory or on disk.
    """
    statistics = ScoreStatistics.empty(table.width)
    statistics.add(table.vectors)
    return statistics


def load_statistics(folder: Path, modality: str, info: TableInfo) -> ScoreStatistics | None:
    """Statistics that were found while a table was written.

    Args:
        folder: of the table.
        modality: which table.
        info: of the folder.

    Returns:
        None where there are none: a table of format 1.

    Raises:
        EmbeddingError: if they are damaged or do not fit the table, or it was updated since ``info`` was read.
    """
    path = folder / statistics_file(modality, info.generation)
    if not path.is_file():
        if read_info(folder).generation != info.generation:
            raise EmbeddingError(f"{folder}: was updated while it was read; ask again")
        return None
    statistics = ScoreStatistics.load(path)
    found, expected = [statistics.count, len(statistics.mean)], [info.counts[modality], info.width]
    if found != expected:
        raise EmbeddingError(f"{path}: statistics of {found} vectors, expected {expected}; embed again")
    return statistics
