"""Losses on long clips: the sound that a caption is compared with is put together from the windows that speak of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clapkit.errors import ShapeError
from clapkit.objectives import row_blocks
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.row_blocks import computed_twice
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.svr import SupportVectorRegularization
from clapkit.objectives.temperature import Temperature
from clapkit.types import Context, ContextNeed, LossOutput

FUSABLE = (InfoNCE, SigLIP)
FUSABLE_NAMES = ("infonce", "siglip")
"""Losses that are computed from similarities alone, and their names as plug-ins."""

WINDOW_TAU = 0.1


class FusedSimilarity(nn.Module):
    """A loss on similarities ``s_ij = sum_w alpha_ijw c_ijw`` of caption i and all windows w of clip j.

    ``c_ijw = t_i . a_jw`` and ``alpha_ijw = softmax_w(c_ijw / tau_w)``: between the mean of the cosines (large ``tau_w``) and
    the largest of them (small ``tau_w``). With one window of each clip it is the loss itself. The order of the windows
    changes nothing, so that this is no model of what comes first.

    Reference: after CoLLAP, 2024, arXiv 2410.02271, of which no code is public; the form of the fusion is our own.

    Args:
        wrapped: the loss; parameters, optimiser groups and limits are its.
        window_tau: temperature of the windows.

    Raises:
        ConfigError: if the loss needs more than similarities, or the temperature is not positive.
    """

    needs: frozenset[ContextNeed] = frozenset({"windows"})

    def __init__(self, wrapped: nn.Module, *, window_tau: float = WINDOW_TAU) -> None:
        super().__init__()
        require(
            math.isfinite(window_tau) and window_tau > 0, f"window_tau={window_tau}: expected a finite number greater than 0"
        )
        _expect_fusable(wrapped)
        self.wrapped, self.window_tau = wrapped, window_tau

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``audio`` is looked at only for its shape.

        Raises:
            ShapeError: if the shapes differ, B < 2, or a clip has no window.
        """
        check_batch(audio, text, positives, index)
        windows, is_window = _windows(context, text)
        wrapped = self.wrapped
        assert isinstance(wrapped, FUSABLE)
        with full_precision(windows, text) as (windows, text):
            scale = wrapped.temperature.scale(index, progress, dtype=text.dtype)
            similarity = fused_similarity(text, windows, is_window, window_tau=self.window_tau)  # [B, B], rows are texts
            total, terms = wrapped.both_directions(similarity, positives, scale)
            stats = wrapped.stats(similarity, index, progress)
            largest = _largest_weights(text, windows, is_window, window_tau=self.window_tau)
            return loss_output(total, terms, {**stats, "largest_window_weight": largest})

    @property
    def temperature(self) -> Temperature:
        """That of the loss."""
        assert isinstance(self.wrapped, FUSABLE)
        return self.wrapped.temperature

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the loss."""
        assert isinstance(self.wrapped, FUSABLE)
        return self.wrapped.param_groups(lr, weight_decay)

    def after_step(self) -> None:
        """What the loss does after a step."""
        assert isinstance(self.wrapped, FUSABLE)
        self.wrapped.after_step()


def fused_similarity(text: Tensor, windows: Tensor, is_window: Tensor, *, window_tau: float) -> Tensor:
    """Similarities of captions and clips, each weighted to the windows that fit the caption.

    All windows of a batch are compared at once up to ``row_blocks.MOST_ROWS ** 2`` cosines; more are computed some captions
    at a time, and again in the backward pass, so that only the result is ever there as a whole.

    Args:
        text: unit norm [B, D].
        windows: unit norm [C, W, D].
        is_window: bool [C, W], which of them are there; at least one of each clip.
        window_tau: temperature of the weights.

    Returns:
        [B, C], rows are captions.
    """

    def some(captions: Tensor, sounds: Tensor) -> Tensor:
        cosines = _cosines(captions, sounds)  # [R, C, W]
        return (_weights(cosines, is_window, window_tau) * cosines).sum(dim=2)

    if len(text) * is_window.numel() <= row_blocks.MOST_ROWS**2:
        return some(text, windows)
    num_rows = max(1, row_blocks.MOST_ROWS**2 // is_window.numel())
    return torch.cat([computed_twice(some, captions, windows) for captions in torch.split(text, num_rows)])


def _cosines(text: Tensor, windows: Tensor) -> Tensor:
    """Of every caption [R, D] with every window [C, W, D]: [R, C, W]."""
    return (text @ windows.flatten(0, 1).T).view(len(text), *windows.shape[:2])


def _weights(cosines: Tensor, is_window: Tensor, window_tau: float) -> Tensor:
    """Softmax over the windows that are there, [..., W] likewise."""
    return (cosines / window_tau).masked_fill(~is_window, -torch.inf).softmax(dim=-1)


@torch.no_grad()
def _largest_weights(text: Tensor, windows: Tensor, is_window: Tensor, *, window_tau: float) -> Tensor:
    """How far the own caption of a clip rests on one of its windows: mean over the pairs of the largest weight, a scalar."""
    own = (windows * text[:, None]).sum(dim=2)  # [B, W]
    return _weights(own, is_window, window_tau).amax(dim=1).mean()


def _windows(context: Context | None, text: Tensor) -> tuple[Tensor, Tensor]:
    """Windows [B, W, D] and which of them are there [B, W].

    Raises:
        ShapeError: if they are missing or do not fit the captions.
    """
    windows = None if context is None else context.windows
    is_window = None if context is None else context.is_window
    if windows is None or is_window is None:
        raise ShapeError("FusedSimilarity: the batch brings no windows, which this objective needs")
    batch_size, width = text.shape
    if windows.ndim != 3 or (windows.shape[0], windows.shape[2]) != (batch_size, width):
        raise ShapeError(f"windows is {list(windows.shape)}; expected [{batch_size}, W, {width}]")
    if is_window.shape != windows.shape[:2] or is_window.dtype != torch.bool:
        found = f"{is_window.dtype} {list(is_window.shape)}"
        raise ShapeError(f"is_window is {found}; expected torch.bool {list(windows.shape[:2])}")
    if not is_window.any(dim=1).all():
        raise ShapeError("is_window: a clip has no window; expected at least one of every clip")
    return windows, is_window


def _expect_fusable(wrapped: nn.Module) -> None:
    """Refuse losses that need more than similarities.

    Raises:
        ConfigError: with the reason.
    """
    expected = " or ".join(FUSABLE_NAMES)
    require(
        not isinstance(wrapped, SupportVectorRegularization),
        "--fusion softmax with svr: a support vector moves the one vector of a clip, and here a clip sounds different to every "
        f"caption; expected {expected}, or --fusion mean or attention",
    )
    require(
        type(wrapped) in FUSABLE,
        f"--fusion softmax with {type(wrapped).__name__}: needs the vectors of the clips and not only how similar they are to "
        f"captions; expected {expected}, or --fusion mean or attention",
    )
