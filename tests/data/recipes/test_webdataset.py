import gzip
import io
import json
import random
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clapkit import registry
from clapkit.data.members import open_member
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Caption, Clip, DescribesCorpus, RecipeRequest, Rejection, SilentReporter

Members = list[tuple[str, bytes]]


def sample(key: str, record: Any, *, audio: bytes = b"sound", suffix: str = "flac") -> Members:
    return [(f"{key}.{suffix}", audio), (f"{key}.json", json.dumps(record).encode())]


def shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path


def request(source: Path, folder: Path, **changes: Any) -> RecipeRequest:
    values: dict[str, Any] = {"audio_dir": None, "seed": 0, "workers": 1, "reporter": SilentReporter()}
    return RecipeRequest(source=source, output_dir=folder / "run", **(values | changes))


def read(source: Path, folder: Path, options: dict[str, Any] | None = None) -> list[Clip | Rejection]:
    return list(registry.build("recipe", "webdataset", options).clips(request(source, folder)))


def clips(items: list[Clip | Rejection]) -> list[Clip]:
    return [item for item in items if isinstance(item, Clip)]


def rejections(items: list[Clip | Rejection]) -> list[Rejection]:
    return [item for item in items if isinstance(item, Rejection)]


def files(folder: Path) -> dict[str, bytes]:
    root = folder / "run" / "audio"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_sample_becomes_a_clip_and_a_file_with_the_stored_bytes(tmp_path: Path) -> None:
    record = {"text": ["A dog.", "Ein Hund."], "tag": ["dog", "animal"], "original_data": {"n": 1}}
    source = shard(tmp_path / "s" / "train" / "0.tar", sample("7", record, audio=b"fLaC..."))
    assert read(source, tmp_path) == [
        Clip(
            id="0/7",
            audio="0/7.flac",
            captions=(Caption("A dog."), Caption("Ein Hund.")),
            labels=("dog", "animal"),
            split="train",
            extra={"original_data": {"n": 1}},
        )
    ]
    assert files(tmp_path) == {"0/7.flac": b"fLaC..."}


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"text": "A dog."}, [("A dog.", "en")]),
        ({"caption": "One.", "text": "Two."}, [("One.", "en")]),
        ({"captions": ["Zero."], "caption": "One."}, [("Zero.", "en")]),
        ({"captions": [], "caption": "One."}, [("One.", "en")]),
        ({"captions": {"en": ["A dog."], "de": ["Ein Hund.", "Da bellt er."]}}, [
            ("A dog.", "en"), ("Ein Hund.", "de"), ("Da bellt er.", "de"),
        ]),
        ({"captions": [{"text": "Un chien.", "lang": "fr"}]}, [("Un chien.", "fr")]),
        ({"captions": {"ja": "犬"}}, [("犬", "ja")]),
        ("A bare text.", [("A bare text.", "en")]),
        ({"note": "no caption"}, []),
    ],
)  # fmt: skip
def test_caption_keys_are_tried_in_order(tmp_path: Path, record: Any, expected: list[tuple[str, str]]) -> None:
    (clip,) = clips(read(shard(tmp_path / "0.tar", sample("a", record)), tmp_path))
    assert [(caption.text, caption.lang) for caption in clip.captions] == expected


def test_keys_can_be_named_and_what_is_left_goes_to_extra(tmp_path: Path) -> None:
    record = {"said": "One.", "also": "Two.", "caption": "Three.", "kind": "dog"}
    source = shard(tmp_path / "0.tar", sample("a", record))
    (clip,) = clips(read(source, tmp_path, {"caption": "said,also", "label": "kind", "language": "fr"}))
    assert (clip.captions, clip.labels) == ((Caption("One.", "fr"), Caption("Two.", "fr")), ("dog",))
    assert clip.extra == {"caption": "Three."}


