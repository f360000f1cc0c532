"""A few thousand parameters: for tests and for trying things, not for results."""

from __future__ import annotations

from clapkit.encoders.audio._convolutional import ConvolutionalTower


def build(*, window_s: float = 1.0) -> ConvolutionalTower:
    """The smallest tower.

    Args:
        window_s: length of the window that the tower sees, seconds; longer audio is windowed.
    """
    return ConvolutionalTower(
        sample_rate=8000,
        window_s=window_s,
        hop=160,
        num_mels=16,
        stem_stride=2,
        stem_width=4,
        widths=(4, 8),
        num_heads=2,
        recurrent=False,
        augment=False,
        mask=False,
    )
