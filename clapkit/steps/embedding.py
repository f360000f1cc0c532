"""Clips and captions to embeddings: decode in threads, cut into windows, encode in batches.

What comes out does not depend on the batch size, the order of the clips or the number of threads: every window is
padded with zeros to the length that the tower demands, nothing is cropped at random, and the encoder is in evaluation
mode.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clapkit.data.audio import load, span_windows
from clapkit.data.manifest import Manifest
from clapkit.errors import AudioError, ConfigError, NumericalError
from clapkit.types import AudioSpec, Clip, Rejection, Reporter, Tracker

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Pool = Literal["mean", "none"]
Precision = Literal["fp32", "bf16", "fp16"]


class Encoder(Protocol):
    """What this module needs of a model."""

    @property
    def audio_spec(self) -> AudioSpec:
        """What the audio tower demands."""
        ...

    @property
    def embedding_dim(self) -> int:
        """D."""
        ...

    def encode_audio(self, waveform: Tensor, num_samples: Tensor) -> Tensor:
        """[B, T], [B] to unit-norm [B, D]."""
        ...

    def encode_text(self, captions: Sequence[str], languages: Sequence[str] | None = None) -> Tensor:
        """B sentences to unit-norm [B, D]; their languages, for models that ask for them."""
        ...


@dataclass(frozen=True, slots=True)
class AudioEmbeddings:
    """Embedded clips, in the order of the manifest.

    Attributes:
        vectors: unit norm [N, D].
        clip: int64 [N], row of the manifest that each vector belongs to.
        spans: start and end of each vector in seconds of its file.
        num_windows: windows that were encoded.
        rejected: clips without a vector, and why.
    """

    vectors: FloatArray
    clip: IntArray
    spans: list[tuple[float, float]]
    num_windows: int
    rejected: list[Rejection]


@dataclass(frozen=True, slots=True)
class _Window:
    clip: int
    start_s: float
    end_s: float
    samples: FloatArray


def embed_clips(
    model: Encoder,
    manifest: Manifest,
    *,
    reporter: Reporter,
    window_s: float | None = None,
    hop_s: float | None = None,
    pool: Pool = "mean",
    batch_size: int = 32,
    precision: Precision = "fp32",
    device: str = "cpu",
    workers: int | None = None,
) -> AudioEmbeddings:
    """Embed the audio of every clip.

    Args:
        model: in evaluation mode, on ``device``.
        manifest: the clips.
        reporter: progress.
        window_s: length of a window in seconds, at most the model's. Default: the model's.
        hop_s: step between windows in seconds, at most the window. Default: the window.
        pool: ``mean`` gives one vector per clip, the normalised mean of the unit-norm vectors of its windows;
            ``none`` one per window.
        batch_size: windows in a batch.
        precision: autocast of the encoder.
        device: where the model is.
        workers: threads that decode. Default: one per core.

    Raises:
        ConfigError: if window, hop, batch size or workers are out of range.
        AudioError: if no clip can be embedded.
    """
    window, hop = window_samples(model.audio_spec, window_s=window_s, hop_s=hop_s)
    _check_at_least_one(batch_size=batch_size, workers=workers)
    rejected: dict[int, str] = {}
    rows: list[int] = []
    spans: list[tuple[float, float]] = []
    parts: list[FloatArray] = []
    with reporter.track("embed audio", len(manifest), "clips") as tracker:
        waveforms = _waveforms(manifest, model.audio_spec.sample_rate, workers=workers or os.cpu_count() or 1)
        stream = _windows(waveforms, model.audio_spec, rejected, tracker, manifest=manifest, window=window, hop=hop)
        for batch in _batches(stream, batch_size):
            parts.append(_encode(model, batch, precision=precision, device=device))
            rows += [window.clip for window in batch]
            spans += [(window.start_s, window.end_s) for window in batch]
    if not rows:
        reason = next(iter(rejected.values()), "there are no clips")
        raise AudioError(f"none of {len(manifest)} clips can be embedded; the first reason: {reason}")
    vectors, clip, num_windows = np.concatenate(parts), np.array(rows, dtype=np.int64), len(rows)  # [W, D], [W]
    _check_finite(vectors, [manifest.clips[row].id for row in rows])
    if pool == "mean":
        vectors, clip, spans = _pool(vectors, clip, spans)
    listing = [Rejection(manifest.clips[row].id, reason) for row, reason in sorted(rejected.items())]
    return AudioEmbeddings(vectors, clip, spans, num_windows, listing)


def embed_texts(
    model: Encoder,
    texts: Sequence[str],
    *,
    reporter: Reporter,
    batch_size: int = 32,
    precision: Precision = "fp32",
    device: str = "cpu",
    languages: Sequence[str] | None = None,
) -> FloatArray:
    """Embed sentences; equal sentences (of one language, where the model asks for it) are encoded once.

    Args:
        model: in evaluation mode, on ``device``.
        texts: M sentences.
        reporter: progress; is told of sentences that are too long for the model.
        batch_size: sentences in a batch.
        precision: autocast of the encoder.
        device: where the model is.
        languages: ISO 639-1 tag of each sentence, for models that ask for it; None is English.

    Returns:
        Unit norm [M, D].

    Raises:
        ConfigError: if the batch size is out of range.
        NumericalError: if an embedding is not finite.
    """
    _check_at_least_one(batch_size=batch_size)
    asks = languages is not None and getattr(model, "takes_languages", False)
    spoken = languages if asks and languages is not None else [""] * len(texts)
    sentences = list(zip(texts, spoken, strict=True))
    distinct = list(dict.fromkeys(sentences))
    parts = [np.empty((0, model.embedding_dim), dtype=np.float32)]
    cut_before = _captions_cut(model)[0]
    with reporter.track("embed text", len(distinct), "captions") as tracker, torch.inference_mode():
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            with _autocast(precision, device):
                embedded = _encode_texts(model, batch, with_languages=asks)  # [B, D]
            parts.append(_unit(embedded.float().cpu().numpy()))
            tracker.advance(len(batch))
    num_cut, max_tokens = _captions_cut(model)
    if num_cut > cut_before:
        reporter.warn(
            f"{num_cut - cut_before} of {len(distinct)} sentences are longer than the {max_tokens} tokens that the model "
            "reads; their ends are not embedded"
        )
    vectors = np.concatenate(parts)
    _check_finite(vectors, [text for text, _ in distinct])
    row = {sentence: number for number, sentence in enumerate(distinct)}
    embeddings: FloatArray = vectors[[row[sentence] for sentence in sentences]]
    return embeddings


def _encode_texts(model: Encoder, batch: Sequence[tuple[str, str]], *, with_languages: bool) -> Tensor:
    texts, languages = zip(*batch, strict=True)
    return model.encode_text(texts, languages) if with_languages else model.encode_text(texts)


def _captions_cut(model: Encoder) -> tuple[int, int]:
    """How many sentences a model has cut so far, and at how many tokens; zeros where it does not count."""
    return getattr(model, "captions_cut", None) or (0, 0)


def cosine_similarity(audio: npt.NDArray[np.floating[Any]], text: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Cosines float32 [N, M] of unit-norm rows [N, D] and [M, D].

    Sums run in float64: rounded to float32, equal vectors then have equal scores wherever they stand, so that ties
    are seen as ties.
    """
    columns = text.astype(np.float64).T
    similarity = np.empty((len(audio), len(text)), dtype=np.float32)
    for start in range(0, len(audio), 1024):
        similarity[start : start + 1024] = audio[start : start + 1024].astype(np.float64) @ columns
    return similarity