def test_text_members_give_a_caption_for_every_line(tmp_path: Path) -> None:
    source = shard(tmp_path / "0.tar", [("a.ogg", b"x"), ("a.txt", b"A dog.\n\nA cat. \n"), ("b.ogg", b"y"), ("b.txt", b" ")])
    first, empty, second = read(source, tmp_path)
    assert isinstance(first, Clip)
    assert first.captions == (Caption("A dog."), Caption("A cat."))
    assert isinstance(empty, Rejection)
    assert (empty.item, empty.check) == ("0/b caption 1", "empty_caption")
    assert isinstance(second, Clip)
    assert second.captions == ()


def test_empty_captions_are_refused_by_number_and_the_clip_stays(tmp_path: Path) -> None:
    first, clip = read(shard(tmp_path / "0.tar", sample("a", {"text": ["A.", " ", "B."]})), tmp_path)
    assert isinstance(first, Rejection)
    assert (first.item, first.check) == ("0/a caption 2", "empty_caption")
    assert isinstance(clip, Clip)
    assert clip.captions == (Caption("A."), Caption("B."))


def test_class_numbers_get_the_names_beside_the_shards(tmp_path: Path) -> None:
    members = [("a.wav", b"x"), ("a.cls", b"1\n"), ("b.wav", b"y"), ("b.cls", b"7"), ("c.wav", b"z"), ("c.cls", b"owl")]
    source = shard(tmp_path / "0.tar", members)
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    first, refused, third = read(source, tmp_path)
    assert isinstance(first, Clip)
    assert first.labels == ("dog",)
    assert isinstance(refused, Rejection)
    assert "class 7, but classnames.txt holds 2 names" in refused.reason
    assert isinstance(third, Clip)
    assert third.labels == ("owl",)
    assert sorted(files(tmp_path)) == ["0/a.wav", "0/c.wav"]  # the file of a refused sample goes


def test_class_numbers_without_names_are_warned_about(tmp_path: Path) -> None:
    recipe = registry.build("recipe", "webdataset")
    source = shard(tmp_path / "0.tar", [("a.wav", b"x"), ("a.cls", b"1")])
    (clip,) = list(recipe.clips(request(source, tmp_path)))
    assert clip.labels == ("1",)
    assert isinstance(recipe, DescribesCorpus)
    assert "a number without a name: 1" in recipe.describe([clip]).warnings[0]


