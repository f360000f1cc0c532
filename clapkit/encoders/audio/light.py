"""Convolutional and recurrent audio tower for sweeps of many runs on a laptop: coarser than ``small`` from the start on."""

from __future__ import annotations

from clapkit.encoders.audio._convolutional import ConvolutionalTower


def build(*, window_s: float = 5.0, augment: bool = True, mask: bool = False) -> ConvolutionalTower:
    """A tower that trains faster than ``small`` (docs/benchmarks.md).

    Args:
        window_s: length of the window that the tower sees, seconds; longer audio is windowed.
        augment: whether training filters and shifts spectrograms at random.
        mask: whether training masks bands of the spectrogram (SpecAugment); it needs longer training than the default.
    """
    return ConvolutionalTower(
        sample_rate=16000,
        window_s=window_s,
        hop=320,
        num_mels=64,
        stem_stride=4,
        stem_width=32,
        widths=(48, 96, 192),
        num_heads=8,
        recurrent=True,
        augment=augment,
        mask=mask,
    )
