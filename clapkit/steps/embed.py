"""``clapkit embed``: a model over clips, audio files or captions; leaves embedding tables."""

from __future__ import annotations

from typing import Any

from clapkit.config import EmbedConfig
from clapkit.index.table import TABLE_JSON
from clapkit.run_dir import RunDir
from clapkit.steps import embed_foreign, embed_merge, embed_processes, embed_update
from clapkit.steps.embed_input import is_foreign
from clapkit.steps.embed_job import load, plan, write_tables
from clapkit.steps.embed_options import check, parse_shard
from clapkit.steps.embed_outcome import finish, going_on
from clapkit.training.distributed import launched
from clapkit.types import Reporter


def run(config: EmbedConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Embed and write tables.

    Args:
        config: of the command.
        run_dir: where the tables go.
        reporter: progress and messages.

    Returns:
        Model, data, counts and files.

    Raises:
        ClapkitError: if model or input cannot be used, or nothing can be embedded.
    """
    if launched()[1] > 1:
        return embed_processes.run(config, run_dir, reporter)
    check(config)
    if config.update:
        return embed_update.run(config, run_dir, reporter)
    # Of a run that goes on; until it is finished, nobody is to take it for a table.
    (run_dir.path / TABLE_JSON).unlink(missing_ok=True)
    if config.merge:
        return embed_merge.run(config, run_dir, reporter)
    if is_foreign(config):
        return embed_foreign.run(config, run_dir, reporter)
    job = plan(config, run_dir, reporter)
    model = load(job, reporter)
    shard = parse_shard(config.shard) if config.shard is not None else None
    with going_on(f"clapkit embed --resume --run-dir {run_dir.path}", reporter):
        tables = write_tables(job, model, run_dir.path, reporter=reporter, shard=shard)
    return finish(config, run_dir, tables, reporter, model=job.source.name, device=job.device)
