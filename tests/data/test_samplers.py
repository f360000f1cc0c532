import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.data.manifest import Manifest
from clapkit.data.samplers import (
    BatchSampler,
    ClusterBatches,
    RandomBatches,
    ShardBatches,
    UniqueCaptionBatches,
    clips_per_batch,
    shard_of_rows,
)
from clapkit.errors import ConfigError
from clapkit.types import Clip

LABELS = np.array([0, 1, 2, 3, 4, 0, 1, 2, 0, 1, 0, 0, 5, 6, 7, 8])
SAMPLERS = [
    pytest.param(lambda seed: RandomBatches(len(LABELS), 3, seed=seed), id="random"),
    pytest.param(lambda seed: ClusterBatches(LABELS % 3, 2, seed=seed), id="cluster"),
    pytest.param(lambda seed: UniqueCaptionBatches(LABELS, 3, seed=seed), id="unique-caption"),
    pytest.param(lambda seed: ShardBatches(LABELS, 3, seed=seed, open_shards=2), id="shards"),
]
Make = Callable[[int], BatchSampler]

# Labels of a training split, some large groups among many small ones.
GROUPS = st.lists(st.integers(0, 12), min_size=2, max_size=60).map(np.array)


@pytest.mark.parametrize("make", SAMPLERS)
def test_batches_are_a_function_of_seed_and_epoch(make: Make) -> None:
    sampler = make(5)
    batches = sampler.epoch(2)
    assert batches.dtype == np.int64
    assert batches.shape == (sampler.batches_per_epoch, batches.shape[1])
    assert len(np.unique(batches)) == batches.size
    assert np.array_equal(batches, make(5).epoch(2))
    assert np.array_equal(batches, sampler.epoch(2))
    assert not np.array_equal(batches, sampler.epoch(3))
    assert not np.array_equal(batches, make(6).epoch(2))


@pytest.mark.parametrize("make", SAMPLERS)
def test_a_state_taken_up_changes_no_batch(make: Make) -> None:
    sampler, resumed = make(1), make(1)
    sampler.epoch(0)
    resumed.load_state_dict(sampler.state_dict())
    assert np.array_equal(sampler.epoch(1), resumed.epoch(1))


@pytest.mark.parametrize("make", SAMPLERS)
def test_no_row_rests_for_ever(make: Make) -> None:
    sampler = make(0)
    assert {int(row) for epoch in range(40) for row in sampler.epoch(epoch).ravel()} == set(range(len(LABELS)))


@pytest.mark.parametrize("make", SAMPLERS)
def test_rows_meet_other_rows_in_another_epoch(make: Make) -> None:
    sampler = make(0)
    partners = [{frozenset(batch.tolist()) for batch in sampler.epoch(epoch)} for epoch in range(3)]
    assert partners[0] != partners[1]
    assert partners[1] != partners[2]


def test_random_batches_are_equal_and_disjoint() -> None:
    batches = RandomBatches(10, 3, seed=5).epoch(2)
    assert batches.shape == (3, 3)
    assert len(np.unique(batches)) == 9


