"""Clips and captions to embeddings: decode in threads, cut into windows, encode in batches.

What comes out does not depend on the batch size, the order of the clips or the number of threads: every window is
padded with zeros to the length that the tower demands, nothing is cropped at random, and the encoder is in evaluation
mode. Batches are filled across clips, and what waits in memory depends neither on their number nor on their lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clapkit.data.decoded import decode_threads, spare_threads
from clapkit.data.manifest import Manifest
from clapkit.errors import AudioError, ConfigError
from clapkit.steps.clip_vectors import ClipsInOrder, EmbeddedClip, Pool, Rejected, expect_finite, unit_norm
from clapkit.steps.embed_windows import ClipEnd, DecodedWindow, WindowsAhead
from clapkit.steps.encoding import Encoder as Encoder
from clapkit.steps.encoding import Precision as Precision
from clapkit.steps.encoding import WindowBatch, autocast, own_fusion
from clapkit.types import AudioSpec, Clip, Rejection, Reporter

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
# Windows that wait for the model take one and a half of its batches, and at least this.
_MIN_BYTES_AHEAD = 8 * 1024**2
# Clips that are known wait behind one that is not; when there are so many, a batch is encoded before it is full.
_MAX_CLIPS_WAITING = 256


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
    """Embed the audio of every clip; ``stream_clips`` does so for more clips than memory has room for.

    Args:
        model: in evaluation mode, on ``device``.
        manifest: the clips.
        reporter: progress.
        window_s: length of a window in seconds, at most the model's. Default: the model's.
        hop_s: step between windows in seconds, at most the window. Default: the window.
        pool: ``mean`` gives one vector per clip, the normalised mean of the unit-norm vectors of its windows, or what the
            model makes of them if it has a fusion of its own; ``none`` one per window.
        batch_size: windows in a batch.
        precision: autocast of the encoder.
        device: where the model is.
        workers: threads that decode. Default: those that ``data.decoded.decode_threads`` finds, and one more while the
            model has nothing to do.

    Raises:
        ConfigError: if window, hop, batch size or workers are out of range.
        AudioError: if no clip can be embedded.
        NumericalError: if an embedding is zero or not finite.
    """
    clips: list[EmbeddedClip] = []
    rejected: list[Rejection] = []
    for found in stream_clips(
        model,
        manifest,
        reporter=reporter,
        window_s=window_s,
        hop_s=hop_s,
        pool=pool,
        batch_size=batch_size,
        precision=precision,
        device=device,
        workers=workers,
    ):
        if isinstance(found, Rejected):
            rejected.append(Rejection(manifest.clips[found.row].id, found.reason))
        else:
            clips.append(found)
    if not clips:
        reason = rejected[0].reason if rejected else "there are no clips"
        raise AudioError(f"none of {len(manifest)} clips can be embedded; the first reason: {reason}")
    return AudioEmbeddings(
        vectors=np.concatenate([clip.vectors for clip in clips]),  # [N, D]
        clip=np.repeat([clip.row for clip in clips], [len(clip.vectors) for clip in clips]).astype(np.int64),  # [N]
        spans=[span for clip in clips for span in clip.spans],
        num_windows=sum(clip.num_windows for clip in clips),
        rejected=rejected,
    )


def stream_clips(
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
    known: Callable[[Clip, str], EmbeddedClip | None] | None = None,
    with_content: bool = False,
) -> Iterator[EmbeddedClip | Rejected]:
    """Embed the audio of every clip, and hand each out when its last window is encoded.

    Memory grows neither with the number of clips nor with their lengths (without pooling, and where the model fuses windows
    itself, with the vectors of one clip).

    Args:
        model: in evaluation mode, on ``device``.
        manifest: the clips.
        reporter: progress.
        window_s: as for ``embed_clips``, like all that are not named here.
        hop_s: see there.
        pool: see there.
        batch_size: windows in a batch, of as many clips as it takes.
        precision: see there.
        device: see there.
        workers: see there.
        known: is given a clip and the hash of its file (XXH3-128, hexadecimal), before the file is decoded and some clips
            before its turn, and gives what was embedded earlier, or None. Two spans of one file have the same hash. Its row
            and content are filled in here.
        with_content: whether clips carry that hash; they do if ``known`` is given.

    Returns:
        One for each clip, in the order of the manifest.

    Raises:
        ConfigError: if window, hop, batch size or workers are out of range.
        NumericalError: if an embedding is zero or not finite, when it is met.
    """
    spec = model.audio_spec
    window, hop = window_samples(spec, window_s=window_s, hop_s=hop_s)
    _check_at_least_one(batch_size=batch_size, workers=workers)
    window_bytes = window * np.dtype(np.float32).itemsize
    is_model_on_cpu = torch.device(device).type == "cpu"
    ahead: WindowsAhead[EmbeddedClip] = WindowsAhead(
        manifest,
        sample_rate=spec.sample_rate,
        window=window,
        hop=hop,
        threads=decode_threads(workers, is_model_on_cpu=is_model_on_cpu),
        spare_threads=spare_threads(workers, is_model_on_cpu=is_model_on_cpu),
        max_bytes=max(_MIN_BYTES_AHEAD, 3 * batch_size * window_bytes // 2),
        with_content=with_content or known is not None,
        known=known,
        clips_ahead=2 * batch_size,
    )
    batch = WindowBatch(model, size=batch_size, precision=precision, device=device)
    clips = ClipsInOrder(width=model.embedding_dim, pool=pool, fuse=own_fusion(model, device=device))
    return _stream(batch, ahead, manifest, clips, reporter=reporter)


def _stream(
    batch: WindowBatch, ahead: WindowsAhead[EmbeddedClip], manifest: Manifest, clips: ClipsInOrder, *, reporter: Reporter
) -> Iterator[EmbeddedClip | Rejected]:
    begun = -1
    with reporter.track("embed audio", len(manifest), "clips") as tracker, ahead:
        for row, item in ahead:
            clip = manifest.clips[row]
            if row != begun:
                clips.begin(row, clip.id)
                begun = row
            if isinstance(item, DecodedWindow):
                clips.add_window(*batch.add(item, offset_s=clip.start_s or 0.0))
            else:
                _end(clips, row, item)
            if batch.is_full or (len(batch) and len(clips) > batch.size + _MAX_CLIPS_WAITING):
                clips.add_vectors(batch.encode())
            for done in clips.finished():
                tracker.advance()
                yield done
        if len(batch):
            clips.add_vectors(batch.encode())
        for done in clips.finished():
            tracker.advance()
            yield done


def _end(clips: ClipsInOrder, row: int, end: ClipEnd[EmbeddedClip]) -> None:
    if end.reason is not None:
        clips.settle(Rejected(row, end.reason))
    elif end.answer is not None:
        clips.settle(replace(end.answer, row=row, content=end.content))
    else:
        clips.end(end.content)


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
            with autocast(precision, device):
                embedded = _encode_texts(model, batch, with_languages=asks)  # [B, D]
            parts.append(unit_norm(embedded.float().cpu().numpy()))
            tracker.advance(len(batch))
    num_cut, max_tokens = _captions_cut(model)
    if num_cut > cut_before:
        reporter.warn(
            f"{num_cut - cut_before} of {len(distinct)} sentences are longer than the {max_tokens} tokens that the model "
            "reads; their ends are not embedded"
        )
    vectors = np.concatenate(parts)
    expect_finite(vectors, [text for text, _ in distinct])
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


def _check_at_least_one(*, batch_size: int, workers: int | None = None) -> None:
    for name, value in (("--batch-size", batch_size), ("--workers", workers)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} {value}: expected at least 1")
