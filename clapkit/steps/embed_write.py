"""Audio tables written while they are made: clips to vectors to files, in memory that does not grow with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from clapkit.data.manifest import Manifest
from clapkit.errors import AudioError
from clapkit.index.writer import TableWriter, metadata_rows
from clapkit.steps.clip_vectors import EmbeddedClip, Pool, Rejected
from clapkit.steps.embed_earlier import Changes
from clapkit.steps.embed_known import KnownVectors
from clapkit.steps.embedding import stream_clips
from clapkit.steps.encoding import Encoder, Precision
from clapkit.types import AudioSpec, Clip, Reporter

_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """How clips and captions are embedded; see ``embedding.embed_clips``."""

    window_s: float | None
    hop_s: float | None
    pool: Pool
    batch_size: int
    precision: Precision
    device: str
    workers: int | None


@dataclass(slots=True)
class AudioSummary:
    """What became of the clips.

    Attributes:
        num_windows: windows that the vectors were made of.
        rejections: ``item`` and ``reason`` of every clip that could not be embedded.
    """

    num_windows: int = 0
    rejections: list[dict[str, str]] = field(default_factory=list)


def write_audio(
    model: Encoder,
    manifest: Manifest,
    *,
    writer: TableWriter,
    known: KnownVectors,
    settings: Settings,
    reporter: Reporter,
    keeps_batches: bool = False,
    changes: Changes | None = None,
) -> AudioSummary:
    """Embed the audio of every clip into a table.

    Args:
        model: in evaluation mode, on the device of ``settings``.
        manifest: the clips.
        writer: of the table.
        known: vectors that need not be computed; computed ones are kept there.
        settings: how to embed.
        reporter: progress.
        keeps_batches: whether batches are filled up to their size. Kernels sum in an order that depends on the size, so that
            without it the last bits of a vector depend on how many clips are left to be embedded.
        changes: is told of every clip.

    Raises:
        AudioError: if no clip can be embedded.
        NumericalError: if an embedding is zero or not finite.
    """
    rows = _Rows(manifest, writer)
    summary = AudioSummary()
    stream = stream_clips(
        FullBatches(model, settings.batch_size) if keeps_batches else model,
        manifest,
        reporter=reporter,
        window_s=settings.window_s,
        hop_s=settings.hop_s,
        pool=settings.pool,
        batch_size=settings.batch_size,
        precision=settings.precision,
        device=settings.device,
        workers=settings.workers,
        known=known.find,
        with_content=True,
    )
    for found in stream:
        clip = manifest.clips[found.row]
        if isinstance(found, Rejected):
            summary.rejections.append({"item": clip.id, "reason": found.reason})
            continue
        origin = known.keep(clip, found)
        summary.num_windows += found.num_windows
        rows.add(clip, found)
        if changes is not None:
            changes.note(clip.id, found.content, is_reused=origin == "earlier")
    rows.write()
    if not rows.count:
        reason = summary.rejections[0]["reason"] if summary.rejections else "there are no clips"
        raise AudioError(f"none of {len(manifest)} clips can be embedded; the first reason: {reason}")
    return summary


class _Rows:
    """Rows on their way to a table."""

    def __init__(self, manifest: Manifest, writer: TableWriter) -> None:
        self._manifest, self._writer = manifest, writer
        self._waiting: list[tuple[Clip, EmbeddedClip]] = []
        self._num_waiting = 0
        self.count = 0

    def add(self, clip: Clip, embedded: EmbeddedClip) -> None:
        self._waiting.append((clip, embedded))
        self._num_waiting += len(embedded.vectors)
        if self._num_waiting >= _BLOCK_ROWS:
            self.write()

    def write(self) -> None:
        if not self._waiting:
            return
        of_row = [clip for clip, embedded in self._waiting for _ in embedded.spans]
        metadata = metadata_rows(
            ids=[clip.id for clip in of_row],
            paths=[os.fspath(self._manifest.audio_path(clip)) for clip in of_row],
            spans=[span for _, embedded in self._waiting for span in embedded.spans],
            captions=[[caption.text for caption in clip.captions] for clip in of_row],
            labels=[clip.labels for clip in of_row],
            splits=[clip.split for clip in of_row],
            contents=[embedded.content for _, embedded in self._waiting for _ in embedded.spans],
        )
        self._writer.append(np.concatenate([embedded.vectors for _, embedded in self._waiting]), metadata)
        self.count += self._num_waiting
        self._waiting, self._num_waiting = [], 0


class FullBatches:
    """An encoder whose batches of audio all have one size; short ones are filled up with copies of their last window.

    Args:
        model: the encoder.
        size: of every batch.
    """

    def __init__(self, model: Encoder, size: int) -> None:
        self._model, self._size = model, size

    @property
    def audio_spec(self) -> AudioSpec:
        """See ``Encoder``."""
        return self._model.audio_spec

    @property
    def embedding_dim(self) -> int:
        """See ``Encoder``."""
        return self._model.embedding_dim

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """[B, T], [B] to [B, D], by a batch of ``size``."""
        rows = torch.arange(max(self._size, len(waveform))).clamp(max=len(waveform) - 1).to(waveform.device)
        return self._model.encode_audio(waveform[rows], num_samples[rows])[: len(waveform)]

    @property
    def fusion(self) -> str:
        """See ``Encoder``."""
        return getattr(self._model, "fusion", "mean")

    def fuse_windows(self, windows: Tensor, is_window: Tensor) -> Tensor:
        """As of the model; takes no batches of other clips."""
        fused: Tensor = self._model.fuse_windows(windows, is_window)  # type: ignore[attr-defined]
        return fused

    def encode_text(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """See ``Encoder``."""
        return self._model.encode_text(captions, languages)
