"""Which model, data and embeddings are meant: by path, by name under the runs root, or the newest finished run.

Nothing here loads torch before a model is asked for, so that a query that needs none stays fast.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapkit import registry
from clapkit.data.file_table import read_sizes
from clapkit.data.manifest import Manifest
from clapkit.encoders.fingerprint import holds_model, model_fingerprint
from clapkit.errors import ConfigError, EmbeddingError, ManifestError, RunDirError, UnknownNameError
from clapkit.run_dir import RunDir
from clapkit.runs import newest_run, open_run
from clapkit.steps.fingerprints import known_fingerprint
from clapkit.steps.query_cache import cache_dir

if TYPE_CHECKING:
    from clapkit.encoders.dual import DualEncoder
    from clapkit.encoders.numpy_text import NumpyTextEncoder

MANIFEST = "manifest.jsonl"
TABLE = "table.json"
FILES = "files.parquet"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w-]*/[\w.-]+")
"""``owner/name``; a path is hardly written like that without being there."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on disk.

    Attributes:
        path: of its folder (``model.safetensors`` and ``config.json``, or a CLAP folder of transformers) or file.
        name: how results call it: the run, the path, or the name on the Hub.
        fingerprint: hash of weights and configuration.
        run: the train run that made it, if it was named by one.
    """

    path: Path
    name: str
    fingerprint: str
    run: RunDir | None


@dataclass(frozen=True, slots=True)
class DataSource:
    """A manifest on disk.

    Attributes:
        path: of the ``manifest.jsonl``.
        manifest: its content.
    """

    path: Path
    manifest: Manifest


def resolve_model(address: str | None, *, runs_root: Path) -> ModelSource:
    """Find a model.

    Args:
        address: train run (path or name), model folder or file, name on the Hugging Face Hub, or None for the newest train
            run.
        runs_root: where runs live.

    Raises:
        RunDirError: if there is no such run or it is not finished.
        CheckpointError: if the folder holds no model, or the Hub does not give it.
    """
    if address is None:
        run = newest_run("train", runs_root=runs_root)
        return ModelSource(run.model_dir, run.path.name, model_fingerprint(run.model_dir), run)
    path = Path(address)
    if holds_model(path):
        return ModelSource(path, os.fspath(path), model_fingerprint(path), _run_of(path))
    if _is_of_hub(address, runs_root=runs_root):
        from clapkit.encoders.pretrained import find

        path = find(address)
        return ModelSource(path, address, model_fingerprint(path), None)
    run = open_run(address, step="train", runs_root=runs_root)
    return ModelSource(run.model_dir, run.path.name, model_fingerprint(run.model_dir), run)


def _is_of_hub(address: str, *, runs_root: Path) -> bool:
    """Whether an address is an ``owner/name`` that nothing here is called."""
    here = (Path(address), runs_root / "train" / address, runs_root / address)
    return HUB_NAME.fullmatch(address) is not None and not any(path.exists() for path in here)


def load_model(path: Path, *, device: str) -> DualEncoder:
    """Load a model in evaluation mode.

    Args:
        path: of its folder or file.
        device: as torch names it, from ``choose_device``.

    Raises:
        CheckpointError: if the model cannot be loaded.
    """
    from clapkit.encoders.loading import load

    return load(path, device)


def expect_languages(model: DualEncoder | NumpyTextEncoder, language: str, *, name: str) -> None:
    """Make sure that a model looks at the language that it is told.

    Args:
        model: that embeds sentences.
        language: of ``--lang``.
        name: of the model.

    Raises:
        ConfigError: if it reads all languages alike.
    """
    if not model.takes_languages:
        raise ConfigError(f"--lang {language}: the model {name} reads all languages alike and is told none; leave --lang out")


def check_device_name(name: str) -> None:
    """Make sure that a device may exist, without torch.

    Raises:
        ConfigError: if the name is of no kind of device.
    """
    if not re.fullmatch(r"auto|(cpu|cuda|mps)(:\d+)?", name):
        raise ConfigError(f"--device {name!r}: expected auto, cpu, cuda, cuda:N or mps")


def choose_device(name: str) -> str:
    """The device to use, as torch names it.

    Args:
        name: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``; ``auto`` takes the first accelerator there is.

    Raises:
        ConfigError: if the device does not exist here.
    """
    import torch

    check_device_name(name)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = name.partition(":")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if int(number or 0) >= available[kind]:
        raise ConfigError(f"--device {name!r}: {available[kind]} such devices here; use auto or cpu")
    return name


def resolve_data(address: str | None, *, model: ModelSource, runs_root: Path) -> DataSource:
    """Find the data to work on.

    Args:
        address: prepare run (path or name), manifest, or None for the data that the model was trained on.
        model: whose data are the default.
        runs_root: where runs live.

    Raises:
        RunDirError: if there is no such run or it is not finished.
        ManifestError: if the manifest cannot be used, or the model's data are unknown or gone.
    """
    if address is None:
        return _training_data(model)
    return resolve_prepared(address, runs_root=runs_root)


def resolve_prepared(address: str | None, *, runs_root: Path) -> DataSource:
    """Find prepared data.

    Args:
        address: prepare run (path or name), manifest, or None for the newest prepare run.
        runs_root: where runs live.

    Raises:
        RunDirError: if there is no such run or it is not finished.
        ManifestError: if the manifest cannot be used, or a run is not what prepare left.
    """
    if address is None:
        return _load_run(newest_run("prepare", runs_root=runs_root))
    if Path(address).is_file():
        return _load(Path(address))
    return _load_run(open_run(address, step="prepare", runs_root=runs_root))


def resolve_embeddings(address: str | None, *, runs_root: Path) -> Path:
    """Find the folder of an embedding table.

    Args:
        address: embed run (path or name), folder with a ``table.json``, or None for the newest embed run.
        runs_root: where runs live.

    Raises:
        RunDirError: if there is no such run or it is not finished.
    """
    if address is None:
        return newest_run("embed", runs_root=runs_root).path
    folder = Path(address)
    if (folder / TABLE).is_file() and not (folder / "run.json").is_file():
        return folder
    return open_run(address, step="embed", runs_root=runs_root).path


def refuse_options(assignments: Sequence[str]) -> None:
    """Make sure that no plug-in option is given to a command that chooses no plug-in.

    Args:
        assignments: of ``-O``.

    Raises:
        UnknownNameError: if there is one.
    """
    keys = list(registry.parse_assignments(assignments))
    if keys:
        raise UnknownNameError("option -O", keys[0], (), hint="this command chooses no plug-in; leave it out")


def check_table_model(folder: Path, *, model_path: Path, fingerprint: str) -> None:
    """Make sure that the model which embeds the query is the one that made a table.

    Args:
        folder: of the table.
        model_path: folder of the model.
        fingerprint: of the model that made the table.

    Raises:
        EmbeddingError: if the model is gone or another one.
    """
    if not holds_model(model_path):
        raise EmbeddingError(f"{folder}: was made by the model in {model_path}, which is gone; restore it or embed again")
    found = known_fingerprint(model_path, cache_dir(os.environ))
    if found != fingerprint:
        raise EmbeddingError(
            f"{folder}: was made by model {fingerprint[:12]}, but {model_path} now holds {found[:12]}; embed again"
        )


def _training_data(model: ModelSource) -> DataSource:
    if model.run is None:
        raise ManifestError(f"model {model.name}: is no train run, so its data are not known; name a prepare run or a manifest")
    inputs: list[dict[str, Any]] = model.run.record.get("inputs", [])
    for entry in inputs:
        path = Path(entry["path"])
        path = path if path.is_absolute() or path.exists() else model.run.path / path
        if path.is_dir() and (path / MANIFEST).is_file():
            return _load_run(RunDir(path))
        if path.name.endswith(".jsonl"):
            return _load_as_trained_on(path, entry.get("fingerprint"), model)
    raise ManifestError(f"train run {model.name}: run.json names no data; name a prepare run or a manifest")


def _load_as_trained_on(path: Path, fingerprint: str | None, model: ModelSource) -> DataSource:
    """A manifest that a model was trained on, if it is what it was then: in other splits, test clips were trained on."""
    source = _load(path)
    if fingerprint is not None and source.manifest.fingerprint != fingerprint:
        raise ManifestError(
            f"{path}: holds clips {source.manifest.fingerprint[:12]}, but {model.name} was trained on {fingerprint[:12]}; "
            "restore them, or name the data to use them as they are"
        )
    run = RunDir(path.parent)
    is_of_run = path.name == MANIFEST and run.finished and run.result.get("fingerprint") == source.manifest.fingerprint
    return _load_run(run) if is_of_run else source


def _run_of(folder: Path) -> RunDir | None:
    """The train run whose ``model/`` this folder is, if any."""
    run = RunDir(folder.resolve().parent)
    try:
        return run if run.finished and run.record.get("step") == "train" else None
    except RunDirError:
        return None


def _load(path: Path) -> DataSource:
    return DataSource(path, Manifest.load(path))


def _load_run(run: RunDir) -> DataSource:
    """The data of a prepare run, if they are what prepare left: a corpus that changed makes other numbers.

    Whoever means to use a manifest that was edited can name the file instead of the run.
    """
    source = _load(run.manifest_path)
    expected = run.result.get("fingerprint") if run.finished else None
    if expected is not None and source.manifest.fingerprint != expected:
        raise ManifestError(
            f"{source.path}: holds clips {source.manifest.fingerprint[:12]}, but prepare wrote {expected[:12]}; prepare again, "
            "or name the file itself to use it as it is"
        )
    table = run.path / FILES
    if table.is_file():  # runs of earlier versions have none
        _expect_sizes(run, source.manifest, read_sizes(table))
    return source


def _expect_sizes(run: RunDir, manifest: Manifest, sizes: Mapping[str, int]) -> None:
    """Make sure that no audio file was replaced since it was checked; looks at sizes, because reading all takes hours."""
    from clapkit.data.members import audio_sizes

    root = os.fspath(manifest.root)
    found_sizes = audio_sizes(os.path.join(root, audio) for audio in sizes)
    changed = [(audio, found) for (audio, size), found in zip(sizes.items(), found_sizes, strict=True) if found != size]
    if changed:
        first, found = changed[0]
        now = "is gone" if found is None else f"has {found} bytes, {sizes[first]} when it was checked"
        raise ManifestError(
            f"prepare run {run.path}: {len(changed)} of {len(sizes)} audio files changed since they were checked, first: "
            f"{first} {now}; restore them or prepare again"
        )
