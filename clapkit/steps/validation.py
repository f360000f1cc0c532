"""Validation during training: retrieval over a whole split, never over a batch, and in each language by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from clapkit.data.manifest import Manifest
from clapkit.errors import AudioError, ConfigError, ManifestError
from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.steps.embedding import Encoder, FloatArray, Precision, cosine_similarity, embed_clips, embed_texts
from clapkit.steps.evaluation.context import Captions
from clapkit.steps.tasks.multilingual import parallel_captions
from clapkit.training.distributed import OneProcess, Processes
from clapkit.types import Rejection, SilentReporter

RETRIEVAL_METRICS = tuple(
    f"{direction}_{name}" for direction in ("t2a", "a2t") for name in ("R@1", "R@5", "R@10", "MedR", "MeanR", "mAP@10", "MRR")
)
LANGUAGE_MEAN = "t2a_R@1_macro"
"""Mean over languages of their R@1; only where the captions are in several."""

VALIDATION_METRICS = (*RETRIEVAL_METRICS, LANGUAGE_MEAN)
"""What ``--keep-best`` can select by."""

_OF_EACH_LANGUAGE = ("t2a_R@1", "t2a_R@10", "a2t_R@1")


class Validator:
    """Embeds a split and gives its retrieval metrics, by the definitions of ``eval``.

    Where captions are in several languages there are also ``language_metrics``.

    Args:
        encoder: the model in training; must be in evaluation mode when this is called.
        manifest: the validation split.
        workers: threads that decode.
        precision: autocast of the encoder.
        processes: that share the work; each embeds a part of the clips and captions.
        keep_best: the metric that selects the best weights, which must be one of those that this split gives.

    Raises:
        ManifestError: if the split has no captions.
        ConfigError: if the split does not give ``keep_best``.
    """

    def __init__(
        self,
        encoder: nn.Module,
        manifest: Manifest,
        *,
        workers: int,
        precision: Precision,
        processes: Processes | None = None,
        keep_best: str | None = None,
    ) -> None:
        captions = [caption for clip in manifest for caption in clip.captions]
        self._captions, self._languages = [c.text for c in captions], [c.lang for c in captions]
        self._processes = OneProcess() if processes is None else processes
        if not self._captions:
            raise ManifestError("validation split: no clip has a caption; prepare the data with captions")
        if keep_best == LANGUAGE_MEAN and len(set(self._languages)) == 1:
            raise ConfigError(
                f"--keep-best {LANGUAGE_MEAN}: all validation captions are in {self._languages[0]}, which leaves no "
                "mean over languages; pass t2a_R@1"
            )
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
        vectors = np.concatenate(text_parts)
        similarity = cosine_similarity(np.concatenate(audio_parts), vectors)
        found = evaluate_retrieval(similarity, self._clips)
        metrics: dict[str, float] = found["metrics"]
        if len(set(self._languages)) == 1:
            return metrics
        captions = Captions(self._captions, self._clips, self._languages, vectors)
        return metrics | language_metrics(similarity, captions, found["per_query"]["t2a"]["rank"])

    def _share(self, count: int) -> slice:
        """The part of ``count`` rows that this process embeds."""
        rank, size = self._processes.rank, self._processes.size
        return slice(count * rank // size, count * (rank + 1) // size)

    def _embed_clips(self, model: Encoder, part: Manifest, device: str) -> tuple[FloatArray, list[Rejection]]:
        embedded = embed_clips(model, part, workers=self._workers, device=device, **self._settings)
        return embedded.vectors, embedded.rejected


def language_metrics(similarity: FloatArray, captions: Captions, rank: npt.NDArray[np.float64]) -> dict[str, float]:
    """Retrieval in each language by itself, and whether languages agree.

    Args:
        similarity: cosines [N clips, M captions].
        captions: M of them, in two languages or more.
        rank: of the clip of each caption among all clips, from 1, [M].

    Returns:
        For every language ``t2a_R@1_<tag>`` and ``t2a_R@10_<tag>`` (its captions look for clips among all clips) and
        ``a2t_R@1_<tag>`` (clips look for captions among those of the language); ``t2a_R@1_macro``, the mean over languages;
        and ``mrv``, the mean rank variance of captions that are there in every language, left out where there are none (see
        ``clapkit.metrics.cross_lingual``).
    """
    metrics: dict[str, float] = {}
    languages = sorted(set(captions.languages))
    spoken = np.array(captions.languages)
    for language in languages:
        columns = np.flatnonzero(spoken == language)
        found = evaluate_retrieval(similarity[:, columns], captions.clip[columns])["metrics"]
        metrics |= {f"{name}_{language}": found[name] for name in _OF_EACH_LANGUAGE}
    metrics[LANGUAGE_MEAN] = float(np.mean([metrics[f"t2a_R@1_{language}"] for language in languages]))
    parallel = parallel_captions(captions)  # [L, Q]
    if parallel.size:
        metrics["mrv"] = float(rank[parallel].var(axis=0).mean())
    return metrics


def _no_vectors(model: Encoder) -> FloatArray:
    return np.empty((0, model.embedding_dim), dtype=np.float32)
