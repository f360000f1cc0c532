from collections import Counter
from pathlib import Path

import pytest

from clapkit.data.recipes._mix_plan import Recording, composition_sizes, concepts, fewest_clips, plan_gallery, plan_train


def recordings(**sizes: int) -> dict[str, list[Recording]]:
    """Label -> as many recordings as told."""
    return {
        label: [Recording(f"{label}{i}", f"{label}{i}", label, "test", Path("x.wav"), None, None, ("a",)) for i in range(size)]
        for label, size in sizes.items()
    }


def used(plans, concept: int) -> tuple[str, ...]:
    return tuple(recording.id for recording in plans[concept].recordings)


def test_ten_labels_make_145_concepts():
    found = concepts([str(number) for number in range(10)])
    assert {name: len(labels) for name, labels in found.items()} == {"single": 10, "then": 90, "while": 45}
    assert all(len(set(labels)) == len(labels) for labels in found.values())
    assert len({frozenset(pair) for pair in found["while"]}) == 45


def test_a_fifth_is_single_and_a_half_is_then():
    assert composition_sizes(6000) == {"single": 1200, "then": 3000, "while": 1800}
    assert sum(composition_sizes(47).values()) == 47


@pytest.mark.parametrize(
    ("num_labels", "expected"),
    [
        (2, 8),  # of 7 clips 1.4 are single, of 8 1.6: two labels; then 4 of 2, while 2 of 1
        (3, 13),  # of 12 clips 2.4 are single, of 13 2.6: three labels; then 6 of 6, while 4 of 3
        (10, 179),  # half of 178 is 89, half of 179 rounds to 90 ordered pairs; single 36 of 10, while 53 of 45
    ],
)
def test_the_fewest_clips_are_those_that_hold_every_concept(num_labels, expected):
    assert fewest_clips(num_labels) == expected
    for num_clips, is_enough in ((expected, True), (expected - 1, False)):
        plans = plan_train(recordings(**{f"l{i}": 1 for i in range(num_labels)}), seed=0, num_clips=num_clips)
        dealt = {(plan.composition, tuple(recording.label for recording in plan.recordings)) for plan in plans}
        assert (len(dealt) == num_labels + num_labels * (num_labels - 1) * 3 // 2) == is_enough


def test_training_clips_draw_from_all_recordings():
    plans = plan_train(recordings(a=5, b=5), seed=0, num_clips=400)
    found = Counter(recording.id for plan in plans for recording in plan.recordings)
    # 80 + 2 (200 + 120) = 720 events of 10 recordings: 72 each, with a standard deviation of 8.
    assert len(found) == 10
    assert all(40 < count < 104 for count in found.values())


def test_the_seed_decides():
    source = recordings(a=5, b=5)
    assert plan_train(source, seed=1, num_clips=40) == plan_train(source, seed=1, num_clips=40)
    assert plan_train(source, seed=1, num_clips=40) != plan_train(source, seed=2, num_clips=40)
    assert plan_gallery(source, seed=1, split="test") != plan_gallery(source, seed=2, split="test")


@pytest.mark.parametrize(("num_a", "num_b"), [(3, 3), (2, 4), (2, 3), (1, 5)])
def test_all_combinations_of_recordings_come_once_before_one_comes_twice(num_a, num_b):
    galleries = [plan_gallery(recordings(a=num_a, b=num_b), seed=0, split="test", gallery=i) for i in range(2 * num_a * num_b)]
    for concept in (2, 3, 4):  # a then b, b then a, a while b
        pairs = [used(plans, concept) for plans in galleries]
        assert len(set(pairs[: num_a * num_b])) == num_a * num_b
        assert set(Counter(pairs).values()) == {2}


def test_neighbouring_galleries_share_no_recording_of_a_concept():
    first, second = (plan_gallery(recordings(a=3, b=4), seed=0, split="test", gallery=i) for i in range(2))
    assert all(not set(used(first, concept)) & set(used(second, concept)) for concept in range(5))


def test_a_gallery_carries_the_name_that_it_is_given():
    plans = plan_gallery(recordings(a=1, b=1), seed=0, split="test", gallery=1, name="test-2")
    assert {plan.split for plan in plans} == {"test-2"}
    assert [plan.index for plan in plans] == list(range(5))
