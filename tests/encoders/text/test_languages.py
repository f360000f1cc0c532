import re

import pytest
from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

from clapkit.encoders.text._languages import NLLB, Languages
from clapkit.errors import ConfigError

# The two-letter tags of M2M100, and those of them that NLLB-200 does not have: Breton, Western Frisian; ns is no ISO 639-1 tag.
M2M100 = """
af am ar az ba be bg bn br bs ca cs cy da de el en es et fa ff fi fr fy ga gd gl gu ha he hi hr ht hu hy id ig is it ja jv ka kk
km kn ko lb lg ln lo lt lv mg mk ml mn mr ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn
tr uk ur uz vi wo xh yi yo zh zu
""".split()
NOT_IN_NLLB = {"br", "fy", "ns"}


def nllb():
    return Languages({token: place for place, token in enumerate(FAIRSEQ_LANGUAGE_CODES)} | {"dog": 900, "__x__": 901})


def token_of(tag):
    return FAIRSEQ_LANGUAGE_CODES[nllb().token_id(tag)]


def test_every_tag_leads_to_a_token_that_nllb_has() -> None:
    assert set(NLLB.values()) <= set(FAIRSEQ_LANGUAGE_CODES)
    assert all(re.fullmatch("[a-z]{2}", tag) for tag in NLLB)


def test_two_tags_share_a_token_only_where_one_is_the_other() -> None:
    shared = [tag for tag, token in NLLB.items() if list(NLLB.values()).count(token) > 1]
    assert shared == ["nb", "no"]


def test_the_languages_that_m2m100_has_in_two_letters_are_there() -> None:
    assert set(M2M100) - set(NLLB) == NOT_IN_NLLB


@pytest.mark.parametrize(
    ("tag", "token"),
    [
        *zip(
            "en fr de es nl ca ja zh".split(),
            "eng_Latn fra_Latn deu_Latn spa_Latn nld_Latn cat_Latn jpn_Jpan zho_Hans".split(),
            strict=True,
        ),
        ("en-US", "eng_Latn"),
        (" EN_gb ", "eng_Latn"),
        ("eng_Latn", "eng_Latn"),
        ("ENG-latn", "eng_Latn"),
        ("eng", "eng_Latn"),
        ("zh-Hant", "zho_Hant"),
        ("zh-TW", "zho_Hant"),
        ("zh-Hans-HK", "zho_Hans"),
        ("zh-CN", "zho_Hans"),
        ("cmn", "zho_Hans"),
        ("yue", "yue_Hant"),
        ("yue-HK", "yue_Hant"),
        ("ks-Deva", "kas_Deva"),
        ("fil", "tgl_Latn"),
        ("iw", "heb_Hebr"),
    ],
)
def test_a_tag_leads_to_its_token(tag, token) -> None:
    assert token_of(tag) == token


@pytest.mark.parametrize("tag", ["xx", "", "english", "sr-Latn", "__x__", "dog"])
def test_an_unknown_language_is_named_with_the_known_ones(tag) -> None:
    with pytest.raises(
        ConfigError, match=f"^language '{tag}': the text encoder has no such language; expected one of af, ak, am"
    ):
        nllb().token_id(tag)


def test_m2m100_has_one_token_per_language_whatever_the_script() -> None:
    languages = Languages({"__en__": 7, "__zh__": 8, "__no__": 9, "__ast__": 10, "en": 1})
    assert [languages.token_id(tag) for tag in ("en", "en-US", "zh-Hant", "nb", "no", "ast")] == [7, 7, 8, 9, 9, 10]
    with pytest.raises(ConfigError, match="language 'de': .* expected one of en, no, zh, or a tag of its own$"):
        languages.token_id("de")


def test_a_tokenizer_with_few_languages_knows_these_alone() -> None:
    languages = Languages({"eng_Latn": 3, "deu_Latn": 4})
    assert [languages.token_id(tag) for tag in ("en", "de")] == [3, 4]
    with pytest.raises(ConfigError, match="language 'fr': .* expected one of de, en"):
        languages.token_id("fr")


def test_an_ordinary_vocabulary_has_no_languages() -> None:
    assert Languages({"dog": 0, "__init__": 1, "abc_Defg": 2}).ids == {}
