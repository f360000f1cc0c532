import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings, strategies

from clapkit.encoders.text._pieces import expect_long_captions, split_captions
from clapkit.encoders.text._subwords import Subwords, train_tokenizer
from clapkit.errors import UnknownNameError

SUBWORDS = Subwords(train_tokenizer(["a dog barks", "rain falls on a tin roof"] * 2, vocab_size=300).to_str(), max_tokens=32)


def count_words(texts: Sequence[str]) -> list[int]:
    """Words and marks, and two tokens around them."""
    return [2 + len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


def count_letters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def pieces_of(caption: str, room: int) -> list[str]:
    return split_captions([caption], count_words, max_tokens=room + 2).texts


def by_letters(caption: str, room: int) -> list[str]:
    return split_captions([caption], count_letters, max_tokens=room).texts


def test_a_caption_that_fits_stays_as_it_is_given() -> None:
    pieces = split_captions(["  A dog, barks.  Rain \n", ""], count_words, max_tokens=8)
    assert pieces.texts == ["  A dog, barks.  Rain \n", ""]
    # a dog , barks . rain: 6 tokens; an empty caption weighs something, too
    assert (pieces.counts, pieces.tokens, pieces.num_split) == ([1, 1], [6, 1], 0)


def test_borders_are_the_ends_of_sentences_and_neighbours_share_a_piece() -> None:
    caption = 'A dog barks. Is it "rain?" Yes!  A bell… A car'
    # Sentences of 4, 6, 2, 3 and 2 tokens for 9: 4 + 6 is too much, so is 6 + 2 + 3.
    pieces = split_captions(["rain", caption, "wind"], count_words, max_tokens=11)
    assert pieces.texts == ["rain", "A dog barks.", 'Is it "rain?" Yes!', "A bell… A car", "wind"]
    assert pieces.counts == [1, 3, 1]
    assert pieces.tokens == [1, 4, 8, 5, 1]
    assert pieces.num_split == 1


def test_a_sentence_that_fits_is_not_broken_to_fill_the_piece_before_it() -> None:
    # 2 and 6 tokens; in pieces of 5, the clauses of 2 and 4 tokens do not join the sentence before them either.
    assert pieces_of("One. One, two three four.", 6) == ["One.", "One, two three four."]
    assert pieces_of("One. One, two three four.", 5) == ["One.", "One,", "two three four."]


def test_a_sentence_that_is_too_long_is_broken_at_clause_marks_then_between_words() -> None:
    assert pieces_of("A dog barks, rain falls; a bell rings. Yes", 4) == ["A dog barks,", "rain falls;", "a bell rings.", "Yes"]
    assert pieces_of("a dog - a bell - a car", 4) == ["a dog -", "a bell -", "a car"]
    assert pieces_of("one two three four five six seven", 3) == ["one two three", "four five six", "seven"]


def test_numbers_hours_and_abbreviations_are_not_broken() -> None:
    assert by_letters("at 10:30 for 3.5 s, i.e. briefly", 19) == ["at 10:30 for 3.5 s,", "i.e. briefly"]
    assert by_letters("It is i.e. a dog. Yes", 17) == ["It is i.e. a dog.", "Yes"]


def test_a_new_line_ends_a_sentence() -> None:
    assert pieces_of("a dog barks\nrain falls\na bell", 5) == ["a dog barks\nrain falls", "a bell"]


def test_a_word_is_broken_only_where_it_alone_is_too_long() -> None:
    assert by_letters("dog barking loudly", 7) == ["dog", "barking", "loudly"]
    assert by_letters("dog extraordinarily loud", 6) == ["dog", "extrao", "rdinar", "ily", "loud"]


def test_blanks_around_pieces_are_left_out_and_blanks_alone_are_nothing() -> None:
    assert by_letters("a" + " " * 50 + "b", 4) == ["a", "b"]
    assert by_letters("dog" + " " * 50, 4) == ["dog"]
    pieces = split_captions([" " * 50], count_letters, max_tokens=4)
    assert (pieces.texts, pieces.counts, pieces.tokens) == ([""], [1], [1])


@pytest.mark.parametrize(
    ("caption", "room", "expected"),
    [
        # Chinese and Japanese: sentences, then clauses, then letters, with no mark at the beginning of a piece
        ("狗在叫。雨落在屋顶上！铃响了？", 7, ["狗在叫。", "雨落在屋顶上！", "铃响了？"]),
        ("狗在叫，雨落在屋顶上，铃响了。", 8, ["狗在叫，", "雨落在屋顶上，", "铃响了。"]),
        ("犬が吠えて「雨」が降る", 5, ["犬が吠えて", "「雨」が降", "る"]),
        ("犬が吠える(雨)", 6, ["犬が吠える", "(雨)"]),  # nor one that opens at the end
        # words of Latin script in them stay whole
        ("犬はMicrosoftだ", 10, ["犬は", "Microsoftだ"]),
        # Thai: blanks part phrases; vowels and tones stay with their consonants: หมา | เห่ | า would be wrong
        ("หมาเห่า ฝนตก", 8, ["หมาเห่า", "ฝนตก"]),
        ("หมาเห่า", 5, ["หมา", "เห่า"]),
        # Hindi and Arabic
        ("कुत्ता भौंकता है। बारिश होती है।", 20, ["कुत्ता भौंकता है।", "बारिश होती है।"]),
        ("هل ينبح كلب؟ المطر يهطل، والجرس يرن.", 14, ["هل ينبح كلب؟", "المطر يهطل،", "والجرس يرن."]),
    ],
)
def test_scripts_of_other_marks_and_without_blanks(caption: str, room: int, expected: list[str]) -> None:
    assert by_letters(caption, room) == expected


def test_a_letter_keeps_its_marks() -> None:
    assert by_letters("n\u0303" * 3, 3) == ["n\u0303"] * 3
    family = "👩\u200d👧\u200d👦"  # 5 code points that are one picture
    assert by_letters(family * 2 + "👍🏽👍🏽", 6) == [family, family, "👍🏽👍🏽"]


def test_one_letter_that_is_too_long_is_a_piece_that_the_tower_will_cut() -> None:
    # NFKC makes 18 letters of this one, more than 32 bytes.
    pieces = split_captions(["a dog \ufdfa barks"], SUBWORDS.count, max_tokens=32)
    assert pieces.texts == ["a dog", "\ufdfa", "barks"]
    assert pieces.tokens[1] > 32


def test_a_piece_is_full_where_a_tokenizer_puts_a_blank_before_every_text() -> None:
    # A blank and 30 letters are 31 tokens of 32; counted one by one, letters with their blanks, 16 would fill it.
    assert [len(text) for text in split_captions(["z" * 70], SUBWORDS.count, max_tokens=32).texts] == [30, 30, 10]


def test_few_texts_are_counted_however_long_a_word_is() -> None:
    asked = []

    def count(texts: Sequence[str]) -> list[int]:
        asked.append(sum(map(len, texts)))
        return SUBWORDS.count(texts)

    letters = "adogbarks" * 200  # which become 3 tokens together, 2 or more one by one
    split_captions([letters], count, max_tokens=32)
    # Once by itself and once for each of four levels; then every piece a few times.
    assert sum(asked) < 15 * len(letters)


def test_parts_that_have_more_tokens_together_than_alone_still_fit() -> None:
    def count(texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 3 * text.count(" ") for text in texts]

    # "a b" is 2 + 3 = 5 tokens, "a b c" 3 + 6 = 9
    pieces = split_captions(["a b c d e"], count, max_tokens=5)
    assert (pieces.texts, pieces.tokens) == (["a b", "c d", "e"], [5, 5, 1])


@settings(max_examples=60, deadline=None)
@given(
    captions=strategies.lists(
        strategies.lists(
            strategies.sampled_from(
                ["dog", "rain.", "a", "bell,", "x" * 70, "犬が吠える。", "雨", "หมา", "ü", "\n", "  ", "🐕", "!?"]
            ),
            max_size=40,
        ).map(" ".join),
        min_size=1,
        max_size=4,
    )
)
def test_pieces_fit_lose_no_letter_and_do_not_depend_on_the_neighbours(captions: list[str]) -> None:
    pieces = split_captions(captions, SUBWORDS.count, max_tokens=32)
    assert max(SUBWORDS.count(pieces.texts)) <= 32
    assert sum(pieces.counts) == len(pieces.texts) == len(pieces.tokens)
    start = 0
    for caption, count in zip(captions, pieces.counts, strict=True):
        own = pieces.texts[start : start + count]
        assert "".join("".join(own).split()) == "".join(caption.split())
        assert own == split_captions([caption], SUBWORDS.count, max_tokens=32).texts
        start += count


def test_another_treatment_is_refused() -> None:
    assert expect_long_captions("split") == "split"
    with pytest.raises(
        UnknownNameError, match="unknown treatment of long captions 'spilt': did you mean 'split'. known: cut, s"
    ):
        expect_long_captions("spilt")
