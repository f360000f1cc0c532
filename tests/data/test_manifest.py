import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from clapkit.data.manifest import Manifest, fingerprint, to_line
from clapkit.errors import ManifestError
from clapkit.types import Caption, Clip

HEADER = '{"clapkit_manifest": 1, "name": "toy", "root": "."}'
DOG = Clip(
    id="dog",
    audio="a/dog.wav",
    duration_s=1.5,
    sample_rate=8000,
    num_channels=1,
    captions=(Caption("A dog barks."), Caption("Ein Hund bellt.", "de")),
    labels=("dog barking",),
    split="train",
    fold=2,
    source="tape 1",
    start_s=0.5,
    end_s=2.0,
    extra={"mood": "cross"},
)
CAT = Clip(id="cat", audio="/elsewhere/cat.wav", duration_s=2.0, split="test")


def write_lines(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def clip_line(**changes: object) -> str:
    return json.dumps({"id": "dog_07", "audio": "dog.wav", "duration_s": 1.0} | changes)


def test_loading_gives_back_what_was_written(tmp_path: Path) -> None:
    written = Manifest.write(tmp_path / "manifest.jsonl", [DOG, CAT], root=tmp_path, name="toy")
    assert Manifest.load(tmp_path / "manifest.jsonl") == written
    assert written.clips == (DOG, CAT)


def test_a_root_below_the_manifest_is_written_relative_so_that_the_folder_can_move(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    Manifest.write(tmp_path / "old" / "manifest.jsonl", [DOG], root=tmp_path / "old" / "sounds", name="toy")
    (tmp_path / "old").rename(tmp_path / "new")
    manifest = Manifest.load(tmp_path / "new" / "manifest.jsonl")
    assert manifest.audio_path(DOG) == tmp_path / "new" / "sounds" / "a" / "dog.wav"


def test_a_root_elsewhere_is_written_absolute(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    Manifest.write(tmp_path / "run" / "manifest.jsonl", [DOG], root=tmp_path / "corpus", name="toy")
    assert Manifest.load(tmp_path / "run" / "manifest.jsonl").root == tmp_path / "corpus"


def test_an_absolute_audio_path_ignores_the_root(tmp_path: Path) -> None:
    manifest = Manifest.write(tmp_path / "manifest.jsonl", [CAT], root=tmp_path, name="toy")
    assert manifest.audio_path(CAT) == Path("/elsewhere/cat.wav")


def test_a_line_holds_nothing_that_is_empty() -> None:
    assert to_line(CAT) == '{"id": "cat", "audio": "/elsewhere/cat.wav", "duration_s": 2.0, "split": "test"}'


def test_fingerprint_is_sha256_over_the_canonical_lines() -> None:
    expected = hashlib.sha256((to_line(DOG) + "\n" + to_line(CAT) + "\n").encode()).hexdigest()
    assert fingerprint([DOG, CAT]) == expected


def test_fingerprint_does_not_depend_on_root_name_or_order_of_keys(tmp_path: Path) -> None:
    written = Manifest.write(tmp_path / "a.jsonl", [CAT], root=tmp_path, name="a")
    line = '{"split": "test", "duration_s": 2.0, "audio": "/elsewhere/cat.wav", "id": "cat"}'
    other = write_lines(tmp_path / "b.jsonl", '{"clapkit_manifest": 1, "name": "b", "root": "/x"}', line)
    assert Manifest.load(other).fingerprint == written.fingerprint


@pytest.mark.parametrize("changed", [replace(DOG, split="test"), replace(DOG, captions=()), replace(DOG, end_s=1.9)])
def test_fingerprint_changes_with_the_clip(changed: Clip) -> None:
    assert fingerprint([changed]) != fingerprint([DOG])


def test_split_keeps_order_and_root(tmp_path: Path) -> None:
    clips = [replace(CAT, id=str(i), split=("train", "test")[i % 2]) for i in range(5)]
    manifest = Manifest.write(tmp_path / "m.jsonl", clips, root=tmp_path, name="toy")
    test = manifest.split("test")
    assert [clip.id for clip in test] == ["1", "3"]
    assert test.root == manifest.root
    assert test.fingerprint == fingerprint([clips[1], clips[3]])
    assert manifest.splits == {"test": 2, "train": 3}
    assert len(manifest) == 5


def test_an_unknown_split_names_those_that_exist(tmp_path: Path) -> None:
    manifest = Manifest.write(tmp_path / "m.jsonl", [CAT], root=tmp_path, name="toy")
    with pytest.raises(ManifestError, match=r"no clip in split 'val', splits found: test \(1 clips\)"):
        manifest.split("val")


def test_a_line_separator_inside_a_caption_is_no_new_line(tmp_path: Path) -> None:
    clip = replace(DOG, captions=(Caption("one\u2028two\nthree"),))
    Manifest.write(tmp_path / "m.jsonl", [clip], root=tmp_path, name="toy")
    assert Manifest.load(tmp_path / "m.jsonl").clips == (clip,)


def test_writing_two_clips_of_one_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="clip dog: id is used 2 times"):
        Manifest.write(tmp_path / "m.jsonl", [DOG, DOG], root=tmp_path, name="toy")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (clip_line(duration_s=0.0), r"line 2: clip dog_07: duration_s 0.0, expected more than 0; drop the row or run"),
        (clip_line(duration_s=-1), "duration_s -1, expected more than 0"),
        ('{"id": "x", "audio": "x.wav", "duration_s": 1e999}', "duration_s inf, expected more than 0"),
        ('{"id": "x", "audio": "x.wav", "duration_s": NaN}', "line 2: not JSON .*NaN"),
        (clip_line(duration_s="5"), "duration_s '5', expected a number"),
        (clip_line(duration_s=True), "duration_s True, expected a number"),
        (clip_line(sample_rate=8000.5), "sample_rate 8000.5, expected a whole number"),
        (clip_line(fold=0), "fold 0, expected more than 0"),
        (clip_line(lable="dog"), "unknown key 'lable', expected some of id, audio"),
        (clip_line(labels=["dog", 3]), "label 3, expected a text"),
        (clip_line(captions=["A dog."]), "caption 'A dog.', expected"),
        (clip_line(captions=[{"text": ""}]), "caption .* not empty"),
        (clip_line(captions=[{"text": "A dog.", "language": "en"}]), "caption .*language"),
        (clip_line(start_s=-0.5), "span from -0.5 s"),
        (clip_line(start_s=2.0, end_s=2.0), "span from 2.0 s to 2.0 s, expected 0 <= start_s < end_s"),
        ('{"audio": "x.wav", "duration_s": 1.0}', "clip without id: id is missing"),
        ('{"id": "", "audio": "x.wav", "duration_s": 1.0}', "id is missing"),
        ('{"id": "x", "duration_s": 1.0}', "clip x: audio is missing"),
        ('{"id": "x", "audio": "x.wav"}', "clip x: duration_s is missing"),
        ("{", "line 2: not JSON"),
        ("", "line 2: not JSON"),
        ("[1]", "line 2: holds a list, expected an object"),
    ],
)
def test_a_clip_that_breaks_a_rule_is_refused_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path / "manifest.jsonl", HEADER, line, clip_line(id="last"))
    with pytest.raises(ManifestError, match=message):
        Manifest.load(path)


