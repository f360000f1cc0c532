"""Clips to training batches: random crops, captions drawn, identity keys.

Of a long clip one window is heard, or several: these are drawn one from each of as many equal parts of the places where a
window may begin. So they come in order, are spread over the clip, and each of them alone is as likely anywhere as a single one.

Everything that is drawn for a row in an epoch comes from a generator of its own, seeded by (seed, epoch, row). So a batch
does not depend on threads, on earlier batches or on where a run was resumed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from clapkit.data.ahead import DecodingAhead, Place
from clapkit.data.decoded import AudioCache, DecodedClips
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import BatchSampler
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import AudioSpec, Batch, Clip

KeyPolicy = Literal["clip", "caption", "label"]

_MIN_BATCHES_AHEAD = 3
# The one that the loop asks for and the one behind it: with fewer, nothing would be decoded while the model works.
_FEWEST_BATCHES_AHEAD = 2
_CLIPS_AHEAD_OF_A_THREAD = 4
_MAX_BYTES_AHEAD = 1024**3
# Clips of a batch are handed to threads in so many lots for each: one clip at a time costs more than its copy from a cache.
_TASKS_OF_A_THREAD = 8


# Variants have a generator of their own, so that captions and windows are drawn alike with and without them.
_VARIANTS_KEY = 1


class CaptionDraw(Protocol):
    """Draws captions of clips.

    Attributes:
        captions_per_clip: how many at a time.
    """

    captions_per_clip: int

    def draw(self, row: int, rng: np.random.Generator) -> list[int]:
        """Numbers of the captions of a clip that a batch gets, ``captions_per_clip`` of them."""
        ...


class VariantDraw(Protocol):
    """Draws sentences that are made of captions.

    Attributes:
        per_caption: how many at a time, V.
        num_true: how many of them are to be true of the clip; with 0 none ever is.
    """

    per_caption: int
    num_true: int

    def draw(self, row: int, caption: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
        """V variants of a caption of a clip, and what each is as in ``Batch.variant_truth``."""
        ...

    def true_of(self, row: int) -> Sequence[str]:
        """All true variants that captions of a clip may get."""
        ...


@dataclass(slots=True)
class Example:
    """One clip of a batch.

    Attributes:
        waveform: float32 [T], zeros behind the end of a short clip; [W, T] where clips come as several windows.
        num_samples: how many samples are real, int64 []; [W], 0 where the clip has no such window.
        captions: numbers of the drawn ones.
    """

    waveform: np.ndarray
    num_samples: np.ndarray
    captions: list[int]


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What an epoch draws for a clip: numbers of its captions with their variants, and the first sample of each window."""

    captions: list[int]
    offsets: list[int]
    variants: list[tuple[list[str], list[int]]]


