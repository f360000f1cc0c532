import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data.export.webdataset import write_shards
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError
from clapkit.types import Clip, SilentReporter, Tracker

ReadBack = Callable[[str, Path], tuple[dict[str, Clip], Path]]


@pytest.fixture
def tracker() -> Tracker:
    with SilentReporter().track("", None) as tracker:
        return tracker


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        found = {}
        for header in archive:
            stream = archive.extractfile(header)
            assert stream is not None
            found[header.name] = stream.read()
        return found


def test_shards_have_the_layout_that_readers_know(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    result = write_shards(manifest, tmp_path / "s", samples_per_shard=3, tracker=tracker)
    # train: clips 0, 2, 4, 6 and three spans; val: 1, 3, 5.
    assert result["splits"] == {"train": {"num_clips": 7, "num_files": 3}, "val": {"num_clips": 3, "num_files": 1}}
    assert json.loads((tmp_path / "s/train/sizes.json").read_text()) == {"000000.tar": 3, "000001.tar": 3, "000002.tar": 1}
    assert result["paths"] == [*(f"train/00000{number}.tar" for number in range(3)), "val/000000.tar"]
    assert sorted(path.relative_to(tmp_path / "s").as_posix() for path in (tmp_path / "s").rglob("*.*")) == sorted(
        [*result["paths"], "train/sizes.json", "val/sizes.json"]
    )
    found = members(tmp_path / "s/train/000000.tar")
    assert list(found) == [
        *("corpus_0_x.json", "corpus_0_x.wav"),
        *("corpus_2_x.json", "corpus_2_x.ogg"),
        *("corpus_4_x.json", "corpus_4_x.flac"),
    ]
    record = json.loads(found["corpus_0_x.json"])
    assert record.keys() == {"text", "tag", "clapkit", "clapkit_row"}
    assert (record["text"], record["tag"]) == (["Ein Hund bellt.", "A dog 0."], ["dog", "speech, male"])
    assert found["corpus_0_x.wav"] == (manifest.root / "a/0.wav").read_bytes()


def test_whole_files_come_back_as_the_identical_clip_and_bytes(
    tmp_path: Path, manifest: Manifest, read_back: ReadBack, tracker: Tracker
) -> None:
    write_shards(manifest, tmp_path / "s", tracker=tracker)
    found, root = read_back("webdataset", tmp_path / "s")
    assert found.keys() == {clip.id for clip in manifest}
    for clip in manifest.clips[:4]:
        assert found[clip.id] == clip
        assert (root / clip.audio).read_bytes() == manifest.audio_path(clip).read_bytes()


def test_what_is_cut_or_encoded_again_holds_the_same_samples(
    tmp_path: Path, manifest: Manifest, read_back: ReadBack, tracker: Tracker
) -> None:
    result = write_shards(manifest, tmp_path / "s", tracker=tracker)
    assert (result["num_copied"], result["num_cut"], result["num_encoded"]) == (5, 3, 2)
    assert result["encoded"] == {".aiff to flac": 1, ".au to wav": 1}
    found, root = read_back("webdataset", tmp_path / "s")
    names = {clip.id: clip.audio for clip in found.values()}
    assert names["corpus/4.x"] == "a/4.aiff.flac"
    assert names["corpus/5.x"] == "a/5.au.wav"
    assert names["span 0"] == "a/0.wav@0.25-0.5.flac"
    assert names["span 1"] == "a/1.flac@0.25-0.5.flac"
    assert names["span 2"] == "a/2.ogg@0.25-0.5.wav"
    for clip in manifest.clips[4:]:
        start, stop = round((clip.start_s or 0) * 8000), None if clip.end_s is None else round(clip.end_s * 8000)
        expected = soundfile.read(manifest.audio_path(clip), start=start, stop=stop, dtype="float64")[0]
        assert np.array_equal(soundfile.read(root / found[clip.id].audio, dtype="float64")[0], expected)
        assert found[clip.id] == replace(clip, audio=found[clip.id].audio, start_s=None, end_s=None)


@pytest.mark.parametrize(
    ("kind", "subtype", "suffix", "expected"),
    [
        ("AIFF", "PCM_S8", "aiff", ("FLAC", "PCM_16")),
        ("AIFF", "PCM_32", "aiff", ("WAV", "PCM_32")),
        ("AU", "DOUBLE", "au", ("WAV", "DOUBLE")),
        ("AU", "ULAW", "au", ("FLAC", "PCM_16")),
        ("AU", "FLOAT", "au", ("WAV", "FLOAT")),
    ],
)
def test_every_sample_type_is_encoded_without_loss(
    tmp_path: Path, read_back: ReadBack, tracker: Tracker, kind: str, subtype: str, suffix: str, expected: tuple[str, str]
) -> None:
    path = tmp_path / f"x.{suffix}"
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, (500, 2)), 44100, format=kind, subtype=subtype)
    clip = Clip(id="x", audio=path.name, duration_s=500 / 44100, split="train")
    write_shards(Manifest.write(tmp_path / "m.jsonl", [clip], root=tmp_path, name="m"), tmp_path / "s", tracker=tracker)
    found, root = read_back("webdataset", tmp_path / "s")
    target = root / found["x"].audio
    info = soundfile.info(target)
    assert (info.format, info.subtype) == expected
    assert np.array_equal(soundfile.read(target)[0], soundfile.read(path)[0])


