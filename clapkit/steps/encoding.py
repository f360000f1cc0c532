"""Batches of windows for the audio encoder, and what the steps need of a model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from clapkit.steps.clip_vectors import FloatArray, Fuse, unit_norm
from clapkit.steps.embed_windows import DecodedWindow
from clapkit.types import AudioSpec

Precision = Literal["fp32", "bf16", "fp16"]


class Encoder(Protocol):
    """What embedding needs of a model.

    One whose ``fusion`` is another than ``mean`` makes one vector of the windows of a clip itself, with ``fuse_windows`` as of
    ``DualEncoder``.
    """

    @property
    def audio_spec(self) -> AudioSpec:
        """What the audio tower demands."""
        ...

    @property
    def embedding_dim(self) -> int:
        """D."""
        ...

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """[B, T], [B] to unit-norm [B, D]."""
        ...

    def encode_text(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """B sentences to unit-norm [B, D]; their languages, for models that ask for them."""
        ...


class WindowBatch:
    """Windows for the encoder, padded with zeros to the length that it demands.

    Args:
        model: in evaluation mode, on ``device``.
        size: windows that fill it.
        precision: autocast of the encoder.
        device: where the model is.
    """

    def __init__(self, model: Encoder, *, size: int, precision: Precision, device: str) -> None:
        self._model, self._precision, self._device = model, precision, device
        self._waveform = np.zeros((size, model.audio_spec.window_samples), dtype=np.float32)  # [B, T]
        self._lengths: list[int] = []
        self.size = size

    def __len__(self) -> int:
        """How many windows it holds."""
        return len(self._lengths)

    @property
    def is_full(self) -> bool:
        """Whether it must be encoded before another window is added."""
        return len(self) == self.size

    def add(self, window: DecodedWindow, *, offset_s: float) -> tuple[float, float]:
        """Take a window of a clip that starts at ``offset_s`` of its file; gives its span in seconds of the file."""
        row, length, sample_rate = self._waveform[len(self)], len(window.samples), self._model.audio_spec.sample_rate
        row[:length], row[length:] = window.samples, 0
        self._lengths.append(length)
        return offset_s + window.start / sample_rate, offset_s + (window.start + length) / sample_rate

    def encode(self) -> FloatArray:
        """Unit-norm vectors [B, D] of the windows, which are forgotten."""
        num_samples = torch.tensor(self._lengths)
        waveform = torch.from_numpy(self._waveform[: len(self)])  # [B, T]
        self._lengths = []
        with torch.inference_mode(), autocast(self._precision, self._device):
            embedded = self._model.encode_audio(waveform.to(self._device), num_samples.to(self._device))  # [B, D]
            return unit_norm(embedded.float().cpu().numpy())


def own_fusion(model: Any, *, device: str) -> Fuse | None:
    """How a model makes one vector of the windows of a clip; None where that is their normalised mean.

    The weights are computed in float32 and for one clip at a time, so that they depend on nothing else.

    Args:
        model: in evaluation mode, on ``device``.
        device: where the model is.
    """
    if getattr(model, "fusion", "mean") == "mean":
        return None

    def fuse(windows: FloatArray) -> FloatArray:
        given = torch.from_numpy(windows)[None].to(device)  # [1, W, D]
        with torch.inference_mode():
            fused: FloatArray = model.fuse_windows(given, given.new_ones(given.shape[:2], dtype=torch.bool))[0].cpu().numpy()
        return fused

    return fuse


def autocast(precision: Precision, device: str) -> contextlib.AbstractContextManager[Any]:
    """The context in which an encoder runs at a precision; none for ``fp32``."""
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.partition(":")[0], dtype=dtype)
