import numpy as np
import pytest

from clapkit.data.caption_variants import KINDS, CaptionVariants
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.types import Caption, Clip


def clip(*captions, labels=(), **extra):
    return Clip(
        id="dog_07",
        audio="dog_07.wav",
        captions=tuple(Caption(one) if isinstance(one, str) else one for one in captions),
        labels=tuple(labels),
        extra=extra,
    )


def variants(clips, *, num_false=3, num_true=0, kinds=None):
    return CaptionVariants(clips, num_false=num_false, num_true=num_true, kinds=kinds)


def drawn(draw, row=0, caption=0, seed=0):
    """Texts by truth."""
    texts, truth = draw.draw(row, caption, np.random.default_rng(seed))
    assert len(texts) == len(truth) == draw.per_caption
    return {value: [text for text, one in zip(texts, truth, strict=True) if one == value] for value in (-1, 0, 1)}


CORPUS = [
    clip("A dog barks, then it rains loudly.", labels=["dog barking"]),
    clip("A cat meows while a cow moos.", "A rooster crows."),
    clip("A car passes and a train rolls by.", "Trucks honk."),
]


def test_false_ones_come_first_and_padding_is_the_caption_itself():
    draw = variants([clip("A dog barks, then rain falls.")], num_false=3, num_true=3, kinds=["order"])
    assert draw.per_caption == 6
    texts, truth = draw.draw(0, 0, np.random.default_rng(0))
    assert sorted(texts[:2]) == ["A dog barks and at the same time rain falls.", "Rain falls, then a dog barks."]
    assert texts[2] == texts[5] == "A dog barks, then rain falls."
    assert sorted(texts[3:5]) == ["A dog barks.", "Rain falls."]
    assert truth == [-1, -1, 0, 1, 1, 0]


def test_variants_are_different_and_none_is_a_caption_of_the_clip():
    # What the rule makes of the first is what the second says, in other capitals.
    draw = variants([clip("A man speaks loudly.", "a man  SPEAKS quietly", "No man speaks loudly")], num_false=5)
    found = drawn(draw)[-1]
    assert len(set(found)) == len(found)
    assert not {text.casefold().rstrip(".") for text in found} & {"a man speaks quietly", "no man speaks loudly"}


def test_what_another_caption_says_of_an_attribute_is_not_turned():
    both = clip("A man speaks loudly.", "Somebody talks quietly, a woman perhaps.")
    assert drawn(variants([both], kinds=["attribute"]))[-1] == []
    assert sorted(drawn(variants([clip("A man speaks loudly.")], kinds=["attribute"]))[-1]) == [
        "A man speaks quietly.",
        "A woman speaks loudly.",
    ]


def test_what_another_caption_puts_in_order_is_not_reordered_by_one_that_says_together():
    together, ordered = "A dog barks while rain falls.", "A dog barks, then rain falls."
    assert drawn(variants([clip(together, ordered)], kinds=["order"]))[-1] == []
    assert len(drawn(variants([clip(together)], kinds=["order"]))[-1]) == 2


def test_each_kind_has_its_turn():
    draw = variants([CORPUS[0], *CORPUS[1:]], num_false=4, kinds=["order", "attribute", "negation", "swap"])
    for seed in range(10):
        found = drawn(draw, seed=seed)[-1]
        assert any(text.endswith("rains quietly.") for text in found)
        assert "No dog barks, then it rains loudly." in found
        assert "A dog barks and at the same time it rains loudly." in found
        assert sum(any(word in text for word in (" cat ", " cow ", " rooster ")) for text in found) == 1


def test_a_source_that_the_clip_is_said_to_hold_is_never_put_in():
    # Dogs by its label, birds by another caption, cats by what they do.
    one = clip("A cow moos.", "Somewhere birds sing.", "Meowing is heard.", labels=["dog barking"])
    others = [
        clip("A dog barks."),
        clip("A cat meows."),
        clip("A rooster crows."),
        clip("A goat bleats."),
        clip("A frog croaks."),
    ]
    draw = variants([one, *others], num_false=9, kinds=["swap"])
    assert drawn(draw)[-1] == ["A frog moos."]  # a goat is one of the farm, as a cow is