def window_samples(spec: AudioSpec, *, window_s: float | None, hop_s: float | None) -> tuple[int, int]:
    """Window and hop in samples.

    Args:
        spec: of the model.
        window_s: seconds; default the model's.
        hop_s: seconds; default the window.

    Raises:
        ConfigError: if one is not positive, the window is longer than the model's, or the hop than the window.
    """
    window = spec.window_samples if window_s is None else round(window_s * spec.sample_rate)
    hop = window if hop_s is None else round(hop_s * spec.sample_rate)
    if not 1 <= window <= spec.window_samples:
        raise ConfigError(f"--window-s {window_s}: expected more than 0 and at most {spec.window_s}, the model's window")
    if not 1 <= hop <= window:
        raise ConfigError(
            f"--hop-s {hop_s}: expected more than 0 and at most the window of {window / spec.sample_rate} s, "
            "or sound would be left out"
        )
    return window, hop


def _waveforms(manifest: Manifest, sample_rate: int, *, workers: int) -> Iterator[tuple[int, FloatArray | AudioError]]:
    """Decode clips in threads, a few ahead of the encoder, and give them in order."""

    def decode(clip: Clip) -> FloatArray | AudioError:
        try:
            path = manifest.audio_path(clip)
            waveform: FloatArray = load(path, sample_rate=sample_rate, start_s=clip.start_s, end_s=clip.end_s)
        except AudioError as error:
            return error
        return waveform

    pending: deque[tuple[int, Future[FloatArray | AudioError]]] = deque()
    with ThreadPoolExecutor(max_workers=workers) as pool:
        try:
            for row, clip in enumerate(manifest.clips):
                pending.append((row, pool.submit(decode, clip)))
                if len(pending) > 2 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _windows(
    waveforms: Iterable[tuple[int, FloatArray | AudioError]],
    spec: AudioSpec,
    rejected: dict[int, str],
    tracker: Tracker,
    *,
    manifest: Manifest,
    window: int,
    hop: int,
) -> Iterator[_Window]:
    for row, waveform in waveforms:
        tracker.advance()
        if isinstance(waveform, AudioError):
            rejected[row] = str(waveform)
            continue
        offset_s = manifest.clips[row].start_s or 0.0
        for start, end in span_windows(len(waveform), window=window, hop=hop):
            start_s, end_s = offset_s + start / spec.sample_rate, offset_s + end / spec.sample_rate
            yield _Window(row, start_s, end_s, waveform[start:end])


