"""The network of CED: a decibel mel spectrogram, cut into patches, read by a Transformer.

Module names are clapkit's; ``_ced_weights`` knows those of the published checkpoints.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from clapkit.encoders.features import mel_filters
from clapkit.types import AudioSpec

SAMPLE_RATE = 16000
FFT_SIZE = 512  # samples of a frame and of its Hann window
HOP = 160  # samples between frames
NUM_MELS = 64
QUIETEST_POWER = 1e-10  # -100 dB
DYNAMIC_RANGE_DB = 120.0
PATCH = 16  # frames, and mel bins
PATCH_SAMPLES = PATCH * HOP
SHORTEST_SAMPLES = (PATCH - 1) * HOP  # 0.15 s, the shortest clip that fills a patch
NUM_LAYERS = 12
HEAD_WIDTH = 64


Samples = TypeVar("Samples", int, Tensor)


def num_patches(num_samples: Samples) -> Samples:
    """Patches over time of clips; frames that do not fill the last one are dropped."""
    return (1 + num_samples // HOP) // PATCH


class DecibelMel(nn.Module):
    """Mel spectrogram in decibels, for clips of different lengths as if each stood alone.

    Power spectrogram, triangular filters (HTK scale) up to half the sample rate, and nothing more than 120 dB below the
    loudest value of the clip. The signal is mirrored at its own two ends, wherever in the window the second one lies.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hann: Tensor
        self.filters: Tensor
        filters = mel_filters(FFT_SIZE // 2 + 1, NUM_MELS, sample_rate=SAMPLE_RATE, f_min=0.0, f_max=SAMPLE_RATE / 2)
        self.register_buffer("hann", torch.hann_window(FFT_SIZE), persistent=False)
        self.register_buffer("filters", filters, persistent=False)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, T] of which ``num_samples`` [B] are real to spectrograms [B, F, M] and which frames are real [B, F]."""
        mirrored = waveform.gather(1, _mirror(waveform.shape[1], num_samples))  # [B, T + FFT_SIZE]
        spectrum = torch.stft(mirrored, FFT_SIZE, hop_length=HOP, window=self.hann, center=False, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()  # [B, FFT_SIZE // 2 + 1, F]
        decibels = 10 * torch.log10((power.transpose(1, 2) @ self.filters).clamp(min=QUIETEST_POWER))  # [B, F, M]
        frame = torch.arange(decibels.shape[1], device=decibels.device)
        real = frame <= (num_samples // HOP)[:, None]  # [B, F]
        loudest = decibels.masked_fill(~real[:, :, None], -torch.inf).amax(dim=(1, 2), keepdim=True)  # [B, 1, 1]
        return decibels.maximum(loudest - DYNAMIC_RANGE_DB), real


def _mirror(length: int, num_samples: Tensor) -> Tensor:
    """Where to read each sample of a waveform that goes on behind both ends as in a mirror; [B, length + FFT_SIZE]."""
    position = torch.arange(-FFT_SIZE // 2, length + FFT_SIZE // 2, device=num_samples.device)
    period = 2 * (num_samples[:, None] - 1)
    phase = position.remainder(period)
    return phase.minimum(period - phase)


class CedTower(nn.Module):
    """Vision Transformer on patches of 16 frames by 16 mel bins, with positions in time and in frequency, mean over patches.

    Reference: Dinkel et al., CED: Consistent ensemble distillation for audio tagging, ICASSP 2024, arXiv 2308.11957.
    Deviations from it: the decibel range is that of each clip and not of a whole batch; batch statistics, attention and mean
    leave out what lies behind the end of a clip, so an embedding does not depend on its neighbours; a clip shorter than
    0.15 s is heard with silence up to there.

    Args:
        size: name of the width, for ``rebuild_options``.
        width: of patches and layers, a multiple of 64.
        window_s: length of the window that the tower sees.

    Attributes:
        embedding_dim: width of the output.
        audio_spec: the input that the tower demands.
        layers: Transformer layers, from input to output.
        rebuild_options: make the same tower again without the checkpoint.
        notes: what the user should know of the weights.
    """

    def __init__(self, *, size: str, width: int, window_s: float) -> None:
        super().__init__()
        self.audio_spec = AudioSpec(sample_rate=SAMPLE_RATE, window_s=window_s)
        self.embedding_dim = width
        self.rebuild_options = {"weights": None, "size": size, "window_s": window_s}
        self.notes: list[str] = []
        self.spectrogram = DecibelMel()
        self.normalize = nn.BatchNorm1d(NUM_MELS, momentum=0.01)
        self.patch_embedding = nn.Conv2d(1, width, PATCH, stride=PATCH)
        self.time_positions = nn.Parameter(torch.empty(1, width, 1, num_patches(self.audio_spec.window_samples)))
        self.frequency_positions = nn.Parameter(torch.empty(1, width, NUM_MELS // PATCH, 1))
        self.layers = nn.ModuleList(VisionLayer(width) for _ in range(NUM_LAYERS))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self._initialize()

    def _initialize(self) -> None:
        for positions in (self.time_positions, self.frequency_positions):
            nn.init.normal_(positions, std=0.02)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Encode waveforms float32 [B, T] of which ``num_samples`` [B] are real; gives [B, embedding_dim]."""
        num_samples = num_samples.clamp(min=SHORTEST_SAMPLES)
        # What lies behind the end of every clip would only cost time.
        waveform = functional.pad(waveform, (0, max(0, SHORTEST_SAMPLES - waveform.shape[1])))[:, : int(num_samples.max())]
        spectrogram = self._spectrogram(waveform, num_samples)  # [B, 1, M, F]
        patches = self.patch_embedding(spectrogram)  # [B, width, M / 16, F / 16]
        patches = patches + self.time_positions[..., : patches.shape[3]] + self.frequency_positions
        real = torch.arange(patches.shape[3], device=patches.device) < num_patches(num_samples)[:, None]  # [B, F / 16]
        real = real.repeat(1, patches.shape[2])  # [B, N], N patches of a spectrogram, low mel bins first
        states = patches.flatten(2).transpose(1, 2)  # [B, N, width]
        for layer in self.layers:
            states = layer(states, real)
        states = self.norm(states) * real[:, :, None]
        mean: Tensor = states.sum(dim=1) / real.sum(dim=1, keepdim=True)  # [B, width]
        return mean

    def _spectrogram(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Normalized spectrograms [B, 1, M, F], zero behind the end of a clip."""
        # Decibels below a maximum need the bits and the range of float32.
        with torch.autocast(device_type=waveform.device.type, enabled=False):
            decibels, real = self.spectrogram(waveform.float(), num_samples)
            # Only real frames reach the batch statistics.
            normalized = self.normalize(decibels[real])  # [real frames, M]
            frames = torch.zeros_like(decibels).masked_scatter(real[:, :, None], normalized)  # [B, F, M]
        return frames.transpose(1, 2)[:, None]


class VisionLayer(nn.Module):
    """Pre-norm self-attention and feed-forward of a Vision Transformer (Dosovitskiy et al., 2021, arXiv 2010.11929)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = width // HEAD_WIDTH
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, states: Tensor, real: Tensor) -> Tensor:
        """States [B, N, width] with ``real`` bool [B, N] to the same shape."""
        batch, length, width = states.shape
        parts = self.query_key_value(self.attention_norm(states)).view(batch, length, 3, self.num_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each [B, heads, N, width / heads]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None, :])
        states = states + self.attention_out(attended.transpose(1, 2).reshape(batch, length, width))
        out: Tensor = states + self.contract(functional.gelu(self.expand(self.feed_forward_norm(states))))
        return out
