"""Spectrogram arithmetic that published audio models were trained on, as modules that run on the model's device.

Two schools: centred frames of a whole waveform (librosa, torchaudio), and Kaldi's frames, each of which is freed of its mean,
pre-emphasised and windowed on its own. Everything here is a function of the waveform alone and has no weights, so its tables
are no part of a state dict.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from clapkit.errors import ConfigError

MelScale = Literal["htk", "slaney", "kaldi"]

# Slaney's scale (Auditory Toolbox, 1998): linear up to 1 kHz, logarithmic above, 27 steps for a factor of 6.4.
SLANEY_CORNER_HZ, SLANEY_HZ_PER_MEL, SLANEY_LOG_STEP = 1000.0, 200.0 / 3.0, math.log(6.4) / 27.0
SLANEY_CORNER_MEL = SLANEY_CORNER_HZ / SLANEY_HZ_PER_MEL


def to_mel(hertz: Tensor, scale: MelScale) -> Tensor:
    """Frequencies in Hz on a mel scale."""
    if scale == "slaney":
        above = SLANEY_CORNER_MEL + torch.log(hertz.clamp(min=SLANEY_CORNER_HZ) / SLANEY_CORNER_HZ) / SLANEY_LOG_STEP
        return torch.where(hertz < SLANEY_CORNER_HZ, hertz / SLANEY_HZ_PER_MEL, above)
    # Kaldi's 1127 is 2595 / ln(10), rounded.
    return 2595.0 * torch.log10(1 + hertz / 700.0) if scale == "htk" else 1127.0 * torch.log1p(hertz / 700.0)


def to_hertz(mel: Tensor, scale: MelScale) -> Tensor:
    """The inverse of ``to_mel``."""
    if scale == "slaney":
        above = SLANEY_CORNER_HZ * torch.exp((mel.clamp(min=SLANEY_CORNER_MEL) - SLANEY_CORNER_MEL) * SLANEY_LOG_STEP)
        return torch.where(mel < SLANEY_CORNER_MEL, mel * SLANEY_HZ_PER_MEL, above)
    return 700.0 * (10.0 ** (mel / 2595.0) - 1) if scale == "htk" else 700.0 * torch.expm1(mel / 1127.0)


def mel_filter_bank(
    num_bins: int, num_mels: int, *, sample_rate: int, f_min: float, f_max: float, scale: MelScale, equal_area: bool = False
) -> Tensor:
    """Triangular mel filters, float32 [num_bins, num_mels].

    Args:
        num_bins: bins of the power spectrum, from 0 Hz to half the sample rate.
        num_mels: filters M.
        sample_rate: Hz.
        f_min: lower edge of the lowest filter, Hz.
        f_max: upper edge of the highest filter, Hz.
        scale: where the filters are evenly spaced; those of ``kaldi`` are triangles on the mel axis, the others in Hz.
        equal_area: whether filters are divided by half their width, so that wide ones do not weigh more.

    Raises:
        ConfigError: if the edges are not 0 <= f_min < f_max.
    """
    if not 0 <= f_min < f_max:
        raise ConfigError(f"mel filters from {f_min} to {f_max} Hz: expected 0 <= lowest < highest frequency")
    bins = torch.linspace(0, sample_rate / 2, num_bins, dtype=torch.float64)
    lowest, highest = to_mel(torch.tensor([f_min, f_max], dtype=torch.float64), scale).tolist()
    edges = torch.linspace(lowest, highest, num_mels + 2, dtype=torch.float64)
    edges, bins = (edges, to_mel(bins, scale)) if scale == "kaldi" else (to_hertz(edges, scale), bins)
    rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])  # [num_bins, M]
    falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
    filters = torch.minimum(rising, falling).clamp(min=0)
    return (filters * 2 / (edges[2:] - edges[:-2]) if equal_area else filters).float()


class MelSpectrogram(nn.Module):
    """Mel power spectrogram: centred frames with mirrored edges, periodic Hann window.

    Args:
        sample_rate: Hz.
        window: length of a frame and of its Fourier transform, samples.
        hop: step between frames, samples.
        num_mels: mel bins M.
        f_min: lower edge of the lowest filter, Hz.
        f_max: upper edge of the highest filter, Hz.
        scale: mel scale of the filters.
        equal_area: whether filters are divided by half their width.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        window: int,
        hop: int,
        num_mels: int,
        f_min: float,
        f_max: float,
        scale: MelScale,
        equal_area: bool,
    ) -> None:
        super().__init__()
        self.window, self.hop = window, hop
        filters = mel_filter_bank(
            window // 2 + 1, num_mels, sample_rate=sample_rate, f_min=f_min, f_max=f_max, scale=scale, equal_area=equal_area
        )
        self.filters: Tensor
        self.hann: Tensor
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("hann", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms float32 [B, T], T > window / 2, to mel power [B, F, M], F = 1 + T // hop."""
        spectrum = torch.stft(waveform, self.window, hop_length=self.hop, window=self.hann, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # [B, window // 2 + 1, F]
        return power.transpose(1, 2) @ self.filters


class KaldiFilterBank(nn.Module):
    """Logarithmic mel filter bank as Kaldi computes it: frames of 25 ms every 10 ms, none over the edge, no dither.

    Every frame is freed of its mean, pre-emphasised with 0.97 and windowed alone, so that it does not depend on what follows
    it: frames of a padded waveform are those of the waveform.

    Reference: Povey et al., The Kaldi speech recognition toolkit, 2011, ``compute-fbank-feats``.

    Args:
        sample_rate: Hz.
        num_mels: mel bins M, from 20 Hz to half the sample rate.
        window: ``hanning``, or ``povey``: the same to the power of 0.85.
        gain: factor of the waveform; Kaldi works on 16-bit numbers, 32768 times ours.
    """

    def __init__(self, sample_rate: int, *, num_mels: int, window: Literal["hanning", "povey"], gain: float = 1.0) -> None:
        super().__init__()
        self.frame, self.hop, self.gain = sample_rate * 25 // 1000, sample_rate * 10 // 1000, gain
        self.fft = 2 ** math.ceil(math.log2(self.frame))
        hann = torch.hann_window(self.frame, periodic=False, dtype=torch.float64)
        filters = mel_filter_bank(
            self.fft // 2 + 1, num_mels, sample_rate=sample_rate, f_min=20.0, f_max=sample_rate / 2, scale="kaldi"
        )
        self.taper: Tensor
        self.filters: Tensor
        self.register_buffer("taper", (hann**0.85 if window == "povey" else hann).float(), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def num_frames(self, num_samples: Tensor) -> Tensor:
        """How many whole frames so many samples have."""
        return 1 + torch.div(num_samples - self.frame, self.hop, rounding_mode="floor")

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms float32 [B, T], T >= ``frame``, to natural logarithms [B, F, M], F = 1 + (T - frame) // hop."""
        frames = (waveform * self.gain).unfold(1, self.frame, self.hop)  # [B, F, frame]
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = functional.pad(frames, (1, 0), mode="replicate")[:, :, :-1]
        spectrum = torch.fft.rfft((frames - 0.97 * before) * self.taper, n=self.fft)
        power = spectrum.real.square() + spectrum.imag.square()  # [B, F, fft // 2 + 1]
        energy: Tensor = power @ self.filters
        return energy.clamp(min=torch.finfo(torch.float32).eps).log()


def is_real(num_real: Tensor, length: int) -> Tensor:
    """Which of ``length`` positions are among the first ``num_real`` [B]; bool [B, length]."""
    return torch.arange(length, device=num_real.device)[None, :] < num_real[:, None]


def fit(rows: Tensor, length: int) -> Tensor:
    """Cut or pad dimension 1 of [B, T, ...] with zeros to ``length``."""
    missing = length - rows.shape[1]
    if missing <= 0:
        return rows[:, :length]
    return torch.cat([rows, rows.new_zeros(rows.shape[0], missing, *rows.shape[2:])], dim=1)