def test_a_label_is_replaced_by_a_label_of_other_clips():
    corpus = [
        clip("Dog barking, then rain falling.", labels=["dog barking", "rain falling"]),
        clip("Glass breaking.", labels=["glass breaking"]),
        clip("Dog growling.", labels=["dog growling"]),
    ]
    draw = variants(corpus, num_false=9, kinds=["swap"])
    assert sorted(drawn(draw)[-1]) == ["Dog barking, then glass breaking.", "Glass breaking, then rain falling."]


def test_what_is_put_in_agrees_with_its_place():
    corpus = [clip("A cow moos and birds chirp. Someone talks."), clip("An owl hoots, a kid talks, ducks and dogs are heard.")]
    found = drawn(variants(corpus, num_false=30, kinds=["swap"]))[-1]
    assert all(not text.startswith(("A owl", "An kid", "An dog")) for text in found)
    assert "A cow moos and dogs chirp. Someone talks." in found


def test_drawing_is_repeatable_and_varies():
    draw = variants(CORPUS, num_false=2, num_true=1)
    assert drawn(draw, seed=3) == drawn(draw, seed=3) == drawn(variants(CORPUS, num_false=2, num_true=1), seed=3)
    assert len({tuple(drawn(draw, seed=seed)[-1]) for seed in range(20)}) > 3


def test_given_ones_come_first():
    one = clip("A dog barks.", hard_captions=["Ein Hund schweigt.", {"text": "A dog is silent."}])
    found = drawn(variants([one], num_false=3))[-1]
    assert sorted(found[:2]) == ["A dog is silent.", "Ein Hund schweigt."]
    assert found[2] == "No dog barks."
    assert drawn(variants([one], kinds=["negation"]))[-1] == ["No dog barks."]


def test_given_ones_belong_to_a_language_or_to_a_caption_if_they_say_so():
    one = clip(
        "A dog barks.",
        Caption("Ein Hund bellt.", "de"),
        Caption("Ein Hund kläfft.", "de"),
        hard_captions=[
            {"text": "Ein Hund schweigt.", "lang": "de"},
            {"text": "Kein Hund.", "caption": 2},
            {"text": "Silence.", "lang": "EN", "caption": 0},
        ],
    )
    draw = variants([one], kinds=["given"])
    assert drawn(draw, caption=0)[-1] == ["Silence."]
    assert drawn(draw, caption=1)[-1] == ["Ein Hund schweigt."]
    assert sorted(drawn(draw, caption=2)[-1]) == ["Ein Hund schweigt.", "Kein Hund."]


def test_a_given_one_that_is_true_is_left_out():
    assert drawn(variants([clip("A dog barks.", hard_captions=["a dog  BARKS"])], kinds=["given"]))[-1] == []


def test_a_part_of_another_caption_is_no_false_variant():
    texts = ["A man speaks.", "A woman speaks, then a dog barks."]
    for given, expected in (("a woman  SPEAKS", []), ("A cat speaks.", ["A cat speaks."])):
        draw = variants([clip(*texts, hard_captions=[given])], num_false=1, num_true=1, kinds=["given"])
        for caption in (0, 1):
            assert drawn(draw, caption=caption)[-1] == expected
        assert draw.num_without() == (2 - 2 * len(expected), 2)


def test_all_true_variants_of_a_clip_are_known_whatever_is_drawn():
    german = Caption("Ein Hund bellt, dann regnet es.", "de")
    corpus = [clip("A dog barks, then rain falls.", german, "Rain falls while a man speaks.", "A man speaks."), *CORPUS]
    draw = variants(corpus, num_false=0, num_true=1)
    assert draw.true_of(0) == ["A dog barks.", "Rain falls."]  # "A man speaks." is a caption
    for row, one in enumerate(corpus):
        found = {text for n in range(len(one.captions)) for seed in range(9) for text in drawn(draw, row, n, seed)[1]}
        assert found == set(draw.true_of(row))


def test_no_true_variants_are_known_where_none_are_asked_for():
    assert variants(CORPUS).true_of(0) == []


