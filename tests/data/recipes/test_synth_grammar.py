import numpy as np

from clapkit.data.recipes._synth_grammar import Grammar, draw_words, write_sentences
from clapkit.data.recipes._synth_plan import EventPlan

WORDS = {("pitch", "high"): ("up",), ("rate", "fast"): ("apace", "amain"), ("pitch", "low"): ("down",)}
TOY = Grammar(
    {"single": ("{noun}", "a {noun}"), "then": ("{noun}, {noun2}", "{noun2} after {noun}"), "while": ("{noun} with {noun2}",)},
    lambda sound, attributes, rng: {"noun": " ".join([sound, *draw_words(WORDS, attributes, rng)])},
)
DOG, BELL = EventPlan("dog", {"pitch": "low"}, 0, 0.0, 1.0), EventPlan("bell", {}, 0, 0.0, 1.0)


def write(composition, *events, seed=0, count=2):
    return write_sentences(TOY, composition, events, rng=np.random.default_rng(seed), count=count)


def test_sentences_are_of_different_templates_with_a_capital_and_a_stop():
    for seed in range(20):
        assert set(write("single", DOG, seed=seed)) == {"Dog down.", "A dog down."}


def test_no_more_sentences_are_written_than_asked_for():
    assert {tuple(write("single", BELL, seed=seed, count=1)) for seed in range(20)} == {("Bell.",), ("A bell.",)}


def test_then_keeps_the_order_of_its_events():
    for seed in range(20):
        assert set(write("then", DOG, BELL, seed=seed)) == {"Dog down, bell.", "Bell after dog down."}


def test_while_names_either_event_first():
    written = {write("while", DOG, BELL, seed=seed)[0] for seed in range(20)}
    assert written == {"Dog down with bell.", "Bell with dog down."}


def test_words_of_attributes_come_in_the_order_of_the_table_and_every_way_is_drawn():
    drawn = {
        tuple(draw_words(WORDS, {"rate": "fast", "loudness": "loud", "pitch": "high"}, np.random.default_rng(seed)))
        for seed in range(20)
    }
    assert drawn == {("up", "apace"), ("up", "amain")}
