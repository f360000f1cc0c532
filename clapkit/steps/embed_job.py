"""One embedding: what is embedded by which model, and the tables that come of it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clapkit.config import EmbedConfig
from clapkit.data.audio import span_windows
from clapkit.data.manifest import Manifest
from clapkit.encoders.fingerprint import holds_model
from clapkit.errors import CheckpointError, ManifestError
from clapkit.index.table import EmbeddingTable, Modality, TableInfo
from clapkit.index.writer import TableWriter, Written
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.embed_captions import write_captions
from clapkit.steps.embed_earlier import Changes, EarlierAudio, EarlierCaptions
from clapkit.steps.embed_input import EmbedInput, choose_modality, resolve_input
from clapkit.steps.embed_known import known_vectors, open_progress
from clapkit.steps.embed_options import Shard
from clapkit.steps.embed_write import AudioSummary, Settings, write_audio
from clapkit.steps.embedding import window_samples
from clapkit.steps.encoding import Encoder
from clapkit.steps.vector_cache import policy_scope
from clapkit.types import Reporter


@dataclass(frozen=True, slots=True)
class Job:
    """What is embedded by which model.

    Attributes:
        config: of the command.
        source: the model.
        given: the clips.
        modality: tables that are made.
        device: of this process.
        folder: that relative inputs start from.
    """

    config: EmbedConfig
    source: inputs.ModelSource
    given: EmbedInput
    modality: Literal["audio", "text", "both"]
    device: str
    folder: Path

    @property
    def dtype(self) -> Literal["float16", "float32"]:
        """Number format on disk."""
        return "float16" if self.config.store == "fp16" else "float32"


@dataclass(slots=True)
class Tables:
    """Tables that are written and not yet published.

    Attributes:
        written: one for each modality.
        info: what made them.
        audio: what became of the clips.
        num_clips: how many there were.
    """

    written: list[Written]
    info: TableInfo
    audio: AudioSummary
    num_clips: int


@dataclass(frozen=True, slots=True)
class Earlier:
    """Tables that are brought up to date; None where there is none."""

    audio: EarlierAudio | None = None
    captions: EarlierCaptions | None = None


def plan(
    config: EmbedConfig,
    run_dir: RunDir,
    reporter: Reporter,
    *,
    source: inputs.ModelSource | None = None,
    folder: Path | None = None,
) -> Job:
    """Find model and input, and record them.

    Args:
        config: of the command.
        run_dir: where the tables go.
        reporter: messages.
        source: the model, by default the one that the configuration names.
        folder: that relative inputs start from, by default the working directory.

    Raises:
        ClapkitError: if model or input cannot be used.
    """
    source = source or _source(config, run_dir)
    run_dir.add_input(source.path, source.fingerprint)
    given = resolve_input(config, model=source, folder=folder)
    modality = choose_modality(config.modality, given)
    device = inputs.choose_device(config.device)
    run_dir.set_device(device)
    reporter.say(f"model {source.name} on {device}; {modality} of {given.manifest.name} ({len(given.manifest)} clips)")
    if given.source is not None:
        run_dir.add_input(given.source, given.manifest.fingerprint)
    return Job(config, source, given, modality, device, folder or Path.cwd())


def _source(config: EmbedConfig, run_dir: RunDir) -> inputs.ModelSource:
    """The model that is named; a run that goes on keeps the one that it was started with."""
    recorded = next(iter(run_dir.record["inputs"]), None) if config.resume and config.model is None else None
    if recorded is None:
        return inputs.resolve_model(config.model, runs_root=config.runs_root)
    path = Path(recorded["path"])
    source = inputs.resolve_model(os.fspath(path), runs_root=config.runs_root) if holds_model(path) else None
    if source is None or source.fingerprint != recorded["fingerprint"]:
        raise CheckpointError(
            f"--resume: {run_dir.path} was started with the model {path}, which is gone or another by now; restore it, or "
            "start again with --overwrite"
        )
    return source if source.run is None else dataclasses.replace(source, name=source.run.path.name)


def load(job: Job, reporter: Reporter) -> Encoder:
    """Load the model of a job, and make sure that it takes what it will be given.

    Raises:
        ConfigError: if it is told a language that it does not ask for, or windows that it does not take.
        CheckpointError: if it cannot be loaded.
    """
    model = inputs.load_model(job.source.path, device=job.device)
    if job.config.lang is not None:
        inputs.expect_languages(model, job.config.lang, name=job.source.name)
    for note in model.notes:
        reporter.say(note)
    audio_policy(model, job.config)
    return model


def audio_policy(model: Encoder, config: EmbedConfig) -> dict[str, Any]:
    """How audio is cut and pooled; ``fusion`` is there where windows become one vector by something else than their mean.

    Raises:
        ConfigError: if window or hop are out of range.
    """
    spec = model.audio_spec
    window, hop = window_samples(spec, window_s=config.window_s, hop_s=config.hop_s)
    fusion = getattr(model, "fusion", "mean") if config.pool == "mean" else "mean"
    policy = {
        "sample_rate": spec.sample_rate,
        "window_s": window / spec.sample_rate,
        "hop_s": hop / spec.sample_rate,
        "padding": "zeros",
        "pool": config.pool,
        "precision": config.precision,
    }
    return policy if fusion == "mean" else policy | {"fusion": fusion}


def earlier_audio(table: EmbeddingTable, info: TableInfo) -> EarlierAudio:
    """Rows of an audio table that is brought up to date."""
    policy = info.audio_policy
    rate = policy["sample_rate"]
    window, hop = (round(policy[key] * rate) for key in ("window_s", "hop_s"))

    def num_windows(length_s: float) -> int:
        return len(span_windows(round(length_s * rate), window=window, hop=hop))

    return EarlierAudio(
        table, has_spans=info.data.get("has_spans"), num_windows=num_windows if policy["pool"] == "mean" else None
    )


def write_tables(
    job: Job,
    model: Encoder,
    folder: Path,
    *,
    reporter: Reporter,
    shard: Shard | None = None,
    generation: int = 0,
    earlier: Earlier | None = None,
    changes: Changes | None = None,
) -> Tables:
    """Embed into the files of a table, which nobody sees before they are published.

    Args:
        job: what is embedded.
        model: of the job, loaded.
        folder: of the table.
        reporter: progress.
        shard: the part that is embedded; None for all.
        generation: of the files.
        earlier: the table that is brought up to date.
        changes: is told of every clip.

    Raises:
        AudioError: if no clip can be embedded.
        NumericalError: if an embedding is not finite.
    """
    manifest = job.given.manifest if shard is None else shard.of(job.given.manifest)
    earlier = earlier or Earlier()
    policy = audio_policy(model, job.config)
    settings = _settings(job)
    written: list[Written] = []
    audio, num_clips = AudioSummary(), len(manifest)
    if job.modality in ("audio", "both"):
        known = known_vectors(
            folder, fingerprint=job.source.fingerprint, policy=policy, cache=job.config.cache, earlier=earlier.audio
        )
        with _writer("audio", job, model, folder, generation) as writer, known as vectors:
            audio = write_audio(
                model,
                manifest,
                writer=writer,
                known=vectors,
                settings=settings,
                reporter=reporter,
                # A job of few clips is not made to encode a whole batch.
                keeps_batches=len(job.given.manifest) >= job.config.batch_size,
                changes=changes,
            )
            written.append(writer.finish())
        rejections = _of_input(job, shard)
        audio.rejections[:0] = rejections
        num_clips += len(rejections)
    if job.modality in ("text", "both") and any(clip.captions for clip in manifest):
        scope = policy_scope(job.source.fingerprint, {"modality": "text", "precision": job.config.precision})
        with _writer("text", job, model, folder, generation) as writer, open_progress(folder, scope=scope) as progress:
            write_captions(
                model,
                manifest,
                writer=writer,
                progress=progress,
                settings=settings,
                reporter=reporter,
                earlier=earlier.captions,
                changes=changes if job.modality == "text" else None,
            )
            written.append(writer.finish())
    if not written:
        raise ManifestError(f"shard {shard}: its {len(manifest)} clips have no captions; make fewer parts")
    info = TableInfo(
        width=model.embedding_dim,
        dtype=job.dtype,
        counts={part.modality: part.count for part in written},
        model_path=os.fspath(job.source.path.resolve()),
        model_fingerprint=job.source.fingerprint,
        audio_policy=policy,
        data=_data(job, manifest, shard),
    )
    return Tables(written, info, audio, num_clips=num_clips)


def _of_input(job: Job, shard: Shard | None) -> tuple[dict[str, str], ...]:
    """Files that cannot be clips; of several parts the first one lists them."""
    return job.given.rejections if shard is None or shard.number == 0 else ()


def _settings(job: Job) -> Settings:
    config = job.config
    return Settings(
        window_s=config.window_s,
        hop_s=config.hop_s,
        pool=config.pool,
        batch_size=config.batch_size,
        precision=config.precision,
        device=job.device,
        workers=config.workers,
    )


def _writer(modality: Modality, job: Job, model: Encoder, folder: Path, generation: int) -> TableWriter:
    return TableWriter(folder, modality, width=model.embedding_dim, dtype=job.dtype, generation=generation)


def _data(job: Job, manifest: Manifest, shard: Shard | None) -> dict[str, Any]:
    config = job.config
    data: dict[str, Any] = {
        "name": manifest.name,
        "fingerprint": manifest.fingerprint,
        "split": config.split,
        "num_clips": len(job.given.manifest) + len(job.given.rejections),
        # What an update needs to find the same input again.
        "inputs": list(config.inputs),
        "folder": os.fspath(job.folder.absolute()),
        "modality": config.modality,
        "lang": config.lang,
        "has_spans": any(clip.start_s is not None or clip.end_s is not None for clip in job.given.manifest),
    }
    return data if shard is None else data | {"shard": str(shard)}
