import pytest

from clapkit.errors import ConfigError, ManifestError
from clapkit.steps import prepare_choice as choice
from clapkit.types import Caption, Clip, Rejection


def clip(id: str, *captions: Caption, **values: object) -> Clip:
    return Clip(id, f"{id}.wav", captions=captions, **values)  # type: ignore[arg-type]


def test_captions_in_other_languages_go_and_clips_without_any_left_are_listed() -> None:
    both = clip("a", Caption("Regen.", "de"), Caption("Rain."))
    german = clip("b", Caption("Regen.", "de"), split="test")
    silent = clip("c")
    items = choice.keep_languages([both, german, silent], frozenset({"en", "fr"}))
    assert items == [
        clip("a", Caption("Rain.")),
        Rejection("b", "captions in de, not among --languages", "excluded", split="test"),
        silent,
    ]


def test_languages_that_nobody_speaks_are_an_error() -> None:
    with pytest.raises(ManifestError, match=r"--languages fr: no caption in any of them, languages found: de, en;"):
        choice.keep_languages([clip("a", Caption("Regen.", "de"), Caption("Rain."))], frozenset({"fr"}))


def test_languages_are_tags_between_commas() -> None:
    assert choice.read_languages(None) is None
    assert choice.read_languages("en, fr,") == {"en", "fr"}
    assert choice.read_languages("EN,pt_br") == {"en", "pt-BR"}
    with pytest.raises(ConfigError, match="--languages ' ,': expected language tags"):
        choice.read_languages(" ,")


def test_a_filter_looks_at_what_is_known_of_a_clip() -> None:
    clips = [
        clip("a", duration_s=4.0, labels=("dog",), split="train"),
        clip("b", duration_s=40.0, labels=("dog", "cat"), split="test"),
    ]
    where = choice.read_where("duration_s <= 30 and 'dog' in labels")
    assert where is not None
    kept, left = choice.keep_where(clips, where)
    assert kept is clips[0]
    assert left == Rejection("b", "does not satisfy --where duration_s <= 30 and 'dog' in labels", "excluded", split="test")


def test_a_filter_over_a_column_that_no_clip_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="no column 'loudness'; known: id, audio, split"):
        choice.read_where("loudness > 3")


def test_labels_become_captions_behind_those_that_are_there() -> None:
    clips = [clip("a", Caption("Woof."), labels=("dog",)), clip("b", labels=("dog", "cat", "car, truck")), clip("c")]
    made = choice.caption_by_labels(clips, ("This is {}.", "{}"))
    assert made[0].captions == (Caption("Woof."), Caption("This is dog."), Caption("dog"))
    assert made[1].captions[0].text == "This is dog, cat and car, truck."
    assert made[2].captions == ()


def test_a_caption_that_is_there_is_not_made_twice() -> None:
    made = choice.caption_by_labels([clip("a", Caption("dog"), labels=("dog",))], ("{}",))
    assert made[0].captions == (Caption("dog"),)


def test_templates_need_a_place_for_the_label_or_are_none() -> None:
    assert choice.read_templates(()) is None
    assert choice.read_templates(("none",)) == ()
    assert choice.read_templates(("a {}", "{}")) == ("a {}", "{}")
    with pytest.raises(ConfigError, match="--template 'a dog': no place for the label, expected {} in it"):
        choice.read_templates(("a dog",))
