import os
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.recipes.folder import clean_name
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, RecipeRequest, Rejection, SilentReporter


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def read(source: Path, options: dict[str, Any] | None = None, **changes: Any) -> list[Clip | Rejection]:
    request = {"audio_dir": None, "output_dir": source, "seed": 0, "workers": 1, "reporter": SilentReporter()} | changes
    return list(registry.build("recipe", "folder", options).clips(RecipeRequest(source=source, **request)))


def test_class_folders_give_label_and_caption(tmp_path: Path) -> None:
    touch(tmp_path, "001 - Dog bark/1.wav", "sea_waves/take-2.OGG")
    assert read(tmp_path) == [
        Clip("001 - Dog bark/1", "001 - Dog bark/1.wav", captions=(Caption("Dog bark"),), labels=("Dog bark",)),
        Clip("sea_waves/take-2", "sea_waves/take-2.OGG", captions=(Caption("sea waves"),), labels=("sea waves",)),
    ]


def test_loose_files_are_captioned_by_their_names(tmp_path: Path) -> None:
    touch(tmp_path, "a_dog-barks_01.wav", "003.wav")
    assert read(tmp_path) == [
        Clip("003", "003.wav"),
        Clip("a_dog-barks_01", "a_dog-barks_01.wav", captions=(Caption("a dog barks"),)),
    ]


def test_the_innermost_folder_names_the_label(tmp_path: Path) -> None:
    touch(tmp_path, "drums/kick/808.wav")
    (clip,) = read(tmp_path)
    assert isinstance(clip, Clip)
    assert clip.labels == ("kick",)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("001 - Dog bark", "Dog bark"),
        ("dog_barking", "dog barking"),
        ("dog-bark-07", "dog bark"),
        ("dog (2)", "dog"),
        ("dog 02", "dog"),
        ("12_rain", "rain"),
        ("3) wind", "wind"),
        ("808 kick", "808 kick"),
        ("Boeing 747", "Boeing 747"),
        ("00123", ""),
        ("雨の音", "雨の音"),
    ],
)
def test_numbering_goes_and_numbers_that_mean_something_stay(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


def test_folders_called_like_splits_give_the_split(tmp_path: Path) -> None:
    touch(tmp_path, "train/dog/a.wav", "Validation/dog/b.wav", "test/loose_cat.wav")
    found = {clip.id: (clip.split, clip.labels) for clip in read(tmp_path) if isinstance(clip, Clip)}
    assert found == {
        "train/dog/a": ("train", ("dog",)),
        "Validation/dog/b": ("val", ("dog",)),
        "test/loose_cat": ("test", ()),
    }


def test_among_other_classes_train_is_a_vehicle(tmp_path: Path) -> None:
    touch(tmp_path, "car/a.wav", "train/b.wav")
    found = {(clip.split, clip.labels) for clip in read(tmp_path) if isinstance(clip, Clip)}
    assert found == {(None, ("car",)), (None, ("train",))}


@pytest.mark.parametrize(
    ("mode", "captions"),
    [
        ("auto", (Caption("The sound of dog.", "de"),)),
        ("folder", (Caption("The sound of dog.", "de"),)),
        ("filename", (Caption("The sound of it barks.", "de"),)),
        ("none", ()),
    ],
)
def test_options_choose_the_caption(tmp_path: Path, mode: str, captions: tuple[Caption, ...]) -> None:
    touch(tmp_path, "dog/it_barks.wav")
    (clip,) = read(tmp_path, {"captions": mode, "template": "The sound of {}.", "language": "de"})
    assert isinstance(clip, Clip)
    assert clip.captions == captions


def test_one_name_in_two_formats_keeps_ids_apart(tmp_path: Path) -> None:
    touch(tmp_path, "a.flac", "a.wav", "b.wav")
    assert [clip.id for clip in read(tmp_path) if isinstance(clip, Clip)] == ["a.flac", "a.wav", "b"]


def test_hidden_files_are_skipped_and_others_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, ".hidden.wav", ".git/a.wav", "notes.txt", "cover.png", "a.wav")
    listener = Listener()
    assert len(read(tmp_path, reporter=listener)) == 1
    assert listener.said == [f"{tmp_path}: files ignored because they are no audio: 2"]


def test_sound_that_cannot_be_decoded_is_refused_aloud(tmp_path: Path) -> None:
    touch(tmp_path, "a.m4a", "b.wav")
    assert read(tmp_path)[0] == Rejection("a.m4a", ".m4a cannot be decoded, expected wav, flac, ogg or mp3; convert it")


def test_links_out_of_the_corpus_are_not_followed(tmp_path: Path) -> None:
    corpus = touch(tmp_path / "corpus", "a.wav")
    outside = touch(tmp_path / "outside", "secret.wav")
    (corpus / "b.wav").symlink_to(outside / "secret.wav")
    (corpus / "loop").symlink_to(corpus)
    (corpus / "same.wav").symlink_to(corpus / "a.wav")
    found = read(corpus)
    assert [item.id for item in found if isinstance(item, Clip)] == ["a", "same"]
    assert [item.item for item in found if isinstance(item, Rejection)] == ["b.wav", "loop"]


def test_a_name_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.wav")).write_bytes(b"")
    (found,) = read(tmp_path)
    assert found == Rejection(r"'caf\udce9.wav'", "the path is not valid UTF-8, expected readable names; rename it")


def test_the_order_is_that_of_the_paths(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.wav", "a/3.wav", "b/1.wav", "c.wav")
    assert [clip.id for clip in read(tmp_path) if isinstance(clip, Clip)] == ["a/3", "b/1", "b/2", "c"]


def test_a_file_where_a_folder_is_expected_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    with pytest.raises(ManifestError, match=r"a\.wav: is no folder, expected one with sounds"):
        read(tmp_path / "a.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_read_permission_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "dog/a.wav")
    (tmp_path / "dog").chmod(0)
    with pytest.raises(ManifestError, match=r"dog: cannot be read \(Permission denied\)"):
        read(tmp_path)
    (tmp_path / "dog").chmod(0o755)


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ManifestError, match=r"cannot be read \(Permission denied\)"):
        read(tmp_path)


def test_options_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"template=a sound: no place for the name, expected \{\}"):
        read(tmp_path, {"template": "a sound"})
    with pytest.raises(ConfigError, match="leave something to train"):
        read(tmp_path, {"val_share": "0.6", "test_share": "0.5"})
    with pytest.raises(ConfigError, match="--audio-dir: folder finds its audio"):
        read(tmp_path, audio_dir=tmp_path)