def test_a_repeated_id_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", HEADER, clip_line(), clip_line(id="b"), clip_line())
    with pytest.raises(ManifestError, match="line 4: clip dog_07: id is already used on line 2"):
        Manifest.load(path)


def test_bytes_that_are_no_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(HEADER.encode() + b'\n{"id": "\xe9"}\n')
    with pytest.raises(ManifestError, match="line 2: not JSON"):
        Manifest.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty, expected a header line"),
        (clip_line() + "\n", "line 1: no header, expected"),
        ('{"clapkit_manifest": 2, "name": "x", "root": "."}\n', "clapkit_manifest 2, expected 1"),
        ('{"clapkit_manifest": 1, "name": "x", "root": 3}\n', "root 3, expected two texts"),
        ('{"clapkit_manifest": 1, "name": "x", "root": ".", "rate": 3}\n', "unknown key 'rate'"),
        (HEADER + "\n", "holds no clip"),
    ],
)
def test_a_file_without_proper_header_or_clips_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(content)
    with pytest.raises(ManifestError, match=message):
        Manifest.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nope.jsonl: cannot be read \(No such file"):
        Manifest.load(tmp_path / "nope.jsonl")


def test_languages_are_read_in_one_spelling_and_the_fingerprint_is_that_of_the_file(tmp_path: Path) -> None:
    clips = [
        Clip("a", "a.wav", duration_s=1.0, captions=(Caption("Rain.", "EN"), Caption("Chuva.", "pt_br"))),
        Clip("b", "b.wav", duration_s=1.0, captions=(Caption("Rain."),)),
    ]
    written = Manifest.write(tmp_path / "m.jsonl", clips, root=tmp_path, name="toy")
    loaded = Manifest.load(tmp_path / "m.jsonl")
    assert [caption.lang for clip in loaded for caption in clip.captions] == ["en", "pt-BR", "en"]
    assert loaded.fingerprint == written.fingerprint  # runs of earlier versions know the data by it
