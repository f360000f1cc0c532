import os
from pathlib import Path

import pytest

from clapkit.data.recipes._files import AudioFiles
from clapkit.errors import ManifestError


def files(root: Path, *paths: str) -> AudioFiles:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")
    return AudioFiles.scan(root)


@pytest.mark.parametrize(
    ("on_disk", "name"),
    [
        ("a.wav", "a.wav"),
        ("deep/er/a.wav", "a.wav"),
        ("a&amp;b.wav", "a&amp;b.wav"),
        ("a&b.wav", "a&amp;b.wav"),
        ("lead.wav", " lead.wav"),
        ("tail.wav", "tail .wav"),
        (" lead .wav", " lead .wav"),
        ("it's.wav", " it&#39;s .wav"),
        ("a.flac", "a.wav"),
        ("a.WAV", "a"),
        ("a&b.flac", "a&amp;b.wav"),
        ("KOOKABURRA..WAV.wav", "KOOKABURRA..WAV.wav"),
        ("20061208.waves.02.flac", "20061208.waves.02.wav"),
        ("-Tok_g_jgE0.wav", "-Tok_g_jgE0"),
        ("50%, #1; [x].wav", "50%, #1; [x].wav"),
        ("x/y.wav", "x/y.flac"),
    ],
)
def test_a_name_finds_its_file_in_every_known_variant(tmp_path: Path, on_disk: str, name: str) -> None:
    assert files(tmp_path, on_disk, "other.wav").find([name]) == on_disk


@pytest.mark.parametrize("names", [[], ["", "  "], ["b.wav"], ["a.wav.wav.x"], ["A.wav"], ["a%20b.wav"]])
def test_a_name_that_no_file_goes_by_finds_nothing(tmp_path: Path, names: list[str]) -> None:
    assert files(tmp_path, "a.wav", "a b.wav").find(names) is None


def test_the_exact_name_wins_over_its_variants(tmp_path: Path) -> None:
    found = files(tmp_path, "a&amp;b.wav", "a&b.wav", " c.wav", "c.wav", "d.wav", "d.flac")
    assert [found.find([name]) for name in ("a&amp;b.wav", " c.wav", "d.wav")] == ["a&amp;b.wav", " c.wav", "d.wav"]


def test_an_exact_later_name_wins_over_another_suffix_of_the_first(tmp_path: Path) -> None:
    assert files(tmp_path, "a.flac", "b.wav").find(["a.wav", "b.wav"]) == "b.wav"
    assert files(tmp_path / "second", "a.flac", "b.flac").find(["b.wav", "a.wav"]) == "b.flac"


def test_of_several_suffixes_the_lossless_one_is_taken(tmp_path: Path) -> None:
    found = files(tmp_path, "a.mp3", "a.ogg", "a.flac", "a.wav", "b.opus", "b.mp3", "c.opus", "c.aiff")
    assert [found.find([name]) for name in "abc"] == ["a.flac", "b.mp3", "c.aiff"]


def test_a_file_in_two_folders_needs_a_hint(tmp_path: Path) -> None:
    found = files(tmp_path, "val/a.wav", "test/a.wav")
    with pytest.raises(ManifestError, match=r"'a' is there as test/a.wav and as val/a.wav, expected it once; remove one"):
        found.find(["a"])
    with pytest.raises(ManifestError, match="'a' is there as"):
        found.find(["a"], folders=["train"])
    assert found.find(["a"], folders=["train", "val"]) == "val/a.wav"
    assert found.find(["a.wav"], folders=["test", "val"]) == "test/a.wav"


def test_a_hint_beats_the_file_in_the_root_and_is_no_condition(tmp_path: Path) -> None:
    found = files(tmp_path, "a.wav", "deep/val/x/a.wav", "b.wav")
    assert found.find(["a.wav"], folders=["val"]) == "deep/val/x/a.wav"
    assert found.find(["a.wav"]) == "a.wav"
    assert found.find(["b.wav"], folders=["val"]) == "b.wav"


def test_a_hint_is_a_whole_folder_name_and_no_file_name(tmp_path: Path) -> None:
    found = files(tmp_path, "val/a.wav", "val2/a.wav")
    assert found.find(["a.wav"], folders=["val2"]) == "val2/a.wav"
    with pytest.raises(ManifestError, match="expected it once"):
        found.find(["a.wav"], folders=["a.wav", "va"])


def test_folders_in_a_name_tell_files_apart_and_may_lie_deeper(tmp_path: Path) -> None:
    found = files(tmp_path, "corpus/fold1/a.wav", "corpus/fold2/a.wav")
    assert found.find(["fold2/a.wav"]) == "corpus/fold2/a.wav"
    assert found.find(["corpus/fold1/a"]) == "corpus/fold1/a.wav"


def test_hidden_files_links_out_of_the_root_and_other_files_are_passed_over(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    root = tmp_path / "root"
    files(outside, "far.wav", "folder/near.wav")
    files(root, ".hidden.wav", ".cache/b.wav", "a.txt", "real.wav")
    (root / "far.wav").symlink_to(outside / "far.wav")
    (root / "inside.wav").symlink_to(root / "real.wav")
    (root / "folder").symlink_to(outside / "folder")
    found = AudioFiles.scan(root)
    assert len(found) == 2
    assert {"real.wav", "inside.wav"} == {path for path in ("real.wav", "inside.wav", "far.wav") if path in found}
    assert [found.find([name]) for name in (".hidden.wav", "b.wav", "a.txt", "near.wav")] == [None] * 4


def test_a_name_that_is_no_utf8_is_passed_over(tmp_path: Path) -> None:
    files(tmp_path, "a.wav")
    (tmp_path / os.fsdecode(b"\xff.wav")).write_bytes(b"")
    assert len(AudioFiles.scan(tmp_path)) == 1


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone: cannot be read \(No such file or directory\); make it readable"):
        AudioFiles.scan(tmp_path / "gone")


def test_a_hundred_thousand_names_are_found_without_a_question_to_the_disk(tmp_path: Path) -> None:
    found = AudioFiles(tmp_path / "gone", (f"part{i % 40:02d}/Y{i:011d}.flac" for i in range(100_000)))
    assert [found.find([f"{i:011d}", f"Y{i:011d}.wav"]) for i in range(0, 100_000, 1000)] == [
        f"part{i % 40:02d}/Y{i:011d}.flac" for i in range(0, 100_000, 1000)
    ]


def test_a_missing_clip_names_where_it_was_looked_for_once_each(tmp_path: Path) -> None:
    rejection = AudioFiles(tmp_path, []).missing("x/1", ["a", "b", "a"], split="val")
    assert (rejection.item, rejection.kind, rejection.split) == ("x/1", "missing", "val")
    assert rejection.reason == f"no audio a or b below {tmp_path}; get the file, or set --audio-dir"
