import pytest

from clapkit.errors import ManifestError
from clapkit.steps.evaluation.composition_items import Place, find_items, place_of
from clapkit.types import Caption, Clip


def clip(item, role, *, task="order", key="compa", captioned=True):
    captions = (Caption(f"{item} {role}"),) if captioned else ()
    return Clip(f"{task}/{item}/{role}", "a.wav", captions=captions, extra={key: {"task": task, "item": item, "role": role}})


ITEM = [clip(1, "pair"), clip(1, "reversed"), clip(1, "simultaneous")]


def test_pairs_and_triples_are_found_by_item():
    clips = [clip(2, "reversed"), *ITEM, Clip("other", "b.wav"), clip(2, "pair")]
    found = find_items(clips, clips)
    assert list(found) == ["order"]
    assert found["order"].pairs == {"1": (1, 2), "2": (5, 0)}
    assert found["order"].triples == {"1": (1, 2, 3)}
    assert (found["order"].num_incomplete, found["order"].num_incomplete_triples) == (0, 0)


def test_items_sort_as_numbers_and_tasks_stay_apart():
    clips = [
        clip(item, role, task=task) for task in ("order", "attribute") for item in (10, 9) for role in ("pair", "reversed")
    ]
    found = find_items(clips, clips)
    assert list(found) == ["attribute", "order"]
    assert list(found["order"].pairs) == ["9", "10"]


def test_any_data_can_have_items():
    general = Clip("a", "a.wav", extra={"group": {"item": "x", "role": "before"}})
    assert place_of(general) == Place("items", "x", "before")
    assert place_of(Clip("a", "a.wav")) is None


def test_what_an_item_lacks_is_counted_and_the_item_left_out():
    everything = [*ITEM, clip(2, "pair"), clip(2, "reversed"), clip(3, "pair"), clip(4, "pair"), clip(4, "reversed")]
    # Embedded: item 1 without its third clip, all of item 2, the single clip of 3, item 4 with a clip without caption.
    embedded = [ITEM[0], ITEM[1], *everything[3:7], clip(4, "reversed", captioned=False)]
    found = find_items(embedded, everything)["order"]
    assert found.pairs == {"1": (0, 1), "2": (2, 3)}
    assert found.triples == {}
    assert found.num_incomplete == 2
    assert found.num_incomplete_triples == 1


def test_an_item_of_which_nothing_could_be_embedded_is_counted():
    assert find_items([], ITEM)["order"].num_incomplete == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"compa": 3}, r'clip a: extra.compa is 3, expected \{"item": ..., "role": ...\}; correct it'),
        ({"group": {"item": 1}}, "clip a: extra.group is"),
        ({"group": {"item": 1, "role": "x", "task": "My task"}}, "task 'My task' of extra.group, expected small letters"),
    ],
)
def test_a_place_that_cannot_be_read_is_refused(extra, message):
    with pytest.raises(ManifestError, match=message):
        place_of(Clip("a", "a.wav", extra=extra))


def test_two_clips_in_one_place_are_refused():
    with pytest.raises(ManifestError, match="item 1 of order: 2 clips with the role 'pair', expected one"):
        find_items(ITEM, [*ITEM, clip(1, "pair")])


def test_a_third_clip_without_its_role_is_refused():
    with pytest.raises(ManifestError, match="item 1 of order: clips with the roles odd, pair, reversed, expected two beside"):
        find_items(ITEM, [*ITEM, clip(1, "odd")])
