import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.steps.evaluation.captions import clean_caption, merged_pairs, shared_texts

WORDS = st.lists(st.tuples(st.sampled_from(["rain", "Rain!", "a dog", "wind"]), st.integers(0, 3)), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog barks, then stops.", "a dog barks then stops"),
        ("  It's\ta cat-like  sound ", "it s a cat like sound"),
        ("犬が吠える。雨、風", "犬が吠える 雨 風"),
        ("Ça c'est «l'été»…", "ça c est l été"),
        ("50% $5 a_b", "50 5 a b"),
        ("?!", ""),
    ],
)
def test_cleaned_captions_are_lower_case_with_blanks_for_punctuation(text, expected):
    assert clean_caption(text) == expected
    assert clean_caption(expected) == expected


def test_shared_texts_bound_what_captions_can_find():
    # "rain" stands for clips 0 (twice) and 1 (once): only the two of clip 0 can find their clip first. "wind" twice for clip 2.
    shared = shared_texts(["rain", "rain", "rain", "wind", "wind"], np.array([0, 0, 1, 2, 2]))
    assert shared.num_captions == 3
    assert shared.ceiling == pytest.approx(4 / 5)


def test_texts_of_one_clip_each_bound_nothing():
    shared = shared_texts(["rain", "Rain", "wind"], np.array([0, 1, 1]))
    assert (shared.num_captions, shared.ceiling) == (0, 1.0)


@settings(max_examples=60, deadline=None)
@given(rows=WORDS)
def test_merged_pairs_are_those_of_a_loop(rows):
    texts, clip = [text for text, _ in rows], np.array([owner for _, owner in rows])
    clips, captions = merged_pairs(texts, clip, most=10_000)
    expected = {
        (int(clip[other]), number)
        for number, text in enumerate(texts)
        for other, also in enumerate(texts)
        if clean_caption(also) == clean_caption(text) and clip[other] != clip[number]
    }
    assert sorted(zip(clips.tolist(), captions.tolist(), strict=True)) == sorted(expected)


def test_too_many_merged_pairs_are_counted_and_not_listed():
    # Each of four captions stands for the three clips of the others.
    assert merged_pairs(["rain"] * 4, np.arange(4), most=11) == 12
    assert len(merged_pairs(["rain"] * 4, np.arange(4), most=12)[0]) == 12


def test_captions_of_punctuation_alone_are_not_the_same_words():
    assert len(merged_pairs(["...", "???", "..."], np.arange(3), most=10)[0]) == 2  # only the equal ones
