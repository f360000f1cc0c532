"""One model and the embedded clips of one split: what every task of an evaluation starts from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ConfigError, ManifestError
from clapkit.steps.embedding import AudioEmbeddings, embed_clips, embed_texts
from clapkit.steps.evaluation.captions import clean_caption
from clapkit.steps.evaluation.waveforms import decode_clips, embed_waveforms
from clapkit.types import Clip, Reporter

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Captions:
    """All captions of the evaluated clips.

    Attributes:
        texts: M sentences, as they were embedded.
        clip: int64 [M], row of the clip that each belongs to.
        languages: M tags, ISO 639-1.
        vectors: unit norm [M, D].
    """

    texts: list[str]
    clip: IntArray
    languages: list[str]
    vectors: FloatArray


@dataclass(frozen=True)
class Evaluated:
    """The clips of a split that could be embedded, with one model.

    Attributes:
        name: of the model, as results call it.
        model: in evaluation mode, on ``device``; None where only embeddings are there.
        device: as torch names it.
        manifest: the whole data set, all splits.
        split: the clips that were embedded, as a manifest of its own, in the order of ``audio``.
        audio: unit norm [N, D], one row per clip of ``split``.
        config: of the command.
        reporter: progress and messages.
        given_captions: unit-norm vectors [M, D] of all captions where they were not made by ``model``.
    """

    name: str
    model: DualEncoder | None
    device: str
    manifest: Manifest
    split: Manifest
    audio: FloatArray
    config: EvalConfig
    reporter: Reporter
    given_captions: FloatArray | None = None
    _texts: dict[tuple[str, str], FloatArray] = field(default_factory=dict, repr=False)

    @property
    def clips(self) -> tuple[Clip, ...]:
        """N clips, in the order of ``audio``."""
        return self.split.clips

    @cached_property
    def captions(self) -> Captions:
        """All captions of the clips, embedded once for all tasks.

        Raises:
            ManifestError: if no clip has a caption.
        """
        texts, clip = caption_rows(self.clips)
        if not texts:
            raise ManifestError("no clip that could be embedded has a caption; see rejected.jsonl")
        if self.config.clean_captions:
            texts = [clean_caption(text) or text for text in texts]  # punctuation alone is all that there is
        languages = [caption.lang for clip in self.clips for caption in clip.captions]
        vectors = self.embed_texts(texts, languages) if self.given_captions is None else self.given_captions
        return Captions(texts, clip, languages, vectors)

    def needs_model(self, task: str) -> DualEncoder:
        """The model, for tasks that embed something of their own.

        Raises:
            ConfigError: if there are only embeddings.
        """
        if self.model is None:
            raise ConfigError(f"--tasks {task}: needs a model that can embed, and --embeddings gives vectors only; name a run")
        return self.model

    def embed_texts(self, texts: Sequence[str], languages: Sequence[str] | None = None) -> FloatArray:
        """Embed sentences; what an earlier task embedded is remembered.

        Args:
            texts: M sentences.
            languages: ISO 639-1 tag of each, for models that ask for it; None is English.

        Returns:
            Unit norm [M, D].
        """
        model = self.needs_model("with sentences")
        keys = list(zip(texts, languages or ["en"] * len(texts), strict=True))
        missing = [key for key in dict.fromkeys(keys) if key not in self._texts]
        if missing:
            vectors = embed_texts(
                model,
                [text for text, _ in missing],
                languages=[language for _, language in missing],
                reporter=self.reporter,
                batch_size=self.config.batch_size,
                precision=self.config.precision,
                device=self.device,
            )
            self._texts.update(zip(missing, vectors, strict=True))
        return np.stack([self._texts[key] for key in keys]) if keys else np.empty((0, model.embedding_dim), np.float32)

    def embed_clips(self, manifest: Manifest) -> AudioEmbeddings:
        """Embed other clips of the data set as those of the split were, for example the training split of a probe."""
        config = self.config
        return embed_clips(
            self.needs_model("with other clips"),
            manifest,
            reporter=self.reporter,
            batch_size=config.batch_size,
            precision=config.precision,
            device=self.device,
            workers=config.workers,
        )

    def waveforms(self, rows: Iterable[int] | None = None) -> Iterator[FloatArray]:
        """Decode clips of the split at the sample rate of the model: float32 [T], one after the other.

        Args:
            rows: of the clips, in the order wanted; default all.
        """
        model = self.needs_model("with waveforms")
        chosen = range(len(self.clips)) if rows is None else rows
        return decode_clips(self.split, chosen, sample_rate=model.audio_spec.sample_rate)

    def embed_waveforms(self, waveforms: Iterable[FloatArray], *, total: int, description: str) -> FloatArray:
        """Embed sounds that are in no file, windowed and pooled as clips are.

        Args:
            waveforms: float32 [T] each, at the sample rate of the model.
            total: how many.
            description: of the progress bar.

        Returns:
            Unit norm [total, D].
        """
        return embed_waveforms(
            self.needs_model("with waveforms"),
            waveforms,
            total=total,
            description=description,
            reporter=self.reporter,
            batch_size=self.config.batch_size,
            precision=self.config.precision,
            device=self.device,
        )


def caption_rows(clips: Sequence[Clip]) -> tuple[list[str], IntArray]:
    """All captions of clips and the row of the clip that each belongs to [M]."""
    pairs = [(caption.text, row) for row, clip in enumerate(clips) for caption in clip.captions]
    return [text for text, _ in pairs], np.array([row for _, row in pairs], dtype=np.int64)
