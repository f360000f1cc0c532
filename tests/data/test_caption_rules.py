import pytest

from clapkit.data._caption_clauses import reordered, says_order, says_together
from clapkit.data._caption_parts import parts
from clapkit.data._caption_rules import negated, opposed
from clapkit.data._caption_words import folded, has_verb, is_gerund


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "A dog barks, then rain falls.",
            {"Rain falls, then a dog barks.", "A dog barks and at the same time rain falls."},
        ),
        (
            "First a dog barks, then rain falls.",
            {"First rain falls, then a dog barks.", "A dog barks and at the same time rain falls."},
        ),
        (
            "a dog barking followed by a bell",
            {"a bell followed by a dog barking", "a dog barking preceded by a bell", "a dog barking together with a bell"},
        ),
        (
            "A dog barks before rain falls.",
            {"A dog barks after rain falls.", "Rain falls before a dog barks.", "A dog barks while rain falls."},
        ),
        ("A dog barks after a gunshot.", {"A dog barks before a gunshot.", "A dog barks during a gunshot."}),
        ("After a bell rings, a dog barks.", {"Before a bell rings, a dog barks."}),
        ("A dog barks while it rains.", {"A dog barks before it rains.", "A dog barks after it rains."}),
        ("While it rains, a dog barks.", {"Before it rains, a dog barks.", "After it rains, a dog barks."}),
        ("A dog barks and it growls at the same time.", {"A dog barks and then it growls."}),
        (
            "A dog barks and rain falls at the same time.",
            {"A dog barks and then rain falls.", "Rain falls and then a dog barks."},
        ),
        (
            "A man speaks with birds chirping in the background.",
            {"A man speaks, followed by birds chirping.", "A man speaks, preceded by birds chirping."},
        ),
        ("A man speaks and then laughs", {"A man laughs and then speaks", "A man speaks and at the same time laughs"}),
    ],
)
def test_other_orders(caption, expected):
    assert set(reordered(caption)) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "A dog barks and it rains.",
        "A dog barks with it.",
        "One after another bells ring.",
        "Day after day bells ring.",
        "It gets louder then softer.",
        "It sounds as if rain falls.",
        "Birds sing as time goes on.",
        "A dog barks after a while.",
        "Rain falls again and again.",
    ],
)
def test_what_says_no_order_is_not_reordered(caption):
    assert reordered(caption) == []


def test_clauses_that_are_simultaneous_are_never_only_exchanged():
    for caption in (
        "A dog barks while rain falls.",
        "A dog barks and at the same time rain falls.",
        "Rain falls as a dog barks.",
    ):
        for text in reordered(caption):
            assert says_order(text)
            assert not says_together(text)


def test_the_same_order_is_never_said_in_other_words():
    # "b after a" and "a before b" say the same; of the words of time or the clauses one is exchanged, never both.
    assert "Rain falls after a dog barks." not in reordered("A dog barks before rain falls.")
    assert "Rain falls before a dog barks." not in reordered("A dog barks after rain falls.")
    assert "Rain falling preceded by a dog barking." not in reordered("A dog barking followed by rain falling.")


def test_a_sound_that_comes_twice_is_not_turned():
    assert reordered("A dog barks, then the dog barks loudly.", may_be_together=True) == []


def test_what_else_is_said_of_the_clip_is_not_contradicted():
    assert reordered("A dog barks while rain falls.", may_be_ordered=True) == []
    assert not any(says_together(text) for text in reordered("A dog barks, then rain falls.", may_be_together=True))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A loud dog barks slowly.", ["A quiet dog barks slowly.", "A loud dog barks quickly."]),
        ("An old man speaks.", ["An old woman speaks.", "A young man speaks."]),
        ("A man clears his throat.", ["A woman clears her throat."]),
        ("A man and a woman talk.", ["A woman and a woman talk.", "A man and a man talk."]),
        ("A dog barks in the distance.", ["A dog barks close by."]),
        ("A nearby dog barks.", ["A distant dog barks."]),
        ("A dog barks nearby.", ["A dog barks far away."]),
        ("Loudness alone, a loudspeaker.", []),
        ("He takes a deep breath.", []),
        ("A motor starts and stops.", []),
    ],
)
def test_opposite_attributes(caption, expected):
    assert sorted(opposed(caption)) == sorted(expected)


def test_an_attribute_that_is_said_elsewhere_is_left_alone():
    assert opposed("A loud dog barks.", {"quiet"}) == []


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog barks.", ["No dog barks."]),
        ("a dog barking and rain falling", ["no dog barking and rain falling", "a dog barking without rain falling"]),
        ("A dog barks and several birds chirp.", ["No dog barks and several birds chirp.", "A dog barks and no birds chirp."]),
        ("Someone speaks.", ["No one speaks."]),
        ("It is raining.", ["It is not raining."]),
        ("There is a loud bang.", ["There is no loud bang."]),
        ("You can hear a dog barking.", ["You can hear no dog barking."]),
        ("A man speaks with music.", ["No man speaks with music.", "A man speaks without music."]),
        ("A man and a woman talk.", ["No man and a woman talk."]),
        ("In the distance dogs bark.", []),
        ("He laughs.", []),
        ("Moving a chair.", []),
    ],
)
def test_negations(caption, expected):
    assert negated(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog barks.", []),
        ("A dog barks, then rain falls.", ["A dog barks.", "Rain falls."]),
        ("First a dog barks, then rain falls.", ["A dog barks.", "Rain falls."]),
        ("While rain falls, a dog barks.", ["Rain falls.", "A dog barks."]),
        ("a dog barking followed by a bell", ["a dog barking", "a bell"]),
        ("A man speaks and then laughs.", ["A man speaks.", "A man laughs."]),
        ("A man and a woman talk.", []),
        ("Wind blows, birds chirp, and a man talks.", ["Wind blows.", "Birds chirp.", "A man talks."]),
        ("A dog barks and it growls.", ["A dog barks."]),
        ("An engine hums amid clicks and thumps.", ["An engine hums amid clicks."]),
        ("TV plays and a dog barks.", ["TV plays.", "A dog barks."]),
    ],
)
def test_parts(caption, expected):
    assert parts(caption) == expected


def test_words():
    assert is_gerund("barking")
    assert not is_gerund("something")
    assert has_verb("waves crash")
    assert not has_verb("a dog")
    assert folded("A dog  BARKS. ") == folded("a dog barks")
