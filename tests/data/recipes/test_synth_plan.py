from collections import Counter

import numpy as np
import pytest

from clapkit.data.recipes._synth_plan import (
    MIN_NUM_CLIPS,
    attribute_states,
    event_generator,
    plan_split,
    split_sizes,
    voice_generator,
)
from clapkit.data.recipes._synth_sounds import SOUNDS
from clapkit.errors import ConfigError


def meaning(plan):
    return plan.composition, tuple((e.sound, tuple(sorted(e.attributes.items()))) for e in plan.events)


def test_the_default_size_splits_into_eighty_eight_and_twelve_percent():
    assert split_sizes(2000) == {"train": 1600, "val": 160, "test": 240}


def test_the_smallest_corpus_holds_every_class_in_every_split():
    for split, size in split_sizes(MIN_NUM_CLIPS).items():
        for seed in range(5):
            assert {e.sound for plan in plan_split(seed, split, size) for e in plan.events} == set(SOUNDS)


def test_too_few_clips_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match="num_clips=59: expected at least 60.*pass -O num_clips=60"):
        split_sizes(59)


def test_classes_come_equally_often():
    counts = Counter(e.sound for plan in plan_split(0, "train", 1600) for e in plan.events)
    assert max(counts.values()) - min(counts.values()) <= 2


def test_no_two_clips_of_a_test_split_share_a_pair_or_a_meaning():
    plans = plan_split(0, "test", 240)
    pairs = [frozenset(e.sound for e in plan.events) for plan in plans if len(plan.events) == 2]
    assert len(set(pairs)) == len(pairs) == 240 - round(0.28 * 240)
    assert all(len(pair) == 2 for pair in pairs)
    assert len({meaning(plan) for plan in plans}) == 240


def test_then_ends_the_first_event_before_the_second_starts():
    plans = [plan for plan in plan_split(0, "train", 300) if plan.composition == "then"]
    assert len(plans) == 120  # 40 % of 300
    for plan in plans:
        first, second = plan.events
        assert 0 <= first.start_s < first.end_s < second.start_s < second.end_s <= plan.duration_s


def test_simultaneous_events_share_their_span_and_never_name_a_level():
    for plan in plan_split(0, "train", 300):
        if plan.composition == "while":
            first, second = plan.events
            assert (first.start_s, first.end_s) == (second.start_s, second.end_s)
            assert not {"loudness", "distance"} & {*first.attributes, *second.attributes}


def test_states_name_known_axes_and_never_level_and_distance_together():
    # rain: nothing, loud, quiet. thunder: nothing, loud, quiet, far. alarm: 1 + 3 * 2 + 3 pairs of axes * 4 = 19.
    assert [len(attribute_states(s)) for s in ("rain falling", "thunder rumbling", "alarm beeping")] == [3, 4, 19]
    for sound in SOUNDS:
        for state in attribute_states(sound):
            assert set(state) <= set(SOUNDS[sound].axes)
            assert not {"loudness", "distance"} <= set(state)


def test_plans_depend_on_seed_and_split_only():
    assert plan_split(1, "val", 50) == plan_split(1, "val", 50)
    assert plan_split(1, "val", 50) != plan_split(2, "val", 50)
    assert plan_split(1, "val", 50)[0].events != plan_split(1, "test", 50)[0].events


def test_voices_and_events_of_different_splits_are_drawn_from_different_generators():
    drawn = [
        generator.random()
        for split in ("train", "val", "test")
        for generator in (voice_generator(0, split, "dog barking", 0), event_generator(0, split, 0, 0))
    ]
    assert len(np.unique(drawn)) == 6
