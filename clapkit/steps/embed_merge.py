"""``clapkit embed --merge``: the parts of a table, embedded on several processes or machines, put together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clapkit.config import EmbedConfig
from clapkit.errors import ConfigError
from clapkit.index.table import TABLE_JSON, Modality, TableInfo, load_table, read_info
from clapkit.index.writer import TableWriter, Written
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.embed_job import Tables
from clapkit.steps.embed_options import Shard, parse_shard
from clapkit.steps.embed_outcome import finish, read_rejections
from clapkit.steps.embed_write import AudioSummary
from clapkit.types import Reporter


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a table.

    Attributes:
        name: how messages call it.
        folder: of its table.
        info: of its table.
        shard: which part it is.
        audio: what became of its clips.
    """

    name: str
    folder: Path
    info: TableInfo
    shard: Shard
    audio: AudioSummary


def run(config: EmbedConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Put embed runs of ``--shard`` together.

    Args:
        config: of the command; its inputs are the runs.
        run_dir: where the whole table goes.
        reporter: messages.

    Raises:
        ConfigError: if no parts are named, or they are not all parts of one table, each once.
        EmbeddingError: if a table is damaged.
        RunDirError: if a run does not exist or is not finished.
    """
    if not config.inputs:
        raise ConfigError("--merge: names no parts; name the embed runs of --shard 0/n, 1/n, ...")
    parts = [_open(address, config) for address in config.inputs]
    ordered = in_order(parts)
    for part in ordered:
        run_dir.add_input(part.folder / TABLE_JSON, part.info.id)
    tables = merge(ordered, run_dir.path)
    counts = ", ".join(f"{count} {modality}" for modality, count in tables.info.counts.items())
    reporter.say(f"{len(parts)} parts of {tables.info.data['name']}: {counts} vectors")
    model = RunDir(ordered[0].folder).result["model"]
    return finish(config, run_dir, tables, reporter, model=model, device=None)


def _open(address: str, config: EmbedConfig) -> Part:
    folder = inputs.resolve_embeddings(address, runs_root=config.runs_root)
    info = read_info(folder)
    shard = info.data.get("shard")
    if shard is None:
        raise ConfigError(f"--merge {address}: is a whole table, expected parts, which embed --shard i/n makes")
    audio = AudioSummary(RunDir(folder).result["num_windows"], read_rejections(RunDir(folder).rejected_path))
    return Part(os.fspath(address), folder, info, parse_shard(shard), audio)


def in_order(parts: Sequence[Part]) -> list[Part]:
    """The parts as they follow each other.

    Raises:
        ConfigError: if they are not all parts of one table, each once.
    """
    first = parts[0]
    for part in parts[1:]:
        for what, own, other in zip(_FACTS, _facts(part), _facts(first), strict=True):
            if own != other:
                raise ConfigError(
                    f"--merge {part.name}: differs from {first.name} in {what} ({own} instead of {other}); merge parts that "
                    "one command line has made"
                )
    count = first.shard.count
    found = Counter(part.shard.number for part in parts)
    missing = [f"{number}/{count}" for number in range(count) if not found[number]]
    repeated = [f"{number}/{count}" for number, times in sorted(found.items()) if times > 1]
    if repeated:
        raise ConfigError(f"--merge: part {', '.join(repeated)} is there more than once; name every part once")
    if missing:
        raise ConfigError(f"--merge: part {', '.join(missing)} is missing; embed it with --shard and name it, too")
    return sorted(parts, key=lambda part: part.shard.number)


_FACTS = ("model", "how audio is cut", "number format", "data", "split", "modality", "number of parts")


def _facts(part: Part) -> tuple[Any, ...]:
    info = part.info
    return (
        info.model_fingerprint[:12],
        dict(info.audio_policy),
        info.dtype,
        f"{info.data['name']} {info.data['fingerprint'][:12]}",
        info.data["split"],
        info.data["modality"],
        part.shard.count,
    )


def merge(parts: Sequence[Part], folder: Path) -> Tables:
    """Write the rows of all parts into one table, block by block.

    Args:
        parts: in their order.
        folder: of the whole table.

    Raises:
        EmbeddingError: if a table is damaged.
    """
    first = parts[0].info
    modalities: tuple[Modality, ...] = ("audio", "text")
    written = [
        _merge_modality(modality, holding, folder)
        for modality in modalities
        # A part without captions has no text table.
        if (holding := [part for part in parts if modality in part.info.counts])
    ]
    info = TableInfo(
        width=first.width,
        dtype=first.dtype,
        counts={part.modality: part.count for part in written},
        model_path=first.model_path,
        model_fingerprint=first.model_fingerprint,
        audio_policy=first.audio_policy,
        data={key: value for key, value in first.data.items() if key != "shard"},
    )
    audio = AudioSummary(
        num_windows=sum(part.audio.num_windows for part in parts),
        rejections=[rejection for part in parts for rejection in part.audio.rejections],
    )
    return Tables(written, info, audio, num_clips=info.data["num_clips"])


def _merge_modality(modality: Modality, parts: Sequence[Part], folder: Path) -> Written:
    info = parts[0].info
    dtype: Literal["float16", "float32"] = "float16" if info.dtype == "float16" else "float32"
    with TableWriter(folder, modality, width=info.width, dtype=dtype) as writer:
        for part in parts:
            for vectors, metadata in load_table(part.folder, modality, info=part.info).blocks():
                writer.append(vectors, metadata)
        return writer.finish()
