"""From the frames that a model of the library transformers gives to one vector a clip, whatever its neighbours are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clapkit.encoders.spectrograms import is_real


def mean_of_real(frames: Tensor, num_real: Tensor) -> Tensor:
    """Mean of the first ``num_real`` [B] of frames [B, F, D]; float32 [B, D]."""
    real = is_real(num_real, frames.shape[1])[:, :, None]
    return frames.float().masked_fill(~real, 0.0).sum(dim=1) / num_real[:, None]


def pooler_output(model: Any, features: Tensor, num_real: Tensor) -> Tensor:
    """The vector that the model itself makes of its frames, [B, D]."""
    pooled: Tensor = model(features).pooler_output
    return pooled


def patch_mean(model: Any, features: Tensor, num_real: Tensor) -> Tensor:
    """Mean over the patches of AST that begin in real sound, without its two summary tokens; [B, D]."""
    config = model.config
    patches = model(features).last_hidden_state[:, 2:]  # [B, M' F', D], frequency is the outer axis
    num_times = (config.max_length - config.patch_size) // config.time_stride + 1
    columns = patches.unflatten(1, (-1, num_times)).float().mean(dim=1)  # [B, F', D]
    real = torch.div(num_real + config.time_stride - 1, config.time_stride, rounding_mode="floor")
    return mean_of_real(columns, real.clamp(max=num_times))


def whisper_mean(model: Any, features: Tensor, num_real: Tensor) -> Tensor:
    """Mean over the frames of the Whisper encoder that begin in real sound; it halves the rate of its features; [B, D]."""
    return mean_of_real(model(features).last_hidden_state, torch.div(num_real + 1, 2, rounding_mode="floor"))


def masked_mean(model: Any, features: Tensor, num_real: Tensor) -> Tensor:
    """Mean over the frames of models that keep real frames from seeing the others when given a mask; [B, D]."""
    longest = int(num_real.max())
    mask = is_real(num_real, longest).long()
    frames = model(features[:, :longest], attention_mask=mask).last_hidden_state
    return mean_of_real(frames, num_encoder_frames(model.config, num_real))


def grouped_mean(model: Any, features: Tensor, num_real: Tensor) -> Tensor:
    """Mean over the frames of models that hear padding whatever they are told: clips of one length go through together; [B, D].

    A group norm over time, or a convolution behind another one without a mask between them, changes the first frames with
    what lies behind the last.
    """
    means, order = [], []
    for length in torch.unique(num_real).tolist():
        rows = (num_real == length).nonzero()[:, 0]
        frames = model(features[rows, :length]).last_hidden_state  # [b, F, D]
        means.append(mean_of_real(frames, num_encoder_frames(model.config, num_real[rows])))
        order.append(rows)
    return torch.cat(means)[torch.cat(order).argsort()]


def num_encoder_frames(config: Any, num_real: Tensor) -> Tensor:
    """How many frames the convolutions of a waveform model make of so many samples [B]; features stay what they are."""
    for kernel, stride in zip(getattr(config, "conv_kernel", ()), getattr(config, "conv_stride", ()), strict=True):
        num_real = torch.div(num_real - kernel, stride, rounding_mode="floor") + 1
    # SEW squeezes frames, and fills up with zeros where their number is no multiple of the factor.
    squeeze = getattr(config, "squeeze_factor", 1)
    return torch.div(num_real, squeeze, rounding_mode="floor") * squeeze


def num_samples_of_a_frame(config: Any) -> int:
    """Fewest samples of which the convolutions of a waveform model make a frame that its encoder keeps."""
    samples: int = getattr(config, "squeeze_factor", 1)
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples
