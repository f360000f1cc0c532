"""A teacher: a second encoder that is not trained by gradients, and tells the loss what it makes of the same batch.

It is either frozen, the encoder as it was at the start, or follows the encoder as a slow mean of its weights.

References: frozen, for post-training: Yamaguchi et al., CLIP-Refine, 2025, arXiv 2504.12717. Mean of weights: Li et al.,
ALBEF, 2021, arXiv 2107.07651, after He et al., MoCo, 2020, arXiv 1911.05722.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from clapkit.training.grad_cache import Precision, encode
from clapkit.types import Batch


class Teacher:
    """An encoder beside the one that is trained; in evaluation mode, without gradients.

    Args:
        encoder: that is trained, as it is at the start.
        momentum: share of the teacher's weights that is kept in every step; None freezes it.
    """

    def __init__(self, encoder: nn.Module, *, momentum: float | None) -> None:
        assert momentum is None or 0 <= momentum <= 1, momentum
        self.momentum = momentum
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.encoder.eval()
        for module in self.encoder.modules():
            if isinstance(module, nn.RNNBase):
                module.flatten_parameters()  # a copy lies in pieces, which cuDNN would put together in every call

    @torch.no_grad()
    def embed(self, batch: Batch, *, precision: Precision, chunk: int | None = None) -> tuple[Tensor, Tensor]:
        """Embed the clips [C, D] and captions [B, D] of a batch; ``chunk`` rows at a time, None for all at once."""
        # Variants are the business of the encoder that learns from them.
        bare = replace(batch, variants=[], variant_truth=None, sentence_keys=None, true_keys=None)
        embedded = encode(self.encoder, bare, precision=precision, chunk=chunk)
        return embedded.audio, embedded.text

    @torch.no_grad()
    def follow(self, encoder: nn.Module) -> None:
        """Move the weights towards those of the encoder after a step; what is no float, and running statistics, are taken."""
        if self.momentum is None:
            return
        own, theirs = dict(self.encoder.named_parameters()), dict(encoder.named_parameters())
        for name, parameter in own.items():
            parameter.lerp_(theirs[name].detach().to(parameter.dtype), 1 - self.momentum)
        for buffer, its in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
            buffer.copy_(its)

    def state_dict(self) -> dict[str, Tensor]:
        """What cannot be made again from the start of the run, for the checkpoint; nothing of a frozen teacher."""
        return {} if self.momentum is None else dict(self.encoder.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take up what ``state_dict`` gave."""
        if self.momentum is not None:
            self.encoder.load_state_dict(state)