def test_sizes_are_compared_with_what_was_found(tmp_path: Path) -> None:
    shard(tmp_path / "s" / "0.tar", sample("a", {}) + sample("b", {}) + [("README", b"hello")])
    shard(tmp_path / "s" / "1.tar", sample("c", {}))
    (tmp_path / "s" / "sizes.json").write_text('{"0.tar": 2, "1.tar": 512}')
    recipe = registry.build("recipe", "webdataset")
    list(recipe.clips(request(tmp_path / "s", tmp_path)))
    description = recipe.describe([])
    assert description.facts == {"num_shards": 2}
    (warning,) = description.warnings
    assert "for 1 shards, first 1.tar: 1 found, 512 listed" in warning


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("s", {"train/0000/a", "train/0001/b", "valid/0000/c", "test/0000/d"}),
        ("s/train/{0000..0001}.tar", {"0000/a", "0001/b"}),
        ("s/{train,valid}/*.tar", {"train/0000/a", "train/0001/b", "valid/0000/c"}),
        ("s/*/0000.tar*", {"train/0000/a", "valid/0000/c", "test/0000/d"}),
        ("s/train/0001.tar::s/test", {"train/0001/b", "test/0000/d"}),
        ("s/train/0001.tar::s/train/*.tar", {"0001/b", "0000/a"}),
        ("s/**/0000.tar.gz", {"0000/d"}),
    ],
)
def test_sources_are_folders_globs_braces_and_joins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: set[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shard(tmp_path / "s/train/0000.tar", sample("a", {}))
    shard(tmp_path / "s/train/0001.tar", sample("b", {}))
    shard(tmp_path / "s/valid/0000.tar", sample("c", {}))
    shard(tmp_path / "s/test/0000.tar.gz", sample("d", {}))
    found = clips(read(Path(pattern), tmp_path))
    assert {clip.id for clip in found} == expected
    names = {"a": "train", "b": "train", "c": "val", "d": "test"}
    assert all(clip.split == names[clip.id[-1]] for clip in found)


def test_splits_come_from_shard_names_or_not_at_all(tmp_path: Path) -> None:
    shard(tmp_path / "s/audio-valid-000.tar", sample("a", {}))
    shard(tmp_path / "s/train_test_0.tar", sample("b", {}))  # two words: neither
    assert {clip.id[-1]: clip.split for clip in clips(read(tmp_path / "s", tmp_path))} == {"a": "val", "b": None}
    assert {clip.split for clip in clips(read(tmp_path / "s", tmp_path, {"splits": "none"}))} == {None}


def test_folders_above_the_source_name_no_split(tmp_path: Path) -> None:
    source = shard(tmp_path / "test" / "corpus" / "0.tar", sample("a", {}))
    assert clips(read(source.parent, tmp_path))[0].split is None
    assert clips(read(source.parent.parent, tmp_path))[0].split == "test"


def test_a_shard_of_a_range_that_is_not_there_is_missing(tmp_path: Path) -> None:
    shard(tmp_path / "val" / "00.tar", sample("a", {}))
    clip, missing = read(tmp_path / "val" / "{00..01}.tar", tmp_path)
    assert isinstance(clip, Clip)
    assert isinstance(missing, Rejection)
    assert (missing.item, missing.kind, missing.split) == (str(tmp_path / "val" / "01.tar"), "missing", "val")


def test_hostile_members_never_reach_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "s" / "0.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as archive:
        for name in ("/abs.wav", "../up.wav", "a/../../up.wav", ".hidden.wav", "._good.wav", "a\\..\\b.wav"):
            header = tarfile.TarInfo(name)
            header.size = 1
            archive.addfile(header, io.BytesIO(b"x"))
        for name, kind in (("sym.wav", tarfile.SYMTYPE), ("hard.wav", tarfile.LNKTYPE), ("dev.wav", tarfile.CHRTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            archive.addfile(header)
        header = tarfile.TarInfo("./good.wav")
        header.size = 4
        archive.addfile(header, io.BytesIO(b"good"))
    before = {path for path in tmp_path.rglob("*")}
    items = read(path, tmp_path)
    assert [clip.id for clip in clips(items)] == ["0/good"]
    assert len(rejections(items)) == 9
    assert files(tmp_path) == {"0/good.wav": b"good"}
    new = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")} - {
        path.relative_to(tmp_path).as_posix() for path in before
    }
    assert new == {"run", "run/audio", "run/audio/0", "run/audio/0/good.wav"}


@pytest.mark.parametrize("name", ["a\nb", "ü" * 150, "a" * 300, "\udcff", "CON?*", "x" * 99 + "/" + "y" * 250])
def test_odd_names_get_a_safe_path_that_is_the_same_every_time(tmp_path: Path, name: str) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        header = tarfile.TarInfo(f"{name}.wav")
        header.size = 1
        archive.addfile(header, io.BytesIO(b"x"))
    (clip,) = clips(read(path, tmp_path))
    (again,) = clips(read(path, tmp_path / "again"))
    assert clip == again
    assert clip.id.isprintable()
    assert clip.audio.encode()
    assert all(len(part.encode()) <= 255 for part in clip.audio.split("/"))
    assert files(tmp_path) == {clip.audio: b"x"}


def test_names_that_differ_only_in_case_get_two_files(tmp_path: Path) -> None:
    source = shard(tmp_path / "0.tar", [("a.wav", b"1"), ("A.wav", b"2")])
    first, second = clips(read(source, tmp_path))
    assert first.audio.lower() != second.audio.lower()
    assert sorted(files(tmp_path).values()) == [b"1", b"2"]


def test_members_of_a_sample_need_not_stand_together(tmp_path: Path) -> None:
    text = {"a": b'{"text": "A."}', "b": b'{"text": "B."}'}
    members = [("a.wav", b"1"), ("b.wav", b"2"), *((f"{key}.json", content) for key, content in text.items())]
    found = clips(read(shard(tmp_path / "0.tar", members), tmp_path))
    assert [(clip.id, clip.captions[0].text) for clip in found] == [("0/a", "A."), ("0/b", "B.")]


def test_a_suffix_behind_further_dots_is_known(tmp_path: Path) -> None:
    (clip,) = clips(read(shard(tmp_path / "0.tar", [("Yabc_30.000.flac", b"1"), ("Yabc_30.000.txt", b"A.")]), tmp_path))
    assert (clip.id, clip.audio, clip.captions) == ("0/Yabc_30", "0/Yabc_30.flac", (Caption("A."),))


def test_samples_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    members = [
        ("text_only.json", b"{}"),
        ("foreign.m4a", b"x"),
        ("foreign.json", b"{}"),
        ("broken.wav", b"x"),
        ("broken.json", b"{"),
        ("half.wav", b"x"),
        ("half.json", b'{"text": "\\ud800"}'),
        ("latin.wav", b"x"),
        ("latin.txt", b"\xe9"),
        ("twice.wav", b"1"),
        ("twice.flac", b"2"),
        ("empty.wav", b""),
        ("number.wav", b"x"),
        ("number.json", b'{"text": 5}'),
        ("README.md", b"read me"),
    ]
    items = read(shard(tmp_path / "0.tar", members), tmp_path)
    assert [clip.id for clip in clips(items)] == ["0/twice"]
    reasons = {item.item: item.reason for item in rejections(items)}
    assert reasons.keys() == {
        "0:twice.flac",
        *(f"0:{key}" for key in ("text_only", "foreign", "broken", "half", "latin", "empty", "number")),
    }
    for key, found in {
        "twice.flac": "a second sound",
        "text_only": "no audio",
        "foreign": "m4a beside the text",
        "broken": "not JSON",
        "half": "not JSON in UTF-8",
        "latin": "not UTF-8",
        "empty": "0 bytes",
        "number": "is a int, expected a text",
    }.items():
        assert found in reasons[f"0:{key}"]
    assert files(tmp_path) == {"0/twice.wav": b"1"}


def test_doubled_keys_in_a_shard_keep_the_first_sample(tmp_path: Path) -> None:
    members = sample("a", {"text": "One."}, audio=b"1") + sample("a", {"text": "Two."}, audio=b"2")
    first, second, clip = read(shard(tmp_path / "0.tar", members), tmp_path)
    assert isinstance(first, Rejection)
    assert isinstance(second, Rejection)
    assert (first.item, second.item) == ("0:a.flac", "0:a.json")
    assert isinstance(clip, Clip)
    assert clip.captions == (Caption("One."),)
    assert files(tmp_path) == {"0/a.flac": b"1"}


def test_numbers_that_are_none_of_json_become_null(tmp_path: Path) -> None:
    (clip,) = clips(read(shard(tmp_path / "0.tar", [("a.wav", b"x"), ("a.json", b'{"gain": NaN}')]), tmp_path))
    assert clip.extra == {"gain": None}


@pytest.mark.parametrize(("cut", "kept"), [(100, 0), (1024 + 200, 0), (2048, 1), (2048 + 100, 1), (4096, 2)])
def test_a_shard_that_is_cut_keeps_what_was_read_and_names_the_rest(tmp_path: Path, cut: int, kept: int) -> None:
    # A sample takes 4 blocks of 512 bytes: header and content, twice.
    path = shard(tmp_path / "0.tar", sample("a", {"text": "A."}) + sample("b", {"text": "B."}))
    path.write_bytes(path.read_bytes()[:cut])
    items = read(path, tmp_path)
    assert [clip.id for clip in clips(items)] == ["0/a", "0/b"][:kept]
    damage = rejections(items)[0]
    assert damage.item == str(path)
    assert "cannot be read" in damage.reason
    assert len(files(tmp_path)) == kept


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", sample("a", {}) + sample("b", {}))
    content = bytearray(path.read_bytes())
    content[2048:2058] = b"\xff" * 10  # the name in the header of b.flac
    path.write_bytes(content)
    items = read(path, tmp_path)
    assert [clip.id for clip in clips(items)] == ["0/a"]
    assert "after 2 files (bad checksum, expected another file or the end marker)" in rejections(items)[0].reason


def test_two_archives_in_one_file_are_noticed(tmp_path: Path) -> None:
    path = shard(tmp_path / "0.tar", sample("a", {}))
    path.write_bytes(path.read_bytes() + shard(tmp_path / "1.tar", sample("b", {})).read_bytes())
    items = read(path, tmp_path)
    assert [clip.id for clip in clips(items)] == ["0/a"]
    assert "data found behind the end marker" in rejections(items)[0].reason


def test_a_compressed_shard_that_is_cut_or_damaged_is_noticed(tmp_path: Path) -> None:
    members = sample("a", {"text": "A."}) + sample("b", {}, audio=random.Random(0).randbytes(100_000))
    path = shard(tmp_path / "cut.tar.gz", members)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5000])
    cut = read(path, tmp_path)
    assert [clip.id for clip in clips(cut)] == ["cut/a"]
    assert "cannot be read" in rejections(cut)[0].reason
    damaged = bytearray(whole)
    damaged[-8] ^= 1  # the checksum
    path.write_bytes(damaged)
    items = read(path, tmp_path / "2")
    assert [clip.id for clip in clips(items)] == ["cut/a", "cut/b"]
    assert "CRC check failed" in rejections(items)[0].reason


