"""Projection heads: from the width of a tower to that of the joint space."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from clapkit.encoders.initialization import preserve_variance
from clapkit.errors import UnknownNameError


class ProjectionHead(nn.Module):
    """Linear, GELU, linear with a shortcut, layer norm: the head of msclap, and of what we train from scratch."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, outputs)
        self.refine = nn.Linear(outputs, outputs)
        self.norm = nn.LayerNorm(outputs)
        preserve_variance(self)

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        projected = self.project(features)
        normed: Tensor = self.norm(projected + self.refine(functional.gelu(projected)))
        return normed


class ClapHead(nn.Module):
    """Linear, ReLU, linear: the head of LAION-CLAP (Wu et al., 2023, arXiv 2211.06687)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(inputs, outputs)
        self.linear2 = nn.Linear(outputs, outputs)

    def forward(self, features: Tensor) -> Tensor:
        """[B, inputs] to [B, outputs]."""
        projected: Tensor = self.linear2(functional.relu(self.linear1(features)))
        return projected


HEADS: dict[str, Callable[[int, int], nn.Module]] = {"mlp": ProjectionHead, "clap": ClapHead}


def make_head(kind: str, inputs: int, outputs: int) -> nn.Module:
    """A projection head.

    Args:
        kind: a key of ``HEADS``.
        inputs: width of the tower.
        outputs: width D of the joint space.

    Raises:
        UnknownNameError: if there is no such head.
    """
    if kind not in HEADS:
        raise UnknownNameError("projection head", kind, HEADS)
    return HEADS[kind](inputs, outputs)
