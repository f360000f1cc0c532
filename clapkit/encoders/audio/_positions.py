"""Positions of transformers' audio models: learned ones for windows of another length, computed ones that forget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clapkit.errors import ConfigError

SUMMARY_TOKENS = 2  # classification and distillation


def num_times(config: Any, max_length: int) -> int:
    """Patches along the time axis of so many frames.

    Raises:
        ConfigError: if the frames are fewer than a patch.
    """
    if max_length < config.patch_size:
        raise ConfigError(
            f"a window of {max_length} frames is shorter than a patch of the model, {config.patch_size} frames; "
            f"choose window_s of {config.patch_size / 100:g} at least"
        )
    return int((max_length - config.patch_size) // config.time_stride + 1)


def stretch(table: Tensor, *, rows: int, columns: int) -> Tensor:
    """Interpolate a table of positions [1, 2 + M' F', D] along time to [1, 2 + M' columns, D].

    The summary tokens and the frequency axis stay as they are. Gong et al. (2021, arXiv 2104.01778) fit the positions of an
    image model in the same way, but cut where the new grid is shorter.

    Args:
        table: the positions; frequency is the outer axis of the patches.
        rows: patches M' along the frequency axis.
        columns: patches along the time axis that are wanted.
    """
    summary, patches = table[:, :SUMMARY_TOKENS], table[:, SUMMARY_TOKENS:]
    grid = patches.reshape(1, rows, -1, table.shape[2]).permute(0, 3, 1, 2)  # [1, D, M', F']
    stretched = functional.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([summary, stretched.flatten(2).transpose(1, 2)], dim=1)


def refit(model: Any, max_length: int) -> None:
    """Make an AST model take ``max_length`` frames; its configuration says so afterwards.

    Raises:
        ConfigError: if the frames are fewer than a patch.
    """
    config = model.config
    columns = num_times(config, max_length)
    rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    table = model.embeddings.position_embeddings
    model.embeddings.position_embeddings = nn.Parameter(stretch(table.detach(), rows=rows, columns=columns))
    config.max_length = max_length


class ForgetfulPositions(nn.Module):
    """Computed positions of Wav2Vec2-BERT that are those of a first call in every call.

    The library keeps what it computed last, whatever that was: rotations from inference mode cannot be trained with, and
    those of a bf16 pass are used in a float32 pass of the same length.

    Args:
        positions: the library's module, which has no weights.
    """

    def __init__(self, positions: nn.Module) -> None:
        super().__init__()
        self.positions: Any = positions

    def forward(self, states: Tensor) -> Tensor:
        """Positions for states [B, F, D], in the library's shape."""
        table = getattr(self.positions, "pe", None)
        self.positions.cached_sequence_length = None
        computed: Tensor = self.positions(states)
        if table is not None:
            self.positions.pe = table
        return computed


def forget_calls(model: Any) -> None:
    """Make a model's embeddings independent of earlier calls; its weights keep their names."""
    if model.config.model_type == "wav2vec2-bert" and model.encoder.embed_positions is not None:
        model.encoder.embed_positions = ForgetfulPositions(model.encoder.embed_positions)