def test_a_plain_tar_called_gz_and_the_other_way_round_are_read(tmp_path: Path) -> None:
    plain = shard(tmp_path / "p.tar", sample("a", {}))
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "x.tar").write_bytes(gzip.compress(plain.read_bytes()))
    (tmp_path / "s" / "y.tar.gz").write_bytes(plain.read_bytes())
    assert [clip.id for clip in clips(read(tmp_path / "s", tmp_path))] == ["x/a", "y/a"]


def test_files_that_are_there_are_not_written_again(tmp_path: Path) -> None:
    source = shard(tmp_path / "0.tar", sample("a", {}, audio=b"12345") + sample("b", {}, audio=b"678"))
    first = read(source, tmp_path)
    root = tmp_path / "run" / "audio" / "0"
    (root / "a.flac").write_bytes(b"54321")  # the right size: left alone
    (root / "b.flac").write_bytes(b"6")  # unfinished: written again
    assert read(source, tmp_path) == first
    assert files(tmp_path) == {"0/a.flac": b"54321", "0/b.flac": b"678"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"audio": "../../up.wav"}, "expected a path inside the corpus"),
        ({"audio": "/etc/x.wav"}, "expected a path inside the corpus"),
        ({"audio": "a/.ssh/x.wav"}, "expected a path inside the corpus"),
        ({"audio": "authorized_keys"}, "expected a path inside the corpus"),
        ({"duration_s": 0}, "duration_s 0, expected more than 0"),
        ({"unknown": 1}, "unknown key"),
    ],
)
def test_hostile_records_are_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    record = {"id": "a", "audio": "a.wav", "duration_s": 1.0} | change
    (item,) = read(shard(tmp_path / "0.tar", sample("a", {"clapkit": record})), tmp_path)
    assert isinstance(item, Rejection)
    assert reason in item.reason
    assert not list(tmp_path.rglob("up.wav"))
    assert files(tmp_path) == {}


