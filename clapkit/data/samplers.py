"""Batch samplers: which rows go into which batch, a pure function of seed and epoch (and of what was mined).

A sampler draws clips. With several captions per clip a batch of B pairs holds fewer of them, see ``clips_per_batch``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from clapkit.data.manifest import Manifest
from clapkit.data.members import split_member
from clapkit.errors import ConfigError


class BatchSampler(Protocol):
    """Draws the rows of every batch.

    Attributes:
        batch_size: clips in a batch.
        batches_per_epoch: the same in every epoch, because the length of a training is counted in steps.
        known_ahead: whether ``epoch`` may be asked before the epochs in front of it have been trained on.
    """

    batch_size: int
    batches_per_epoch: int
    known_ahead: bool

    def epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [batches_per_epoch, batch_size]; no row occurs twice."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What ``epoch`` depends on besides seed and epoch: tensors and plain values, for the checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        ...


class RandomBatches:
    """Shuffled batches of equal size; the rows left over at the end of an epoch rest until the next shuffle.

    Equal sizes keep the number of negatives constant, which losses with a fixed input width need.

    Args:
        num_rows: training clips.
        batch_size: rows in a batch.
        seed: of the shuffles.

    Raises:
        ConfigError: if no batch can be filled or a batch holds no negative.
    """

    known_ahead = True

    def __init__(self, num_rows: int, batch_size: int, *, seed: int) -> None:
        _check_size(num_rows, batch_size)
        self.num_rows, self.batch_size, self.seed = num_rows, batch_size, seed
        self.batches_per_epoch = num_rows // batch_size

    def epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [batches_per_epoch, batch_size]."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        return order[: self.batches_per_epoch * self.batch_size].reshape(-1, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the batches depend on seed and epoch alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


class ClusterBatches:
    """Batches from one cluster each, so that all negatives are alike; the clusters take turns.

    A round visits every cluster that still has a whole batch, in random order. Rows that fill no batch rest until the next
    shuffle; those of clusters smaller than a batch always do.

    Reference: feature-aware negative sampling of MCL, 2024, arXiv 2402.11816. Deviation: the clusters are given, there are
    no stages whose embeddings are concatenated.

    Args:
        clusters: int [num_rows], the cluster of every training clip.
        batch_size: rows in a batch.
        seed: of the shuffles.

    Attributes:
        num_unused: clips in clusters smaller than a batch, which are never drawn.

    Raises:
        ConfigError: if no cluster fills a batch or a batch holds no negative.
    """

    known_ahead = True

    def __init__(self, clusters: np.ndarray, batch_size: int, *, seed: int) -> None:
        _check_size(len(clusters), batch_size)
        names, self._cluster = np.unique(clusters, return_inverse=True)
        sizes = np.bincount(self._cluster)
        if sizes.max() < batch_size:
            smaller = f"lower --batch-size to {sizes.max()} clips, or " if sizes.max() > 1 else ""
            raise ConfigError(
                f"--sampler cluster: no cluster fills a batch of {batch_size} clips, the largest of {len(sizes)} is cluster "
                f"{names[sizes.argmax()]} with {sizes.max()}; {smaller}pass fewer --num-clusters"
            )
        self.batch_size, self.seed = batch_size, seed
        self._batches = sizes // batch_size  # whole batches of each cluster
        self._start = np.cumsum(sizes) - sizes  # of each cluster, where rows are sorted by cluster
        self.batches_per_epoch = int(self._batches.sum())
        self.num_unused = int(sizes[sizes < batch_size].sum())

    def epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [batches_per_epoch, batch_size]."""
        draw = np.random.default_rng([self.seed, epoch])
        order = draw.permutation(len(self._cluster))
        order = order[np.argsort(self._cluster[order], kind="stable")]  # by cluster, shuffled inside
        turn = np.concatenate([np.arange(count) for count in self._batches])  # a cluster's batch r has its turn in round r
        first = np.repeat(self._start, self._batches) + turn * self.batch_size
        batches: np.ndarray = order[first[:, None] + np.arange(self.batch_size)]
        return batches[np.lexsort((draw.random(len(turn)), turn))]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the batches depend on seed and epoch alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


