from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.data import mining
from clapkit.data.mining import MinedBatches, hard_neighbours
from clapkit.data.samplers import RandomBatches
from clapkit.errors import CheckpointError, ConfigError, ShapeError

OWN = np.arange(40)  # every row is a group of its own


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embeddings(num_rows: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    audio = draw.normal(size=(num_rows, 6))
    return unit(audio), unit(audio + draw.normal(size=(num_rows, 6)))


class Model:
    """Embeddings that change with every call, as those of a model in training do."""

    def __init__(self, num_rows: int = 40) -> None:
        self.num_rows, self.calls = num_rows, 0

    def __call__(self) -> tuple[np.ndarray, np.ndarray]:
        self.calls += 1
        return embeddings(self.num_rows, seed=self.calls)


def mined(num_rows: int = 40, batch_size: int = 8, *, embed: Model | None = None, **options: object) -> MinedBatches:
    settings = {"seed": 0, "every": 1, "neighbours": 4, "embed": embed or Model(num_rows)} | options
    return MinedBatches(num_rows, batch_size, **settings)


def naive_neighbours(audio: np.ndarray, text: np.ndarray, groups: np.ndarray, pool: int, filter: int) -> list[list[int]]:
    lists = []
    for row in range(len(audio)):
        others = [clip for clip in range(len(audio)) if groups[clip] != groups[row]]
        candidates = sorted(others, key=lambda clip: -float(text[row] @ audio[clip]))[: pool * filter]
        num_kept = int(np.ceil(len(candidates) / filter))
        kept = sorted(candidates, key=lambda clip: float(text[row] @ text[clip]))[:num_kept]
        lists.append(sorted(kept, key=lambda clip: -float(text[row] @ audio[clip])))
    return lists


def without_padding(lists: np.ndarray) -> list[list[int]]:
    return [[int(clip) for clip in row if clip >= 0] for row in lists]


@pytest.mark.parametrize("filter", [1, 2, 3])
@pytest.mark.parametrize("pool", [1, 5, 30])
@pytest.mark.parametrize("groups", [OWN, OWN // 3, np.minimum(OWN, 12)], ids=["own", "threes", "one large"])
def test_neighbours_are_those_of_the_definition(groups: np.ndarray, pool: int, filter: int) -> None:
    audio, text = embeddings()
    lists = hard_neighbours(audio, text, groups=groups, pool=pool, filter=filter)
    assert lists.shape == (40, pool)
    assert lists.dtype == np.int32
    assert without_padding(lists) == naive_neighbours(audio, text, groups, pool, filter)


def test_searching_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    audio, text = embeddings()
    whole = hard_neighbours(audio, text, groups=OWN, pool=5, filter=3)
    monkeypatch.setattr(mining, "_CHUNK", 7 * 5 * 3 * 6)  # seven rows at a time; 40 is no multiple
    assert np.array_equal(hard_neighbours(audio, text, groups=OWN, pool=5, filter=3), whole)


def test_a_filter_of_one_keeps_the_nearest_clips() -> None:
    audio, text = embeddings()
    nearest = np.argsort(-(text @ audio.T) + 9 * np.eye(40), axis=1)[:, :5]
    assert np.array_equal(hard_neighbours(audio, text, groups=OWN, pool=5, filter=1), nearest)


def test_clips_whose_captions_are_copies_are_filtered_while_there_are_others() -> None:
    # Rows 0 to 4 share one caption and the nearest clips to it are their own. Of the best 4 * 3 candidates of each, 4 are
    # copies and 8 are not: the 4 that stay are none of the copies.
    audio, text = embeddings()
    text[:5] = text[0]
    audio[:5] = unit(text[:5] + 0.05 * np.random.default_rng(1).normal(size=(5, 6)))
    unfiltered = hard_neighbours(audio, text, groups=OWN, pool=4, filter=1)
    assert all(set(unfiltered[row]) == set(range(5)) - {row} for row in range(5))
    filtered = hard_neighbours(audio, text, groups=OWN, pool=4, filter=3)
    assert not np.isin(filtered[:5], np.arange(5)).any()
    assert (filtered[:5] >= 0).all()


@pytest.mark.parametrize("filter", [1, 3])
def test_neighbours_do_not_depend_on_the_order_of_the_rows(filter: int) -> None:
    audio, text = embeddings()
    order = np.random.default_rng(3).permutation(40)
    lists = hard_neighbours(audio, text, groups=OWN // 3, pool=5, filter=filter)
    shuffled = hard_neighbours(audio[order], text[order], groups=(OWN // 3)[order], pool=5, filter=filter)
    assert np.array_equal(order[shuffled], lists[order])


def test_rows_without_any_other_group_have_no_neighbours() -> None:
    audio, text = embeddings(4)
    assert (hard_neighbours(audio, text, groups=np.zeros(4), pool=3, filter=3) == -1).all()
    assert (hard_neighbours(audio[:1], text[:1], groups=np.zeros(1), pool=3, filter=3) == -1).all()


@settings(max_examples=40, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=8, max_size=50).map(np.array),
    batch_size=st.integers(2, 6),
    neighbours=st.integers(1, 6),
    seed=st.integers(0, 100),
)
def test_batches_repeat_a_group_only_where_it_is_unavoidable(
    groups: np.ndarray, batch_size: int, neighbours: int, seed: int
) -> None:
    sampler = mined(len(groups), batch_size, groups=groups, neighbours=neighbours, seed=seed)
    batches = sampler.epoch(1)
    assert batches.shape == (len(groups) // batch_size, batch_size)
    assert batches.dtype == np.int64
    assert len(np.unique(batches)) == batches.size
    sizes, count = np.unique(groups, return_counts=True)[1], len(batches)
    if np.minimum(sizes, count).sum() >= count * batch_size:
        assert all(len(np.unique(groups[batch])) == batch_size for batch in batches)


def test_scarce_places_are_kept_for_the_group_that_needs_them() -> None:
    # Group 0 has 5 of 20 rows and there are 5 batches of 4: each needs exactly one of them, whatever the neighbours say.
    groups = np.r_[np.zeros(5, dtype=np.int64), np.arange(1, 16)]
    for seed in range(10):
        batches = mined(20, 4, groups=groups, neighbours=3, seed=seed).epoch(1)
        assert (groups[batches] == 0).sum(axis=1).tolist() == [1] * 5


def test_one_group_alone_still_fills_its_batches() -> None:
    batches = mined(8, 4, groups=np.zeros(8, dtype=np.int64)).epoch(1)
    assert sorted(batches.ravel().tolist()) == list(range(8))


def test_hard_neighbours_share_batches() -> None:
    # Four families of five rows, far apart; a batch of five is a seed with its four neighbours: one family.
    family = np.repeat(np.arange(4), 5)
    vectors = unit(np.eye(4)[family] + 0.1 * np.random.default_rng(0).normal(size=(20, 4)))
    sampler = MinedBatches(20, 5, seed=0, every=1, neighbours=4, pool=4, filter=1, embed=lambda: (vectors, vectors))
    batches = sampler.epoch(1)
    assert (family[batches] == family[batches][:, :1]).all()


def test_half_of_the_neighbours_come_from_further_down() -> None:
    # On a circle the four nearest rows of a seed are two on each side; the list holds 16 of 200.
    angle = np.arange(200) * 2 * np.pi / 200
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    sampler = MinedBatches(200, 9, seed=0, every=1, neighbours=8, pool=16, filter=1, embed=lambda: (vectors, vectors))
    first = sampler.epoch(1)[0]  # nothing is used yet
    steps = np.sort(np.abs((first[1:] - first[0] + 100) % 200 - 100))
    assert steps[:4].tolist() == [1, 1, 2, 2]
    assert steps[4:].min() >= 3
    assert steps.max() <= 8


def test_row_zero_is_mined_like_any_other() -> None:
    # Rows 0 and 1 are alike, all others are not: seed 1 brings row 0.
    vectors = np.eye(12)
    vectors[1] = vectors[0] + 0.1 * vectors[1]
    vectors = unit(vectors)
    sampler = MinedBatches(12, 2, seed=0, every=1, neighbours=1, pool=1, filter=1, embed=lambda: (vectors, vectors))
    assert hard_neighbours(vectors, vectors, groups=np.arange(12), pool=1, filter=1)[1] == [0]
    brought = []
    for epoch in range(1, 60):
        batches = sampler.epoch(epoch).tolist()
        number = next((number for number, batch in enumerate(batches) if batch[0] == 1), None)
        if number is not None and 0 not in sum(batches[:number], []):
            brought.append(batches[number][1])
    assert set(brought) == {0}
    assert len(brought) > 3


def test_without_neighbours_the_batches_are_a_plain_shuffle() -> None:
    model = Model()
    sampler = mined(neighbours=0, embed=model)
    for epoch in range(3):
        assert np.array_equal(sampler.epoch(epoch), RandomBatches(40, 8, seed=0).epoch(epoch))
    assert model.calls == 0


def test_the_search_is_repeated_every_few_epochs_and_starts_after_as_many() -> None:
    model = Model()
    sampler = mined(every=3, embed=model)
    calls, same = [], []
    for epoch in range(8):
        same.append(bool(np.array_equal(sampler.epoch(epoch), RandomBatches(40, 8, seed=0).epoch(epoch))))
        calls.append(model.calls)
    assert calls == [0, 0, 0, 1, 1, 1, 2, 2]
    assert same == [True] * 3 + [False] * 5


def test_batches_are_a_function_of_seed_epoch_and_lists() -> None:
    sampler = mined(every=3)
    batches = sampler.epoch(4)
    assert np.array_equal(batches, sampler.epoch(4))
    assert np.array_equal(batches, mined(every=3).epoch(4))
    assert not np.array_equal(batches, sampler.epoch(5))
    assert not np.array_equal(batches, mined(every=3, seed=1).epoch(4))


@pytest.mark.parametrize("stop_in", [1, 3, 4])
def test_a_resumed_run_draws_the_same_batches_without_searching_again(tmp_path: Path, stop_in: int) -> None:
    sampler = mined(every=3)
    expected = {epoch: sampler.epoch(epoch) for epoch in range(stop_in + 1)}
    torch.save(sampler.state_dict(), tmp_path / "state.pt")
    changed = Model()
    changed.calls = 100  # the model has learned since: searching again would give other lists
    resumed = mined(every=3, embed=changed)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert np.array_equal(resumed.epoch(stop_in), expected[stop_in])
    assert changed.calls == 100
    assert np.array_equal(sampler.epoch(5), resumed.epoch(5)) == (stop_in >= 3)


def test_a_saved_state_is_not_changed_by_later_searches() -> None:
    sampler = mined()
    sampler.epoch(1)
    state = sampler.state_dict()
    before = state["neighbours"].clone()
    sampler.epoch(2)
    assert torch.equal(state["neighbours"], before)
    assert not torch.equal(sampler.state_dict()["neighbours"], before)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "state of the sampler: found no neighbour lists, expected those of 40; resume with the data and the options"),
        ({"neighbours": torch.zeros(7, 2), "mined_in": 1}, "found lists of 7 rows, expected those of 40"),
    ],
)
def test_a_state_of_another_run_is_refused(state: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        mined().load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "--mine-every 0: expected 1 or more"),
        ({"neighbours": -1}, "--mine-neighbours -1: expected 0 or more"),
        ({"filter": 0}, "--mine-filter 0: expected 1 or more"),
        ({"pool": 3}, "pool 3: a list of so many gives no 4 neighbours; pass 4 or more"),
        ({"batch_size": 41}, "--batch-size 41: the training split has 40 clips"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mined(**options)


def test_groups_and_embeddings_of_other_rows_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"groups of shape \(3,\): expected one for each of 40 rows"):
        mined(groups=np.arange(3))
    with pytest.raises(ShapeError, match=r"mining: embeddings of shape \(7, 6\) \(audio\) and \(7, 6\) \(text\)"):
        mined(embed=Model(7)).epoch(1)
