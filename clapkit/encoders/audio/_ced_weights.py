"""Checkpoints of CED, under the names of the original code and of its conversion on the Hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clapkit.encoders import pretrained
from clapkit.encoders.audio import _ced_tower
from clapkit.encoders.audio._ced_tower import PATCH, PATCH_SAMPLES, SAMPLE_RATE, DecibelMel
from clapkit.errors import CheckpointError

WIDTHS = {"tiny": 192, "mini": 256, "small": 384, "base": 768}

# A module's name in a checkpoint -> ours. The Hub's names have ``encoder.`` before them; the original wraps the batch norm.
NAMES = {
    "init_bn.1": "normalize",
    "init_bn": "normalize",
    "patch_embed.proj": "patch_embedding",
    "norm": "norm",
}
LAYER_NAMES = {
    "norm1": "attention_norm",
    "attn.qkv": "query_key_value",
    "attn.proj": "attention_out",
    "norm2": "feed_forward_norm",
    "mlp.fc1": "expand",
    "mlp.fc2": "contract",
}
POSITIONS = {"time_pos_embed": "time_positions", "freq_pos_embed": "frequency_positions"}
# Constants that the original stores with its weights -> the buffer of our front end that must hold the same.
CONSTANTS = {"front_end.0.spectrogram.window": "hann", "front_end.0.mel_scale.fb": "filters"}
CLASSIFIER = "outputlayer."

# What config.json may say of the architecture, and the one that is built here.
ARCHITECTURE = {
    "model_type": "ced",
    "n_mels": _ced_tower.NUM_MELS,
    "n_fft": _ced_tower.FFT_SIZE,
    "win_size": _ced_tower.FFT_SIZE,
    "hop_size": _ced_tower.HOP,
    "f_min": 0,
    "f_max": SAMPLE_RATE // 2,
    "center": True,
    "patch_size": PATCH,
    "patch_stride": PATCH,
    "depth": _ced_tower.NUM_LAYERS,
    "mlp_ratio": 4,
    "qkv_bias": True,
}


@dataclass(frozen=True, slots=True)
class CedWeights:
    """A checkpoint under clapkit's names.

    Attributes:
        origin: where it is from, for messages.
        size: a key of ``WIDTHS``.
        tensors: of everything but front end and classifier; the time positions as long as the checkpoint has them.
        notes: what was left out.
    """

    origin: str
    size: str
    tensors: dict[str, Tensor]
    notes: list[str]


def read_weights(address: str) -> CedWeights:
    """Read a checkpoint of CED.

    Args:
        address: a ``.pt`` or ``.safetensors`` file, a folder with ``config.json`` and ``model.safetensors``, or a name of the
            Hub.

    Raises:
        CheckpointError: if it cannot be read, is of another model, or holds a tensor that has no place.
    """
    path = pretrained.find(address)
    if path.is_dir():
        _check_config(path / pretrained.CONFIG)
        path /= "model.safetensors"
    content = pretrained.read_tensors(path)
    content = content["model"] if isinstance(content.get("model"), dict) else content
    size = _size(content, path)
    tensors: dict[str, Tensor] = {}
    classifier: list[str] = []
    unknown: list[str] = []
    for name, tensor in content.items():
        ours = _our_name(name)
        if ours is not None and ours not in tensors:
            tensors[ours] = tensor
        elif name in CONSTANTS:
            _check_constant(name, tensor, path)
        else:
            (classifier if name.startswith(CLASSIFIER) else unknown).append(name)
    if unknown:
        raise CheckpointError(
            f"{path}: {len(unknown)} tensors are no part of CED (first {min(unknown)}); name a checkpoint of CED as published"
        )
    notes = [f"ced-{size}: the classifier is left out ({pretrained.shorten(sorted(classifier))})"] if classifier else []
    return CedWeights(str(path), size, tensors, notes)


def fit_time_positions(weights: CedWeights, patches: int) -> list[str]:
    """Cut or stretch the time positions to the patches of a window, in place.

    Returns:
        A sentence on the stretching, if there was any.

    Raises:
        CheckpointError: if there are no time positions.
    """
    table = weights.tensors.get("time_positions")
    if table is None or table.dim() != 4:
        raise CheckpointError(f"{weights.origin}: has no time_pos_embed of four dimensions; name a checkpoint of CED")
    known = table.shape[3]
    if patches <= known:
        weights.tensors["time_positions"] = table[..., :patches]
        return []
    # Positions of one row are stretched as a picture of height 1 would be, so linearly.
    weights.tensors["time_positions"] = functional.interpolate(table.float(), size=(1, patches), mode="bilinear")
    lengths = (f"{count * PATCH_SAMPLES / SAMPLE_RATE:.2f} s" for count in (known, patches))
    return [
        f"ced-{weights.size}: time positions for {known} patches ({next(lengths)}) are stretched to {patches} "
        f"({next(lengths)}), which the checkpoint never saw; shorter windows use them as they are"
    ]


def _our_name(name: str) -> str | None:
    """Our name of a tensor of a checkpoint; None if it has none."""
    name = name.removeprefix("encoder.")
    if name in POSITIONS:
        return POSITIONS[name]
    module, _, tensor = name.rpartition(".")
    layer = re.fullmatch(r"blocks\.(\d+)\.(.+)", module)
    if layer:
        return f"layers.{layer[1]}.{LAYER_NAMES[layer[2]]}.{tensor}" if layer[2] in LAYER_NAMES else None
    return f"{NAMES[module]}.{tensor}" if module in NAMES else None


def _size(content: Mapping[str, Any], path: Path) -> str:
    odd = sorted(str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, Tensor))
    if odd:
        raise CheckpointError(f"{path}: {odd[0]} is no tensor; expected a checkpoint of CED, which holds nothing else")
    embedding = content.get("patch_embed.proj.weight", content.get("encoder.patch_embed.proj.weight"))
    if embedding is None:
        raise CheckpointError(f"{path}: has no patch_embed.proj.weight, so it is no checkpoint of CED; name one")
    sizes = {width: size for size, width in WIDTHS.items()}
    width = embedding.shape[0] if embedding.dim() else 0
    if width not in sizes:
        known = ", ".join(f"{size} {width}" for size, width in WIDTHS.items())
        raise CheckpointError(f"{path}: layers are {width} wide, expected a size of CED ({known}); name one of these")
    return sizes[width]


def _check_config(path: Path) -> None:
    config = pretrained.read_json(path)
    for key, expected in ARCHITECTURE.items():
        found = config.get(key, None if key == "model_type" else expected)
        if found != expected:
            raise CheckpointError(f"{path}: {key} is {found!r}, CED has {expected!r}; name a checkpoint of CED")


def _check_constant(name: str, tensor: Tensor, path: Path) -> None:
    expected = getattr(DecibelMel(), CONSTANTS[name])
    if tensor.shape != expected.shape or not torch.allclose(tensor.float(), expected, atol=1e-3):
        raise CheckpointError(f"{path}: {name} is not that of CED, so it was trained on other spectrograms; name another file")