def test_records_may_share_a_file_but_not_a_name(tmp_path: Path) -> None:
    def record(id: str) -> dict[str, Any]:
        return {"clapkit": {"id": id, "audio": "x/a.wav", "duration_s": 1.0}}

    members = sample("1", record("one"), audio=b"same") + sample("2", record("two"), audio=b"same")
    members += sample("3", record("three"), audio=b"else") + sample("4", record("one"), audio=b"same")
    items = read(shard(tmp_path / "0.tar", members), tmp_path)
    assert [(clip.id, clip.audio) for clip in clips(items)] == [("one", "x/a.wav"), ("two", "x/a.wav")]
    assert [item.item for item in rejections(items)] == ["0:3", "0:4"]
    assert "another audio file is already called x/a.wav" in rejections(items)[0].reason
    assert "id 'one' is already used" in rejections(items)[1].reason
    assert files(tmp_path) == {"x/a.wav": b"same"}


def test_a_record_behind_its_sound_still_gives_the_name(tmp_path: Path) -> None:
    record = {"id": "one", "audio": "x/a.wav", "duration_s": 1.0, "captions": [{"text": "Ein Hund.", "lang": "de"}]}
    source = shard(tmp_path / "train" / "0.tar", sample("1", {"text": ["Other."], "clapkit": record}, audio=b"sound"))
    expected = [Clip(id="one", audio="x/a.wav", duration_s=1.0, captions=(Caption("Ein Hund.", "de"),))]
    assert read(source, tmp_path) == expected
    assert read(source, tmp_path) == expected  # again, over the files that are there
    assert files(tmp_path) == {"x/a.wav": b"sound"}


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no .tar or .tar.gz or .tgz file found"):
        read(tmp_path, tmp_path)
    with pytest.raises(ManifestError, match=r"no .* file found"):
        read(tmp_path / "{00..03}.tar", tmp_path)
    with pytest.raises(ManifestError, match="expected it to count up"):
        read(tmp_path / "{3..1}.tar", tmp_path)
    with pytest.raises(ConfigError, match="--audio-dir"):
        list(registry.build("recipe", "webdataset").clips(request(tmp_path, tmp_path, audio_dir=tmp_path)))
    with pytest.raises(ConfigError, match="expected shares"):
        registry.build("recipe", "webdataset", {"val_share": "2"})


