"""Clips to training batches: random crop, captions drawn, identity keys.

Everything that is drawn for a row in an epoch comes from a generator of its own, seeded by (seed, epoch, row). So a batch
does not depend on threads, on earlier batches or on where a run was resumed.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from clapkit.data import audio
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import BatchSampler
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
    """One clip of a batch: waveform float32 [T] of one window, samples that are real, numbers of the drawn captions."""

    waveform: np.ndarray
    num_samples: int
    captions: list[int]


class TrainingBatches:
    """The batches of a training run, in order, decoded ahead of the model by threads.

    Args:
        manifest: the training split; every clip needs a caption.
        spec: what the audio tower demands.
        sampler: which clips form a batch.
        positives: which pairs are no negatives: of the same ``clip``, also of the same ``caption``, or also of the same
            ``label`` set.
        seed: of crops and captions.
        workers: threads that decode.
        captions_per_clip: different captions, and so pairs, of each clip in a batch; the waveform is decoded once. A clip
            with fewer brings all it has and repeats them.

    Attributes:
        num_short_of_captions: clips with fewer different captions than that.

    Raises:
        ManifestError: if a clip has no caption.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: AudioSpec,
        *,
        sampler: BatchSampler,
        positives: KeyPolicy,
        seed: int,
        workers: int,
        captions_per_clip: int = 1,
    ) -> None:
        assert captions_per_clip >= 1, captions_per_clip
        silent = [clip.id for clip in manifest.clips if not clip.captions]
        if silent:
            raise ManifestError(
                f"training split: {len(silent)} clips have no caption, first {silent[0]}; "
                "prepare the data with captions or with a label template"
            )
        self.manifest, self.spec, self.sampler = manifest, spec, sampler
        self.seed, self.workers, self.captions_per_clip = seed, workers, captions_per_clip
        self._waveforms = Waveforms(manifest, sample_rate=spec.sample_rate)
        self._captions = [[caption.text for caption in clip.captions] for clip in manifest.clips]
        self._different = [_different(captions) for captions in self._captions]
        self.num_short_of_captions = sum(len(numbers) < captions_per_clip for numbers in self._different)
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
        """Draw the captions of one clip for one epoch, and a window of its sound where it is longer than that."""
        draw = np.random.default_rng([self.seed, epoch, row])
        if self.captions_per_clip == 1:
            captions = [int(draw.integers(len(self._captions[row])))]
        else:
            captions = np.resize(draw.permutation(self._different[row]), self.captions_per_clip).tolist()
        spare_s = max(0.0, (self.manifest.clips[row].duration_s or 0.0) - self.spec.window_s)
        return self._window(row, offset_s=spare_s * draw.random(), captions=captions)

    def probe(self, rows: Sequence[int] | np.ndarray, *, captions_per_clip: int = 1) -> Batch:
        """A batch of the given rows that is always the same: the start of every clip with its first captions.

        Args:
            rows: int64 [C].
            captions_per_clip: different captions of each clip; one with fewer repeats them.

        Raises:
            AudioError: if a file cannot be decoded.
        """
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            examples = list(pool.map(lambda row: self._first(int(row), captions_per_clip), rows))
        return self._collate(np.asarray(rows, dtype=np.int64), examples)

    def state_dict(self) -> dict[str, Any]:
        """What the sampler keeps between epochs, for the checkpoint."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave.

        Raises:
            CheckpointError: if it is of another sampler.
        """
        self.sampler.load_state_dict(state)

    def _first(self, row: int, captions_per_clip: int) -> Example:
        return self._window(row, offset_s=0.0, captions=np.resize(self._different[row], captions_per_clip).tolist())

    def _window(self, row: int, *, offset_s: float, captions: list[int]) -> Example:
        samples = self._waveforms.span(row, offset_s=offset_s, length_s=self.spec.window_s)
        samples = samples[: self.spec.window_samples]
        waveform = np.zeros(self.spec.window_samples, dtype=np.float32)
        waveform[: len(samples)] = samples
        return Example(waveform=waveform, num_samples=max(1, len(samples)), captions=captions)

    def _collate(self, clips: np.ndarray, examples: Sequence[Example]) -> Batch:
        audio_row = np.repeat(np.arange(len(clips)), [len(example.captions) for example in examples])  # [B]
        rows = clips[audio_row]  # [B]
        drawn = [caption for example in examples for caption in example.captions]
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
            audio_row=torch.from_numpy(audio_row),
        )


def caption_groups(clips: Sequence[Clip]) -> np.ndarray:
    """Groups of clips that share a caption, directly or over other clips; captions are compared as ``identity_keys`` does.

    Returns:
        The group of every clip, int64 [N], numbered from 0 in the order of their first clips. Clips without any caption
        are groups of their own.
    """
    parent = list(range(len(clips)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_with: dict[str, int] = {}
    for row, clip in enumerate(clips):
        for caption in clip.captions:
            one, other = root(row), root(first_with.setdefault(_folded(caption.text), row))
            parent[max(one, other)] = min(one, other)
    groups = np.unique([root(row) for row in range(len(clips))], return_inverse=True)[1]
    return groups.astype(np.int64)


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


def _different(captions: Sequence[str]) -> list[int]:
    """Numbers of the captions that are not the same as an earlier one."""
    first_with: dict[str, int] = {}
    for number, text in enumerate(captions):
        first_with.setdefault(_folded(text), number)
    return list(first_with.values())


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _key(*parts: str) -> int:
    digest = hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1
