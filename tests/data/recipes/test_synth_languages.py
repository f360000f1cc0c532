import re

import numpy as np
import pytest

from clapkit.data.caption_audit import find_caption_problems
from clapkit.data.recipes import _synth_french, _synth_german, _synth_spanish
from clapkit.data.recipes._synth_grammar import write_sentences
from clapkit.data.recipes._synth_languages import GRAMMARS, read_languages, sentences
from clapkit.data.recipes._synth_plan import EventPlan, attribute_states, plan_split
from clapkit.data.recipes._synth_sounds import SOUNDS
from clapkit.errors import ConfigError
from clapkit.types import Caption, Clip

STATES = [(sound, state) for sound in SOUNDS for state in attribute_states(sound)]
WORDS = {
    "de": [_synth_german.ADVERBIALS, _synth_german.ADJECTIVES],
    "es": [_synth_spanish.ADVERBIALS],
    "fr": [_synth_french.ADVERBIALS],
}
in_every_language = pytest.mark.parametrize("language", GRAMMARS)


def event(sound, attributes=None):
    return EventPlan(sound, attributes or {}, 0, 0.0, 1.0)


def write(language, composition, *events, seed=0):
    """One sentence of every template."""
    count = len(GRAMMARS[language].templates[composition])
    return write_sentences(GRAMMARS[language], composition, events, rng=np.random.default_rng(seed), count=count)


def said(text, language):
    """How often each attribute is said; German adjectives with either ending."""
    counts = {}
    for key in WORDS[language][0]:
        words = sorted((word for table in WORDS[language] for word in table[key]), key=len, reverse=True)
        counts[key] = len(re.findall(rf"\b(?:{'|'.join(words)})n?\b", text))
    return counts


def many_clips(num_pairs):
    """Compositions with their events: every state of every class alone, and pairs of unlike classes."""
    for sound, attributes in STATES:
        yield "single", (event(sound, attributes),)
    rng = np.random.default_rng(0)
    for number in range(num_pairs):
        first, second = (STATES[place] for place in rng.choice(len(STATES), 2, replace=False))
        if first[0] != second[0]:
            yield ("then", "while")[number % 2], (event(*first), event(*second))


def test_languages_are_read_in_their_order():
    assert read_languages("de, EN,fr") == ("de", "en", "fr")
    assert read_languages("es") == ("es",)


def test_unknown_languages_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="languages=en,it: unknown language 'it'; known: en, de, es, fr; pass for example"):
        read_languages("en,it")


@pytest.mark.parametrize("text", ["", "en,", ","])
def test_missing_languages_are_refused(text):
    with pytest.raises(ConfigError, match=f"languages={text}: a language is missing; known: en, de, es, fr"):
        read_languages(text)


def test_a_language_that_is_given_twice_is_refused():
    with pytest.raises(ConfigError, match="languages=en,de,en: 'en' is given twice; give it once"):
        read_languages("en,de,en")


@in_every_language
def test_every_composition_has_at_least_three_templates(language):
    templates = GRAMMARS[language].templates
    assert set(templates) == {"single", "then", "while"}
    assert min(len(set(of_composition)) for of_composition in templates.values()) >= 3


@in_every_language
def test_every_attribute_is_said_once_and_no_other_one(language):
    for number, (sound, attributes) in enumerate(STATES):
        for text in write(language, "single", event(sound, attributes), seed=number):
            assert said(text, language) == {key: int(attributes.get(key[0]) == key[1]) for key in WORDS[language][0]}, text
        for text in write(language, "then", event(sound, attributes), event("bell ringing", {"pitch": "high"}), seed=number):
            both = [*attributes.items(), ("pitch", "high")]
            assert said(text, language) == {key: both.count(key) for key in WORDS[language][0]}, text


@in_every_language
def test_a_sentence_tells_the_composition_the_order_the_classes_and_all_attributes(language):
    meanings = {}
    for number, (composition, events) in enumerate(many_clips(150)):
        parts = [(one.sound, *sorted(one.attributes.items())) for one in events]
        meaning = composition, tuple(sorted(parts) if composition == "while" else parts)
        for text in write(language, composition, *events, seed=number):
            assert meanings.setdefault(text, meaning) == meaning, text
    # Five sentences at least of every state, and six of every pair; hardly a pair of 150 is drawn twice or of one class.
    assert len(meanings) > 5 * len(STATES) + 6 * 100


@in_every_language
def test_sentences_are_clean_and_the_audit_finds_nothing_wrong_with_them(language):
    texts = [
        text
        for number, (composition, events) in enumerate(many_clips(60))
        for text in write(language, composition, *events, seed=number)
    ]
    for text in texts:
        assert re.fullmatch(r"[A-ZÄÖÜ][\w ,'-]+\.", text), text
        assert not re.search(r"  | [,.]|,[^ ]", text), text
    assert find_caption_problems([Clip(text, "a.wav", captions=(Caption(text, language),)) for text in texts]) == []


@in_every_language
def test_each_clip_has_two_different_sentences_that_depend_on_seed_clip_and_language_only(language):
    plans = plan_split(0, "test", 60)
    written = [sentences(plan, language, seed=0) for plan in plans]
    assert all(len(set(texts)) == 2 for texts in written)
    assert written == [sentences(plan, language, seed=0) for plan in plans]
    assert written != [sentences(plan, language, seed=1) for plan in plans]


def test_each_language_draws_from_a_generator_of_its_own(monkeypatch):
    monkeypatch.setitem(GRAMMARS, "es", GRAMMARS["de"])
    plans = plan_split(0, "val", 30)
    same = sum(sentences(plan, "es", seed=0) == sentences(plan, "de", seed=0) for plan in plans)
    # With one generator all 30 would be equal; apart, two templates of at least six in order are the same once in 30.
    assert same < 8
