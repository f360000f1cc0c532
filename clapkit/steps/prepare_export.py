"""``prepare --export``: the clips once more, in a form that other tools read."""

from __future__ import annotations

import shutil
from typing import Any

from clapkit.config import PrepareConfig
from clapkit.data.export.hub import write_hub
from clapkit.data.export.webdataset import write_shards
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError, RunDirError
from clapkit.run_dir import RunDir
from clapkit.types import Reporter

DEFAULT_SHARD_SIZE = 1000
# Where an export goes in the run directory.
FOLDERS = {"webdataset": "shards", "hf": "hub"}


def check_export(config: PrepareConfig) -> None:
    """Make sure that the options of an export can be meant.

    Raises:
        ConfigError: if they cannot.
    """
    if config.shard_size is not None and config.export is None:
        raise ConfigError(f"--shard-size {config.shard_size}: nothing is exported; add --export webdataset or hf")
    if config.shard_size is not None and config.shard_size < 1:
        raise ConfigError(f"--shard-size {config.shard_size}: expected at least 1")


def export(manifest: Manifest, config: PrepareConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any] | None:
    """Write what ``--export`` asks for; gives what ``result.json`` says of it, None if nothing was asked.

    Raises:
        RunDirError: if the files cannot be written.
        ManifestError: under ``--strict``, if a clip cannot be.
    """
    if config.export is None:
        return None
    size = config.shard_size or DEFAULT_SHARD_SIZE
    folder = run_dir.path / FOLDERS[config.export]
    if folder.exists():  # what a killed process left of it
        shutil.rmtree(folder)
    with reporter.track(f"exporting ({config.export})", len(manifest), "clips") as tracker:
        try:
            if config.export == "webdataset":
                written = write_shards(manifest, folder, samples_per_shard=size, tracker=tracker)
            else:
                written = write_hub(manifest, folder, rows_per_file=size, tracker=tracker)
        except OSError as error:  # such as a full disk, or audio that vanished meanwhile
            reason = error.strerror or error
            raise RunDirError(
                f"{folder}: the export cannot be written ({reason}); make room, then go on with --resume"
            ) from error
    if written["num_failed"]:
        first = written["failed"][0]
        reporter.warn(
            f"--export: {written['num_failed']} clips could not be written, first: {first['item']}: {first['reason']}"
        )
        if config.strict:
            raise ManifestError(f"--strict: {written['num_failed']} clips could not be exported, first: {first['item']}")
    return {"format": config.export, "path": folder.name} | written
