import re

import numpy as np
import pytest

from clapkit.data.recipes._synth_captions import ADJECTIVES, ADVERBIALS, SOURCES, captions
from clapkit.data.recipes._synth_plan import EventPlan, attribute_states, caption_generator, plan_split, split_sizes
from clapkit.data.recipes._synth_sounds import SOUNDS

ALL = [(name, state) for name in SOUNDS for state in attribute_states(name)]


def plan(sound, attributes=None):
    return EventPlan(sound, attributes or {}, 0, 0.0, 1.0)


def word(composition, *events, seed=0, count=5):
    return captions(composition, events, rng=np.random.default_rng(seed), count=count)


def mentions(text, key):
    words = sorted((*ADJECTIVES.get(key, ()), *ADVERBIALS[key]), key=len, reverse=True)
    return len(re.findall(rf"\b(?:{'|'.join(words)})\b", text.lower()))


def position(text, sound):
    """Where a class is named, by its label or one of its nouns with one of its verbs; -1 if it is not."""
    verbs = "|".join(verb for source in SOURCES[sound] for verb in (*source.finite, *source.gerund))
    nouns = "|".join(re.escape(source.noun) for source in SOURCES[sound])
    found = re.search(rf"\b(?:{sound}|(?:{nouns})(?: is| are)? (?:{verbs}))\b", text.lower())
    return found.start() if found else -1


def test_every_class_has_words():
    assert list(SOURCES) == list(SOUNDS)
    assert all(len(source.finite) == len(source.gerund) for sources in SOURCES.values() for source in sources)


def full(texts):
    """The captions that say everything; one names the classes alone."""
    plain = [text for text in texts if not any(mentions(text, key) for key in ADVERBIALS)]
    assert len(plain) == 1, texts
    return [text for text in texts if text not in plain]


def test_every_state_of_every_class_is_said_in_all_captions_but_one():
    for seed, (sound, attributes) in enumerate(ALL):
        texts = word("single", plan(sound, attributes), seed=seed)
        assert all(position(text, sound) >= 0 for text in texts), texts
        for text in full(texts) if attributes else []:
            for key in attributes.items():
                assert mentions(text, key) == 1, text


@pytest.mark.parametrize("composition", ["then", "while"])
def test_both_events_and_both_attributes_are_said(composition):
    for seed, (sound, attributes) in enumerate(ALL):
        texts = word(composition, plan(sound, attributes), plan("bell ringing", {"pitch": "high"}), seed=seed)
        for text in texts:
            assert position(text, sound) >= 0, text
            assert position(text, "bell ringing") >= 0, text
        said = [*attributes.items(), ("pitch", "high")]
        for text in full(texts):
            assert {key: mentions(text, key) for key in ADVERBIALS} == {key: said.count(key) for key in ADVERBIALS}, text


def test_one_caption_of_a_single_sound_is_its_label():
    for sound, attributes in ALL:
        assert f"{sound.capitalize()}." in word("single", plan(sound, attributes))


def test_attributes_that_were_not_drawn_are_not_said():
    for seed in range(50):
        for text in word("then", plan("dog barking"), plan("bell ringing"), seed=seed):
            assert not any(mentions(text, key) for key in ADVERBIALS), text


@pytest.mark.parametrize("composition", ["single", "then", "while"])
def test_captions_of_a_clip_all_differ_and_one_holds_the_labels(composition):
    events = [plan("dog barking"), plan("rain falling")][: 1 if composition == "single" else 2]
    for seed in range(50):
        texts = word(composition, *events, seed=seed)
        assert len(set(texts)) == len(texts) == 5
        assert any(all(event.sound in text.lower() for event in events) for text in texts)


def test_then_keeps_the_order():
    for seed in range(50):
        for text in word("then", plan("dog barking"), plan("bell ringing"), seed=seed):
            is_turned = " after " in text
            assert (position(text, "dog barking") < position(text, "bell ringing")) != is_turned, text


def test_while_names_either_first():
    firsts = {
        position(text, "dog barking") < position(text, "bell ringing")
        for text in word("while", plan("dog barking"), plan("bell ringing"))
    }
    assert firsts == {True, False}


def test_only_continuous_sounds_are_in_the_background():
    texts = [t for seed in range(40) for t in word("while", plan("rain falling"), plan("dog barking"), seed=seed)]
    texts = [text for text in texts if "background" in text]
    assert texts
    assert all(position(text, "dog barking") < position(text, "rain falling") for text in texts)


def test_sentences_start_with_a_capital_end_with_a_stop_and_have_right_articles():
    for seed, (sound, attributes) in enumerate(ALL):
        for text in word("then", plan(sound, attributes), plan("alarm beeping", {"loudness": "quiet"}), seed=seed):
            assert re.fullmatch(r"[A-Z][a-z ,-]+\.", text), text
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|  | ,", text.lower()), text


def test_plural_nouns_take_plural_verbs():
    texts = [text for seed in range(40) for text in word("while", plan("waves crashing"), plan("dog barking"), seed=seed)]
    assert any("waves are " in text for text in texts)
    assert not any("waves is " in text or "waves crashes" in text for text in texts)


def test_the_same_generator_gives_the_same_captions():
    assert word("single", plan("dog barking"), seed=3) == word("single", plan("dog barking"), seed=3)


def test_the_vocabulary_is_compact():
    texts = [text for name, state in ALL for seed in range(3) for text in word("single", plan(name, state), seed=seed)]
    assert 90 < len({part for text in texts for part in re.findall(r"[a-z-]+", text.lower())}) < 250


def test_no_two_captions_of_a_clip_of_the_default_corpus_are_equal():
    for split, num_clips in split_sizes(2000).items():
        for clip in plan_split(0, split, num_clips):
            found = captions(clip.composition, clip.events, rng=caption_generator(0, split, clip.index), count=5)
            assert len(set(found)) == 5, (split, clip.index, found)