@pytest.mark.parametrize(
    ("num_rows", "batch_size", "message"),
    [
        (10, 1, "--batch-size 1: a contrastive batch needs negatives; pass 2 or more"),
        (10, 16, "--batch-size 16: the training split has 10 clips; pass --batch-size 10 or less"),
        (1, 8, "training split: found 1 clip, expected at least 2"),
    ],
)
def test_batches_that_cannot_be_filled_are_refused(num_rows: int, batch_size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RandomBatches(num_rows, batch_size, seed=0)
    with pytest.raises(ConfigError, match=message):
        ClusterBatches(np.zeros(num_rows, dtype=np.int64), batch_size, seed=0)
    with pytest.raises(ConfigError, match=message):
        UniqueCaptionBatches(np.arange(num_rows), batch_size, seed=0)


@settings(max_examples=50, deadline=None)
@given(clusters=GROUPS, batch_size=st.integers(2, 6), seed=st.integers(0, 100))
def test_cluster_batches_visit_every_cluster_that_fills_one(clusters: np.ndarray, batch_size: int, seed: int) -> None:
    sizes = {int(name): int(np.sum(clusters == name)) for name in np.unique(clusters)}
    if max(sizes.values()) < batch_size:
        return
    sampler = ClusterBatches(clusters, batch_size, seed=seed)
    batches = sampler.epoch(0)
    assert (clusters[batches] == clusters[batches][:, :1]).all()
    drawn = {name: int(np.sum(clusters[batches][:, 0] == name)) for name in sizes}
    assert drawn == {name: size // batch_size for name, size in sizes.items()}
    assert sampler.batches_per_epoch == len(batches) == sum(size // batch_size for size in sizes.values())
    assert len(np.unique(batches)) == batches.size
    assert sampler.num_unused == sum(size for size in sizes.values() if size < batch_size)


def test_clusters_take_turns_in_random_order() -> None:
    # Sizes 6, 4, 2 in batches of 2: three rounds, of clusters {0, 1, 2}, {0, 1} and {0}.
    sampler = ClusterBatches(np.repeat([0, 1, 2], [6, 4, 2]), 2, seed=0)
    turns = [np.repeat([0, 1, 2], [6, 4, 2])[sampler.epoch(epoch)[:, 0]].tolist() for epoch in range(20)]
    assert all(set(turn[:3]) == {0, 1, 2} and set(turn[3:5]) == {0, 1} and turn[5] == 0 for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 5


def test_names_of_clusters_need_not_be_consecutive() -> None:
    batches = ClusterBatches(np.array([70, -3, 70, -3]), 2, seed=0).epoch(0)
    assert sorted(sorted(batch.tolist()) for batch in batches) == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (
            [4, 4, 7, 7, 7, 1, 1, 1],
            r"--sampler cluster: no cluster fills a batch of 4 clips, the largest of 3 is cluster 1 with 3; "
            r"lower --batch-size to 3 clips, or pass fewer --num-clusters",
        ),
        ([0, 1, 2, 3], r"the largest of 4 is cluster 0 with 1; pass fewer --num-clusters"),
    ],
)
def test_clusters_that_fill_no_batch_are_refused(clusters: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusterBatches(np.array(clusters), 4, seed=0)


def most_batches(sizes: list[int], batch_size: int) -> int:
    """The definition, tried one K after the other."""
    fits = [k for k in range(sum(sizes) // batch_size + 1) if sum(min(size, k) for size in sizes) >= k * batch_size]
    return max(fits)


@settings(max_examples=50, deadline=None)
@given(groups=GROUPS, batch_size=st.integers(2, 6), seed=st.integers(0, 100))
def test_no_batch_holds_a_group_twice_and_as_many_as_possible_are_made(groups: np.ndarray, batch_size: int, seed: int) -> None:
    if len(np.unique(groups)) < batch_size:
        return
    sampler = UniqueCaptionBatches(groups, batch_size, seed=seed)
    batches = sampler.epoch(3)
    assert all(len(np.unique(groups[batch])) == batch_size for batch in batches)
    assert len(np.unique(batches)) == batches.size
    assert (
        sampler.batches_per_epoch == len(batches) == most_batches(np.unique(groups, return_counts=True)[1].tolist(), batch_size)
    )


def test_different_captions_lose_only_what_fills_no_batch() -> None:
    sampler = UniqueCaptionBatches(np.arange(11), 3, seed=0)
    assert sampler.batches_per_epoch == 3


def test_a_dominant_caption_costs_the_batches_that_it_cannot_fill() -> None:
    # Sizes 7, 1, 1, 1 and B = 2: K = 3 takes 3 + 1 + 1 + 1 = 6 = 3 * 2 rows, K = 4 would take 4 + 3 = 7 < 8.
    groups = np.array([0] * 7 + [1, 2, 3])
    batches = UniqueCaptionBatches(groups, 2, seed=0).epoch(0)
    assert sorted(groups[batches].min(axis=1).tolist()) == [0, 0, 0]
    assert sorted(groups[batches].max(axis=1).tolist()) == [1, 2, 3]


def test_rows_of_a_pair_are_not_always_in_neighbouring_batches() -> None:
    groups = np.repeat(np.arange(20), 2)
    sampler = UniqueCaptionBatches(groups, 4, seed=0)
    gaps = set()
    for epoch in range(5):
        batch_of = {int(row): number for number, batch in enumerate(sampler.epoch(epoch)) for row in batch}
        gaps |= {abs(batch_of[2 * g] - batch_of[2 * g + 1]) for g in range(20)}
    assert 0 not in gaps
    assert max(gaps) > 5


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            [0, 0, 0, 1, 1, 1, 2],
            r"--sampler unique-caption: a batch of 4 clips needs as many different captions, the 7 training clips have 3 "
            r"\(clips that share one count once\); lower --batch-size to 3 clips, or pass another --sampler",
        ),
        ([5, 5, 5, 5], r"the 4 training clips have 1 \(clips that share one count once\); pass another --sampler"),
    ],
)
def test_too_few_captions_for_a_batch_are_refused(groups: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UniqueCaptionBatches(np.array(groups), 4, seed=0)


def test_a_batch_of_pairs_holds_its_share_of_clips() -> None:
    assert clips_per_batch(32, 1, num_clips=40) == 32
    assert clips_per_batch(30, 5, num_clips=40) == 6


@pytest.mark.parametrize(
    ("batch_size", "captions_per_clip", "message"),
    [
        (32, 0, "--captions-per-clip 0: every clip needs a caption; pass 1 or more"),
        (32, 5, "--batch-size 32: is no multiple of the 5 captions .* --language-strategy; pass --batch-size 30"),
        (3, 5, "--batch-size 3: is no multiple of the 5 captions .* --language-strategy; pass --batch-size 10"),
        (5, 5, "--batch-size 5: a contrastive batch of 5 captions a clip needs negatives; pass 10 or more"),
        (60, 5, "--batch-size 60: the training split has 10 clips; pass --batch-size 50 or less"),
        (1, 1, "--batch-size 1: a contrastive batch needs negatives; pass 2 or more"),
    ],
)
def test_pairs_that_do_not_fill_a_batch_evenly_are_refused(batch_size: int, captions_per_clip: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clips_per_batch(batch_size, captions_per_clip, num_clips=10)


@settings(max_examples=60, deadline=None)
@given(shards=GROUPS, batch_size=st.integers(2, 6), open_shards=st.integers(1, 5), epoch=st.integers(0, 9))
def test_shards_are_read_a_few_at_a_time(shards: np.ndarray, batch_size: int, open_shards: int, epoch: int) -> None:
    if batch_size > len(shards):
        return
    sampler = ShardBatches(shards, batch_size, seed=3, open_shards=open_shards)
    stream = shards[sampler.epoch(epoch).ravel()]
    assert len(stream) == len(shards) // batch_size * batch_size
    # A pool begins when the last clip of the pool before it was drawn: so the shards come in runs of open_shards.
    pools: list[set[int]] = [set()]
    left = dict(zip(*np.unique(shards, return_counts=True), strict=True))
    for shard in stream.tolist():
        if shard not in pools[-1] and len(pools[-1]) == open_shards:
            assert all(left[other] == 0 for other in pools[-1])
            pools.append(set())
        pools[-1].add(shard)
        left[shard] -= 1
    drawn = [shard for pool in pools for shard in pool]
    assert len(drawn) == len(set(drawn))


def test_shards_come_in_another_order_in_every_epoch() -> None:
    shards = np.repeat(np.arange(20), 5)
    sampler = ShardBatches(shards, 5, seed=0, open_shards=1)
    orders = [shards[sampler.epoch(epoch)[:, 0]].tolist() for epoch in range(3)]
    assert sorted(orders[0]) == list(range(20))  # every batch is a shard
    assert orders[0] != orders[1] != orders[2]


def test_clips_of_open_shards_meet_in_batches() -> None:
    shards = np.repeat(np.arange(16), 50)
    batches = shards[ShardBatches(shards, 40, seed=0, open_shards=8).epoch(0)]
    # 8 shards of 50 clips fill 10 batches of 40: no batch lies across the two pools, and each holds clips of most shards.
    assert {frozenset(np.unique(batches[:10])), frozenset(np.unique(batches[10:]))} == {
        frozenset(np.unique(batches[:10])),
        frozenset(range(16)) - frozenset(np.unique(batches[:10])),
    }
    assert min(len(np.unique(batch)) for batch in batches) >= 6


def test_shard_batches_are_drawn_without_looking_at_how_shards_are_called() -> None:
    named = ShardBatches(np.array([70, 70, -3, -3, 9, 9]), 2, seed=1, open_shards=1).epoch(4)
    numbered = ShardBatches(np.array([2, 2, 0, 0, 1, 1]), 2, seed=1, open_shards=1).epoch(4)
    assert np.array_equal(named, numbered)


def test_a_pool_of_no_shard_is_refused() -> None:
    with pytest.raises(ConfigError, match="open_shards 0: expected at least 1"):
        ShardBatches(LABELS, 2, seed=0, open_shards=0)
    with pytest.raises(ConfigError, match="--batch-size 20: the training split has 16 clips"):
        ShardBatches(LABELS, 20, seed=0)


def test_the_shard_of_a_clip_is_its_tar_file_or_its_folder(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        tarfile.open(tmp_path / name, "w").close()
    (tmp_path / "2.tar").mkdir()
    audio = [
        "0.tar/a.wav",
        "x/a.wav",
        "0.tar/folder/b.wav",
        "1.tar/a.wav",
        "b.wav",
        "x/c.wav",
        "2.tar/y/a.wav",
        "2.tar/z/a.wav",
    ]
    clips = tuple(Clip(name, name, 1.0) for name in [*audio, str(tmp_path / "1.tar" / "b.wav")])
    shards = shard_of_rows(Manifest(clips, tmp_path, "mixed", "f"))
    assert shards.dtype == np.int64
    assert shards.tolist() == [0, 1, 0, 2, 3, 1, 4, 5, 2]