def test_rules_are_for_english_only():
    german = clip(Caption("A dog barks loudly, then a man speaks.", "de"), Caption("A dog barks.", "en-GB"))
    draw = variants([german], num_true=2)
    assert drawn(draw, caption=0) == {-1: [], 0: ["A dog barks loudly, then a man speaks."] * 5, 1: []}
    assert drawn(draw, caption=1)[-1] == ["No dog barks."]


def test_captions_without_a_false_variant_are_counted():
    corpus = [clip("A dog barks.", "Upon a time."), clip("A dog barks, then rain falls.", hard_captions=["Silence."])]
    assert variants(corpus).num_captions == 3
    # "Upon a time." has none of any kind; without a word of order or an attribute neither has "A dog barks."
    assert variants(corpus).num_without()[0] == 1
    assert variants(corpus, kinds=["order", "attribute"]).num_without()[0] == 2
    assert variants(corpus, kinds=["given"]).num_without()[0] == 2
    assert variants(corpus, kinds=["swap"]).num_without()[0] == 3
    assert variants([*corpus, clip("A cat meows.")], kinds=["swap"]).num_without()[0] == 1
    assert variants(corpus, num_false=0, num_true=1).num_without()[0] == 3


@pytest.mark.parametrize("kinds", [None, *([kind] for kind in KINDS)])
def test_captions_are_counted_as_they_are_drawn(kinds):
    draw = variants(CORPUS, num_false=1, kinds=kinds)
    places = [(row, number) for row, one in enumerate(CORPUS) for number in range(len(one.captions))]
    assert draw.num_without()[0] == sum(not drawn(draw, *place)[-1] for place in places)


ODD = [" ", "!!!", "then", "and", "A", "no", "A dog,", ", then ,", "and then", "𝒟og 犬", "while a, b", "without"]


@pytest.mark.parametrize("odd", ODD)
def test_any_text_can_be_a_caption(odd):
    for caption in (odd, f"A dog barks {odd} a cat meows", f"{odd} a dog barks {odd}"):
        found = drawn(variants([clip(caption), *CORPUS], num_true=2))
        assert all(text.strip() and text != caption for truth in (-1, 1) for text in found[truth])


def test_an_unknown_kind_is_refused():
    with pytest.raises(UnknownNameError, match="unknown kind of variants 'ordr': did you mean 'order'"):
        variants(CORPUS, kinds=["swap", "ordr"])


@pytest.mark.parametrize(("num_false", "num_true"), [(0, 0), (-1, 2), (2, -1)])
def test_numbers_that_ask_for_nothing_are_refused(num_false, num_true):
    with pytest.raises(ConfigError, match=f"{num_false} false and {num_true} true variants of a caption: expected at least 1"):
        variants(CORPUS, num_false=num_false, num_true=num_true)


def test_no_kind_is_refused():
    with pytest.raises(ConfigError, match="no kind of variants: expected some of order, attribute"):
        variants(CORPUS, kinds=[])


UNREADABLE = [
    "a text",
    [3],
    [""],
    [{"lang": "de"}],
    [{"text": "a", "tag": "de"}],
    [{"text": "a", "lang": 1}],
    [{"text": "a", "lang": ""}],
]


@pytest.mark.parametrize("entries", UNREADABLE)
def test_hard_captions_that_cannot_be_read_are_refused(entries):
    with pytest.raises(ManifestError, match=r"clip dog_07: extra.hard_captions holds .* expected a (list|text or)"):
        variants([clip("A dog barks.", hard_captions=entries)])


def test_a_hard_caption_that_names_a_caption_of_another_language_is_refused():
    with pytest.raises(ManifestError, match="clip dog_07: .* names caption 0 in 'de', which is in 'en'; correct the manifest"):
        variants([clip("A dog barks.", hard_captions=[{"text": "Stille.", "lang": "de", "caption": 0}])])


@pytest.mark.parametrize("number", [-1, 1, True, "0", 0.0])
def test_a_hard_caption_of_a_caption_that_is_not_there_is_refused(number):
    with pytest.raises(ManifestError, match="clip dog_07: .* names caption .*expected a whole number from 0 to 0; correct"):
        variants([clip("A dog barks.", hard_captions=[{"text": "Silence.", "caption": number}])])