def test_absolute_paths_become_relative_ones(tmp_path: Path, manifest: Manifest, read_back: ReadBack, tracker: Tracker) -> None:
    # The outside file, and the two that are encoded and the three that are cut, have new paths.
    assert write_shards(manifest, tmp_path / "s", tracker=tracker)["num_renamed"] == 6
    found, root = read_back("webdataset", tmp_path / "s")
    outside = found["corpus/6.x"]
    assert outside.audio.startswith("elsewhere/")
    assert outside.audio.endswith("/outside.wav")
    assert (root / outside.audio).read_bytes() == (tmp_path / "outside.wav").read_bytes()


def test_equal_input_gives_equal_bytes(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    for name in ("one", "two"):
        write_shards(manifest, tmp_path / name, tracker=tracker)
    for path in (tmp_path / "one").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
    with tarfile.open(tmp_path / "one" / "val" / "000000.tar") as archive:
        assert {(header.mtime, header.uid, header.gid, header.uname, header.mode) for header in archive} == {
            (0, 0, 0, "", 0o644)
        }


def test_bad_files_are_counted_and_leave_no_gap(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    (manifest.root / "a/0.wav").unlink()
    (manifest.root / "a/2.ogg").write_bytes(b"no audio")
    result = write_shards(manifest, tmp_path / "s", samples_per_shard=2, tracker=tracker)
    assert [failed["item"] for failed in result["failed"]] == ["corpus/0.x", "corpus/2.x", "span 0", "span 2"]
    assert (result["num_failed"], result["num_clips"]) == (4, 6)
    assert "cannot be opened" in result["failed"][0]["reason"]
    assert json.loads((tmp_path / "s/train/sizes.json").read_text()) == {"000000.tar": 2, "000001.tar": 1}
    assert not list((tmp_path / "s").rglob(".*"))


def test_keys_are_unique_and_free_of_dots(tmp_path: Path, tracker: Tracker) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(10), 8000)
    ids = ["a.b", "a/b", "a_b", "...", "犬", "猫", "x" * 300]
    clips = [Clip(id=id, audio="x.wav", duration_s=10 / 8000) for id in ids]
    write_shards(Manifest.write(tmp_path / "m.jsonl", clips, root=tmp_path, name="m"), tmp_path / "s", tracker=tracker)
    names = [name for name in members(tmp_path / "s" / "all" / "000000.tar") if name.endswith(".wav")]
    assert len(set(names)) == len(ids)
    assert all(name.count(".") == 1 and "/" not in name and len(name) <= 100 and name.isascii() for name in names)


def test_folders_with_content_and_empty_shards_are_refused(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    with pytest.raises(ConfigError, match="is not empty, expected a new folder"):
        write_shards(manifest, tmp_path, tracker=tracker)
    with pytest.raises(ConfigError, match="--shard-size 0: expected at least 1"):
        write_shards(manifest, tmp_path / "s", samples_per_shard=0, tracker=tracker)


def test_clips_that_lie_in_shards_are_exported_like_files(tmp_path: Path, manifest: Manifest, tracker: Tracker) -> None:
    inside = [clip for clip in manifest if clip.audio.startswith("a/")]
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed" / "0.tar", "w") as archive:
        archive.add(manifest.root / "a", "a")
    packed = [replace(clip, audio=f"0.tar/{clip.audio}") for clip in inside]
    for name, clips, root in (("files", inside, manifest.root), ("members", packed, tmp_path / "packed")):
        of = Manifest.write(tmp_path / f"{name}.jsonl", clips, root=root, name=name)
        assert write_shards(of, tmp_path / name, tracker=tracker)["num_failed"] == 0
    files, found = (members(tmp_path / name / "train" / "000000.tar") for name in ("files", "members"))
    assert found.keys() == files.keys()
    assert all(found[name] == files[name] for name in files if not name.endswith(".json"))
