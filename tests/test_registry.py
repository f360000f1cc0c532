from typing import Literal

import pytest

from clapkit import registry
from clapkit.errors import ConfigError, UnknownNameError


def test_plugins_are_the_files_that_define_build() -> None:
    assert registry.names("loss") == (
        "albef",
        "alip",
        "cacr",
        "compa",
        "cwcl",
        "dbpm",
        "dcl",
        "decoupled",
        "hycd",
        "infonce",
        "m3col",
        "mochi",
        "reweighted",
        "siglip",
        "sogclr",
        "svr",
        "triplet",
    )
    assert registry.names("term") == ("alignment", "cross_uniformity", "cyclip", "embedding_l1", "uniformity")
    assert registry.names("audio encoder") == ("ced", "hf", "light", "small", "tiny")
    assert registry.names("text encoder") == ("hf", "light", "small", "tiny")
    assert " ".join(registry.names("recipe")) == (
        "audiocaps audioset clotho compa dcase esc10 esc50 folder fsd50k gtzan hf macs manifest mix mlclap musiccaps nsynth "
        "song_describer speech_commands synth table urbansound8k vggsound wavcaps webdataset"
    )


def test_an_unknown_plugin_offers_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="unknown loss 'infonec': did you mean 'infonce'\\?"):
        registry.module("loss", "infonec")


def test_an_unknown_option_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="option of loss 'triplet': 'margni': did you mean 'margin'\\?"):
        registry.build("loss", "triplet", {"margni": "0.2"})


def test_text_is_read_by_annotation() -> None:
    assert registry.read_value("k", "3", int) == 3
    assert registry.read_value("k", "1e-3", float) == 0.001
    assert registry.read_value("k", "yes", bool) is True
    assert registry.read_value("k", "a", Literal["a", "b"]) == "a"
    assert registry.read_value("k", "none", float | None) is None
    assert registry.read_value("k", "0.5", float | None) == 0.5
    assert registry.read_value("k", "auto", Literal["auto"] | float) == "auto"
    assert registry.read_value("k", "-2", Literal["auto"] | float) == -2.0
    assert registry.read_value("k", "text", str) == "text"


@pytest.mark.parametrize(
    ("text", "hint", "message"),
    [
        ("three", int, "expected a whole number"),
        ("x", float, "expected a number"),
        ("maybe", bool, "expected true or false"),
        ("c", Literal["a", "b"], "expected one of a, b"),
    ],
)
def test_text_that_cannot_be_read_is_named(text: str, hint: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"option k={text}: {message}"):
        registry.read_value("k", text, hint)


def test_assignments_need_an_equals_sign_and_come_once() -> None:
    assert registry.parse_assignments(["a=1", " b = x=y"]) == {"a": "1", "b": "x=y"}
    with pytest.raises(ConfigError, match="expected key=value"):
        registry.parse_assignments(["alpha"])
    with pytest.raises(ConfigError, match="'a' is given twice"):
        registry.parse_assignments(["a=1", "a=2"])