class UniqueCaptionBatches:
    """Random batches in which no caption is true of two clips, so that no negative is a false one by its text.

    Made are as many batches K as the groups allow: a group of n clips that share captions can serve min(n, K) batches, and
    K batches of B clips need K B of them.

    Args:
        groups: int [num_rows]; clips of one group share a caption, directly or over other clips.
        batch_size: rows in a batch, B.
        seed: of the shuffles.

    Raises:
        ConfigError: if there are fewer groups than a batch has clips, or a batch holds no negative.
    """

    known_ahead = True

    def __init__(self, groups: np.ndarray, batch_size: int, *, seed: int) -> None:
        _check_size(len(groups), batch_size)
        self._group = np.unique(groups, return_inverse=True)[1]
        sizes = np.bincount(self._group)
        if len(sizes) < batch_size:
            smaller = f"lower --batch-size to {len(sizes)} clips, or " if len(sizes) > 1 else ""
            raise ConfigError(
                f"--sampler unique-caption: a batch of {batch_size} clips needs as many different captions, the "
                f"{len(groups)} training clips have {len(sizes)} (clips that share one count once); "
                f"{smaller}pass another --sampler"
            )
        self.batch_size, self.seed, self.num_groups = batch_size, seed, len(sizes)
        self.batches_per_epoch = _most_batches(sizes, batch_size)

    def epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [batches_per_epoch, batch_size]."""
        draw = np.random.default_rng([self.seed, epoch])
        count = self.batches_per_epoch
        order = draw.permutation(len(self._group))
        # Groups in an order of their own in every epoch: rows of one group side by side, which are then dealt to batches
        # one after the other, at most `count` of them, so that no batch gets two.
        place = draw.permutation(self.num_groups)[self._group]
        order = order[np.argsort(place[order], kind="stable")]
        order = order[_position_in_run(place[order]) < count]
        kept = np.sort(draw.permutation(len(order))[: count * self.batch_size])
        batches = order[kept].reshape(self.batch_size, count).T
        # Rows of a small group went to neighbouring batches; far apart is as likely.
        return batches[draw.permutation(count)]

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the batches depend on seed and epoch alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


class ShardBatches:
    """Shuffled batches that read from few shards at a time, for corpora that are larger than memory.

    Shards come in random order; the clips of ``open_shards`` consecutive ones are pooled and shuffled, and batches are cut from
    the stream of pools. A batch that lies across two pools holds clips of both. The rows left over at the end of an epoch rest
    until the next shuffle.

    Args:
        shards: int [num_rows], the shard of every training clip, from ``shard_of_rows``.
        batch_size: rows in a batch.
        seed: of the shuffles.
        open_shards: shards in a pool; with as many as there are, the batches are those of a plain shuffle.

    Raises:
        ConfigError: if no batch can be filled or a batch holds no negative.
    """

    known_ahead = True

    def __init__(self, shards: np.ndarray, batch_size: int, *, seed: int, open_shards: int = 8) -> None:
        _check_size(len(shards), batch_size)
        if open_shards < 1:
            raise ConfigError(f"open_shards {open_shards}: expected at least 1 shard in a pool")
        names, self._shard = np.unique(shards, return_inverse=True)
        self.num_shards, self.open_shards = len(names), open_shards
        self.batch_size, self.seed = batch_size, seed
        self.batches_per_epoch = len(shards) // batch_size

    def epoch(self, epoch: int) -> np.ndarray:
        """The batches of one epoch, int64 [batches_per_epoch, batch_size]."""
        draw = np.random.default_rng([self.seed, epoch])
        pool = draw.permutation(self.num_shards)[self._shard] // self.open_shards
        order = draw.permutation(len(pool))
        order = order[np.argsort(pool[order], kind="stable")]  # by pool, shuffled inside
        return order[: self.batches_per_epoch * self.batch_size].reshape(-1, self.batch_size)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the batches depend on seed and epoch alone."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


def shard_of_rows(manifest: Manifest) -> np.ndarray:
    """The shard of every clip: the tar file that its audio lies in, or the folder where audio is a plain file.

    Returns:
        int64 [N], numbered from 0 in the order of their first clips.
    """
    shard_of_folder: dict[str, str] = {}
    numbers: dict[str, int] = {}
    rows = np.empty(len(manifest), dtype=np.int64)
    for row, clip in enumerate(manifest.clips):
        folder = os.path.dirname(clip.audio)
        if folder not in shard_of_folder:
            # Asked for the folder, because that takes a look at the disk.
            member = split_member(manifest.root / folder / "member")
            shard_of_folder[folder] = folder if member is None else member[0]
        rows[row] = numbers.setdefault(shard_of_folder[folder], len(numbers))
    return rows


def clips_per_batch(batch_size: int, captions_per_clip: int, *, num_clips: int) -> int:
    """How many clips a batch of pairs holds: the size that a sampler is made with.

    Args:
        batch_size: pairs.
        captions_per_clip: pairs of each clip.
        num_clips: of the training split.

    Raises:
        ConfigError: if the clips do not fill a batch evenly, or a batch holds no negative.
    """
    if captions_per_clip < 1:
        raise ConfigError(f"--captions-per-clip {captions_per_clip}: every clip needs a caption; pass 1 or more")
    if batch_size % captions_per_clip:
        nearest = max(2, batch_size // captions_per_clip) * captions_per_clip
        raise ConfigError(
            f"--batch-size {batch_size}: is no multiple of the {captions_per_clip} captions that each clip brings by "
            f"--captions-per-clip or --language-strategy; pass --batch-size {nearest}"
        )
    _check_size(num_clips, batch_size // captions_per_clip, captions_per_clip)
    return batch_size // captions_per_clip


def _check_size(num_rows: int, batch_size: int, captions_per_clip: int = 1) -> None:
    pairs = batch_size * captions_per_clip
    if batch_size < 2:
        each = f" of {captions_per_clip} captions a clip" if captions_per_clip > 1 else ""
        raise ConfigError(
            f"--batch-size {pairs}: a contrastive batch{each} needs negatives; pass {2 * captions_per_clip} or more"
        )
    if num_rows < 2:
        raise ConfigError(f"training split: found {num_rows} clip, expected at least 2; prepare more data")
    if batch_size > num_rows:
        raise ConfigError(
            f"--batch-size {pairs}: the training split has {num_rows} clips; "
            f"pass --batch-size {num_rows * captions_per_clip} or less, or prepare more data"
        )


def _most_batches(sizes: np.ndarray, batch_size: int) -> int:
    """The largest K with sum_g min(sizes_g, K) >= K * batch_size; that sum over K falls with K, so halving finds it."""
    low, high = 0, int(sizes.sum()) // batch_size
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() >= middle * batch_size:
            low = middle
        else:
            high = middle - 1
    return low


def _position_in_run(values: np.ndarray) -> np.ndarray:
    """Position of every element in its run of equal values, from 0."""
    positions = np.arange(len(values))
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    return positions - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
