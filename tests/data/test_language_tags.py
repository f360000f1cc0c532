import pytest

from clapkit.data.language_tags import normal_tag, with_normal_tags
from clapkit.types import Caption, Clip


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("en", "en"),
        ("EN", "en"),
        (" De ", "de"),
        ("en_us", "en-US"),
        ("pt-BR", "pt-BR"),
        ("ZH_hant-tw", "zh-Hant-TW"),
        ("ENG_LATN", "eng-Latn"),
        ("es-419", "es-419"),
        ("de-CH-1901", "de-CH-1901"),
        # The second example of section 2.1.1: what follows a single letter stays in lower case.
        ("EN-CA-X-CA", "en-CA-x-ca"),
        ("X-AB-Whale", "x-ab-whale"),
        ("sl-1ABC", "sl-1abc"),
        ("", ""),
    ],
)
def test_a_tag_is_written_as_bcp_47_does(tag: str, expected: str) -> None:
    assert normal_tag(tag) == expected
    assert normal_tag(expected) == expected


def test_only_clips_with_other_tags_are_made_anew() -> None:
    plain = Clip("a", "a.wav", captions=(Caption("Rain."), Caption("Regen.", "de")))
    odd = Clip("b", "b.wav", captions=(Caption("Rain.", "EN"), Caption("Regen.", "de_at")), labels=("rain",))
    first, second = with_normal_tags([plain, odd])
    assert first is plain
    assert second == Clip("b", "b.wav", captions=(Caption("Rain.", "en"), Caption("Regen.", "de-AT")), labels=("rain",))
