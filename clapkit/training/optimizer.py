"""AdamW over parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import nn


def parameter_groups(
    encoder: nn.Module, *, lr: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters of an encoder: matrices and kernels decay; gains, biases, position codes and scales do not.

    Args:
        encoder: with ``learning_rate_scales(decay)`` (parameter name -> share of ``lr``) where ``layer_decay`` is given.
        lr: peak learning rate, that of the projection heads.
        weight_decay: of matrices and kernels.
        layer_decay: learning rate of a layer as a share of that of the layer behind it; None for one rate, in two groups.

    Returns:
        Groups, named by weight decay and share of the learning rate; the highest rate comes first.

    Raises:
        ConfigError: if there is a ``layer_decay`` and a tower has no layers.
    """
    trainable = [(name, p) for name, p in encoder.named_parameters() if p.requires_grad]
    if layer_decay is None:
        return _decayed_and_not(trainable, lr=lr, weight_decay=weight_decay, suffix="")
    scales: dict[str, float] = encoder.learning_rate_scales(layer_decay)  # type: ignore[operator]
    groups = []
    for scale in sorted({scales[name] for name, _ in trainable}, reverse=True):
        equal = [(name, p) for name, p in trainable if scales[name] == scale]
        groups += _decayed_and_not(equal, lr=lr * scale, weight_decay=weight_decay, suffix=f" x{scale:.4g}")
    return groups


def _decayed_and_not(
    parameters: Sequence[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float, suffix: str
) -> list[dict[str, Any]]:
    decayed = [p for name, p in parameters if p.ndim > 1 and not name.endswith("positions")]
    free = [p for name, p in parameters if p.ndim <= 1 or name.endswith("positions")]
    return [
        {"name": f"decayed{suffix}", "params": decayed, "lr": lr, "weight_decay": weight_decay},
        {"name": f"undecayed{suffix}", "params": free, "lr": lr, "weight_decay": 0.0},
    ]


def build_optimizer(groups: Iterable[dict[str, Any]]) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019, arXiv 1711.05101) with the betas usual for contrastive training.

    Each group keeps its peak learning rate under ``peak_lr``.
    """
    filled = [group | {"peak_lr": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(filled, betas=(0.9, 0.98), eps=1e-6)


def learning_rate_factor(step: int, *, total_steps: int, warmup_steps: int, schedule: Literal["cosine", "constant"]) -> float:
    """Share of the peak learning rate at a step, from 0: linear warm-up, then a cosine to 0 or a constant."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Scale every group to ``factor`` of its peak; gives the learning rate of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    lr: float = optimizer.param_groups[0]["lr"]
    return lr
