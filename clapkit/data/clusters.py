"""Clusters of training clips: which clips are about the same kind of thing, and how many of each there are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clapkit.errors import ConfigError, ManifestError, NumericalError, ShapeError

IntArray = npt.NDArray[np.int64]

_ITERATIONS = 20
_RESTARTS = 3
_NORM_TOLERANCE = 1e-3
_SCHEMA = pa.schema([("index", pa.int64()), ("id", pa.string()), ("cluster", pa.int32()), ("size", pa.int64())])


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of N rows into K clusters, none empty, the largest first.

    Attributes:
        cluster: int32 [N], number of the cluster of every row, 0 to K - 1.
        origin: what they were made of, for people.
    """

    cluster: npt.NDArray[np.int32]
    origin: str = ""

    @classmethod
    def of(cls, groups: npt.NDArray[np.integer]) -> Clusters:
        """Number groups as clusters: by decreasing size, equal sizes by their first row.

        The numbers depend on who is with whom only, never on how the groups were called.

        Args:
            groups: integers [N], N at least 1; equal values are one group.
        """
        _, first, group, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
        number = np.empty(len(sizes), dtype=np.int32)
        number[np.lexsort((first, -sizes))] = np.arange(len(sizes))
        return cls(number[group])

    @property
    def num_clusters(self) -> int:
        """K."""
        return len(self.sizes)

    @property
    def sizes(self) -> IntArray:
        """Rows of every cluster, int64 [K], decreasing."""
        return np.bincount(self.cluster).astype(np.int64)

    @property
    def row_sizes(self) -> IntArray:
        """Size of the cluster that every row belongs to, int64 [N]."""
        return self.sizes[self.cluster]


def default_num_clusters(num_rows: int) -> int:
    """Clusters to make of N rows: the square root, between 16 and 2048, but never more than rows."""
    return min(max(16, min(round(math.sqrt(num_rows)), 2048)), num_rows)


def cluster_rows(features: npt.NDArray[np.float32], num_clusters: int, *, seed: int) -> Clusters:
    """Group rows of like direction by spherical k-means.

    Equal rows always share a cluster, so that there are never more clusters than distinct rows. Rows of zeros, of which nothing
    is known, are one cluster more. The same features and seed give the same clusters, with any number of threads.

    Args:
        features: float32 [N, D], every row of unit norm or zero.
        num_clusters: how many to make of the other rows; fewer come out where k-means leaves one empty.
        seed: of the first centroids.

    Raises:
        ConfigError: if ``num_clusters`` is not positive.
        ShapeError: if the features are no matrix with a row, or a norm is neither 1 nor 0.
        NumericalError: if a feature is not finite.
    """
    if num_clusters < 1:
        raise ConfigError(f"--num-clusters {num_clusters}: expected at least 1")
    known = _known_rows(features)
    groups = np.full(len(features), -1, dtype=np.int64)
    if known.any():
        # Nothing is copied in the usual case, for features may take hundreds of megabytes.
        rows = features if known.all() else features[known]
        groups[known] = _k_means(rows, num_clusters, seed=seed)
    return Clusters.of(groups)


def write_clusters(path: Path, clusters: Clusters, ids: Sequence[str], *, metadata: Mapping[str, str]) -> None:
    """Write ``clusters.parquet``: one row per clip with its index, id, cluster and the size of that cluster.

    Args:
        path: the file.
        clusters: of N clips.
        ids: of the clips.
        metadata: how the clusters were made; kept with the schema.
    """
    columns = [np.arange(len(ids)), list(ids), clusters.cluster, clusters.row_sizes]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    pq.write_table(pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata(dict(metadata))), path)


def read_clusters(path: Path, ids: Sequence[str]) -> Clusters:
    """Read the clusters of some clips.

    Clips are found by id, so that a file made on a whole corpus, in any order, serves a part of it. Sizes are counted, and
    clusters numbered, over the clips asked for: the size of a cluster is how often it comes up in this training. Only the
    columns ``id`` and ``cluster`` are read.

    Args:
        path: a ``clusters.parquet``.
        ids: of N clips.

    Raises:
        ManifestError: if the file cannot be read, lacks a column, names a clip twice or lacks one.
    """
    table = _read(path)
    found = table.column("id").to_pylist()
    repeated = [id for id, count in Counter(found).items() if count > 1]
    if repeated:
        raise ManifestError(
            f"{path}: {len(repeated)} of {len(found)} ids are there more than once, first {repeated[0]!r}; keep one row a clip"
        )
    cluster = dict(zip(found, table.column("cluster").to_pylist(), strict=True))
    missing = [id for id in ids if id not in cluster]
    if missing:
        raise ManifestError(
            f"{path}: {len(missing)} of {len(ids)} training clips have no cluster there, first {missing[0]!r}; "
            "name a file made on all of them, or leave out --clusters"
        )
    return Clusters.of(np.array([cluster[id] for id in ids], dtype=np.int64))


def _known_rows(features: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Which rows are not zero, bool [N]."""
    if features.ndim != 2 or not len(features):
        raise ShapeError(f"features: shape {features.shape}, expected [N, D] with at least one row")
    norms = np.sqrt(np.einsum("nd,nd->n", features, features))  # [N], without a copy of the features
    if not np.isfinite(norms).all():
        raise NumericalError(f"features: {int((~np.isfinite(norms)).sum())} of {len(norms)} rows are not finite")
    known: npt.NDArray[np.bool_] = norms > 0
    odd = known & (np.abs(norms - 1) > _NORM_TOLERANCE)
    if odd.any():
        raise ShapeError(f"features: {int(odd.sum())} of {len(norms)} rows have a norm that is neither 1 nor 0; normalise them")
    return known


def _k_means(features: npt.NDArray[np.float32], num_clusters: int, *, seed: int) -> IntArray:
    """Cluster of every row, int64 [N]; the numbers mean nothing and some may be unused."""
    seen: dict[int, int] = {}
    distinct = np.array([seen.setdefault(hash(row.tobytes()), len(seen)) for row in features])
    if len(seen) <= num_clusters:
        return distinct
    import faiss

    k_means = faiss.Kmeans(
        features.shape[1],
        num_clusters,
        niter=_ITERATIONS,
        nredo=_RESTARTS,
        seed=seed,
        spherical=True,
        min_points_per_centroid=1,  # faiss would print a warning for small clusters, which are what rare sounds are
    )
    k_means.train(features)
    nearest: IntArray = k_means.index.search(features, 1)[1][:, 0]
    return nearest


def _read(path: Path) -> pa.Table:
    """Columns ``id`` and ``cluster``, checked."""
    try:
        # One file, not a data set: a folder is an error, and no column is made of the folder's name.
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            missing = [name for name in ("id", "cluster") if name not in schema.names]
            table = file.read(["id", "cluster"]) if not missing else None
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ManifestError(f"{path}: cannot be read as parquet ({reason}); name a clusters.parquet or a train run") from error
    if table is None:
        raise ManifestError(
            f"{path}: no column {' and '.join(missing)}, found {', '.join(schema.names)}; expected id and cluster, "
            "as in the clusters.parquet of a train run"
        )
    id_type, cluster_type = table.schema.field("id").type, table.schema.field("cluster").type
    text = pa.types.is_string(id_type) or pa.types.is_large_string(id_type)
    if not text or not pa.types.is_integer(cluster_type) or any(column.null_count for column in table.columns):
        raise ManifestError(
            f"{path}: columns id ({id_type}) and cluster ({cluster_type}), expected text and whole numbers without gaps; "
            "make the file anew"
        )
    return table
