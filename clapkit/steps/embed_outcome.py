"""How an embedding ends: the tables are published, indexed and handed to an engine, and the result says so."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clapkit.config import EmbedConfig
from clapkit.index import engines
from clapkit.index.table import TABLE_JSON, EmbeddingTable, Modality, TableInfo, load_table
from clapkit.index.writer import commit, describe
from clapkit.run_dir import RunDir
from clapkit.steps.clip_vectors import FloatArray
from clapkit.steps.embed_job import Tables
from clapkit.steps.embed_known import discard_progress
from clapkit.steps.embed_options import index_options
from clapkit.types import Reporter

# As many tell a recall of 0.95 from one of 0.93.
_MAX_QUERIES = 1000
_Opened = Mapping[Modality, EmbeddingTable]


@contextlib.contextmanager
def going_on(command: str, reporter: Reporter) -> Iterator[None]:
    """Say how to go on where the work is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        reporter.say(f"stopped; what is embedded is kept, go on with: {command}")
        raise


def finish(
    config: EmbedConfig, run_dir: RunDir, tables: Tables, reporter: Reporter, *, model: str, device: str | None
) -> dict[str, Any]:
    """Publish tables with all that belongs to them, and forget the vectors that were kept in case of an interruption.

    Args:
        config: of the command.
        run_dir: of the tables.
        tables: written into it.
        reporter: messages.
        model: how results call it.
        device: that it ran on; None if it did not run.

    Returns:
        The result of the run.

    Raises:
        ClapkitError: if the index cannot be built, or the engine does not take the vectors; the run can be resumed.
    """
    from clapkit.index.stored import remove_outdated

    folder = run_dir.path
    _write_rejections(run_dir, tables, reporter)
    info = describe(folder, tables.written, tables.info)
    result = _describe(info, tables, model=model, device=device)
    opened = {part.modality: load_table(folder, part.modality, info=info) for part in tables.written}
    # Indexes first: who reads meanwhile finds the old table with the old ones, then the new table with the new ones.
    indexes = _indexes(config, folder, opened, info, reporter)
    commit(folder, info)
    if indexes:
        result["indexes"] = indexes
        remove_outdated(folder, info)
    if config.push is not None:
        result["engine"] = {"address": config.push, "counts": _push(config.push, opened, info, reporter)}
    discard_progress(folder)
    return result


def _write_rejections(run_dir: RunDir, tables: Tables, reporter: Reporter) -> None:
    rejections = tables.audio.rejections
    run_dir.write_lines(run_dir.rejected_path, rejections)
    if rejections:
        reporter.warn(
            f"{len(rejections)} of {tables.num_clips} clips could not be embedded, see {run_dir.rejected_path.name}, "
            f"first: {rejections[0]['reason']}"
        )


def read_rejections(path: Path) -> list[dict[str, str]]:
    """The clips that a part of a table could not embed."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _describe(info: TableInfo, tables: Tables, *, model: str, device: str | None) -> dict[str, Any]:
    return {
        "model": model,
        "model_fingerprint": info.model_fingerprint,
        "device": device,
        "data": dict(info.data),
        "modality": info.modality,
        "width": info.width,
        "dtype": info.dtype,
        "counts": dict(info.counts),
        "num_windows": tables.audio.num_windows,
        "num_rejected": len(tables.audio.rejections),
        "table_id": info.id,
        "generation": info.generation,
        "paths": {"table": TABLE_JSON},
    }


def _indexes(config: EmbedConfig, folder: Path, opened: _Opened, info: TableInfo, reporter: Reporter) -> list[dict[str, Any]]:
    """Bring stored indexes up to date and build those that are asked for; gives their reports.

    An index over sounds is tuned with captions, if there are some: queries of the other modality are harder to answer.
    """
    from clapkit.index.stored import build_stored, stored_names, update_stored

    stored = stored_names(folder)
    asked = [(config.index, modality) for modality in opened if config.index != "none"]
    reports = []
    for name, modality in dict.fromkeys([*stored, *asked]):
        if modality not in opened:
            continue
        queries = _sample(opened["text"], seed=config.seed) if modality == "audio" and "text" in opened else None
        table = opened[modality]
        is_new = (name, modality) not in stored or (name == config.index and bool(config.options))
        if is_new:
            options = index_options(config)
            report = build_stored(name, folder, table, info=info, options=options, queries=queries, seed=config.seed)
        else:
            report = update_stored(name, folder, table, info=info, queries=queries, seed=config.seed)
        _say_recall(report, reporter)
        reports.append(report)
    return reports


def _sample(table: EmbeddingTable, *, seed: int) -> FloatArray:
    count = min(len(table), _MAX_QUERIES)
    rows = np.sort(np.random.default_rng(seed).choice(len(table), count, replace=False))
    sample: FloatArray = table.vectors[rows].astype(np.float32)
    return sample


def _say_recall(report: Mapping[str, Any], reporter: Reporter) -> None:
    queries = report["queries"]
    message = (
        f"index {report['kind']} over {report['modality']}: recall@10 {report['recall@10']:.3f} against exact search with "
        f"{queries['count']} {queries['kind']} queries"
    )
    if report["reached_target"]:
        reporter.say(message)
    else:
        reporter.warn(f"{message}, expected {report['target_recall']}; search exactly, or build another index")


def _push(address: str, opened: _Opened, info: TableInfo, reporter: Reporter) -> dict[str, int]:
    """Load the tables into an engine; gives how many items it holds of each modality."""
    counts: dict[str, int] = {}
    for modality, table in opened.items():
        engine = engines.parse(address, modality=modality)
        assert engine is not None, "is looked at before anything is embedded"
        with contextlib.closing(engine):
            pushed = engine.push(table, info, reporter=reporter)
        counts[modality] = pushed.num_items
        reporter.say(f"{address}: {pushed.num_items} {modality} items" + (", as before" if pushed.unchanged else ""))
    return counts
