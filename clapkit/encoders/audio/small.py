"""Compact convolutional audio tower, trained from scratch on a laptop."""

from __future__ import annotations

from clapkit.encoders.audio._convolutional import ConvolutionalTower


def build(*, window_s: float = 5.0, augment: bool = True, mask: bool = False) -> ConvolutionalTower:
    """The default tower.

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
        stem_stride=2,
        stem_width=32,
        widths=(32, 64, 128, 256),
        num_heads=8,
        recurrent=False,
        augment=augment,
        mask=mask,
    )
