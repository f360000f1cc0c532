"""``clapkit embed vectors.npy``: vectors that something else has made become a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from clapkit.config import EmbedConfig
from clapkit.errors import ConfigError
from clapkit.files import file_fingerprint
from clapkit.index.foreign import read_foreign
from clapkit.index.table import TableInfo
from clapkit.index.writer import TableWriter
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.embed_job import Tables, audio_policy
from clapkit.steps.embed_outcome import finish
from clapkit.steps.embed_write import AudioSummary
from clapkit.types import Reporter

FOREIGN = "foreign"
"""Stands for the fingerprint of a model that nobody has named."""


def run(config: EmbedConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Make a table of a ``.npy`` file.

    Args:
        config: of the command; its input is the file.
        run_dir: where the table goes.
        reporter: messages.

    Raises:
        ConfigError: if more than the file is given, or the model makes vectors of another width.
        EmbeddingError: if the file cannot be used.
    """
    if len(config.inputs) > 1:
        raise ConfigError(f"inputs {', '.join(config.inputs)}: a file of vectors stands alone; make one table of each")
    if config.modality == "both":
        raise ConfigError("--modality both: a file of vectors is one table; say audio or text")
    path = Path(config.inputs[0])
    if path.is_dir():
        raise ConfigError(f"input {path}: is a folder, expected one .npy file; name the file in it")
    modality: Literal["audio", "text"] = config.modality or "audio"
    table = read_foreign(path, config.ids, modality=modality)
    digest = file_fingerprint(path)
    run_dir.add_input(path, digest)
    if config.ids is not None:
        run_dir.add_input(config.ids, file_fingerprint(config.ids))
    source, policy = _model(config, run_dir, table.width)
    reporter.say(f"{len(table)} vectors of width {table.width} of {path.name}, model {source.name if source else 'unknown'}")
    dtype: Literal["float16", "float32"] = "float16" if config.store == "fp16" else "float32"
    with TableWriter(run_dir.path, modality, width=table.width, dtype=dtype) as writer:
        for vectors, metadata in table.blocks():
            writer.append(vectors, metadata)
        written = writer.finish()
    info = TableInfo(
        width=table.width,
        dtype=dtype,
        counts={modality: len(table)},
        model_path=os.fspath(source.path.resolve()) if source else "",
        model_fingerprint=source.fingerprint if source else FOREIGN,
        audio_policy=policy,
        data={"name": path.name, "fingerprint": digest, "split": None, "is_foreign": True, "num_clips": len(table)},
    )
    tables = Tables([written], info, AudioSummary(), num_clips=len(table))
    return finish(config, run_dir, tables, reporter, model=source.name if source else FOREIGN, device=None)


def _model(config: EmbedConfig, run_dir: RunDir, width: int) -> tuple[inputs.ModelSource | None, dict[str, Any]]:
    """The model that queries are to be embedded with, if one is named, and how it takes audio."""
    if config.model is None:
        return None, {}
    source = inputs.resolve_model(config.model, runs_root=config.runs_root)
    model = inputs.load_model(source.path, device="cpu")
    if model.embedding_dim != width:
        raise ConfigError(
            f"--model {config.model}: makes vectors of width {model.embedding_dim}, {config.inputs[0]} holds {width}; name the "
            "model that made them, or none"
        )
    run_dir.add_input(source.path, source.fingerprint)
    return source, audio_policy(model, config)