@dataclass(frozen=True, slots=True)
class _Pending:
    """A batch being decoded: its rows int64 [C], what was drawn for them, the waveforms [C, W, T] and who fills them."""

    rows: np.ndarray
    drawn: list[_Drawn]
    waveform: np.ndarray
    tasks: list[Future[list[list[int]]]]


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
        windows: of each clip, W: how many are drawn, decoded and encoded. A clip of which fewer fit, the last one not whole,
            has fewer.
        captions_per_clip: different captions, and so pairs, of each clip in a batch; the waveform is decoded once. A clip
            with fewer brings all it has and repeats them.
        part: (rank, size): of every batch, ``epoch`` gives the clips of this process only, the rank-th of ``size`` equal runs.
            What is drawn does not depend on it.
        audio_cache: where decoded clips are kept, see ``DecodedClips``.
        cache_dir: of the cache on disk.
        caption_draw: draws the captions of a clip, instead of ``captions_per_clip`` evenly from all.
        variant_draw: draws variants of each caption.

    Attributes:
        num_short_of_captions: clips with fewer different captions than that.

    Raises:
        ManifestError: if a clip has no caption.
        ConfigError: if the clips of a batch cannot be shared evenly, there are fewer windows than one, or the disk has no
            room for the cache.
        RunDirError: if the cache cannot be written.
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
        windows: int = 1,
        captions_per_clip: int = 1,
        part: tuple[int, int] = (0, 1),
        audio_cache: AudioCache = "auto",
        cache_dir: Path | None = None,
        caption_draw: CaptionDraw | None = None,
        variant_draw: VariantDraw | None = None,
    ) -> None:
        assert captions_per_clip >= 1, captions_per_clip
        captions_per_clip = captions_per_clip if caption_draw is None else caption_draw.captions_per_clip
        self._caption_draw, self._variant_draw = caption_draw, variant_draw
        self._share = _share(part, sampler.batch_size, captions_per_clip)
        if windows < 1:
            raise ConfigError(f"--windows {windows}: expected at least 1; leave it out for one window of each clip")
        silent = [clip.id for clip in manifest.clips if not clip.captions]
        if silent:
            raise ManifestError(
                f"training split: {len(silent)} clips have no caption, first {silent[0]}; "
                "prepare the data with captions or with a label template"
            )
        self.manifest, self.spec, self.sampler = manifest, spec, sampler
        self.seed, self.workers, self.windows, self.captions_per_clip = seed, workers, windows, captions_per_clip
        if windows > 1:  # no wider than the clips need: what nobody fills would be allocated all the same
            self.windows = min(windows, max(2, max(self._num_windows(row) for row in range(len(manifest)))))
        self._decoded = DecodedClips(manifest, sample_rate=spec.sample_rate, cache=audio_cache, cache_dir=cache_dir)
        self._captions = [[caption.text for caption in clip.captions] for clip in manifest.clips]
        self._different = [_different(captions) for captions in self._captions]
        self.num_short_of_captions = sum(len(numbers) < captions_per_clip for numbers in self._different)
        self._caption_keys, self._clip_keys, self._label_keys = identity_keys(manifest.clips, positives)
        self._knows_parts = variant_draw is not None and variant_draw.num_true > 0 and positives != "clip"
        self._true_keys: dict[int, np.ndarray] = {}  # of the rows that have come
        self._ahead: DecodingAhead[_Pending] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one pass over the split; those of all processes together."""
        return self.sampler.batches_per_epoch

    @property
    def num_of_several_windows(self) -> int:
        """Clips that bring more windows than one."""
        return sum(self._num_windows(row) > 1 for row in range(len(self.manifest)))

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, or the parts of this process of them, from batch ``first`` on.

        Raises:
            AudioError: if a file cannot be decoded.
        """
        ahead, self._ahead = self._ahead, None
        if ahead is None or not ahead.comes_to((epoch, first)):
            if ahead is not None:
                ahead.close()
            ahead = DecodingAhead(self._stream(epoch, first), self._start, threads=self.workers)
        left = self.batches_per_epoch - first
        try:
            while left:
                batch = self._collate(ahead.take(self._batches_ahead(self._share.stop - self._share.start)))
                left -= 1
                yield batch
        finally:
            if left:
                ahead.close()
            else:
                self._ahead = ahead  # what it holds is the start of the next epoch

    def close(self) -> None:
        """Stop decoding; after it, an epoch can be asked for again."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def example(self, row: int, epoch: int) -> Example:
        """Draw the captions of one clip for one epoch, and windows of its sound where it is longer than that."""
        drawn = self._draw(row, epoch)
        waveform = np.zeros((1, self.windows, self.spec.window_samples), dtype=np.float32)
        num_samples = np.array(self._decode(waveform, np.array([row]), [drawn]))
        return Example(self._alone(waveform)[0], self._alone(num_samples)[0], drawn.captions)

    def probe(self, rows: Sequence[int] | np.ndarray, *, captions_per_clip: int = 1) -> Batch:
        """A batch of the given rows that is always the same: the start of every clip with its first captions.

        Of several windows the first is the start of the clip, the last its end, and the others lie evenly between them.

        Args:
            rows: int64 [C]; all of them are decoded here, whatever the part of this process.
            captions_per_clip: different captions of each clip; one with fewer repeats them.

        Raises:
            AudioError: if a file cannot be decoded.
        """
        rows = np.asarray(rows, dtype=np.int64)
        drawn = [
            _Drawn(np.resize(self._different[row], captions_per_clip).tolist(), self._even_offsets(row), []) for row in rows
        ]
        with ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool:
            return self._collate(self._pending(pool, rows, drawn))

    def state_dict(self) -> dict[str, Any]:
        """What the sampler keeps between epochs, for the checkpoint."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave.

        Raises:
            CheckpointError: if it is of another sampler.
        """
        self.close()
        self.sampler.load_state_dict(state)

    def _stream(self, epoch: int, first: int) -> Iterator[tuple[Place, np.ndarray]]:
        """Places and clips of all batches from here on, or to the end of the epoch where the next is not yet known."""
        for number in count(epoch):
            begin = first if number == epoch else 0
            for batch, rows in enumerate(self.sampler.epoch(number)[begin:, self._share], start=begin):
                yield (number, batch), rows
            if not self.sampler.known_ahead:
                return

    def _draw(self, row: int, epoch: int) -> _Drawn:
        draw = np.random.default_rng([self.seed, epoch, row])
        if self._caption_draw is not None:
            captions = self._caption_draw.draw(row, draw)
        elif self.captions_per_clip == 1:
            captions = [int(draw.integers(len(self._captions[row])))]
        else:
            captions = np.resize(draw.permutation(self._different[row]), self.captions_per_clip).tolist()
        num_windows = self._num_windows(row)
        places = (np.arange(num_windows) + draw.random(num_windows)) / num_windows  # one in each part of [0, 1)
        return _Drawn(captions, self._offsets(row, places.tolist()), self._draw_variants(row, epoch, captions))

    def _num_windows(self, row: int) -> int:
        """How many windows a clip brings: as many as it takes to cover it, up to W."""
        num_samples = round((self.manifest.clips[row].duration_s or 0.0) * self.spec.sample_rate)
        return max(1, min(self.windows, -(-num_samples // self.spec.window_samples)))

    def _even_offsets(self, row: int) -> list[int]:
        num_windows = self._num_windows(row)
        return self._offsets(row, [number / max(1, num_windows - 1) for number in range(num_windows)])

    def _offsets(self, row: int, places: Sequence[float]) -> list[int]:
        """First samples of windows that begin at ``places``: 0 is the start of the clip, 1 where the last whole one begins."""
        spare_s = max(0.0, (self.manifest.clips[row].duration_s or 0.0) - self.spec.window_s)
        return [round(spare_s * place * self.spec.sample_rate) for place in places]

    def _draw_variants(self, row: int, epoch: int, captions: Sequence[int]) -> list[tuple[list[str], list[int]]]:
        if self._variant_draw is None:
            return []
        draw = np.random.default_rng([self.seed, epoch, row, _VARIANTS_KEY])
        return [self._variant_draw.draw(row, caption, draw) for caption in captions]

    def _batches_ahead(self, num_clips: int) -> int:
        """How many batches are decoded ahead: enough for every thread to have a clip in hand while others wait."""
        wanted = max(_MIN_BATCHES_AHEAD, -(-_CLIPS_AHEAD_OF_A_THREAD * self.workers // num_clips))
        affordable = _MAX_BYTES_AHEAD // (4 * num_clips * self.windows * self.spec.window_samples)
        return max(_FEWEST_BATCHES_AHEAD, min(wanted, affordable))

    def _start(self, pool: ThreadPoolExecutor, place: Place, rows: np.ndarray) -> _Pending:
        return self._pending(pool, rows, [self._draw(int(row), place[0]) for row in rows])

    def _pending(self, pool: ThreadPoolExecutor, rows: np.ndarray, drawn: list[_Drawn]) -> _Pending:
        """Have the clips of a batch decoded, each straight into its row."""
        waveform = np.zeros((len(rows), self.windows, self.spec.window_samples), dtype=np.float32)  # [C, W, T]
        each = max(1, len(rows) // (_TASKS_OF_A_THREAD * self.workers))
        tasks = [
            pool.submit(self._decode, waveform[start : start + each], rows[start : start + each], drawn[start : start + each])
            for start in range(0, len(rows), each)
        ]
        return _Pending(rows, drawn, waveform, tasks)

    def _decode(self, waveform: np.ndarray, rows: np.ndarray, drawn: Sequence[_Drawn]) -> list[list[int]]:
        """Fill rows [n, W, T] of a batch; gives how many samples of each window are real, n lists of W."""
        return [self._decode_clip(out, int(row), one.offsets) for out, row, one in zip(waveform, rows, drawn, strict=True)]

    def _decode_clip(self, waveform: np.ndarray, row: int, offsets: Sequence[int]) -> list[int]:
        counts = [self._decoded.read(row, waveform[place], offset=offset) for place, offset in enumerate(offsets)]
        # A file may end before its header says so: the first window is there all the same, as silence.
        return [max(1, counts[0]), *counts[1:], *[0] * (self.windows - len(counts))]

    def _alone(self, array: np.ndarray) -> np.ndarray:
        """Arrays [C, W, ...] as a batch has them: without the second axis where there is one window of each clip."""
        return array if self.windows > 1 else array[:, 0]

    def _collate(self, pending: _Pending) -> Batch:
        clips, numbers = pending.rows, [one.captions for one in pending.drawn]
        num_samples = np.array([counts for task in pending.tasks for counts in task.result()])  # [C, W]
        audio_row = np.repeat(np.arange(len(clips)), [len(captions) for captions in numbers])  # [B]
        rows = clips[audio_row]  # [B]
        drawn = [caption for captions in numbers for caption in captions]
        variants = [variant for one in pending.drawn for variant in one.variants]
        caption_keys = [self._caption_keys[row][caption] for row, caption in zip(rows, drawn, strict=True)]
        text_keys = np.stack([self._clip_keys[rows, 0], caption_keys, self._label_keys[rows]], axis=1)
        knows_parts = self._knows_parts and bool(variants)
        return Batch(
            waveform=torch.from_numpy(self._alone(pending.waveform)),
            num_samples=torch.from_numpy(self._alone(num_samples)).contiguous(),
            captions=[self._captions[row][caption] for row, caption in zip(rows, drawn, strict=True)],
            index=torch.from_numpy(rows),
            text_keys=torch.from_numpy(text_keys),
            clip_keys=torch.from_numpy(self._clip_keys[rows]),
            audio_row=torch.from_numpy(audio_row),
            languages=[self.manifest.clips[row].captions[caption].lang for row, caption in zip(rows, drawn, strict=True)],
            variants=[text for one in variants for text in one[0]],
            variant_truth=torch.tensor([one[1] for one in variants], dtype=torch.int8) if variants else None,
            sentence_keys=torch.from_numpy(_sentence_keys(caption_keys, variants)) if knows_parts else None,
            true_keys=torch.from_numpy(_padded([self._true_of(row) for row in rows.tolist()])) if knows_parts else None,
        )

    def _true_of(self, row: int) -> np.ndarray:
        """Keys of all sentences that are known to be true of a clip, int64 [K_i]."""
        keys = self._true_keys.get(row)
        if keys is None:
            assert self._variant_draw is not None
            parts = [_caption_key(text) for text in self._variant_draw.true_of(row)]
            keys = self._true_keys[row] = np.unique(np.array([*self._caption_keys[row], *parts], dtype=np.int64))
        return keys


def _share(part: tuple[int, int], num_clips: int, captions_per_clip: int) -> slice:
    """Which clips of a batch belong to one process."""
    rank, size = part
    assert 0 <= rank < size, part
    if num_clips % size:
        nearest = max(2, round(num_clips / size)) * size * captions_per_clip
        each = f" of {captions_per_clip} captions a clip" if captions_per_clip > 1 else ""
        raise ConfigError(
            f"--batch-size {num_clips * captions_per_clip}: its {num_clips} clips{each} cannot be shared evenly by {size} "
            f"processes; pass --batch-size {nearest}"
        )
    return slice(rank * num_clips // size, (rank + 1) * num_clips // size)


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
    captions = [[_caption_key(caption.text) for caption in clip.captions] for clip in clips]
    labels = [_key("labels", *sorted(clip.labels)) if clip.labels and positives == "label" else 0 for clip in clips]
    if positives == "clip":
        captions = [[0] * len(keys) for keys in captions]
    rows = [
        [_key("clip", clip.id), label, *dict.fromkeys(keys)] for clip, label, keys in zip(clips, labels, captions, strict=True)
    ]
    return captions, _padded(rows), np.array(labels, dtype=np.int64)


def _sentence_keys(captions: Sequence[int], variants: Sequence[tuple[list[str], list[int]]]) -> np.ndarray:
    """See ``Batch.sentence_keys``."""
    of_variants = [[_caption_key(text) if truth == 1 else 0 for text, truth in zip(*one, strict=True)] for one in variants]
    return np.concatenate([np.array(captions, dtype=np.int64)[:, None], np.array(of_variants, dtype=np.int64)], axis=1)


def _padded(rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Rows of keys as one table, int64 [N, K], padded with 0."""
    table = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for row, keys in enumerate(rows):
        table[row, : len(keys)] = keys
    return table


def _different(captions: Sequence[str]) -> list[int]:
    """Numbers of the captions that are not the same as an earlier one."""
    first_with: dict[str, int] = {}
    for number, text in enumerate(captions):
        first_with.setdefault(_folded(text), number)
    return list(first_with.values())


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")


def _caption_key(text: str) -> int:
    return _key("caption", _folded(text))


def _key(*parts: str) -> int:
    digest = hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1
