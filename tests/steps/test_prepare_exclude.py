"""``prepare --exclude``: the clips that a list names are left out."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import soundfile

from clapkit.config import PrepareConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError, RunDirError
from clapkit.run_dir import RunDir
from clapkit.steps import prepare
from clapkit.steps.prepare_exclude import changed_lists, exclude, read_list, warn_of_emptied
from clapkit.types import Caption, Clip, Rejection

NAMES = ("a", "b", "c", "d")


def write_sound(path):
    """Two seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.linspace(0, 0.5, 16000), 8000)


@pytest.fixture
def sounds(tmp_path):
    for name in NAMES:
        write_sound(tmp_path / "sounds" / f"{name}.wav")
    return tmp_path / "sounds"


@pytest.fixture
def call(call_prepare, sounds):
    """Prepares four sounds by their headers."""

    def call(*addresses, **given):
        given = {"recipe": str(sounds), "check": "header", "split": "train"} | given
        return call_prepare(exclude=tuple(str(address) for address in addresses), **given)

    return call


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def ids_of(address):
    return list(read_list(str(address)).places)


# What the run makes of it ---------------------------------------------------------------------------------------------------


def test_listed_clips_are_left_out_listed_and_counted(call, write):
    path = write("suspects.csv", "id,path,caption\nc,/c.wav,A.\na,/a.wav,B.\n")
    done = call(path)
    assert done.ids == ["b", "d"]
    assert done.rejected == [
        {"item": "a", "reason": f"named by --exclude {path} line 3", "kind": "excluded"},
        {"item": "c", "reason": f"named by --exclude {path} line 2", "kind": "excluded"},
    ]
    assert (done.result["num_excluded"], done.result["num_rejected"], done.report["num_excluded"]) == (2, 0, 2)
    assert f"--exclude {path}: 2 of 4 clips left out" in done.reporter.said
    assert {"path": str(path), "fingerprint": hashlib.sha256(path.read_bytes()).hexdigest()} in done.inputs
    assert not [line for line in done.reporter.warned if "--exclude" in line]


def test_the_head_of_a_list_is_what_is_left_out(call, write):
    path = write("suspects.csv", "id,score\nd,3\nb,2\na,1\nc,0\n")
    assert call(f"{path}:1").ids == ["a", "b", "c"]
    assert call(f"{path}:3").ids == ["c"]


def test_several_lists_add_up_and_the_first_one_is_the_reason(call, write):
    first, second = write("first.txt", "a\nb\n"), write("second.txt", "b\nc\n")
    done = call(first, second)
    assert done.ids == ["d"]
    assert [row["reason"].rpartition("/")[2] for row in done.rejected] == [
        "first.txt line 1",
        "first.txt line 2",
        "second.txt line 2",
    ]


def test_every_split_is_meant(tmp_path, call, write):
    for name in ("train/x.wav", "train/y.wav", "val/z.wav", "test/w.wav", "test/v.wav"):
        write_sound(tmp_path / "split" / name)
    listed = write("bad.txt", "train/x\ntest/w\n")
    done = call(listed, recipe=str(tmp_path / "split"), split=None)
    assert done.ids == ["test/v", "train/y", "val/z"]
    assert [row["split"] for row in done.rejected] == ["test", "train"]


def test_what_the_user_left_out_is_no_failure_under_strict(call, write):
    assert call(write("bad.txt", "a\n"), strict=True).ids == ["b", "c", "d"]


def test_leaving_everything_out_is_an_error(call, write):
    with pytest.raises(ManifestError, match=r"no usable clip: 4 of 4 items left out as asked .* first: a: named by --exclude"):
        call(write("all.txt", "\n".join(NAMES)))


def test_a_list_that_empties_a_split_is_warned_about(tmp_path, call, write):
    for name in ("train/x.wav", "train/y.wav", "test/w.wav"):
        write_sound(tmp_path / "split" / name)
    done = call(write("suspects.csv", "id\ntrain/x\ntrain/y\n"), recipe=str(tmp_path / "split"), split=None)
    (warning,) = [line for line in done.reporter.warned if "--exclude" in line]
    assert warning == (
        "--exclude: of split train, 0 of 2 clips are left; of a list that holds every clip, such as suspects.csv, name the "
        "number of rows that are meant, as in suspects.csv:400"
    )


