"""Approximate indexes on disk, beside the table that they belong to.

An index is two files, ``index/<name>_<modality>_<generation>.faiss`` and a ``.json`` that names the table it was made of, its
options and its measured recall. It is memory-mapped: opening reads little more than the centroids or the links.
An index answers for one table only; after an update of the table it has to be brought up to date as well.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit import registry
from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index._faiss import FEWEST_CANDIDATES, ApproximateIndex
from clapkit.index._index_files import (
    FOLDER,
    Description,
    damaged,
    description_path,
    descriptions,
    index_files,
    is_left_over,
    none_built,
    read_description,
    read_faiss,
    remedy,
    write_files,
)
from clapkit.index._matching import kept_rows
from clapkit.index._recall import RECALL_K
from clapkit.index.layout import Modality, TableInfo
from clapkit.index.table import EmbeddingTable

FloatArray = npt.NDArray[np.floating[Any]]


def build_stored(
    name: str,
    folder: Path,
    table: EmbeddingTable,
    *,
    info: TableInfo,
    options: Mapping[str, Any],
    queries: FloatArray | None,
    seed: int,
) -> dict[str, Any]:
    """Build an index of a table, measure its recall and write it.

    Args:
        name: of the plug-in.
        folder: of the table.
        table: to index.
        info: of the table; may be published later.
        options: of the plug-in, values or text.
        queries: unit norm [Q, D], text queries to measure recall with; None, or no row, to take some rows of the table.
        seed: of the index and of the choice among queries.

    Returns:
        What was built: ``kind``, ``modality``, ``options``, its size, the effort that was chosen, ``recall@10``,
        ``target_recall``, ``reached_target``, ``queries`` (their kind and number), ``build_s``, ``tune_s``, ``bytes`` and
        ``table``. An index that misses its target is written all the same; that is for the caller to tell.

    Raises:
        ConfigError: if the plug-in has nothing to store or an option cannot be meant.
        EmbeddingError: if a vector is not finite.
    """
    started = time.perf_counter()
    index = _new_index(name, options, seed=seed)
    index.add(table.vectors)
    build_s = time.perf_counter() - started
    report = _measured(index, table, options=options, queries=queries, seed=seed) | {"build_s": build_s, "table": info.id}
    path = description_path(folder, name, table.modality, info.generation)
    return write_files(path, index.inner, report, table=info.id, options=options, num_changed=0)


def update_stored(
    name: str, folder: Path, table: EmbeddingTable, *, info: TableInfo, queries: FloatArray | None, seed: int
) -> dict[str, Any]:
    """Make an index of an older table one of this table, with the options that it was built with.

    Rows are recognised by their vectors, so that it does not matter how they moved. An index that cannot follow, of whose rows
    more than half have changed since it was built, or whose faiss file is damaged, is built anew. The old files stay: see
    ``remove_outdated``.

    Args:
        name: of the plug-in.
        folder: of the table.
        table: the new table.
        info: of the new table; may be published later.
        queries: as for ``build_stored``.
        seed: as for ``build_stored``.

    Returns:
        The report of ``build_stored``, and under ``update``: rows ``added`` and ``removed``, and ``rebuilt``: why, or None.
        Where there is an index of this very table already: its report.

    Raises:
        EmbeddingError: if there is no index to start from, or its description is damaged.
    """
    started = time.perf_counter()
    found = descriptions(folder, name, table.modality)
    if not found:
        raise none_built(folder, name, table.modality)
    present = next((description for description in found if description.table == info.id), None)
    if present is not None and _is_readable(present):
        return present.report
    old = found[0]
    index = _new_index(name, old.options, seed=seed)
    update = _follow(index, old, table)
    if update["rebuilt"] is not None:
        index.add(table.vectors)
    build_s = time.perf_counter() - started
    report = _measured(index, table, options=old.options, queries=queries, seed=seed)
    report |= {"build_s": build_s, "table": info.id, "update": update}
    num_changed = 0 if update["rebuilt"] is not None else old.num_changed + update["added"] + update["removed"]
    path = description_path(folder, name, table.modality, info.generation)
    return write_files(path, index.inner, report, table=info.id, options=old.options, num_changed=num_changed)


def open_stored(name: str, folder: Path, modality: Modality, *, info: TableInfo, table: EmbeddingTable) -> ApproximateIndex:
    """Open the index of a table, memory-mapped.

    Args:
        name: of the plug-in.
        folder: of the table.
        modality: of the table.
        info: of the table.
        table: whose rows it was made of.

    Raises:
        EmbeddingError: if there is none, it is of another table, damaged, or of another format.
    """
    found = descriptions(folder, name, modality)
    if not found:
        raise none_built(folder, name, modality)
    description = next((candidate for candidate in found if candidate.table == info.id), None)
    if description is None:
        generations = f"of generation {found[0].generation}, the table is of {info.generation}"
        raise EmbeddingError(f"{found[0].path}: index older than the table ({generations}); {remedy(name)}")
    if (description.width, description.rows) != (table.width, len(table)):
        size = f"{description.rows} x {description.width}, the table is {len(table)} x {table.width}"
        raise damaged(description.path, f"index of {size}")
    index = _new_index(name, description.options, seed=0)
    effort = description.report.get(index.method.effort_name)
    if not isinstance(effort, int) or effort < 1:
        raise damaged(description.path, f"{index.method.effort_name} is {effort!r}, expected a whole number")
    candidates = description.report.get("candidates", FEWEST_CANDIDATES)  # older indexes have whole vectors and no choice
    if not isinstance(candidates, int) or candidates < FEWEST_CANDIDATES:
        raise damaged(description.path, f"candidates is {candidates!r}, expected a whole number from {FEWEST_CANDIDATES} on")
    index.attach(read_faiss(description, is_mapped=True), table.vectors, effort=effort, candidates=candidates)
    return index


def stored_names(folder: Path, info: TableInfo | None = None) -> list[tuple[str, Modality]]:
    """Names and modalities of the indexes in a folder, sorted.

    Args:
        folder: of the table.
        info: of the table, for indexes that fit it; None for indexes of any generation.

    Raises:
        EmbeddingError: if the description of one is damaged.
    """
    names: set[tuple[str, Modality]] = set()
    for path, name, modality in index_files(folder):
        if path.suffix == ".json" and (info is None or read_description(path).table == info.id):
            names.add((name, modality))
    return sorted(names)


def remove_outdated(folder: Path, info: TableInfo) -> None:
    """Delete indexes of other tables, and what a build that was killed left; who has one open keeps it.

    Args:
        folder: of the table; nobody may be building an index in it.
        info: of the table.

    Raises:
        EmbeddingError: if the description of an index is damaged.
    """
    files = [path for path, _, _ in index_files(folder)]
    kept = {path.stem for path in files if path.suffix == ".json" and read_description(path).table == info.id}
    left_over = [path for path in (folder / FOLDER).glob(".*") if is_left_over(path)]
    for path in [path for path in files if path.stem not in kept] + left_over:
        path.unlink(missing_ok=True)


def _new_index(name: str, options: Mapping[str, Any], *, seed: int) -> ApproximateIndex:
    seeded = {"seed": seed} if "seed" in registry.defaults("index", name) else {}
    index = registry.build("index", name, {**seeded, **options})
    if not isinstance(index, ApproximateIndex):
        raise ConfigError(f"--index {name}: has nothing to build; leave it out")
    return index


def _is_readable(description: Description) -> bool:
    try:
        read_faiss(description, is_mapped=True)
    except EmbeddingError:
        return False
    return True


def _follow(index: ApproximateIndex, old: Description, table: EmbeddingTable) -> dict[str, Any]:
    """Fill an index with the changed rows of an old one; where ``rebuilt`` says why not, nothing was filled."""
    if old.width != table.width:
        return {
            "added": len(table),
            "removed": old.rows,
            "rebuilt": f"vectors have {table.width} numbers, not {old.width}",
        }
    try:
        inner = read_faiss(old, is_mapped=False)
    except EmbeddingError as error:
        return {"added": len(table), "removed": old.rows, "rebuilt": str(error)}
    coder = index.method.coder(inner)
    kept = kept_rows(index.method.stored_rows(inner), old.rows, table.vectors, coder=coder)
    num_kept = int((kept >= 0).sum())
    update: dict[str, Any] = {"added": len(table) - num_kept, "removed": old.rows - num_kept, "rebuilt": None}
    num_changed = old.num_changed + update["added"] + update["removed"]
    if 2 * num_changed > len(table):
        return update | {"rebuilt": f"{num_changed} rows changed since it was built, more than half of {len(table)}"}
    if not index.method.update(inner, kept, table.vectors):
        return update | {"rebuilt": f"{index.method.name} cannot take rows out"}
    index.attach(inner, table.vectors, effort=index.method.effort)
    return update


def _measured(
    index: ApproximateIndex, table: EmbeddingTable, *, options: Mapping[str, Any], queries: FloatArray | None, seed: int
) -> dict[str, Any]:
    """Choose the effort and measure recall."""
    started = time.perf_counter()
    asked = queries if queries is not None and len(queries) else None
    recall, method = index.tune(asked, seed=seed), index.method
    return {
        "kind": method.name,
        "modality": table.modality,
        "options": dict(options),
        **method.facts(index.inner),
        method.effort_name: index.effort,
        "candidates": index.candidates,
        f"recall@{RECALL_K}": recall.mean,
        "target_recall": method.recall,
        "reached_target": recall.mean >= method.recall,
        "queries": {"kind": table.modality if asked is None else "text", "count": recall.num_queries},
        "tune_s": time.perf_counter() - started,
    }
