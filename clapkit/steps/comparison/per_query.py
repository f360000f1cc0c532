"""The values of single queries: written to a file, and averaged by clip for tests between models."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clapkit.files import atomic_path
from clapkit.metrics.power import MIN_CLIPS, minimum_detectable
from clapkit.steps.evaluation.result import Columns, Outcome, TaskResult


@dataclass(frozen=True, slots=True)
class ClipValues:
    """A metric of one model, observation by observation: clip by clip, or recording by recording where clips share one.

    Attributes:
        queries: hash of the clips and captions; models can be paired only where it is the same.
        values: float64 [N], sums over the queries of each in a unit that makes their mean the metric, the mean over queries.
        sizes: float64 [N], queries of each in the same unit, with a mean of 1.
    """

    queries: str
    values: npt.NDArray[np.float64]
    sizes: npt.NDArray[np.float64]

    @property
    def linear(self) -> npt.NDArray[np.float64]:
        """What each observation adds to the metric, float64 [N]: the values where all have as many queries.

        Where they do not, the spread of the sums is mostly that of the sizes; less the metric times the size, it is that of the
        metric. Their mean is the metric, too.
        """
        added: npt.NDArray[np.float64] = self.values - self.values.mean() * (self.sizes - 1)
        return added


def write_per_query(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write one row per query and model; columns that a table does not have are null.

    Args:
        path: of the parquet file.
        outcomes: evaluated models.
    """
    parts = [pa.table({name: pa.array([], type=pa.string()) for name in ("run", "task", "direction", "id")})]
    for outcome in outcomes:
        for task, result in outcome.tasks.items():
            for direction, columns in result.per_query.items():
                size = len(columns["id"])
                fixed = {"run": [outcome.run] * size, "task": [task] * size, "direction": [direction] * size}
                values = {name: _column(column) for name, column in columns.items() if name != "clip"}
                parts.append(pa.table(fixed | values))
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(parts, promote_options="default"), temporary)


def clip_values(outcome: Outcome) -> dict[str, ClipValues]:
    """Every tested metric of a model, clip by clip."""
    found = {}
    for result in outcome.tasks.values():
        queries = {table: _hash(result.per_query[table]) for table in {table for table, _ in result.tested.values()}}
        for metric, (table, column) in result.tested.items():
            columns = result.per_query[table]
            found[metric] = _observations(columns, column, queries[table])
    return found


def detectable(result: TaskResult) -> dict[str, float]:
    """Smallest difference from an independent result that each tested metric shows on this test set.

    With 80 % probability at 0.05; see ``clapkit.metrics.power.minimum_detectable`` for what that assumes. Left out where there
    are too few clips to show any, and where all queries have the same value, which says nothing of their spread.

    Args:
        result: of a task.

    Returns:
        Name of the metric -> difference, in its unit.
    """
    found = {}
    for metric, (table, column) in result.tested.items():
        columns = result.per_query[table]
        clips = np.asarray(columns.get("source", columns["clip"]))
        if len(np.unique(clips)) >= MIN_CLIPS and np.ptp(np.asarray(columns[column], dtype=np.float64)):
            found[metric] = minimum_detectable(columns[column], clips)
    return found


def evaluated_ids(outcome: Outcome) -> set[str]:
    """Ids of the clips that at least one query is about."""
    return {id for result in outcome.tasks.values() for columns in result.per_query.values() for id in columns["id"]}


def _observations(columns: Columns, column: str, queries: str) -> ClipValues:
    """Values of a column by clip or, where clips of one recording are correlated, by recording."""
    _, unit = np.unique(np.asarray(columns.get("source", columns["clip"])), return_inverse=True)
    counts = np.bincount(unit)
    scale = len(counts) / len(unit)
    sums = np.bincount(unit, weights=np.asarray(columns[column], dtype=np.float64))
    return ClipValues(queries, np.multiply(sums, scale, dtype=np.float64), np.multiply(counts, scale, dtype=np.float64))


def _column(values: Sequence[Any]) -> pa.Array:
    """Text as it is, numbers and truth values as float64."""
    array = np.asarray(values)
    return pa.array(array if array.dtype.kind in "OUS" else array.astype(np.float64))


def _hash(columns: Columns) -> str:
    """Of what the queries are, in their order."""
    texts = columns.get("caption", columns["id"])
    lines = "\x1e".join(f"{id}\x1f{text}" for id, text in zip(columns["id"], texts, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()