@pytest.mark.parametrize(("num_left", "num_warnings"), [(1, 1), (2, 0)])
def test_a_tenth_of_a_split_is_hardly_anything(reporter, num_left, num_warnings):
    clips = [Clip(str(number), "a.wav", split="train") for number in range(10)]
    warn_of_emptied([*clips, Clip("no split", "a.wav")], clips[:num_left], reporter)
    assert len(reporter.warned) == num_warnings


def test_audio_of_listed_clips_is_not_looked_at(call, write, sounds):
    (sounds / "broken.wav").write_text("no sound")
    done = call(write("bad.txt", "broken\n"))
    assert done.ids == list(NAMES)
    assert [row["kind"] for row in done.rejected] == ["excluded"]


def test_ids_of_no_clip_are_counted_and_the_first_is_named(call, write):
    path = write("bad.csv", "id\nb\nnobody\nb\nno one\n")
    done = call(path)
    assert done.ids == ["a", "c", "d"]
    assert f"--exclude {path}: 2 of 3 ids are of no clip of this corpus, first: 'nobody' (line 3)" in done.reporter.warned


def test_a_list_of_another_corpus_is_an_error(call, write):
    path = write("bad.csv", "id\nnobody\nno one\n")
    message = (
        r"bad.csv: none of its 2 ids is that of a clip, first: 'nobody', clips of this corpus are called for example 'a'; "
        "name a list of this corpus"
    )
    with pytest.raises(ManifestError, match=message):
        call(path)


def test_a_trial_with_the_first_clips_of_a_corpus_is_none(call, write):
    done = call(write("bad.txt", "c\n"), limit=2)
    assert done.ids == ["a", "b"]
    assert any("1 of 1 ids are of no clip of this corpus" in line for line in done.reporter.warned)


def test_clips_without_audio_are_known(tmp_path, call, write, sounds):
    (sounds / "t.csv").write_text("audio,caption,id\na.wav,A.,one\nb.wav,B.,two\n")
    earlier = call(recipe=str(sounds / "t.csv"), name="earlier")
    (sounds / "b.wav").unlink()
    done = call(write("bad.txt", "two\n"), recipe="manifest", source=str(earlier.path), split=None)
    assert done.ids == ["one"]
    assert [row["kind"] for row in done.rejected] == ["missing"]
    assert not [line for line in done.reporter.warned if "--exclude" in line]


def test_a_list_with_less_rows_than_asked_for_is_taken_whole_and_said(call, write):
    path = write("bad.txt", "a\nb\n")
    done = call(f"{path}:9")
    assert done.ids == ["c", "d"]
    assert f"--exclude {path}:9: the list has 2 rows only, all of them are left out" in done.reporter.warned


def test_other_clips_of_a_manifest_stay_as_they_are(tmp_path, call, write, call_prepare, sounds):
    captions = (Caption("Regen.", "de"), Caption("Rain."), Caption("It rains."))
    clips = [
        Clip("whole", "a.wav", 2.0, 8000, 1, captions=captions, labels=("rain",), split="train", fold=2, source="freesound/1"),
        Clip("span", "b.wav", 1.25, 8000, 1, captions=(Caption("Rain."),), split="test", start_s=0.5, end_s=1.75),
        Clip(
            "hard",
            "c.wav",
            2.0,
            8000,
            1,
            captions=(Caption("A, then b."),),
            split="train",
            extra={"hard_captions": [["B, a."]]},
        ),
        Clip("gone", "c.wav", 2.0, 8000, 1, captions=captions, split="val"),
        Clip("other", "d.wav", 2.0, 8000, 1, captions=captions, split="val"),
    ]
    Manifest.write(tmp_path / "manifest.jsonl", clips, root=sounds, name="old")
    listed = write("suspects.csv", "id,kind\ngone,faulty\n")
    done = call_prepare(recipe="manifest", source=str(tmp_path / "manifest.jsonl"), exclude=(str(listed),))
    assert done.manifest.clips == tuple(clip for clip in clips if clip.id != "gone")