def test_no_tar_at_all_is_said(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"")
    (tmp_path / "1.tar").write_bytes(b"no tar" * 500)
    empty, other = read(tmp_path, tmp_path)
    assert isinstance(empty, Rejection)
    assert isinstance(other, Rejection)
    assert "is empty (0 bytes)" in empty.reason
    assert "cannot be read after 0 files" in other.reason


# In place ---------------------------------------------------------------------------------------------------------------


def in_place(source: Path, folder: Path, options: dict[str, Any] | None = None) -> list[Clip | Rejection]:
    return read(source, folder, {"unpack": "false"} | (options or {}))


def test_without_unpacking_clips_name_the_member_and_nothing_is_written(tmp_path: Path) -> None:
    first = shard(tmp_path / "s" / "train" / "0.tar", sample("7", {"text": "A dog."}, audio=b"fLaC...") + sample("x/8", {}))
    shard(tmp_path / "s" / "test" / "0.tar", [("./a.b.wav", b"1"), ("a.b.txt", b"A cat.")])
    items = clips(in_place(tmp_path / "s", tmp_path))
    assert [(clip.id, clip.audio, clip.split) for clip in items] == [
        ("test/0/a", "test/0.tar/a.b.wav", "test"),
        ("train/0/7", "train/0.tar/7.flac", "train"),
        ("train/0/x/8", "train/0.tar/x/8.flac", "train"),
    ]
    assert items[0].captions == (Caption("A cat."),)
    assert not (tmp_path / "run").exists()
    recipe = registry.build("recipe", "webdataset", {"unpack": "false"})
    root = recipe.find_root(tmp_path / "s")
    assert open_member(root / items[1].audio).read() == b"fLaC..."
    # One shard alone: the root is its folder.
    (clip, _) = clips(in_place(first, tmp_path))
    assert recipe.find_root(first) / clip.audio == first / "7.flac"


