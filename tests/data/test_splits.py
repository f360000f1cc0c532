from collections import Counter

import numpy as np
import pytest

from clapkit.data.splits import Shares, assign, draw, join_sources, read_shares
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip


def clips(count: int) -> list[Clip]:
    return [Clip(f"c{i:03d}", f"{i}.wav", 1.0) for i in range(count)]


def ids(items: list[Clip]) -> list[str]:
    return [clip.id for clip in items]


def test_a_tenth_each_goes_to_val_and_test_and_the_order_stays() -> None:
    items = clips(100)
    assigned = assign(items, ids(items), shares=Shares(), seed=0)
    assert Counter(clip.split for clip in assigned) == {"train": 80, "val": 10, "test": 10}
    assert ids(assigned) == ids(items)


def test_a_source_never_falls_in_two_splits() -> None:
    items = clips(120)
    sources = [f"tape {i % 17}" for i in range(120)]
    for seed in range(20):
        assigned = assign(items, sources, shares=Shares(), seed=seed)
        pairs = {(source, clip.split) for source, clip in zip(sources, assigned, strict=True)}
        assert len(pairs) == 17
        assert {split for _, split in pairs} == {"train", "val", "test"}


def test_the_draw_depends_on_seed_and_sources_but_not_on_their_order() -> None:
    items = clips(50)
    forward = assign(items, ids(items), shares=Shares(), seed=3)
    backward = assign(items[::-1], ids(items)[::-1], shares=Shares(), seed=3)
    assert forward == backward[::-1]
    assert forward != assign(items, ids(items), shares=Shares(), seed=4)


@pytest.mark.parametrize(("count", "splits"), [(1, {"train"}), (9, {"train"}), (10, {"train", "val", "test"})])
def test_fewer_than_ten_sources_all_go_to_train(count: int, splits: set[str]) -> None:
    items = clips(count)
    assert {clip.split for clip in assign(items, ids(items), shares=Shares(), seed=0)} == splits


@pytest.mark.parametrize("count", [3, 4, 5])
def test_required_shares_give_every_split_a_source(count: int) -> None:
    items = clips(count)
    assigned = assign(items, ids(items), shares=Shares(0.1, 0.1, required=True), seed=0)
    assert {clip.split for clip in assigned} == {"train", "val", "test"}


@pytest.mark.parametrize("count", [1, 2])
def test_required_shares_of_too_few_sources_are_refused(count: int) -> None:
    items = clips(count)
    with pytest.raises(ManifestError, match=rf"not enough data for the split: {count} sources found, expected at least 3"):
        assign(items, ids(items), shares=Shares(0.2, 0.2, required=True), seed=0)


def test_many_clips_of_two_sources_are_not_enough_for_three_splits() -> None:
    with pytest.raises(ManifestError, match="2 sources found, expected at least 3 for 3 splits"):
        assign(clips(50), ["a", "b"] * 25, shares=Shares(0.2, 0.2, required=True), seed=0)


def test_a_share_of_zero_makes_no_split() -> None:
    items = clips(20)
    assigned = assign(items, ids(items), shares=read_shares(0.5, 0.0), seed=0)
    assert Counter(clip.split for clip in assigned) == {"train": 10, "val": 10}


def test_train_keeps_a_source_even_under_large_shares() -> None:
    items = clips(4)
    assigned = assign(items, ids(items), shares=Shares(0.49, 0.5, required=True), seed=0)
    assert Counter(clip.split for clip in assigned) == {"test": 2, "val": 1, "train": 1}


def test_a_source_that_is_too_large_is_left_out_of_the_draw() -> None:
    sizes = {"huge": 90} | {f"s{i}": 1 for i in range(10)}
    for seed in range(10):
        drawn = draw(sizes, size=5, generator=np.random.default_rng(seed), max_sources=10)
        assert len(drawn) == 5
        assert "huge" not in drawn


def test_the_smallest_source_is_drawn_when_all_are_too_large() -> None:
    assert draw({"a": 9, "b": 7, "c": 8}, size=2, generator=np.random.default_rng(0), max_sources=2) == {"b"}
    assert draw({"a": 9}, size=0, generator=np.random.default_rng(0), max_sources=1) == set()


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.1), (0.5, 0.5), (1.0, 0.0), (float("nan"), 0.1)])
def test_shares_that_leave_nothing_to_train_are_refused(val: float, test: float) -> None:
    with pytest.raises(ConfigError, match="expected shares of at least 0 that leave something to train"):
        Shares(val, test)


def test_shares_that_nobody_gave_are_not_required() -> None:
    assert read_shares(None, None) == Shares(0.1, 0.1, required=False)
    assert read_shares(0.2, None) == Shares(0.2, 0.1, required=True)


def test_joined_sources_are_handed_on() -> None:
    ids, sources = ["a", "b", "c", "d", "e"], ["s1", "s2", "s3", "s4", "s1"]
    # a-b and b-c join s1, s2 and s3; e has the source of a.
    assert join_sources(ids, sources, [("b", "a"), ("c", "b")]) == ["s1", "s1", "s1", "s4", "s1"]
    assert join_sources(ids, sources, []) == sources
