"""One embedding on several processes: ``torchrun`` starts the same command on each, the first one leads.

Every process embeds its part of the manifest into a folder of its own below ``parts/`` of the run directory, and the first one
puts them together. Nothing is exchanged meanwhile, so that a process may take as long as it needs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from clapkit.config import EmbedConfig
from clapkit.index.table import TABLE_JSON, read_info
from clapkit.index.writer import publish
from clapkit.run_dir import RunDir
from clapkit.steps.embed_job import Job, load, plan, write_tables
from clapkit.steps.embed_merge import Part, merge
from clapkit.steps.embed_options import Shard, check
from clapkit.steps.embed_outcome import finish, going_on
from clapkit.steps.embed_write import AudioSummary
from clapkit.training.distributed import Processes, TorchProcesses, launched, local_device
from clapkit.types import Reporter, SilentReporter

PARTS = "parts"
# Parts have as many clips, but not as many hours. A process that dies is noticed at once.
_PATIENCE = timedelta(days=1)


def run(config: EmbedConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Embed on all processes; called by the first one.

    Args:
        config: of the command.
        run_dir: where the tables go.
        reporter: progress and messages.

    Raises:
        ClapkitError: if model or input cannot be used, nothing can be embedded, or another process has ended.
    """
    with _joined() as processes:
        told: tuple[Job, Path] | None = None
        try:
            check(config)
            (run_dir.path / TABLE_JSON).unlink(missing_ok=True)
            job = plan(config, run_dir, reporter)
            Shard(0, processes.size).of(job.given.manifest)
            told = job, run_dir.path / PARTS
        finally:
            processes.broadcast(told)
        with going_on(f"the same torchrun clapkit embed --resume --run-dir {run_dir.path}", reporter):
            summaries = processes.gather_values(_embed_part(job, run_dir.path / PARTS, processes, reporter))
    parts = [_part(run_dir.path / PARTS, Shard(number, len(summaries)), audio) for number, audio in enumerate(summaries)]
    reporter.say(f"{len(parts)} processes are done")
    result = finish(config, run_dir, merge(parts, run_dir.path), reporter, model=job.source.name, device=job.device)
    shutil.rmtree(run_dir.path / PARTS)
    return result | {"num_processes": len(parts)}


def run_follower() -> None:
    """Embed the part of this process, as the first one says.

    Raises:
        ClapkitError: as ``run``.
    """
    with _joined() as processes:
        told = processes.broadcast(None)
        if told is not None:
            job, folder = told
            processes.gather_values(_embed_part(job, folder, processes, SilentReporter()))


def dismiss() -> None:
    """Send the other processes home, where the first one has found nothing to do."""
    if launched()[1] > 1:
        with _joined() as processes:
            processes.broadcast(None)


@contextlib.contextmanager
def _joined() -> Iterator[Processes]:
    import torch.distributed as dist

    # Tensors are not exchanged, whatever the device.
    dist.init_process_group("gloo", timeout=_PATIENCE)
    try:
        yield TorchProcesses(torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def _embed_part(job: Job, parts: Path, processes: Processes, reporter: Reporter) -> AudioSummary:
    shard = Shard(processes.rank, processes.size)
    folder = _folder(parts, shard)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLE_JSON).unlink(missing_ok=True)
    job = dataclasses.replace(job, device=local_device(job.device))
    tables = write_tables(job, load(job, reporter), folder, reporter=reporter, shard=shard)
    publish(folder, tables.written, tables.info)
    return tables.audio


def _part(parts: Path, shard: Shard, audio: AudioSummary) -> Part:
    folder = _folder(parts, shard)
    return Part(str(shard), folder, read_info(folder), shard, audio)


def _folder(parts: Path, shard: Shard) -> Path:
    return parts / f"{shard.number}-of-{shard.count}"
