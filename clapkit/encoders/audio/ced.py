"""Vision Transformer for sounds, trained from scratch or from the weights of CED (AudioSet, 16 kHz)."""

from __future__ import annotations

from typing import Literal

from clapkit.encoders import pretrained
from clapkit.encoders.audio._ced_tower import SAMPLE_RATE, SHORTEST_SAMPLES, CedTower
from clapkit.encoders.audio._ced_weights import WIDTHS, fit_time_positions, read_weights
from clapkit.errors import ConfigError


def build(
    *,
    weights: str | None = None,
    size: Literal["tiny", "mini", "small", "base"] | None = None,
    window_s: float = 10.0,
) -> CedTower:
    """A tower of CED (Dinkel et al., ICASSP 2024, arXiv 2308.11957).

    Args:
        weights: checkpoint of the original or of the Hub: a file, a folder or ``owner/name``; None draws weights at random.
        size: 192, 256, 384 or 768 wide, with 5.4, 9.6, 21 or 85 million parameters; None is that of the weights, or base.
        window_s: length of the window that the tower sees, seconds; longer audio is windowed. The published checkpoints
            were trained on 10 s.

    Raises:
        ConfigError: if the window is too short, or the weights are of another size.
        CheckpointError: if the weights cannot be used.
    """
    if not window_s * SAMPLE_RATE >= SHORTEST_SAMPLES:
        raise ConfigError(f"option window_s={window_s}: expected {SHORTEST_SAMPLES / SAMPLE_RATE} s or more, one patch of ced")
    if weights is None:
        size = size or "base"
        return CedTower(size=size, width=WIDTHS[size], window_s=window_s)
    checkpoint = read_weights(weights)
    if size not in (None, checkpoint.size):
        raise ConfigError(f"option size={size}: {checkpoint.origin} is ced-{checkpoint.size}; leave size out or name others")
    tower = CedTower(size=checkpoint.size, width=WIDTHS[checkpoint.size], window_s=window_s)
    tower.notes = checkpoint.notes + fit_time_positions(checkpoint, tower.time_positions.shape[3])
    pretrained.load_strictly(tower, checkpoint.tensors, origin=checkpoint.origin)
    return tower