def test_a_list_that_changed_is_not_gone_on_with(tmp_path, sounds, write, reporter):
    listed = write("bad.txt", "a\n")
    config = resolve(PrepareConfig, {"recipe": str(sounds), "exclude": (str(listed),), "check": "header"})
    run_dir = RunDir.create(tmp_path / "x", step="prepare", config=config.resolved())
    run_dir.add_input(listed, hashlib.sha256(b"a\nb\n").hexdigest())  # as a call left it that was killed
    with pytest.raises(
        RunDirError, match=r"bad.txt: has changed since .*x was started; restore it, or start again with --over"
    ):
        prepare.run(config, run_dir, reporter)
    run_dir.release()


def test_a_list_that_did_not_change_is_recorded_once(tmp_path, sounds, write, reporter):
    listed = write("bad.txt", "a\n")
    given = {"recipe": str(sounds), "exclude": (str(listed), f"{listed}:1"), "check": "header", "split": "train"}
    config = resolve(PrepareConfig, given)
    run_dir = RunDir.create(tmp_path / "x", step="prepare", config=config.resolved())
    run_dir.add_input(listed, hashlib.sha256(b"a\n").hexdigest())
    prepare.run(config, run_dir, reporter)
    run_dir.release()
    assert [entry["path"] for entry in run_dir.record["inputs"]] == [str(listed), str(sounds)]


# What a list is -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "id,caption\ndog,\"A dog, barking.\"\ncat/1,Meow.\n"),
        ("l.csv", b"\xef\xbb\xbfid;caption\r\ndog;A dog, barking.\r\ncat/1;Meow.\r\n;\r\n"),
        ("l.csv", "ID\tcaption\ndog\tA dog.\ncat/1\tMeow.\n"),
        ("L.CSV", "caption, Id\nA dog.,dog\nMeow.,cat/1\n"),
        ("l.tsv", "score\tid\n3\tdog\n2\tcat/1\n"),
        ("l.jsonl", '{"clapkit_manifest": 1, "name": "x"}\n{"id": "dog", "audio": "d"}\n{"id": "cat/1", "audio": "c"}\n'),
        ("l.jsonl", '{"item": "dog", "reason": "bad"}\n{"item": "cat/1", "reason": "bad"}\n'),
        ("l.json", '[{"id": "dog"}, {"id": "cat/1"}]'),
        ("l.txt", "dog\ncat/1\n"),
        ("l.txt", b"\xef\xbb\xbfid\r\ndog\r\n\r\ncat/1"),
        ("l", "dog\ncat/1\ndog\n"),
    ],
)  # fmt: skip
def test_lists_of_many_kinds_are_read(write, name, content):
    assert ids_of(write(name, content)) == ["dog", "cat/1"]


def test_parquet_is_read(tmp_path):
    pd.DataFrame({"id": ["dog", "cat"], "rank": [3, 1]}).to_parquet(tmp_path / "per_query.parquet")
    assert read_list(f"{tmp_path / 'per_query.parquet'}:1").places == {"dog": "row 1"}


def test_an_id_that_comes_twice_stands_where_it_came_first(write):
    listed = read_list(str(write("l.csv", "id\na\nb\na\n")))
    assert (listed.places, listed.num_rows) == ({"a": "line 2", "b": "line 3"}, 3)


def test_rows_are_counted_and_not_ids(write):
    path = write("l.csv", "id\na\na\nb\n")
    assert ids_of(f"{path}:2") == ["a"]


def test_blanks_around_an_id_are_its_own_only_where_a_clip_is_called_so(reporter, write):
    clips = [Clip(" a", "1.wav"), Clip("b", "2.wav"), Clip("a", "3.wav")]
    listed = read_list(str(write("l.txt", " a\nb \n")))
    kept = exclude(clips, listed, known=[clip.id for clip in clips], reporter=reporter)
    assert [item for item in kept if not isinstance(item, Rejection)] == [clips[2]]


