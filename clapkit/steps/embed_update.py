"""``clapkit embed --update``: a finished table follows its files, and readers see the old one or the new one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from clapkit.config import EmbedConfig
from clapkit.errors import ConfigError
from clapkit.index.table import TableInfo, load_table, read_info
from clapkit.index.writer import next_generation
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.embed_earlier import Changes, EarlierCaptions
from clapkit.steps.embed_input import STDIN
from clapkit.steps.embed_job import Earlier, Job, audio_policy, earlier_audio, load, plan, write_tables
from clapkit.steps.embed_outcome import finish, going_on
from clapkit.types import Reporter


def recorded_options(folder: Path, *, with_input: bool) -> dict[str, Any]:
    """How a table was made, as options of the command, so that an update need not repeat them.

    Args:
        folder: of the table.
        with_input: whether to take over what says which clips of the input are embedded, too.

    Raises:
        EmbeddingError: if the table is missing or damaged.
    """
    info = read_info(folder)
    policy, data = info.audio_policy, info.data
    options: dict[str, Any] = {key: policy.get(key) for key in ("window_s", "hop_s", "pool", "precision")}
    options["store"] = "fp16" if info.dtype == "float16" else "fp32"
    if with_input:
        options |= {key: data.get(key) for key in ("split", "lang", "modality")}
    return {key: value for key, value in options.items() if value is not None}


def run(config: EmbedConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Bring the table of a finished run up to date.

    Vectors of unchanged content are taken over, the rest is embedded. The new files are written beside the old ones and take
    their place in one step.

    Args:
        config: of the command; without inputs, those that the run has embedded.
        run_dir: the finished run, locked.
        reporter: progress and messages.

    Returns:
        The result of the run, with ``changes``.

    Raises:
        ConfigError: if the options are not those of the table.
        ClapkitError: if model or input cannot be used any more.
    """
    folder = run_dir.path
    info = read_info(folder)
    _expect_updatable(folder, info)
    asked, base = _with_input(config, run_dir, info)
    job = plan(asked, run_dir, reporter, source=_source(config, run_dir, info), folder=base)
    _expect_sounds(folder, info, job)
    model = load(job, reporter)
    _expect_same(folder, info, job, audio_policy(model, job.config))
    generation = next_generation(folder)
    earlier = _earlier(folder, info, job)
    counted = earlier.captions if job.modality == "text" else earlier.audio
    changes = Changes(counted.contents if counted is not None else {})
    with going_on(f"clapkit embed --update --run-dir {folder}", reporter):
        tables = write_tables(job, model, folder, reporter=reporter, generation=generation, earlier=earlier, changes=changes)
    counts = changes.counts()
    reporter.say(", ".join(f"{count} {kind}" for kind, count in counts.items()))
    result = finish(config, run_dir, tables, reporter, model=job.source.name, device=job.device)
    return result | {"changes": counts}


def _expect_updatable(folder: Path, info: TableInfo) -> None:
    if info.data.get("is_foreign"):
        raise ConfigError(
            f"--update: {folder} holds vectors that something else has made; make a table of the new ones instead"
        )
    if "shard" in info.data:
        raise ConfigError(
            f"--update: {folder} is part {info.data['shard']} of a table; update the table that embed --merge made"
        )


def _with_input(config: EmbedConfig, run_dir: RunDir, info: TableInfo) -> tuple[EmbedConfig, Path | None]:
    """The configuration with what is to be embedded, and the folder that relative paths of it start from."""
    if config.inputs:
        return config, None
    recorded = info.data.get("inputs", run_dir.record["config"]["inputs"])
    if STDIN in recorded:
        raise ConfigError(
            f"--update: the paths of {run_dir.path} came from standard input; pipe them in again and name - as input"
        )
    folder = info.data.get("folder")
    return dataclasses.replace(config, inputs=tuple(recorded)), None if folder is None else Path(folder)


def _source(config: EmbedConfig, run_dir: RunDir, info: TableInfo) -> inputs.ModelSource:
    """The model of the table, unless another copy of it is named.

    Raises:
        ConfigError: if another model is named.
        EmbeddingError: if the model is gone or was changed.
    """
    if config.model is not None:
        source = inputs.resolve_model(config.model, runs_root=config.runs_root)
        if source.fingerprint != info.model_fingerprint:
            raise ConfigError(
                f"--update: {run_dir.path} was embedded by model {info.model_fingerprint[:12]}, {config.model} is "
                f"{source.fingerprint[:12]}; embed anew"
            )
        return source
    inputs.check_table_model(run_dir.path, model_path=Path(info.model_path), fingerprint=info.model_fingerprint)
    source = inputs.resolve_model(info.model_path, runs_root=config.runs_root)
    return dataclasses.replace(source, name=run_dir.result["model"])


def _expect_sounds(folder: Path, info: TableInfo, job: Job) -> None:
    """Captions alone would take the place of all sounds of the table."""
    if "audio" in info.counts and job.modality == "text":
        raise ConfigError(
            f"--update: {folder} holds sounds, {job.given.manifest.name} would leave captions only; make a table "
            "of its own of them"
        )


def _expect_same(folder: Path, info: TableInfo, job: Job, policy: dict[str, Any]) -> None:
    recorded = dict(info.audio_policy) | {"store": info.dtype}
    asked = policy | {"store": job.dtype}
    different = [f"{key} {asked.get(key)} instead of {recorded.get(key)}" for key in asked if asked[key] != recorded.get(key)]
    if different:
        raise ConfigError(f"--update: {folder} was embedded in another way ({', '.join(different)}); embed anew")


def _earlier(folder: Path, info: TableInfo, job: Job) -> Earlier:
    """The tables that are brought up to date, of the modalities that are asked for."""
    made = set(info.counts) & ({"audio", "text"} if job.modality == "both" else {job.modality})
    audio = earlier_audio(load_table(folder, "audio", info=info), info) if "audio" in made else None
    captions = EarlierCaptions(load_table(folder, "text", info=info)) if "text" in made else None
    return Earlier(audio, captions)
