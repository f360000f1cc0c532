"""Log-mel front end and its masking, as modules, so that they run on the model's device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from clapkit.errors import ConfigError


class LogMel(nn.Module):
    """Log-mel spectrogram of a waveform, in units of ten decibels.

    Power spectrogram with a Hann window, triangular mel filters (HTK scale), decimal logarithm above a floor.

    Args:
        sample_rate: Hz.
        window: length of a frame, samples.
        hop: step between frames, samples.
        num_mels: mel bins M.
        f_min: lower edge of the lowest filter, Hz; the upper edge of the highest is half the sample rate.
        floor: power that counts as silence; digital silence and faint recording noise look alike above it.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        window: int = 512,
        hop: int = 320,
        num_mels: int = 64,
        f_min: float = 40.0,
        floor: float = 1e-3,
    ) -> None:
        super().__init__()
        self.window, self.hop, self.num_mels, self.floor = window, hop, num_mels, floor
        filters = mel_filters(window // 2 + 1, num_mels, sample_rate=sample_rate, f_min=f_min, f_max=sample_rate / 2)
        self.filters: Tensor
        self.hann: Tensor
        self.register_buffer("filters", filters)
        self.register_buffer("hann", torch.hann_window(window))

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms float32 [B, T] to log-mel spectrograms [B, F, M], F = 1 + T // hop."""
        # Power spectra span twelve decades: half precision has neither the range nor the bits.
        with torch.autocast(device_type=waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform.float(), self.window, hop_length=self.hop, window=self.hann, center=True, return_complex=True
            )
            power = spectrum.real.square() + spectrum.imag.square()  # [B, window // 2 + 1, F]
            mel = power.transpose(1, 2) @ self.filters  # [B, F, M]
            return torch.log10(mel + self.floor)


def mel_filters(num_bins: int, num_mels: int, *, sample_rate: int, f_min: float, f_max: float) -> Tensor:
    """Triangular mel filters [num_bins, num_mels].

    Raises:
        ConfigError: if torchaudio cannot be imported beside the installed torch.
    """
    try:
        from torchaudio.functional import melscale_fbanks
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"torchaudio does not load beside torch {torch.__version__} ({str(error).splitlines()[0]}); "
            "install the pair that clapkit pins: pip install 'torch>=2.11,<2.15' 'torchaudio>=2.11,<2.12'"
        ) from error
    filters: Tensor = melscale_fbanks(num_bins, f_min, f_max, num_mels, sample_rate)
    return filters


class RandomFilter(nn.Module):
    """Another microphone and a slightly other voice for every clip, in training only.

    A random smooth gain over frequency (Nam et al., FilterAugment, 2022, arXiv 2110.03282, linear type) and a shift by a few
    mel bins (in the spirit of vocal tract length perturbation, Jaitly and Hinton, 2013). Both leave the order of events and
    large differences of pitch and level as they are, so that captions stay true.

    Args:
        gain_db: standard deviation of the gain at each of five frequencies.
        max_shift: largest shift in mel bins, either way.
    """

    def __init__(self, *, gain_db: float, max_shift: int) -> None:
        super().__init__()
        self.gain_db, self.max_shift = gain_db, max_shift

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Filter log-mel spectrograms [B, F, M], in units of ten decibels."""
        if not self.training:
            return spectrogram
        batch, _, mels = spectrogram.shape
        gains = torch.randn(batch, 1, 5, device=spectrogram.device) * (self.gain_db / 10)
        filtered = spectrogram + functional.interpolate(gains, size=mels, mode="linear", align_corners=True)  # [B, F, M]
        shift = torch.randint(-self.max_shift, self.max_shift + 1, (batch, 1), device=spectrogram.device)
        source = (torch.arange(mels, device=spectrogram.device) + shift).clamp(0, mels - 1)  # [B, M]
        return filtered.gather(2, source[:, None, :].expand_as(filtered))


class SpectrogramMasking(nn.Module):
    """Random bands of frequency and time set to the mean, in training only.

    Reference: Park et al., SpecAugment, 2019, arXiv 1904.08779, without time warping.

    Args:
        max_mels: widest band of mel bins.
        max_frames_share: longest band of frames, as a share of all.
        num_masks: bands of each kind.
    """

    def __init__(self, *, max_mels: int, max_frames_share: float, num_masks: int = 2) -> None:
        super().__init__()
        self.max_mels, self.max_frames_share, self.num_masks = max_mels, max_frames_share, num_masks

    def forward(self, spectrogram: Tensor) -> Tensor:
        """Mask spectrograms [B, F, M] whose mean is about 0."""
        if not self.training:
            return spectrogram
        _, frames, mels = spectrogram.shape
        for _ in range(self.num_masks):
            spectrogram = spectrogram * _keep(spectrogram, mels, self.max_mels)[:, None, :]
            spectrogram = spectrogram * _keep(spectrogram, frames, int(frames * self.max_frames_share))[:, :, None]
        return spectrogram


def _keep(spectrogram: Tensor, size: int, widest: int) -> Tensor:
    """One random band per row: 0 inside, 1 outside; [B, size]."""
    draws = torch.rand(2, spectrogram.shape[0], 1, device=spectrogram.device)
    width = draws[0] * widest
    start = draws[1] * (size - width)
    position = torch.arange(size, device=spectrogram.device)[None, :]
    return ((position < start) | (position >= start + width)).to(spectrogram.dtype)
