"""``clapkit embed``: a model over clips, audio files or captions; leaves embedding tables."""

from __future__ import annotations

import os
from typing import Any, Literal

from clapkit.config import EmbedConfig
from clapkit.data.manifest import Manifest
from clapkit.index.table import EmbeddingTable, TableInfo, save_tables
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.embed_input import EmbedInput, choose_modality, resolve_input
from clapkit.steps.embedding import AudioEmbeddings, Encoder, embed_clips, embed_texts, window_samples
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
    inputs.refuse_options(config.options)
    source = inputs.resolve_model(config.model, runs_root=config.runs_root)
    run_dir.add_input(source.path, source.fingerprint)
    given = resolve_input(config, model=source)
    modality = choose_modality(config.modality, given)
    device = inputs.choose_device(config.device)
    run_dir.set_device(device)
    reporter.say(f"model {source.name} on {device}; {modality} of {given.manifest.name} ({len(given.manifest)} clips)")
    if given.source is not None:
        run_dir.add_input(given.source, given.manifest.fingerprint)
    model = inputs.load_model(source.path, device=device)
    if config.lang is not None:
        inputs.expect_languages(model, config.lang, name=source.name)
    for note in model.notes:
        reporter.say(note)
    tables = []
    summary = {"num_windows": 0, "num_rejected": 0}
    if modality in ("audio", "both"):
        audio = _embed_audio(model, given.manifest, config=config, device=device, reporter=reporter)
        _report_rejected(audio, given, run_dir=run_dir, reporter=reporter)
        tables.append(audio_table(audio, given.manifest, dtype=_dtype(config.store)))
        summary = {"num_windows": audio.num_windows, "num_rejected": len(audio.rejected)}
    if modality in ("text", "both"):
        tables.append(_embed_captions(model, given.manifest, config=config, device=device, reporter=reporter))
    info = TableInfo(
        width=model.embedding_dim,
        dtype=_dtype(config.store),
        counts={table.modality: len(table) for table in tables},
        model_path=os.fspath(source.path.resolve()),
        model_fingerprint=source.fingerprint,
        audio_policy=_audio_policy(model, config),
        data={"name": given.manifest.name, "fingerprint": given.manifest.fingerprint, "split": config.split},
    )
    save_tables(run_dir.path, tables, info)
    return {
        "model": source.name,
        "model_fingerprint": source.fingerprint,
        "device": device,
        "data": dict(info.data),
        "modality": info.modality,
        "width": info.width,
        "dtype": info.dtype,
        "counts": dict(info.counts),
        **summary,
        "paths": {"table": inputs.TABLE},
    }


def _report_rejected(audio: AudioEmbeddings, given: EmbedInput, *, run_dir: RunDir, reporter: Reporter) -> None:
    run_dir.write_lines(run_dir.rejected_path, [{"item": r.item, "reason": r.reason} for r in audio.rejected])
    if audio.rejected:
        reporter.warn(f"{len(audio.rejected)} of {len(given.manifest)} clips could not be embedded, see rejected.jsonl")


def audio_table(
    audio: AudioEmbeddings, manifest: Manifest, *, dtype: Literal["float16", "float32"] = "float32"
) -> EmbeddingTable:
    """Put audio embeddings and what is known about their clips together.

    Args:
        audio: embedded clips.
        manifest: that they were made from.
        dtype: number format to keep.
    """
    clips = [manifest.clips[row] for row in audio.clip]
    return EmbeddingTable.build(
        "audio",
        audio.vectors,
        ids=[clip.id for clip in clips],
        paths=[os.fspath(manifest.audio_path(clip)) for clip in clips],
        spans=audio.spans,
        captions=[[caption.text for caption in clip.captions] for clip in clips],
        labels=[clip.labels for clip in clips],
        splits=[clip.split for clip in clips],
        dtype=dtype,
    )


def _embed_audio(
    model: Encoder, manifest: Manifest, *, config: EmbedConfig, device: str, reporter: Reporter
) -> AudioEmbeddings:
    return embed_clips(
        model,
        manifest,
        reporter=reporter,
        window_s=config.window_s,
        hop_s=config.hop_s,
        pool=config.pool,
        batch_size=config.batch_size,
        precision=config.precision,
        device=device,
        workers=config.workers,
    )


def _embed_captions(
    model: Encoder, manifest: Manifest, *, config: EmbedConfig, device: str, reporter: Reporter
) -> EmbeddingTable:
    rows = [(clip, caption) for clip in manifest for caption in clip.captions]
    vectors = embed_texts(
        model,
        [caption.text for _, caption in rows],
        languages=[caption.lang for _, caption in rows],
        reporter=reporter,
        batch_size=config.batch_size,
        precision=config.precision,
        device=device,
    )
    return EmbeddingTable.build(
        "text",
        vectors,
        ids=[clip.id for clip, _ in rows],
        paths=[os.fspath(manifest.audio_path(clip)) for clip, _ in rows],
        spans=[(clip.start_s, clip.end_s) for clip, _ in rows],
        captions=[[caption.text] for _, caption in rows],
        labels=[clip.labels for clip, _ in rows],
        splits=[clip.split for clip, _ in rows],
        dtype=_dtype(config.store),
    )


def _audio_policy(model: Encoder, config: EmbedConfig) -> dict[str, Any]:
    spec = model.audio_spec
    window, hop = window_samples(spec, window_s=config.window_s, hop_s=config.hop_s)
    return {
        "sample_rate": spec.sample_rate,
        "window_s": window / spec.sample_rate,
        "hop_s": hop / spec.sample_rate,
        "padding": "zeros",
        "pool": config.pool,
        "precision": config.precision,
    }


def _dtype(store: Literal["fp16", "fp32"]) -> Literal["float16", "float32"]:
    return "float16" if store == "fp16" else "float32"
