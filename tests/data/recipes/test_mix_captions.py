import numpy as np
import pytest

from clapkit.data.recipes._mix_captions import captions, clause


def sentences(composition, *phrases, seed=0):
    return captions(composition, phrases, rng=np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog is barking.", "a dog is barking"),
        ("Rain falls", "rain falls"),
        ("I hear rain.", "I hear rain"),
        ("I'm singing.", "I'm singing"),
        ("It rains ...", "it rains"),
        ("TV noise hums. ", "TV noise hums"),
        ("É um cão", "é um cão"),
        (".", ""),
    ],
)
def test_a_clause_fits_into_a_sentence(caption, expected):
    assert clause(caption) == expected


def test_a_single_event_is_said_in_four_ways():
    assert sentences("single", ["a dog barks"]) == [
        "A dog barks.",
        "We hear that a dog barks.",
        "In this clip a dog barks.",
        "What happens here is that a dog barks.",
    ]


def test_one_event_after_another_is_said_in_four_ways():
    assert sentences("then", ["a dog barks"], ["it rains"]) == [
        "A dog barks, then it rains.",
        "First a dog barks, then it rains.",
        "It rains after a dog barks.",
        "A dog barks before it rains.",
    ]


def test_events_at_once_come_in_either_order():
    found = [sentences("while", ["a dog barks"], ["it rains"], seed=seed) for seed in range(20)]
    for place, (one, other) in enumerate(
        [
            ("A dog barks while it rains.", "It rains while a dog barks."),
            ("A dog barks and at the same time it rains.", "It rains and at the same time a dog barks."),
            ("While a dog barks, it rains.", "While it rains, a dog barks."),
            ("A dog barks, and meanwhile it rains.", "It rains, and meanwhile a dog barks."),
        ]
    ):
        assert {texts[place] for texts in found} == {one, other}


def test_all_clauses_are_drawn_and_braces_in_them_are_plain_text():
    found = {text for seed in range(20) for text in sentences("single", ["a {b} sounds", "it rains"], seed=seed)[:1]}
    assert found == {"A {b} sounds.", "It rains."}
