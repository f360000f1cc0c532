import csv
import os
from pathlib import Path

import pytest

from clapkit.data import languages
from clapkit.data.caption_audit import find_caption_problems, num_words
from clapkit.types import Caption, Clip


def checks_of(text: str, lang: str = "en") -> list[str]:
    return [finding.check for finding in find_caption_problems([Clip("a", "a.wav", captions=(Caption(text, lang),))])]


GOOD = [
    ("en", "A dog barks while rain falls on a tin roof."),
    ("en", "Birds chirping loudly"),
    ("en", "Dog"),
    ("en", "A crowd in a café; “bless you” is heard, then someone’s naïve laugh – 20°C, R&B & soul; AT&T."),
    ("en", "Someone says ni hao (你好) twice."),
    ("de", "Ein Hund bellt, während es regnet."),
    ("de", "Größere Fässer rollen über Straßenpflaster"),
    ("fr", "Un chien aboie pendant qu'il pleut à côté d'une forêt."),
    ("fr", "«CAFÉ» crié très fort"),
    ("es", "Un niño ríe y el perro ladra."),
    ("it", "Un cane abbaia e poi c'è silenzio."),
    ("nl", "Een hond blaft terwijl het regent."),
    ("pt", "Um cão late enquanto chove na rua."),
    ("pt-BR", "O cachorro late e a chuva cai."),
    ("ca", "Un gos borda mentre plou."),
    ("sv", "En hund skäller medan det regnar."),
    ("zh", "狗在叫，雨声很大。"),
    ("zh-Hans", "播放 Windows XP 的启动声音"),
    ("ja", "犬が吠えている。"),
    ("ja", "拍手喝采"),
    ("ko", "개가 짖고 비가 온다."),
    ("ru", "Собака лает под дождём."),
    ("ru", "Звук запуска Windows XP Professional"),
    ("uk", "Собака гавкає під дощем."),
    ("ar", "كلب ينبح تحت المطر"),
    ("el", "Ένας σκύλος γαβγίζει."),
    ("he", "כלב נובח בגשם"),
    ("th", "สุนัขเห่าในสายฝน"),
    ("hi", "बारिश में कुत्ता भौंक रहा है"),
    ("en", "1, 2, 3!"),
    ("zh", "3"),
]


@pytest.mark.parametrize(("lang", "text"), GOOD)
def test_a_good_caption_is_let_pass(lang: str, text: str) -> None:
    assert checks_of(text, lang) == []


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("en", "Ein Hund bellt und eine Frau spricht."),
        ("en", "Un chien aboie dans la rue avec du bruit."),
        ("en", "狗在叫，雨声很大。"),
        ("en", "Собака лает под дождём."),
        ("de", "A dog is barking and the rain falls."),
        ("fr", "The dog barks as the rain falls."),
        ("nl", "A man is walking as birds sing in the park."),
        ("pt", "A man is walking as birds sing."),
        ("es", "The sound of the rain with a dog in it."),
        ("zh", "A dog barks."),
        ("zh", "犬がほえている"),
        ("ja", "A dog barks."),
        ("ko", "狗在叫"),
        ("ru", "A dog barks."),
        ("ar", "A dog barks."),
        ("el", "Собака лает"),
        ("he", "A dog barks."),
        ("th", "A dog barks."),
        ("hi", "A dog barks."),
        ("eng_Latn", "A dog barks."),
        ("eng", "A dog barks."),
        ("EN", "A dog barks."),
        ("english", "A dog barks."),
        ("", "A dog barks."),
    ],
)
def test_a_tag_that_is_not_that_of_the_text_is_found(lang: str, text: str) -> None:
    assert checks_of(text, lang) == ["wrong_language"]


def test_the_words_that_gave_a_language_away_are_named() -> None:
    (finding,) = find_caption_problems([Clip("a", "x", captions=(Caption("Ein Hund bellt und spricht."),))])
    assert finding.detail == "tag 'en', words of 'de': bellt, ein, hund"
    assert finding.severity == 5


def test_one_foreign_word_is_no_evidence() -> None:
    assert checks_of("Hund") == []
    assert checks_of("Hund bellt") == ["wrong_language"]


