import re

import numpy as np

from clapkit.data.recipes._synth_grammar import write_sentences
from clapkit.data.recipes._synth_plan import EventPlan, attribute_states
from clapkit.data.recipes._synth_sounds import SOUNDS
from clapkit.data.recipes._synth_spanish import GRAMMAR, SOURCES


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
        "Un perro ladra.",
        "Se oye cómo un perro ladra.",
        "Se puede oír cómo un perro ladra.",
        "El sonido de un perro que ladra.",
        "Se oye el sonido de un perro que ladra.",
    }


def test_every_template_of_one_sound_after_another():
    assert write("then", "dog barking", "rain falling") == {
        "Un perro ladra y luego la lluvia cae.",
        "Un perro ladra y después la lluvia cae.",
        "Primero un perro ladra y después la lluvia cae.",
        "Se oye cómo un perro ladra y luego cómo la lluvia cae.",
        "El sonido de un perro que ladra, seguido del sonido de la lluvia que cae.",
        "Tras el sonido de un perro que ladra, la lluvia cae.",
        "La lluvia cae después del sonido de un perro que ladra.",
    }


def test_every_template_of_two_sounds_at_once_with_either_first():
    def sentences(first, second, of_first, of_second):
        return {
            f"{first.capitalize()} mientras {second}.",
            f"Mientras {first}, {second}.",
            f"{first.capitalize()} y al mismo tiempo {second}.",
            f"{first.capitalize()} a la vez que {second}.",
            f"El sonido {of_first} y, al mismo tiempo, el sonido {of_second}.",
            f"Se oye cómo {first} y, al mismo tiempo, cómo {second}.",
        }

    dog, cat = ("un perro ladra", "un gato maúlla"), ("de un perro que ladra", "de un gato que maúlla")
    found = write("while", "dog barking", "cat meowing", num_seeds=20)
    assert found == sentences(*dog, *cat) | sentences(*dog[::-1], *cat[::-1])


def test_manner_is_joined_and_place_stands_last():
    assert forms("dog barking", {"rate": "slow", "distance": "far"})["finite"] == {
        f"un perro ladra {manner} {place}"
        for manner in ("con lentitud", "a un ritmo lento")
        for place in ("a lo lejos", "en la lejanía")
    }
    found = forms("person whistling", {"loudness": "loud", "pitch": "low"})["finite"]
    assert "alguien silba una melodía ruidosamente y en tono grave" in found


def test_de_melts_into_the_article_el():
    assert forms("wind blowing", {})["genitive"] == {"del viento que sopla", "del viento que aúlla"}
    assert forms("waves crashing", {})["genitive"] == {"de las olas que rompen", "de las olas del mar que rompen"}


def test_no_sentence_holds_de_el_or_two_adverbs_in_mente():
    for sound in SOUNDS:
        for attributes in attribute_states(sound):
            for texts in forms(sound, attributes, num_seeds=4).values():
                for text in texts:
                    assert not re.search(r"\b(?:de|a) el\b|mente.*mente", text), text


def test_plural_subjects_take_plural_verbs_and_every_class_has_words():
    assert list(SOURCES) == list(SOUNDS)
    for subject, verb in (source for sources in SOURCES.values() for source in sources):
        assert verb.split()[0].endswith("n") == subject.startswith("las "), subject