def test_a_file_that_is_really_called_like_that_wins(write):
    write("l.txt", "a\nb\n")
    assert ids_of(write("l.txt:1", "c\nd\n")) == ["c", "d"]


def test_a_list_is_found_at_home(write, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("l.txt", "a\nb\n")
    assert ids_of("~/l.txt:1") == ["a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "", "l.csv: holds no id, expected ids of clips; name another file or leave it out"),
        ("l.txt", " \n\n", "l.txt: holds no id"),
        ("l.txt", "id\n", "l.txt: holds no id"),
        ("l.jsonl", "", "l.jsonl: holds no id"),
        ("l.csv", "id\n", "l.csv: holds a header and no row"),
        ("l.csv", "id;caption\n;\n", "l.csv: holds no id"),
        ("l.csv", "name,caption\na,b\n", "l.csv: no column id, columns found: name, caption; rename the one with the ids"),
        ("l.csv", "dog\ncat\n", r"no column id, columns found: dog; .* write one id a line into a .txt file"),
        ("l.csv", "id,x\na,1\n,2\n", "l.csv line 3: column id is empty, expected an id; fill it or drop the row"),
        ("l.csv", "id,x\na,1\nb,c,d\n", "l.csv line 3: 3 cells found, 2 expected from the header"),
        ("l.jsonl", '{"id": "a"\n', "l.jsonl line 1: not JSON"),
        (
            "l.npy",
            b"\x93NUMPY\x01\x00",
            r"l.npy: is no UTF-8 text \(byte 0\), expected a table with a column id or one id a line",
        ),
        ("l.csv", b"id\n\xff\n", r"l.csv: is no UTF-8 text \(byte 3\).*save it as CSV in UTF-8"),
        ("l.csv", "id\na\n".encode("utf-16"), r"is no UTF-8 text \(byte 0\)"),
        ("l.txt", b"a\0b\n", r"is no UTF-8 text \(byte 1\)"),
        ("l.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_what_is_no_list_is_refused(write, name, content, message):
    with pytest.raises(ManifestError, match=message) as raised:
        read_list(str(write(name, content)))
    assert "\n" not in str(raised.value)


def test_rows_behind_those_that_are_asked_for_are_not_judged(write):
    path = write("l.csv", "id,x\na,1\n,2\n")
    assert ids_of(f"{path}:1") == ["a"]


@pytest.mark.parametrize("count", ["0", "00", "-3", "1.5", "many", "", "1e3", "9" * 30])
def test_a_count_that_is_none_is_refused(write, count):
    path = write("l.txt", "a\n")
    with pytest.raises(ConfigError, match=rf"l.txt:{count}: '{count}' is no number of rows, expected at least 1 .*l.txt:400"):
        read_list(f"{path}:{count}")


@pytest.mark.parametrize(
    ("address", "named"),
    [
        ("no.csv", "no.csv"),
        ("no.csv:3", "no.csv"),
        ("no.csv:x", "no.csv:x"),
        ("x" * 5000, "x"),
        ("no/dir/l.txt", "no/dir/l.txt"),
    ],
)
def test_a_file_that_is_not_there_is_named(tmp_path, monkeypatch, address, named):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError, match=f"--exclude {named}.*: no such file, expected a table with a column id"):
        read_list(address)


def test_a_folder_is_no_list(tmp_path):
    with pytest.raises(ManifestError, match=r"cannot be read \(Is a directory\); name a file with ids of clips"):
        read_list(str(tmp_path))


# Whether it is what it was --------------------------------------------------------------------------------------------------


def test_lists_are_compared_by_their_content(call, write):
    first, second = write("first.txt", "a\n"), write("second.txt", "b\nc\n")
    addresses = (str(first), f"{second}:1")
    record = RunDir(call(*addresses).path).record
    assert changed_lists(addresses, record) == []
    second.write_text("b\nd\n")
    assert changed_lists(addresses, record) == [f"{second}:1"]
    second.unlink()
    assert changed_lists(addresses, record) == []