@pytest.mark.parametrize(
    "text", ["Café Größe niño", "It’s raining – “loudly”…", "Привет, мир", "狗在叫", "ñandú 50 €", "犬が吠える"]
)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_utf8_that_was_read_as_western_european_is_found(text: str, encoding: str) -> None:
    broken = text.encode().decode(encoding, errors="replace")
    assert checks_of(f"A man in a hat: {broken}") == ["mojibake"]


def test_the_replacement_character_is_found() -> None:
    assert checks_of("A caf\ufffd is open") == ["mojibake"]


def test_broken_text_says_what_was_meant() -> None:
    (finding,) = find_caption_problems([Clip("a", "x", captions=(Caption("the cafÃ© is open"),))])
    assert finding.detail == "'Ã©' stands for 'é'"


@pytest.mark.parametrize(
    "text", ["Rain &amp; wind", "A man&#39;s voice", "&#x27;quoted&#x27; in the hall", "over&nbsp;there", "a &lt;b&gt;"]
)
def test_html_entities_are_found(text: str) -> None:
    assert checks_of(text) == ["html_entity"]


@pytest.mark.parametrize("text", ["R&B; soul is playing", "AT&T is calling", "a & b; c", "&nothing; at all", "&;"])
def test_an_ampersand_is_no_entity(text: str) -> None:
    assert checks_of(text) == []


def test_length_is_counted_in_words_or_in_characters() -> None:
    assert checks_of("the " * 60) == []
    assert checks_of("the " * 61) == ["long_caption"]
    assert checks_of("犬" * 100, "ja") == []
    assert checks_of("犬 " * 101, "ja") == ["long_caption"]
    assert num_words(Caption("a dog  barks ")) == 3
    assert num_words(Caption("狗 在叫", "zh-CN")) == 3


def test_a_caption_that_stands_twice_is_found_whatever_its_case_and_stop() -> None:
    captions = tuple(map(Caption, ("A dog.", "The cat", "a  DOG", "the cat!", "Cat")))
    found = find_caption_problems([Clip("a", "x", captions=captions)])
    assert [(finding.check, finding.item, finding.detail) for finding in found] == [
        ("duplicate_caption", "a caption 3", "the same as caption 1"),
        ("duplicate_caption", "a caption 4", "the same as caption 2"),
    ]


def test_one_text_in_two_languages_or_on_two_clips_is_no_repetition() -> None:
    assert find_caption_problems([Clip("a", "x", captions=(Caption("Piano"), Caption("Piano", "it")))]) == []
    assert find_caption_problems([Clip(name, "x", captions=(Caption("Piano"),)) for name in "ab"]) == []


def test_a_clip_without_captions_is_found_only_where_others_have_some() -> None:
    bare = Clip("bare", "x")
    assert find_caption_problems([bare, bare]) == []
    (finding,) = find_caption_problems([Clip("a", "x", captions=(Caption("Rain"),)), bare])
    assert (finding.check, finding.item) == ("no_caption", "bare")


def test_a_bad_caption_of_many_clips_is_found_on_each() -> None:
    clips = [Clip(name, "x", captions=(Caption("Rain &amp; wind"), Caption("Rain"))) for name in "abc"]
    assert [finding.item for finding in find_caption_problems(clips)] == ["a caption 1", "b caption 1", "c caption 1"]


def test_every_language_with_small_words_has_some_of_its_own() -> None:
    assert all(len(words) >= 10 for words in languages.OWN_WORDS.values())
    assert set(languages.FUNCTION_WORDS) | set(languages.SCRIPTS) | languages.WITHOUT_BLANKS <= languages.ISO_639_1
    assert len(languages.ISO_639_1) == 183


@pytest.mark.skipif("CLAPKIT_CAPTIONS" not in os.environ, reason="CLAPKIT_CAPTIONS does not name a folder of caption files")
def test_no_caption_of_audiocaps_and_clotho_raises_a_false_alarm() -> None:
    texts = []
    for path in sorted(Path(os.environ["CLAPKIT_CAPTIONS"]).glob("*/*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            texts += [text for row in csv.DictReader(file) for key, text in row.items() if key.startswith("caption")]
    assert len(texts) > 1000
    assert find_caption_problems([Clip(str(number), "x", captions=(Caption(text),)) for number, text in enumerate(texts)]) == []