def _batches(windows: Iterable[_Window], batch_size: int) -> Iterator[list[_Window]]:
    batch: list[_Window] = []
    for window in windows:
        batch.append(window)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode(model: Encoder, batch: Sequence[_Window], *, precision: Precision, device: str) -> FloatArray:
    waveform = np.zeros((len(batch), model.audio_spec.window_samples), dtype=np.float32)  # [B, T]
    for row, window in enumerate(batch):
        waveform[row, : len(window.samples)] = window.samples
    num_samples = torch.tensor([len(window.samples) for window in batch])
    with torch.inference_mode(), _autocast(precision, device):
        embedded = model.encode_audio(torch.from_numpy(waveform).to(device), num_samples.to(device))  # [B, D]
        return _unit(embedded.float().cpu().numpy())


def _pool(
    vectors: FloatArray, clip: IntArray, spans: Sequence[tuple[float, float]]
) -> tuple[FloatArray, IntArray, list[tuple[float, float]]]:
    """One vector and the whole span for each clip; the windows of a clip are adjacent."""
    clips, first, count = np.unique(clip, return_index=True, return_counts=True)
    pooled = np.add.reduceat(vectors.astype(np.float64), first) / count[:, None]  # [N, D]
    merged = [(spans[start][0], spans[start + size - 1][1]) for start, size in zip(first, count, strict=True)]
    return _unit(pooled), clips, merged


def _unit(vectors: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Rows of norm 1 to the last bit of float32; half precision towers come near it only."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: FloatArray = np.divide(wide, norms, out=np.full_like(wide, np.nan), where=norms > 0).astype(np.float32)
    return unit


def _check_finite(vectors: FloatArray, names: Sequence[str]) -> None:
    broken = ~np.isfinite(vectors).all(axis=1)
    if broken.any():
        first = names[int(np.argmax(broken))]
        raise NumericalError(
            f"{int(broken.sum())} of {len(vectors)} embeddings are zero or not finite, the first of {first!r}; "
            "the model is damaged or has diverged"
        )


def _check_at_least_one(*, batch_size: int, workers: int | None = None) -> None:
    for name, value in (("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: expected at least 1")


def _autocast(precision: Precision, device: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.partition(":")[0], dtype=dtype)
