import pytest

from clapkit.data.safe_paths import is_safe_audio_path, printable, safe_part, short_hash


@pytest.mark.parametrize(
    "path", ["a.wav", "001 - Dog bark/1-2-A.ogg", "a/b/c.x.FLAC", "ü/犬.mp3", "a..b.wav", "x.wav@0.5-1.0.flac"]
)
def test_paths_of_corpora_are_safe(path: str) -> None:
    assert is_safe_audio_path(path)


@pytest.mark.parametrize(
    "path",
    [
        *("", "/a.wav", "../a.wav", "a/../b.wav", "./a.wav", "a//b.wav", "a/.b.wav", ".a/b.wav", "a\\b.wav"),
        *("a\nb.wav", "a\0.wav", "\udcff.wav", "a.txt", "a", ".wav", "a/", "x" * 201 + ".wav", "x/" * 500 + "a.wav"),
    ],
)
def test_paths_that_leave_hide_or_break_are_not(path: str) -> None:
    assert not is_safe_audio_path(path)


@pytest.mark.parametrize("text", ["dog 1", "Boeing 747 (2)", "ü", "a.b", "x" * 200])
def test_harmless_parts_stay(text: str) -> None:
    assert safe_part(text) == text


@pytest.mark.parametrize(
    "text", ["", ".", "..", ".hidden", " a ", "a/b", "a\nb", "a\0b", "x" * 300, "ü" * 150, "\udcff", "CON:", "-?"]
)
def test_other_parts_become_harmless_and_stay_different(text: str) -> None:
    part = safe_part(text)
    assert part.endswith(short_hash(text))
    assert is_safe_audio_path(f"{part}.wav")
    assert safe_part(text + "x" * 400) != part


def test_texts_on_one_line_stay_and_others_are_escaped() -> None:
    assert printable("ü a") == "ü a"
    assert printable("a\nb\udcff") == "a\\nb\\udcff"
