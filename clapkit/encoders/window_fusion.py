"""Several windows of a clip to one vector: their mean, or an attention that learns which of them say what the clip is.

Neither knows the order of the windows: both say what is heard in a long recording, and not what comes first.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from clapkit.errors import ConfigError, ShapeError, UnknownNameError

Fusion = Literal["mean", "attention"]


def expect_fusion(name: str) -> None:
    """Refuse what is no fusion.

    Raises:
        UnknownNameError: if it is none.
    """
    if name not in get_args(Fusion):
        raise UnknownNameError("fusion", name, get_args(Fusion))


class WindowAttention(nn.Module):
    """Weights of the windows of a clip, ``softmax_w(v . tanh(U a_w + b))`` over the windows that are there.

    Starts as the mean, because ``v`` starts as 0: a model that is given one embeds long clips as before until it learns.
    ``v`` has no bias, which would add the same to every window.

    Reference: Ilse et al., Attention-based deep multiple instance learning, 2018, arXiv 1802.04712, Eq. 8. Deviations from it:
    the weighted mean is brought back to unit norm, and the hidden width is a quarter of the embedding's.

    Args:
        width: D of the embeddings.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = max(1, width // 4)
        self.hidden = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.score.weight)

    def forward(self, windows: Tensor, is_window: Tensor) -> Tensor:
        """Unit-norm windows [B, W, D], of which ``is_window`` [B, W] are there, to weights [B, W] that sum to 1."""
        scores = self.score(torch.tanh(self.hidden(windows))).squeeze(2)  # [B, W]
        weights: Tensor = scores.masked_fill(~is_window, -torch.inf).softmax(dim=1)
        return weights


def equal_weights(is_window: Tensor) -> Tensor:
    """The same weight for every window that is there: bool [B, W] to [B, W]."""
    return is_window.float() / is_window.sum(dim=1, keepdim=True)


def weighted_direction(windows: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of windows [B, W, D] with weights [B, W], brought back to unit norm: [B, D]."""
    return functional.normalize((weights[:, :, None] * windows).sum(dim=1), dim=1)


def expect_one_window(*, keep_windows: bool) -> None:
    """Make sure that nobody asks for the windows of clips that come as one each.

    Raises:
        ConfigError: if somebody does.
    """
    if keep_windows:
        raise ConfigError(
            "--windows: the objective compares captions with several windows of a clip, the batch brings one each; "
            "pass --windows 2 or more"
        )


def expect_windows(waveform: Tensor, is_window: Tensor, *, features: bool) -> None:
    """Make sure that a batch of clips in windows is one, and that it can be embedded as asked.

    Args:
        waveform: [B, W, T].
        is_window: bool [B, W].
        features: whether embeddings before unit norm are asked for.

    Raises:
        ConfigError: if they are: what is fused has unit norm.
        ShapeError: if the shapes differ or a clip has no window.
    """
    if features:
        raise ConfigError(
            "--windows: the objective looks at embeddings before they have unit norm, windows are fused behind that; "
            "leave --windows out"
        )
    if waveform.ndim != 3 or is_window.shape != waveform.shape[:2]:
        raise ShapeError(
            f"waveform is {list(waveform.shape)} and num_samples {list(is_window.shape)}; expected [B, T] and [B], or "
            "[B, W, T] and [B, W]"
        )
    lacking = ~is_window.any(dim=1)
    if lacking.any():
        row = int(lacking.int().argmax())
        raise ShapeError(f"num_samples: clip {row} of the batch has no window, expected at least one with samples")
