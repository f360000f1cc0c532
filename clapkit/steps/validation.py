"""Validation during training: retrieval over a whole split, never over a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from torch import nn

from clapkit.data.manifest import Manifest
from clapkit.errors import AudioError, ManifestError
from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.steps.embedding import Encoder, FloatArray, Precision, cosine_similarity, embed_clips, embed_texts
from clapkit.training.distributed import OneProcess, Processes
from clapkit.types import Rejection, SilentReporter

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
        processes: that share the work; each embeds a part of the clips and captions.

    Raises:
        ManifestError: if the split has no captions.
    """

    def __init__(
        self,
        encoder: nn.Module,
        manifest: Manifest,
        *,
        workers: int,
        precision: Precision,
        processes: Processes | None = None,
    ) -> None:
        captions = [caption for clip in manifest for caption in clip.captions]
        self._captions, self._languages = [c.text for c in captions], [c.lang for c in captions]
        self._processes = OneProcess() if processes is None else processes
        if not self._captions:
            raise ManifestError("validation split: no clip has a caption; prepare the data with captions")
        self._clips = np.repeat(np.arange(len(manifest)), [len(clip.captions) for clip in manifest])
        self._encoder, self._manifest = encoder, manifest
        self._settings: dict[str, Any] = {"reporter": SilentReporter(), "precision": precision}
        self._workers = workers

    def __call__(self) -> dict[str, float]:
        """Metric name -> value, the same on all processes.

        Raises:
            AudioError: if a clip cannot be decoded: numbers over fewer clips would not be comparable.
        """
        encoder: Any = self._encoder
        model: Encoder = encoder
        device = str(next(self._encoder.parameters()).device)
        clips, texts = self._share(len(self._manifest)), self._share(len(self._captions))
        part = dataclasses.replace(self._manifest, clips=self._manifest.clips[clips])
        audio, bad = self._embed_clips(model, part, device) if len(part) else (_no_vectors(model), [])
        text = embed_texts(model, self._captions[texts], languages=self._languages[texts], device=device, **self._settings)
        audio_parts, text_parts, bad_parts = zip(*self._processes.gather_values((audio, text, bad)), strict=True)
        rejected = [rejection for part in bad_parts for rejection in part]
        if rejected:
            raise AudioError(
                f"validation split: {len(rejected)} clips cannot be decoded, first {rejected[0].item}: {rejected[0].reason}; "
                "prepare the data again"
            )
        similarity = cosine_similarity(np.concatenate(audio_parts), np.concatenate(text_parts))
        metrics: dict[str, float] = evaluate_retrieval(similarity, self._clips)["metrics"]
        return metrics

    def _share(self, count: int) -> slice:
        """The part of ``count`` rows that this process embeds."""
        rank, size = self._processes.rank, self._processes.size
        return slice(count * rank // size, count * (rank + 1) // size)

    def _embed_clips(self, model: Encoder, part: Manifest, device: str) -> tuple[FloatArray, list[Rejection]]:
        embedded = embed_clips(model, part, workers=self._workers, device=device, **self._settings)
        return embedded.vectors, embedded.rejected


def _no_vectors(model: Encoder) -> FloatArray:
    return np.empty((0, model.embedding_dim), dtype=np.float32)
