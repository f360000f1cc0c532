"""Validation during training: retrieval over a whole split, never over a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from clapkit.data.manifest import Manifest
from clapkit.errors import AudioError, ManifestError
from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.steps.embedding import Encoder, Precision, cosine_similarity, embed_clips, embed_texts
from clapkit.types import SilentReporter

RETRIEVAL_METRICS = tuple(
    f"{direction}_{name}" for direction in ("t2a", "a2t") for name in ("R@1", "R@5", "R@10", "MedR", "MeanR", "mAP@10", "MRR")
)


class Validator:
    """Embeds a split and gives its retrieval metrics, by the definitions of ``eval``.

    Args:
        encoder: the model in training; must be in evaluation mode when this is called.
        manifest: the validation split.
        workers: threads that decode.
        precision: autocast of the encoder.

    Raises:
        ManifestError: if the split has no captions.
    """

    def __init__(self, encoder: nn.Module, manifest: Manifest, *, workers: int, precision: Precision) -> None:
        self._captions = [caption.text for clip in manifest for caption in clip.captions]
        if not self._captions:
            raise ManifestError("validation split: no clip has a caption; prepare the data with captions")
        self._clips = np.repeat(np.arange(len(manifest)), [len(clip.captions) for clip in manifest])
        self._encoder, self._manifest = encoder, manifest
        self._settings: dict[str, Any] = {"reporter": SilentReporter(), "precision": precision}
        self._workers = workers

    def __call__(self) -> dict[str, float]:
        """Metric name -> value.

        Raises:
            AudioError: if a clip cannot be decoded: numbers over fewer clips would not be comparable.
        """
        encoder: Any = self._encoder
        model: Encoder = encoder
        device = str(next(self._encoder.parameters()).device)
        audio = embed_clips(model, self._manifest, workers=self._workers, device=device, **self._settings)
        text = embed_texts(model, self._captions, device=device, **self._settings)
        if audio.rejected:
            bad = audio.rejected[0]
            raise AudioError(
                f"validation split: {len(audio.rejected)} clips cannot be decoded, first {bad.item}: {bad.reason}; "
                "prepare the data again"
            )
        metrics: dict[str, float] = evaluate_retrieval(cosine_similarity(audio.vectors, text), self._clips)["metrics"]
        return metrics
