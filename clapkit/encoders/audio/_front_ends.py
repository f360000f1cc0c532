"""What models of the library transformers hear: the arithmetic of its feature extractors, in batches, on the model's device.

Every front end takes waveforms float32 [B, T] with zeros behind the end, and the number of real samples in each, at least
``min_samples``; it gives features and how many of their time steps are real. Features of a clip are those that the library's
extractor computes for the clip alone. Dither, random crops and other chance are left out.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from clapkit.encoders.spectrograms import KaldiFilterBank, MelSpectrogram, fit, is_real

SilenceFill = Literal["repeatpad", "repeat", "pad"]


class ClapFrontEnd(nn.Module):
    """Log-mel decibels of ``ClapFeatureExtractor`` for models without fusion: short clips are repeated to the window.

    Args:
        mel: mel power spectrogram.
        window_samples: length that every clip is brought to.
        fill: ``repeatpad`` repeats whole clips and leaves silence, ``repeat`` repeats and cuts, ``pad`` only adds silence.
    """

    min_samples = 1

    def __init__(self, mel: MelSpectrogram, *, window_samples: int, fill: SilenceFill) -> None:
        super().__init__()
        self.mel, self.window_samples, self.fill = mel, window_samples, fill

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Decibels [B, 1, F, M]; after repetition all frames count as real."""
        position = torch.arange(self.window_samples, device=waveform.device)[None, :]  # [1, T]
        length = num_samples[:, None]
        filled = waveform.gather(1, position % length)
        if self.fill != "repeat":
            repeats = torch.div(self.window_samples, length, rounding_mode="floor") if self.fill == "repeatpad" else 1
            filled = filled.masked_fill(position >= repeats * length, 0.0)
        decibels = 10 * self.mel(filled).clamp(min=1e-10).log10()  # [B, F, M]
        return decibels[:, None], torch.full_like(num_samples, decibels.shape[1])


class AstFrontEnd(nn.Module):
    """Kaldi filter bank of ``ASTFeatureExtractor``: silence is zeros in the logarithm, then a fixed mean and deviation.

    Args:
        bank: the filter bank.
        max_length: frames that the model takes.
        mean: subtracted from all, the added frames included.
        std: half of what all is divided by.
    """

    def __init__(self, bank: KaldiFilterBank, *, max_length: int, mean: float, std: float) -> None:
        super().__init__()
        self.bank, self.max_length, self.mean, self.std = bank, max_length, mean, std
        self.min_samples = bank.frame

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised filter banks [B, max_length, M], and the number of real frames [B]."""
        num_frames = self.bank.num_frames(num_samples).clamp(max=self.max_length)
        frames = fit(self.bank(waveform), self.max_length)
        frames = frames.masked_fill(~is_real(num_frames, self.max_length)[:, :, None], 0.0)
        return (frames - self.mean) / (2 * self.std), num_frames


class SeamlessFrontEnd(nn.Module):
    """Kaldi filter bank of ``SeamlessM4TFeatureExtractor``: every mel bin normalised over the clip, frames taken in pairs.

    Args:
        bank: the filter bank.
        padding_value: of frames behind the end.
    """

    def __init__(self, bank: KaldiFilterBank, *, padding_value: float) -> None:
        super().__init__()
        self.bank, self.padding_value = bank, padding_value
        self.min_samples = bank.frame + bank.hop  # one pair

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of frames [B, ceil(F / 2), 2 M], and the number of whole real pairs [B]."""
        frames = self.bank(waveform)  # [B, F, M]
        num_frames = self.bank.num_frames(num_samples)
        frames = fit(frames, frames.shape[1] + frames.shape[1] % 2)
        real = is_real(num_frames, frames.shape[1])[:, :, None]
        count = num_frames[:, None, None]
        # Twice, because one subtraction in single precision leaves a rounding error that the division below would blow up in
        # a bin that never changes.
        for _ in range(2):
            frames = frames - frames.masked_fill(~real, 0.0).sum(dim=1, keepdim=True) / count
        variance = frames.masked_fill(~real, 0.0).square().sum(dim=1, keepdim=True) / (count - 1)
        normed = (frames / (variance + 1e-7).sqrt()).masked_fill(~real, self.padding_value)
        return normed.reshape(len(normed), -1, 2 * normed.shape[2]), torch.div(num_frames, 2, rounding_mode="floor")


class WaveformFrontEnd(nn.Module):
    """The waveform itself as ``Wav2Vec2FeatureExtractor`` gives it, brought to zero mean and unit variance over the clip.

    Args:
        normalize: whether clips are normalised.
        min_samples: fewest samples that the model makes a frame of.
    """

    def __init__(self, *, normalize: bool, min_samples: int) -> None:
        super().__init__()
        self.normalize, self.min_samples = normalize, min_samples

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms [B, T], and the number of real samples [B]."""
        if not self.normalize:
            return waveform, num_samples
        count = num_samples[:, None]
        centred = waveform - waveform.sum(dim=1, keepdim=True) / count
        centred = centred.masked_fill(~is_real(num_samples, waveform.shape[1]), 0.0)
        variance = centred.square().sum(dim=1, keepdim=True) / count
        return centred / (variance + 1e-7).sqrt(), num_samples


class WhisperFrontEnd(nn.Module):
    """Log-mel of ``WhisperFeatureExtractor``: padded with silence, eight decades below the loudest bin at most.

    Args:
        mel: mel power spectrogram.
        chunk_samples: length that every clip is padded to.
    """

    min_samples = 1

    def __init__(self, mel: MelSpectrogram, *, chunk_samples: int) -> None:
        super().__init__()
        self.mel, self.chunk_samples = mel, chunk_samples

    def forward(self, waveform: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel [B, M, F], and the number of frames [B] that begin in real sound."""
        mel = self.mel(fit(waveform, self.chunk_samples))[:, :-1]  # [B, F, M]
        logarithm = mel.clamp(min=1e-10).log10()
        logarithm = torch.maximum(logarithm, logarithm.amax(dim=(1, 2), keepdim=True) - 8.0)
        num_frames = torch.div(num_samples + self.mel.hop - 1, self.mel.hop, rounding_mode="floor")
        return ((logarithm + 4.0) / 4.0).transpose(1, 2), num_frames


FrontEnd = ClapFrontEnd | AstFrontEnd | SeamlessFrontEnd | WaveformFrontEnd | WhisperFrontEnd
