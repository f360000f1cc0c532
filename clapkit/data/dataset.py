"""Clips to training batches: random crop, one caption drawn, identity keys.

Everything that is drawn for a row in an epoch comes from a generator of its own, seeded by (seed, epoch, row). So a batch
does not depend on threads, on earlier batches or on where a run was resumed.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from clapkit.data import audio
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import RandomBatches
from clapkit.errors import ManifestError
from clapkit.types import AudioSpec, Batch, Clip

KeyPolicy = Literal["clip", "caption", "label"]


class Waveforms:
    """Decoded clips, mono at one sample rate, kept in memory while the whole set fits.

    Args:
        manifest: the clips.
        sample_rate: Hz.
        memory_bytes: keep decoded clips if all of them together are smaller.
    """

    def __init__(self, manifest: Manifest, *, sample_rate: int, memory_bytes: int = 2 * 1024**3) -> None:
        self._manifest, self.sample_rate = manifest, sample_rate
        total = sum((clip.duration_s or 0.0) * sample_rate * 4 for clip in manifest.clips)
        self._kept: dict[int, np.ndarray] | None = {} if total <= memory_bytes else None

    def span(self, row: int, *, offset_s: float, length_s: float) -> np.ndarray:
        """Part of a clip: float32 [T], at most ``length_s`` seconds from ``offset_s`` behind the start of the clip.

        Raises:
            AudioError: if the file cannot be decoded.
        """
        if self._kept is None:
            return self._read(row, offset_s=offset_s, length_s=length_s)
        if row not in self._kept:
            self._kept[row] = self._read(row)
        start = round(offset_s * self.sample_rate)
        return self._kept[row][start : start + round(length_s * self.sample_rate)]

    def _read(self, row: int, *, offset_s: float = 0.0, length_s: float | None = None) -> np.ndarray:
        clip = self._manifest.clips[row]
        duration_s = clip.duration_s or 0.0
        whole = offset_s == 0.0 and (length_s is None or length_s >= duration_s)
        if whole and clip.start_s is None and clip.end_s is None:
            return audio.load(self._manifest.audio_path(clip), sample_rate=self.sample_rate)
        start_s = (clip.start_s or 0.0) + offset_s
        end_s = (clip.start_s or 0.0) + (duration_s if whole else min(duration_s, offset_s + (length_s or duration_s)))
        return audio.load(self._manifest.audio_path(clip), sample_rate=self.sample_rate, start_s=start_s, end_s=end_s)


@dataclass(slots=True)
class Example:
    """One row of a batch: waveform float32 [T] of one window, samples that are real, the drawn caption."""

    waveform: np.ndarray
    num_samples: int
    caption: int


class TrainingBatches:
    """The batches of a training run, in order, decoded ahead of the model by threads.

    Args:
        manifest: the training split; every clip needs a caption.
        spec: what the audio tower demands.
        sampler: which rows form a batch.
        positives: which pairs are no negatives: of the same ``clip``, also of the same ``caption``, or also of the same
            ``label`` set.
        seed: of crops and captions.
        workers: threads that decode.

    Raises:
        ManifestError: if a clip has no caption.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: AudioSpec,
        *,
        sampler: RandomBatches,
        positives: KeyPolicy,
        seed: int,
        workers: int,
    ) -> None:
        silent = [clip.id for clip in manifest.clips if not clip.captions]
        if silent:
            raise ManifestError(
                f"training split: {len(silent)} clips have no caption, first {silent[0]}; "
                "prepare the data with captions or with a label template"
            )
        self.manifest, self.spec, self.sampler = manifest, spec, sampler
        self.seed, self.workers = seed, workers
        self._waveforms = Waveforms(manifest, sample_rate=spec.sample_rate)
        self._captions = [[caption.text for caption in clip.captions] for clip in manifest.clips]
        self._caption_keys, self._clip_keys, self._label_keys = identity_keys(manifest.clips, positives)

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the split."""
        return self.sampler.batches_per_epoch

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch ``first`` on.

        Raises:
            AudioError: if a file cannot be decoded.
        """
        batches = self.sampler.epoch(epoch)[first:]
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        ahead: deque[list[Future[Example]]] = deque()
        try:
            for position in range(len(batches)):
                while len(ahead) < 3 and position + len(ahead) < len(batches):
                    rows = batches[position + len(ahead)]
                    ahead.append([pool.submit(self.example, int(row), epoch) for row in rows])
                yield self._collate(batches[position], [future.result() for future in ahead.popleft()])
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def example(self, row: int, epoch: int) -> Example:
        """Draw the caption of one row for one epoch, and a window of its sound where it is longer than that."""
        draw = np.random.default_rng([self.seed, epoch, row])
        caption = int(draw.integers(len(self._captions[row])))
        spare_s = max(0.0, (self.manifest.clips[row].duration_s or 0.0) - self.spec.window_s)
        samples = self._waveforms.span(row, offset_s=spare_s * draw.random(), length_s=self.spec.window_s)
        samples = samples[: self.spec.window_samples]
        waveform = np.zeros(self.spec.window_samples, dtype=np.float32)
        waveform[: len(samples)] = samples
        return Example(waveform=waveform, num_samples=max(1, len(samples)), caption=caption)

    def _collate(self, rows: np.ndarray, examples: Sequence[Example]) -> Batch:
        drawn = [example.caption for example in examples]
        text_keys = np.stack(
            [
                self._clip_keys[rows, 0],
                [self._caption_keys[row][caption] for row, caption in zip(rows, drawn, strict=True)],
                self._label_keys[rows],
            ],
            axis=1,
        )
        return Batch(
            waveform=torch.from_numpy(np.stack([example.waveform for example in examples])),
            num_samples=torch.tensor([example.num_samples for example in examples]),
            captions=[self._captions[row][caption] for row, caption in zip(rows, drawn, strict=True)],
            index=torch.from_numpy(rows),
            text_keys=torch.from_numpy(text_keys),
            clip_keys=torch.from_numpy(self._clip_keys[rows]),
        )


def identity_keys(clips: Sequence[Clip], positives: KeyPolicy) -> tuple[list[list[int]], np.ndarray, np.ndarray]:
    """Keys by which pairs are recognised as no negatives of each other; 0 where the policy has none.

    Returns:
        Keys of each clip's captions; keys of all that is true of a clip, int64 [N, K], its own first; keys of its label
        set, int64 [N].
    """
    captions = [[_key("caption", _folded(caption.text)) for caption in clip.captions] for clip in clips]
    labels = [_key("labels", *sorted(clip.labels)) if clip.labels and positives == "label" else 0 for clip in clips]
    if positives == "clip":
        captions = [[0] * len(keys) for keys in captions]
    rows = [
        [_key("clip", clip.id), label, *dict.fromkeys(keys)] for clip, label, keys in zip(clips, labels, captions, strict=True)
    ]
    width = max(map(len, rows))
    padded = np.array([row + [0] * (width - len(row)) for row in rows], dtype=np.int64)
    return captions, padded, np.array(labels, dtype=np.int64)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _key(*parts: str) -> int:
    digest = hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1
