import re

import numpy as np
import pytest

from clapkit.data.recipes._synth_french import GRAMMAR, SOURCES
from clapkit.data.recipes._synth_grammar import write_sentences
from clapkit.data.recipes._synth_plan import EventPlan, attribute_states
from clapkit.data.recipes._synth_sounds import SOUNDS


def write(composition, *events, num_seeds=1):
    """Every sentence of as many draws of all templates."""
    plans = [EventPlan(event, {}, 0, 0.0, 1.0) for event in events]
    count = len(GRAMMAR.templates[composition])
    return {
        text
        for seed in range(num_seeds)
        for text in write_sentences(GRAMMAR, composition, plans, rng=np.random.default_rng(seed), count=count)
    }


def forms(sound, attributes, num_seeds=40):
    drawn = [GRAMMAR.forms(sound, attributes, np.random.default_rng(seed)) for seed in range(num_seeds)]
    return {form: {one[form] for one in drawn} for form in drawn[0]}


def test_every_template_of_one_sound():
    assert write("single", "dog barking") == {
        "Un chien aboie.",
        "On entend un chien qui aboie.",
        "On entend un chien aboyer.",
        "Le bruit d'un chien qui aboie.",
        "On peut entendre un chien aboyer.",
    }


def test_every_template_of_one_sound_after_another():
    assert write("then", "dog barking", "thunder rumbling") == {
        "Un chien aboie, puis le tonnerre gronde.",
        "Un chien aboie et ensuite le tonnerre gronde.",
        "D'abord, un chien aboie, puis le tonnerre gronde.",
        "On entend un chien aboyer, puis le tonnerre gronder.",
        "Le bruit d'un chien qui aboie, suivi du bruit du tonnerre qui gronde.",
        "Après le bruit d'un chien qui aboie, on entend le tonnerre gronder.",
        "On entend le tonnerre gronder après le bruit d'un chien qui aboie.",
    }


def test_every_template_of_two_sounds_at_once_with_either_first():
    assert write("while", "dog barking", "thunder rumbling", num_seeds=20) == {
        "Un chien aboie pendant que le tonnerre gronde.",
        "Le tonnerre gronde pendant qu'un chien aboie.",
        "Un chien aboie tandis que le tonnerre gronde.",
        "Le tonnerre gronde tandis qu'un chien aboie.",
        "Pendant qu'un chien aboie, le tonnerre gronde.",
        "Pendant que le tonnerre gronde, un chien aboie.",
        "Un chien aboie et le tonnerre gronde en même temps.",
        "Le tonnerre gronde et un chien aboie en même temps.",
        "On entend à la fois un chien aboyer et le tonnerre gronder.",
        "On entend à la fois le tonnerre gronder et un chien aboyer.",
        "Le bruit d'un chien qui aboie et, en même temps, celui du tonnerre qui gronde.",
        "Le bruit du tonnerre qui gronde et, en même temps, celui d'un chien qui aboie.",
    }


def test_adverbs_stand_before_the_complement_and_phrases_behind_it():
    found = forms("knocking on a door", {"loudness": "loud", "rate": "slow"})
    assert {text.removeprefix("quelqu'un frappe ") for text in found["finite"] if text.startswith("quelqu'un frappe")} == {
        "bruyamment et lentement à une porte",
        "bruyamment à une porte à un rythme lent",
        "lentement à une porte à grand bruit",
        "à une porte à grand bruit et à un rythme lent",
    }


def test_place_stands_last():
    found = forms("dog barking", {"rate": "fast", "distance": "far"})
    assert found["infinitive"] == {
        f"un chien aboyer {manner} {place}"
        for manner in ("rapidement", "à un rythme rapide")
        for place in ("au loin", "dans le lointain")
    }


@pytest.mark.parametrize(
    ("sound", "genitives"),
    [
        ("wind blowing", {"du vent qui souffle"}),
        ("rain falling", {"de la pluie qui tombe", "de la pluie qui crépite"}),
        ("waves crashing", {"des vagues qui déferlent", "des vagues qui se brisent"}),
        ("person walking", {"de pas qui résonnent", "de pas qui crissent"}),
        ("clock ticking", {"d'une horloge qui fait tic-tac", "d'une pendule qui fait tic-tac"}),
    ],
)
def test_de_melts_into_articles(sound, genitives):
    assert forms(sound, {})["genitive"] == genitives


def test_de_and_que_never_stand_before_what_they_melt_into():
    unmelted = re.compile(r"\b(?:de|que) (?:une?|des|les?|[aeiouyéè])\b|\bde (?:le|les|des)\b")
    assert unmelted.search("le bruit de un chien")
    for sound in SOUNDS:
        for attributes in attribute_states(sound):
            found = forms(sound, attributes, num_seeds=4)
            for text in found["genitive"]:
                assert not unmelted.search(text), text
            for text in found["that"]:
                assert text.startswith(("qu'un ", "qu'une ", "que ")), text
                assert not re.match(r"que [aeiouyéèh]", text), text


def test_plural_subjects_take_plural_verbs_and_every_class_has_words():
    assert list(SOURCES) == list(SOUNDS)
    for source in (source for sources in SOURCES.values() for source in sources):
        assert source.finite.endswith("ent") == source.subject.startswith(("des ", "les ")), source
        assert re.search(r"(?:er|ir|re)$", source.infinitive.removesuffix(" tic-tac")), source