def test_clips_in_place_are_otherwise_those_that_are_unpacked(tmp_path: Path) -> None:
    record = {"clapkit": {"id": "one", "audio": "x/a.wav", "duration_s": 1.0, "captions": [{"text": "Hund.", "lang": "de"}]}}
    members = sample("0", record) + sample("1", {"text": ["A.", " "], "tag": ["dog"]}) + [("2.json", b"{}"), ("3.wav", b"")]
    source = shard(tmp_path / "train" / "0.tar", members)
    unpacked, kept = read(source, tmp_path), in_place(source, tmp_path)
    assert rejections(unpacked) == rejections(kept)
    assert [clip.audio for clip in clips(kept)] == ["0.tar/0.flac", "0.tar/1.flac"]
    assert [replace(clip, audio="") for clip in clips(kept)] == [replace(clip, audio="") for clip in clips(unpacked)]


def test_prepare_takes_the_shards_for_the_root_and_clears_nothing_away(tmp_path: Path) -> None:
    recipe = registry.build("recipe", "webdataset", {"unpack": "false"})
    assert not recipe.makes_audio
    # `prepare` deletes whatever no clip names below the root of recipes that have a root_name.
    assert not hasattr(recipe, "root_name")
    unpacking = registry.build("recipe", "webdataset")
    assert (unpacking.makes_audio, unpacking.root_name) == (True, "audio")


@pytest.mark.parametrize("name", ["1.tar.gz", "1.tgz", "1.tar"])
def test_compressed_shards_cannot_stay_in_place(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "0.tar", sample("a", {}))
    compressed = shard(tmp_path / "x.tar.gz", sample("b", {}))
    compressed.rename(tmp_path / name)
    with pytest.raises(ConfigError, match=rf"{name}: is compressed \(gzip\), its sounds cannot be read in place; leave"):
        in_place(tmp_path, tmp_path)


def test_a_plain_shard_with_another_name_cannot_stay_in_place(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", sample("a", {})).rename(tmp_path / "0.tgz")
    with pytest.raises(ConfigError, match="0.tgz: -O unpack=false needs shards whose names end in .tar; rename it"):
        in_place(tmp_path, tmp_path)


def test_a_name_that_no_manifest_can_hold_is_refused_in_place(tmp_path: Path) -> None:
    source = shard(tmp_path / "0.tar", [("\udcff.wav", b"x"), ("a.wav", b"y")])
    items = in_place(source, tmp_path)
    assert [clip.audio for clip in clips(items)] == ["0.tar/a.wav"]
    assert "its name is not UTF-8" in rejections(items)[0].reason


@pytest.mark.parametrize(("cut", "kept"), [(1024 + 200, 0), (2048, 1), (2048 + 100, 1), (4096, 2)])
def test_a_shard_that_is_cut_keeps_what_was_read_in_place_too(tmp_path: Path, cut: int, kept: int) -> None:
    path = shard(tmp_path / "0.tar", sample("a", {"text": "A."}) + sample("b", {"text": "B."}))
    path.write_bytes(path.read_bytes()[:cut])
    items = in_place(path, tmp_path)
    assert [clip.id for clip in clips(items)] == ["0/a", "0/b"][:kept]
    assert "cannot be read" in rejections(items)[0].reason


def test_hostile_members_are_refused_in_place_too(tmp_path: Path) -> None:
    source = shard(tmp_path / "0.tar", [("../up.wav", b"x"), ("/abs.wav", b"x"), (".hidden.wav", b"x"), ("good.wav", b"x")])
    items = in_place(source, tmp_path)
    assert [clip.audio for clip in clips(items)] == ["0.tar/good.wav"]
    assert len(rejections(items)) == 3
