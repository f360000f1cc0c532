"""Any model that clapkit can use whole, whatever wrote it."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import torch

from clapkit.encoders import clap, laion, msclap
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import CHECKPOINT_SUFFIXES, CONFIG
from clapkit.encoders.pretrained import read_json
from clapkit.errors import CheckpointError

EXPECTED = "expected a clapkit model folder, a folder of a transformers ClapModel, a LAION .pt or an msclap .pth"


def load(path: Path, device: str | torch.device = "cpu") -> DualEncoder:
    """A dual encoder in evaluation mode from a model folder of clapkit or transformers, or from a checkpoint file.

    Args:
        path: of the folder or file.
        device: where the model goes.

    Raises:
        CheckpointError: if there is nothing, or something else, or it is damaged.
    """
    if path.is_dir():
        return _load_folder(path, device)
    if not path.is_file():
        raise CheckpointError(f"model {path}: no such file or folder; {EXPECTED}")
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise CheckpointError(
            f"model {path}: is a {f'{path.suffix} file' if path.suffix else 'file without a suffix'}; {EXPECTED}"
        )
    model = msclap.load(path) if _is_of_msclap(path) else laion.load(path)
    return model.to(device).eval()


def _load_folder(folder: Path, device: str | torch.device) -> DualEncoder:
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"model {folder}: has no {CONFIG}; {EXPECTED}")
    config = read_json(folder / CONFIG)
    if "clapkit_model" in config or "model_type" not in config:
        return DualEncoder.load(folder, device)
    if config["model_type"] != clap.MODEL_TYPE:
        option = "--audio-weights" if (folder / clap.FRONT_END).is_file() else "--text-weights"
        raise CheckpointError(
            f"model {folder}: is of type {config['model_type']!r}, which is no audio-text model; to train with it as a tower, "
            f"pass it as {option}"
        )
    return clap.from_transformers(folder).to(device).eval()


def _is_of_msclap(path: Path) -> bool:
    """Whether a checkpoint names tensors of msclap; where it tells nothing without being loaded, its suffix decides.

    A checkpoint of torch is a zip archive, in which a pickle lists the names of the tensors as plain text.
    """
    content = b""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        content = b"".join(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    if msclap.TEXT.encode() in content or laion.AUDIO.encode() in content:
        return msclap.TEXT.encode() in content
    return path.suffix == ".pth"
