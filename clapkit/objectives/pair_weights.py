"""Weights of pairs: a loss whose pairs count as much as they are trusted.

A weight belongs to a pair and holds in both directions; what it is made of is the business of the objective that wraps the
loss. Such an objective keeps a memory between steps. ``forward`` only reads it and notes what it has seen; ``after_step``
writes. So all batches of a step are judged alike, however many there are, and a loss that is evaluated twice is the same twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clapkit.objectives import infonce
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, require
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.reweighted import Reweighted
from clapkit.objectives.row_blocks import blocks_of, rolled, rows_of
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.similarity import cosine
from clapkit.objectives.svr import SupportVectorRegularization
from clapkit.objectives.targets import further_positives
from clapkit.objectives.temperature import Temperature
from clapkit.types import LossOutput

WEIGHABLE = (InfoNCE, SigLIP, SupportVectorRegularization, Reweighted)
WEIGHABLE_NAMES = ("infonce", "siglip", "svr", "reweighted")
"""Losses whose ``forward`` takes ``weights``, and their names as plug-ins."""


class WeightedPairs(nn.Module, ABC):
    """A loss whose pairs are weighed before it is computed.

    Parameters, optimiser groups and limits are those of the loss, which stays reachable as ``wrapped``.

    Args:
        wrapped: the loss; None for ``infonce``.

    Attributes:
        judges: whether pairs are weighed and remembered; see ``without_judgement``.

    Raises:
        ConfigError: if it takes no weights.
    """

    def __init__(self, wrapped: nn.Module | None) -> None:
        super().__init__()
        wrapped = infonce.build() if wrapped is None else wrapped
        found = type(wrapped).__name__
        expected = ", ".join(WEIGHABLE_NAMES)
        require(isinstance(wrapped, WEIGHABLE), f"wrapped={found}: takes no weights of pairs; expected one of {expected}")
        self.wrapped = wrapped
        self.judges = True
        self._noted: list[Any] = []

    @abstractmethod
    def weigh(
        self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float
    ) -> tuple[Tensor | None, Mapping[str, Tensor], Any]:
        """Judge the pairs of a batch by what is remembered; called without gradients, with embeddings in full precision.

        Returns:
            Weights [B], or None where all are 1; scalars for the log; what ``remember`` is to be told of the batch.
        """

    @abstractmethod
    def remember(self, noted: list[Any]) -> None:
        """Take up what ``weigh`` noted of the batches of a step, at least one."""

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: as the loss, or if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        if not self.judges:
            unweighed: LossOutput = self.wrapped(audio, text, positives, index, progress)
            return unweighed
        with torch.no_grad(), full_precision(audio.detach(), text.detach()) as (audio_seen, text_seen):
            weights, scalars, noted = self.weigh(audio_seen, text_seen, positives, index, progress)
        self._noted.append(noted)
        output: LossOutput = self.wrapped(audio, text, positives, index, progress, weights)
        numbers = torch.stack([value.to(text.device, torch.float32) for value in scalars.values()]).tolist()
        return replace(output, stats=output.stats | dict(zip(scalars, numbers, strict=True)))

    @property
    def temperature(self) -> Temperature:
        """That of the loss."""
        found = next(module for module in self.wrapped.modules() if isinstance(module, Temperature))
        assert isinstance(found, Temperature)
        return found

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the loss."""
        groups: list[ParamGroup] = self.wrapped.param_groups(lr, weight_decay)  # type: ignore[operator]
        return groups

    @torch.no_grad()
    def after_step(self) -> None:
        """Remember what was seen since the last step, and what the loss does after one."""
        noted, self._noted = self._noted, []
        if noted:
            self.remember(noted)
        self.wrapped.after_step()  # type: ignore[operator]


@contextmanager
def without_judgement(objective: nn.Module) -> Iterator[None]:
    """Calls with pairs that are no sound and its caption: what is remembered of those neither weighs them nor learns of them.

    Args:
        objective: any, with whatever it is made of.
    """
    judges = [module for module in objective.modules() if isinstance(module, WeightedPairs)]
    for module in judges:
        module.judges = False
    try:
        yield
    finally:
        for module in judges:
            module.judges = True


@torch.no_grad()
def pair_losses(audio: Tensor, text: Tensor, positives: Tensor, scale: Tensor | float) -> Tensor:
    """How surprising every pair is: its cross-entropy in the batch, the mean of both directions.

    Further positives are left out, whatever the loss does with them, and no target is softened: of a pair that does not
    belong together both would hide that.

    Args:
        audio: [B, D].
        text: [B, D].
        positives: bool [B, B].
        scale: 1 / tau, a scalar or [B, 1].

    Returns:
        [B], nats, no gradient.
    """
    directions = ((text, audio, positives), (audio, text, positives.T))
    losses = [_row_losses(anchors, targets, marked, scale) for anchors, targets, marked in directions]
    return (losses[0] + losses[1]) / 2


def _row_losses(anchors: Tensor, targets: Tensor, positives: Tensor, scale: Tensor | float) -> Tensor:
    """One direction, [B]; rows are taken in blocks, of which a batch of usual size has one."""
    losses = []
    for rows in blocks_of(len(anchors)):
        logits = rows_of(scale, rows) * cosine(anchors[rows], rolled(targets, rows, dim=0))  # [R, B]
        own = logits.diagonal().clone()  # [R]
        logits.masked_fill_(further_positives(rolled(positives[rows], rows, dim=1)), -torch.inf)
        losses.append(logits.logsumexp(dim=1) - own)
    return torch.cat(losses)
