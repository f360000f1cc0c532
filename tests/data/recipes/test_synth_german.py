import re

import numpy as np

from clapkit.data.recipes._synth_german import ADJECTIVES, ADVERBIALS, GRAMMAR, SOURCES
from clapkit.data.recipes._synth_grammar import write_sentences
from clapkit.data.recipes._synth_plan import EventPlan
from clapkit.data.recipes._synth_sounds import SOUNDS


def write(composition, *events, num_seeds=1):
    """Every sentence of as many draws of all templates; an event is a class, or a class and its attributes."""
    plans = [EventPlan(*(event if isinstance(event, tuple) else (event, {})), 0, 0.0, 1.0) for event in events]
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
        "Ein Hund bellt.",
        "Hier bellt ein Hund.",
        "Man hört, wie ein Hund bellt.",
        "Man hört das Bellen eines Hundes.",
        "Zu hören ist das Bellen eines Hundes.",
        "Das Bellen eines Hundes ist zu hören.",
    }


def test_every_template_of_one_sound_after_another():
    assert write("then", "dog barking", "thunder rumbling") == {
        "Ein Hund bellt, dann grollt der Donner.",
        "Ein Hund bellt und danach grollt der Donner.",
        "Ein Hund bellt, bevor der Donner grollt.",
        "Bevor der Donner grollt, bellt ein Hund.",
        "Zuerst bellt ein Hund, dann grollt der Donner.",
        "Man hört zuerst das Bellen eines Hundes und dann das Grollen des Donners.",
        "Auf das Bellen eines Hundes folgt das Grollen des Donners.",
        "Nach dem Bellen eines Hundes hört man das Grollen des Donners.",
    }


def test_every_template_of_two_sounds_at_once_with_either_first():
    def sentences(first, second):
        (main, _, final, noun), (_, inverted2, final2, noun2) = first, second
        return {
            f"{main}, während {final2}.",
            f"Während {final}, {inverted2}.",
            f"{main} und gleichzeitig {inverted2}.",
            f"Man hört, wie {final} und gleichzeitig {final2}.",
            f"Man hört gleichzeitig das {noun} und das {noun2}.",
            f"Zusammen mit dem {noun} ist das {noun2} zu hören.",
        }

    dog = ("Ein Hund bellt", "bellt ein Hund", "ein Hund bellt", "Bellen eines Hundes")
    thunder = ("Der Donner grollt", "grollt der Donner", "der Donner grollt", "Grollen des Donners")
    found = write("while", "dog barking", "thunder rumbling", num_seeds=20)
    assert found == sentences(dog, thunder) | sentences(thunder, dog)


def test_adverbials_stand_between_verb_and_complement_and_before_a_final_verb():
    found = forms("knocking on a door", {"loudness": "quiet", "rate": "slow"})
    assert "jemand klopft leise und langsam an eine Tür" in found["main"]
    assert "klopft eine Person ganz leise und in langsamem Tempo an eine Tür" in found["inverted"]
    assert "jemand leise und in langsamem Tempo an eine Tür klopft" in found["final"]


def test_separable_prefixes_stand_last_and_join_a_final_verb():
    found = forms("person walking", {"rate": "fast"})
    assert "geht jemand schnell umher" in found["inverted"]
    assert "eine Person in schnellem Tempo umhergeht" in found["final"]


def test_place_stands_before_manner():
    found = forms("dog barking", {"pitch": "low", "distance": "far"})
    assert found["main"] == {
        f"ein Hund bellt {place} {manner}"
        for place in ("in der Ferne", "weit entfernt")
        for manner in ("mit tiefem Ton", "in tiefer Tonlage")
    }


def test_adjectives_take_the_ending_of_their_case():
    found = forms("telephone ringing", {"loudness": "loud", "pitch": "high"})
    sounds = ("Klingeln eines Telefons", "Läuten eines Telefons")
    assert found["nominal"] == {f"das laute, {high} {sound}" for high in ("hohe", "helle") for sound in sounds}
    assert found["dative"] == {f"dem lauten, {high} {sound}" for high in ("hohen", "hellen") for sound in sounds}


def test_plural_subjects_take_plural_verbs():
    assert forms("waves crashing", {})["main"] == {"die Wellen rauschen", "die Brandung rauscht"}


def test_every_class_has_words_and_every_subject_and_sound_noun_a_capital():
    assert list(SOURCES) == list(SOUNDS)
    for source in (source for sources in SOURCES.values() for source in sources):
        assert re.fullmatch(r"es|jemand|(?:der|die|eine?) [A-Z][a-z]+", source.subject)
        assert re.match(r"[A-ZÄ][a-zäöü]+ ", source.nominal)


def test_adjectives_say_what_adverbials_say_and_end_in_e():
    assert list(ADJECTIVES) == list(ADVERBIALS)
    assert all(word.endswith("e") for words in ADJECTIVES.values() for word in words)
