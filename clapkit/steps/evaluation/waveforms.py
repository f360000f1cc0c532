"""Sounds in memory: clips decoded one after the other, and sounds that were changed or made, embedded as clips are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from clapkit.data import audio
from clapkit.data.decoded import decode_threads
from clapkit.data.manifest import Manifest
from clapkit.data.streaming import stream_windows
from clapkit.steps.clip_vectors import ClipsInOrder, EmbeddedClip
from clapkit.steps.embed_windows import DecodedWindow
from clapkit.steps.encoding import Encoder, Precision, WindowBatch, own_fusion
from clapkit.types import Reporter

FloatArray = npt.NDArray[np.float32]
# Clips that are decoded before they are asked for, per thread.
_AHEAD = 2


def decode_clips(manifest: Manifest, rows: Iterable[int], *, sample_rate: int) -> Iterator[FloatArray]:
    """Decode clips, mono, in the order of ``rows``; threads work a few clips ahead.

    Args:
        manifest: the clips.
        rows: which of them.
        sample_rate: of the waveforms, Hz.

    Raises:
        AudioError: if one cannot be decoded.
    """
    threads = decode_threads(None, is_model_on_cpu=True)

    def load(row: int) -> FloatArray:
        clip = manifest.clips[row]
        return audio.load(manifest.audio_path(clip), sample_rate=sample_rate, start_s=clip.start_s, end_s=clip.end_s)

    waiting: deque[Future[FloatArray]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="waveform") as pool:
        for row in rows:
            waiting.append(pool.submit(load, row))
            if len(waiting) > _AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def embed_waveforms(
    model: Encoder,
    waveforms: Iterable[FloatArray],
    *,
    total: int,
    description: str,
    reporter: Reporter,
    batch_size: int,
    precision: Precision,
    device: str,
) -> FloatArray:
    """Embed waveforms as clips are embedded: windows of the model's length, the mean of their vectors or the model's fusion.

    Args:
        model: in evaluation mode, on ``device``.
        waveforms: float32 [T] each, at the sample rate of the model.
        total: how many there are.
        description: of the progress bar.
        reporter: progress.
        batch_size: windows in a batch.
        precision: autocast of the encoder.
        device: where the model is.

    Returns:
        Unit norm [total, D].

    Raises:
        NumericalError: if an embedding is zero or not finite.
    """
    window = model.audio_spec.window_samples
    clips = ClipsInOrder(width=model.embedding_dim, pool="mean", fuse=own_fusion(model, device=device))
    batch = WindowBatch(model, size=batch_size, precision=precision, device=device)
    found: list[FloatArray] = []
    with reporter.track(description, total, "clips") as tracker:
        for row, waveform in enumerate(waveforms):
            clips.begin(row, f"sound {row}")
            for start, samples in stream_windows([waveform], window=window, hop=window):
                clips.add_window(*batch.add(DecodedWindow(start, samples), offset_s=0.0))
                if batch.is_full:
                    clips.add_vectors(batch.encode())
            clips.end()
            for done in _embedded(clips):
                found.append(done)
                tracker.advance()
        if len(batch):
            clips.add_vectors(batch.encode())
        for done in _embedded(clips):
            found.append(done)
            tracker.advance()
    return np.stack(found)


def _embedded(clips: ClipsInOrder) -> Iterator[FloatArray]:
    """The vectors [D] of the sounds that are complete."""
    for clip in clips.finished():
        assert isinstance(clip, EmbeddedClip)
        yield clip.vectors[0]
