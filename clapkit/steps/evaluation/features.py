"""What a clip is before and after the projection head: the output of the audio tower, and the embedding.

Contrastive training may spend the last layers on the pairs it sees, so that features before the head serve other tasks better;
only both together say what a model has learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.window_fusion import Fusion, weighted_direction
from clapkit.steps.clip_vectors import expect_finite, unit_norm
from clapkit.steps.embedding import embed_clips
from clapkit.steps.encoding import Precision
from clapkit.types import AudioSpec, Rejection, Reporter

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Features:
    """Clips before and after the projection head.

    Attributes:
        clip: int64 [N], rows of the manifest that could be embedded.
        projection: unit norm [N, D], the embeddings.
        tower: unit norm [N, W], the normalised mean over windows of the unit-norm outputs of the audio tower.
        rejected: clips without features, and why.
    """

    clip: IntArray
    projection: FloatArray
    tower: FloatArray
    rejected: list[Rejection]


class TowerAndProjection:
    """Stands where a model does when clips are embedded, and gives the output of the audio tower beside the embedding.

    Both halves of its vectors have the same norm, so that the normalised mean over the windows of a clip holds, up to a factor,
    the normalised means of the halves: audio is decoded and goes through the tower once for both.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: DualEncoder) -> None:
        self._model = model
        self.tower_dim: int = model.audio_tower.embedding_dim

    @property
    def audio_spec(self) -> AudioSpec:
        """What the audio tower demands."""
        return self._model.audio_spec

    @property
    def embedding_dim(self) -> int:
        """Width of both halves together."""
        return self.tower_dim + self._model.embedding_dim

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """Waveforms [B, T] of which ``num_samples`` [B] are real, to unit-norm [B, W + D], tower first."""
        features = self._model.audio_tower(waveform, num_samples)  # [B, W]
        embedded = self._model.audio_head(features)  # [B, D]
        halves = [functional.normalize(half.float(), dim=1) for half in (features, embedded)]
        both: Tensor = torch.cat(halves, dim=1) * 0.5**0.5
        return both

    @property
    def fusion(self) -> Fusion:
        """That of the model."""
        return self._model.fusion

    def fuse_windows(self, windows: Tensor, is_window: Tensor) -> Tensor:
        """Windows [B, W, tower and D] to [B, tower and D], both halves with the weights that the model gives its embeddings."""
        embedded = functional.normalize(windows[:, :, self.tower_dim :], dim=2)
        return weighted_direction(windows, self._model.window_weights(embedded, is_window))

    def encode_text(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """Sentences never come here: the halves are about audio."""
        raise AssertionError(f"{len(captions)} sentences for an audio tower")


def embed_features(
    model: DualEncoder,
    manifest: Manifest,
    *,
    reporter: Reporter,
    batch_size: int,
    precision: Precision,
    device: str,
    workers: int | None,
) -> Features:
    """Embed clips before and after the projection head; windows, padding and pooling are those of embeddings.

    Args:
        model: in evaluation mode, on ``device``.
        manifest: the clips.
        reporter: progress.
        batch_size: windows in a batch.
        precision: autocast of the encoder.
        device: where the model is.
        workers: threads that decode; None chooses.

    Raises:
        AudioError: if no clip can be embedded.
        NumericalError: if features are zero or not finite.
    """
    both = TowerAndProjection(model)
    found = embed_clips(
        both, manifest, reporter=reporter, batch_size=batch_size, precision=precision, device=device, workers=workers
    )
    names = [manifest.clips[row].id for row in found.clip]
    tower, projection = (unit_norm(half) for half in np.split(found.vectors, [both.tower_dim], axis=1))
    expect_finite(tower, names)
    expect_finite(projection, names)
    return Features(found.clip, projection, tower, found.rejected)
