from collections import Counter

import numpy as np
import pytest

from clapkit.steps.evaluation.word_order import shuffle_captions, shuffle_words


def test_words_stay_and_their_order_changes():
    text = "A dog barks,  then the dog sleeps."
    for seed in range(50):
        shuffled = shuffle_words(text, generator=np.random.default_rng(seed))
        assert sorted(shuffled.split(" ")) == sorted(text.split())
        assert shuffled != " ".join(text.split())


def test_every_other_order_is_as_likely_as_any():
    generator = np.random.default_rng(0)
    counts = Counter(shuffle_words("a b c", generator=generator) for _ in range(5000))
    # Five orders other than a b c, 1000 draws each; four standard deviations are 4 * sqrt(5000 * 0.2 * 0.8) = 113.
    assert len(counts) == 5
    assert all(abs(count - 1000) < 113 for count in counts.values())


@pytest.mark.parametrize("text", ["", "rain", "tick tick  tick"])
def test_a_sentence_with_one_order_is_not_shuffled(text):
    assert shuffle_words(text, generator=np.random.default_rng(0)) is None


def test_what_cannot_be_shuffled_is_counted():
    texts = ["a dog barks", "rain", "犬 が 吠える", "ein Hund bellt", "雨"]
    found = shuffle_captions(texts, ["en", "en", "ja", "de", "zh"], seed=0)
    assert found.rows == [0, 3]
    assert [sorted(text.split()) for text in found.texts] == [["a", "barks", "dog"], ["Hund", "bellt", "ein"]]
    assert (found.num_without_blanks, found.num_without_order) == (2, 1)


def test_equal_captions_are_shuffled_equally_wherever_they_stand():
    texts = ["the sound of a dog outside", "a cat and a bird sing", "the sound of a dog outside"]
    first = shuffle_captions(texts, ["en"] * 3, seed=0).texts
    assert first[0] == first[2]
    assert shuffle_captions(texts[::-1], ["en"] * 3, seed=0).texts == first[::-1]
    assert shuffle_captions(texts[:1], ["en"], seed=0).texts == first[:1]


def test_the_seed_decides_the_order():
    texts = ["one two three four five six seven"]
    assert len({shuffle_captions(texts, ["en"], seed=seed).texts[0] for seed in range(5)}) == 5
