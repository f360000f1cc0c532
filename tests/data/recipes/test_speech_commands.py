from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes import speech_commands
from clapkit.data.recipes.speech_commands import OFFICIAL, WORDS
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip, CorpusDescription, RecipeRequest, Rejection, SilentReporter

VALIDATION = "right/bbbb0000_nohash_0.wav\nright/bbbb0000_nohash_1.wav\n"
TESTING = "right/cccc0000_nohash_0.wav\nyes/cccc0000_nohash_0.wav\n"


def corpus(folder: Path, *words: str) -> Path:
    """Three speakers; the second says each word twice."""
    for word in ("right", "yes", *words):
        (folder / word).mkdir()
        for speaker, num_takes in (("aaaa0000", 1), ("bbbb0000", 2), ("cccc0000", 1)):
            for take in range(num_takes):
                (folder / word / f"{speaker}_nohash_{take}.wav").write_bytes(b"")
    (folder / "_background_noise_").mkdir()
    for name in ("doing_the_dishes.wav", "white_noise.wav", "README.md"):
        (folder / "_background_noise_" / name).write_bytes(b"")
    (folder / "LICENSE").write_text("")
    (folder / "validation_list.txt").write_text(VALIDATION + "yes/bbbb0000_nohash_0.wav\nyes/bbbb0000_nohash_1.wav\n")
    (folder / "testing_list.txt").write_text(TESTING)
    return folder


def read_all(source: Path, **changes: Any) -> tuple[list[Clip | Rejection], CorpusDescription]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    recipe = registry.build("recipe", "speech_commands")
    items = list(recipe.clips(RecipeRequest(source=source, **request)))
    return items, recipe.describe([item for item in items if isinstance(item, Clip)])


def test_a_file_becomes_a_clip_whose_source_is_the_speaker(tmp_path: Path) -> None:
    found = [item for item in read_all(corpus(tmp_path))[0] if isinstance(item, Clip)]
    assert found[1] == Clip(
        "speech_commands/right/bbbb0000_nohash_0",
        "right/bbbb0000_nohash_0.wav",
        labels=("right",),
        split="val",
        source="speech_commands/bbbb0000",
    )
    assert len({(clip.source, clip.split) for clip in found}) == 3


def test_what_is_in_no_list_is_trained_on(tmp_path: Path) -> None:
    found = [item for item in read_all(corpus(tmp_path))[0] if isinstance(item, Clip)]
    assert Counter(clip.split for clip in found) == {"train": 2, "val": 4, "test": 2}


def test_noises_are_no_words_and_are_counted(tmp_path: Path) -> None:
    found = [item for item in read_all(corpus(tmp_path))[0] if isinstance(item, Rejection)]
    assert [(item.item, item.kind) for item in found] == [
        ("_background_noise_/doing_the_dishes.wav", "excluded"),
        ("_background_noise_/white_noise.wav", "excluded"),
    ]


def test_listed_files_that_are_not_there_are_missing_in_their_split(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "yes" / "cccc0000_nohash_0.wav").unlink()
    with (tmp_path / "validation_list.txt").open("a") as file:
        file.write("zero/dddd0000_nohash_3.wav\n")
    missing = {i.item: i.split for i in read_all(tmp_path)[0] if isinstance(i, Rejection) and i.kind == "missing"}
    assert missing == {"speech_commands/zero/dddd0000_nohash_3": "val", "speech_commands/yes/cccc0000_nohash_0": "test"}


def test_a_converted_copy_keeps_its_splits(tmp_path: Path) -> None:
    corpus(tmp_path)
    for path in tmp_path.glob("*/*_nohash_*.wav"):
        path.rename(path.with_suffix(".flac"))
    items, _ = read_all(tmp_path)
    assert Counter(item.split for item in items if isinstance(item, Clip)) == {"train": 2, "val": 4, "test": 2}
    assert {item.kind for item in items if isinstance(item, Rejection)} == {"excluded"}


def test_unknown_words_and_file_names_are_rejected(tmp_path: Path) -> None:
    corpus(tmp_path)
    (tmp_path / "tuba").mkdir()
    (tmp_path / "yes" / "take 1.wav").write_bytes(b"")
    bad = {i.item: i.reason for i in read_all(tmp_path)[0] if isinstance(i, Rejection) and i.kind == "bad"}
    assert list(bad) == ["tuba", "yes/take 1.wav"]
    assert "no word of Speech Commands, expected one of backward, bed" in bad["tuba"]
    assert "file name 'take 1', expected speaker_nohash_take" in bad["yes/take 1.wav"]


@pytest.mark.parametrize(("words", "version"), [((), "v1"), (("backward",), "v2")])
def test_the_words_tell_the_version_of_a_miniature(tmp_path: Path, words: tuple[str, ...], version: str) -> None:
    description = read_all(corpus(tmp_path, *words))[1]
    assert (description.facts["version"], description.facts["words"]) == (version, 2 + len(words))
    assert description.official == OFFICIAL[version]
    (warning,) = description.warnings
    assert "The lists name 4 in validation_list.txt and 2 in testing_list.txt, expected" in warning


def test_whole_lists_tell_the_version_where_words_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OFFICIAL["v2"], "val", 4)
    monkeypatch.setitem(OFFICIAL["v2"], "test", 2)
    description = read_all(corpus(tmp_path))[1]
    assert (description.facts["version"], description.warnings) == ("v2", [])


def test_the_official_counts_add_up() -> None:
    assert {version: sum(sizes.values()) for version, sizes in OFFICIAL.items()} == {"v1": 64721, "v2": 105829}
    assert len(set(WORDS)) == 35
    assert len(set(WORDS) - set(speech_commands.NEW_IN_V2)) == 30


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "right/bbbb0000_nohash_0.wav",
            r"testing_list\.txt line 3: right/bbbb0000_nohash_0\.wav is also in validation_list\.txt",
        ),
        ("bbbb0000_nohash_0.wav", r"testing_list\.txt line 3: 'bbbb0000_nohash_0\.wav', expected a clip such as right/"),
        ("tuba/bbbb0000_nohash_0.wav", "line 3: 'tuba/bbbb0000_nohash_0.wav', expected a clip such as right/"),
    ],
)
def test_lists_that_cannot_be_right_are_refused(tmp_path: Path, line: str, message: str) -> None:
    corpus(tmp_path)
    (tmp_path / "testing_list.txt").write_text(f"{TESTING}{line}\n")
    with pytest.raises(ManifestError, match=message):
        read_all(tmp_path)


def test_what_is_no_speech_commands_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is no Speech Commands, no validation_list\.txt found"):
        read_all(tmp_path)
    (corpus(tmp_path) / "testing_list.txt").unlink()
    with pytest.raises(ManifestError, match=r"no testing_list\.txt found, expected it beside the folders of the words"):
        read_all(tmp_path)
    with pytest.raises(ConfigError, match="--audio-dir: speech_commands finds its audio"):
        read_all(tmp_path, audio_dir=tmp_path)
