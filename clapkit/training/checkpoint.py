"""Checkpoints: everything that the next step depends on, whole or not at all.

A checkpoint is a folder with the encoder's and the objective's tensors as safetensors and ``state.pt`` (optimiser,
generators, counters), which loads with ``weights_only``. A new one is completed beside the old one before it takes its name,
so that a kill at any moment leaves one that loads.
"""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from clapkit.errors import CheckpointError

ENCODER, OBJECTIVE, STATE = "model.safetensors", "objective.safetensors", "state.pt"


def save_checkpoint(folder: Path, *, encoder: nn.Module, objective: nn.Module, state: dict[str, Any]) -> None:
    """Replace a checkpoint.

    Args:
        folder: its final place, for example ``checkpoints/last``.
        encoder: the dual encoder.
        objective: the loss with its learnable parts.
        state: optimiser, generators, counters: tensors and plain Python values.
    """
    fresh, old = _beside(folder)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    (fresh / ENCODER).write_bytes(_tensors(encoder))
    (fresh / OBJECTIVE).write_bytes(_tensors(objective))
    torch.save(state, fresh / STATE)
    for path in fresh.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint: ``folder``, or what a kill in the middle of a replacement left; None without any."""
    fresh, old = _beside(folder)
    # Once the old one was renamed, the new one beside it is complete.
    candidates = (folder, fresh if old.exists() else folder, old)
    return next((path for path in candidates if (path / STATE).exists()), None)


def load_checkpoint(folder: Path, *, encoder: nn.Module, objective: nn.Module) -> dict[str, Any]:
    """Load a checkpoint into the modules; gives its ``state``.

    Raises:
        CheckpointError: if a file is missing or damaged, or the tensors do not fit.
    """
    _load_tensors(folder / ENCODER, encoder)
    _load_tensors(folder / OBJECTIVE, objective)
    try:
        state: dict[str, Any] = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise _damaged(folder / STATE, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return state


def generator_state() -> dict[str, Any]:
    """State of torch's global generators, which drive dropout and masking."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_generators(state: dict[str, Any]) -> None:
    """Put torch's global generators back to what ``generator_state`` gave."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")


def _tensors(module: nn.Module) -> bytes:
    # Copies, of which no two share memory, as safetensors demands: tied weights are stored twice.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    content: bytes = safetensors.torch.save(tensors)
    return content


def _load_tensors(path: Path, module: nn.Module) -> None:
    try:
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from error
    expected = module.state_dict()
    odd = sorted(expected.keys() ^ tensors.keys()) or sorted(k for k in expected if expected[k].shape != tensors[k].shape)
    if odd:
        raise CheckpointError(
            f"{path}: {len(odd)} tensors do not fit this configuration, first {odd[0]!r}; "
            "resume with the options that the run was started with"
        )
    module.load_state_dict(tensors)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {path}: cannot be read ({reason}); restore it or start again with --overwrite")
