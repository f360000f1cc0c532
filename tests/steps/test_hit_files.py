import csv
import json
import os
import subprocess
import sys

import pytest

from clapkit.config import RetrieveConfig
from clapkit.errors import AudioError, ConfigError, RunDirError
from clapkit.steps import hit_files
from clapkit.steps.hit_files import write_hits


def hit(rank, path, **changes):
    plain = {"rank": rank, "score": 0.5, "z_score": 1.25, "modality": "audio", "id": f"id {rank}", "path": path}
    return plain | {"start_s": None, "end_s": None, "spans": [], "captions": [], "labels": [], "also": []} | changes


def answer(*hits, query="dog"):
    return {"query": query, "hits": list(hits)}


@pytest.fixture
def sound(tmp_path):
    """Makes a file to be found; gives its path."""

    def make(name):
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
        return str(path)

    return make


@pytest.fixture
def write(reporter):
    def call(*answers, **options):
        return write_hits(answers, RetrieveConfig(**options), reporter=reporter)

    return call


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_written_unasked(write, sound, tmp_path):
    path = sound("a.wav")
    assert write(answer(hit(1, path))) == {}
    assert names(tmp_path) == ["sounds"]


# Copies -----------------------------------------------------------------------------------------------------------------


def test_copies_are_named_by_rank(write, sound, tmp_path, reporter):
    written = write(answer(hit(1, sound("b.wav")), hit(2, sound("a b.flac"))), copy_to=tmp_path / "new" / "found")
    assert names(tmp_path / "new/found") == ["001 b.wav", "002 a b.flac"]
    assert (tmp_path / "new/found/002 a b.flac").read_bytes() == b"a b.flac"
    assert written == {
        "copied": [str(tmp_path / "new/found" / name) for name in ("001 b.wav", "002 a b.flac")],
        "not_copied": [],
    }
    assert reporter.said == [f"2 sounds copied to {tmp_path / 'new/found'}"]


def test_a_file_is_copied_once(write, sound, tmp_path):
    a, b = sound("a.wav"), sound("b.wav")
    write(answer(hit(1, a), hit(2, a), hit(3, b)), copy_to=tmp_path / "found")
    assert names(tmp_path / "found") == ["001 a.wav", "003 b.wav"]


def test_copies_of_several_queries_are_named_by_query_and_rank(write, sound, tmp_path):
    a, b = sound("a.wav"), sound("b.wav")
    write(answer(hit(1, a)), answer(hit(1, a), hit(2, b)), answer(), copy_to=tmp_path / "found")
    assert names(tmp_path / "found") == ["001-001 a.wav", "002-002 b.wav"]


def test_sounds_that_are_gone_are_listed(write, sound, tmp_path, reporter):
    gone = str(tmp_path / "gone.wav")
    written = write(answer(hit(1, gone), hit(2, sound("a.wav")), hit(3, gone), hit(4, "")), copy_to=tmp_path / "found")
    assert names(tmp_path / "found") == ["002 a.wav"]
    assert written["not_copied"] == [gone]
    assert reporter.warned == [f"1 sounds that were found are not there any more, first: {gone}; not copied"]


def test_sounds_of_one_name_do_not_overwrite_each_other(write, sound, tmp_path):
    write(answer(hit(1, sound("x/a.wav")), hit(2, sound("y/a.wav"))), copy_to=tmp_path / "found")
    assert [(tmp_path / "found" / name).read_bytes() for name in ("001 a.wav", "002 a.wav")] == [b"x/a.wav", b"y/a.wav"]


def test_a_copy_that_fails_leaves_no_part(write, sound, tmp_path, monkeypatch):
    def fail(source, target):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hit_files.shutil, "copyfile", fail)
    with pytest.raises(
        RunDirError, match=r"--copy-to .*001 a.wav: cannot be written \(No space left on device\); name another"
    ):
        write(answer(hit(1, sound("a.wav"))), copy_to=tmp_path / "found")
    assert names(tmp_path / "found") == []


def test_a_place_that_is_a_file_is_refused(write, sound, tmp_path):
    place = sound("file")
    for options in ({"copy_to": place}, {"csv": f"{place}/a.csv"}, {"playlist": f"{place}/a.m3u8"}):
        with pytest.raises(RunDirError, match="cannot be written"):
            write(answer(hit(1, sound("a.wav"))), **{key: tmp_path / value for key, value in options.items()})


# Tables and playlists ---------------------------------------------------------------------------------------------------


def read_csv(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_holds_all_hits_whatever_signs_they_hold(write, tmp_path):
    odd = 'a, "b"\nc; größe 犬'
    first = hit(1, f"/x/{odd}.wav", id=odd, captions=[odd, "another"], labels=["a", "b"], start_s=0.1, end_s=2.0)
    second = hit(1, "", id="plain", z_score=None, modality="text", score=1 / 3)
    assert write(answer(first), answer(second, query=odd), csv=tmp_path / "new/hits.csv") == {
        "csv": str(tmp_path / "new/hits.csv")
    }
    rows = read_csv(tmp_path / "new/hits.csv")
    assert rows[0] == {
        **{"query": "dog", "rank": "1", "score": "0.5", "z_score": "1.25", "modality": "audio", "id": odd},
        **{"path": f"/x/{odd}.wav", "start_s": "0.1", "end_s": "2.0", "caption": odd, "labels": "a; b"},
    }
    assert (rows[1]["query"], rows[1]["z_score"], rows[1]["start_s"], rows[1]["caption"]) == (odd, "", "", "")
    assert float(rows[1]["score"]) == 1 / 3


def test_a_query_that_is_a_file_of_an_old_disk_is_written_too(write, tmp_path):
    name = os.fsdecode(b"caf\xe9.wav")
    write(answer(hit(1, "/a.wav"), query=name), csv=tmp_path / "hits.csv", playlist=tmp_path / "hits.m3u8")
    assert b"caf\xe9.wav,1,0.5" in (tmp_path / "hits.csv").read_bytes()


def test_a_table_that_cannot_be_finished_leaves_the_old_one(write, tmp_path):
    (tmp_path / "hits.csv").write_text("old")
    broken = hit(2, "/b.wav")
    del broken["labels"]
    with pytest.raises(KeyError):
        write(answer(hit(1, "/a.wav"), broken), csv=tmp_path / "hits.csv")
    assert (tmp_path / "hits.csv").read_text() == "old"
    assert names(tmp_path) == ["hits.csv"]


def test_a_playlist_holds_sounds_and_where_to_start(write, tmp_path):
    hits = [hit(1, "/x/a.wav", start_s=1.5, end_s=4.0), hit(2, "/x/b\n.wav", id="two\nlines"), hit(3, "")]
    written = write(answer(*hits), answer(hit(1, "/x/c.wav", start_s=0.0, end_s=2.0)), playlist=tmp_path / "hits.m3u8")
    assert written == {"playlist": str(tmp_path / "hits.m3u8")}
    assert (tmp_path / "hits.m3u8").read_text(encoding="utf-8").splitlines() == [
        "#EXTM3U",
        *("#EXTINF:2.500,id 1", "#EXTVLCOPT:start-time=1.500", "#EXTVLCOPT:stop-time=4.000", "/x/a.wav"),
        *("#EXTINF:-1,two lines", "/x/b .wav"),
        *("#EXTINF:2.000,id 1", "/x/c.wav"),
    ]


def test_what_was_written_is_json(write, sound, tmp_path):
    written = write(
        answer(hit(1, sound("a.wav"))), csv=tmp_path / "a.csv", playlist=tmp_path / "a.m3u8", copy_to=tmp_path / "c"
    )
    assert list(json.loads(json.dumps(written))) == ["csv", "playlist", "copied", "not_copied"]


# Opening ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """What the desktop was asked to open."""
    calls = []
    monkeypatch.setattr(hit_files.shutil, "which", lambda program: f"/bin/{program}")
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: calls.append(command))
    return calls


@pytest.mark.parametrize(("platform", "program"), [("linux", "xdg-open"), ("darwin", "open"), ("win32", "explorer")])
def test_the_best_sound_is_opened(write, sound, opened, monkeypatch, platform, program):
    monkeypatch.setattr(sys, "platform", platform)
    best = sound("a.wav")
    write(answer(hit(1, "")), answer(hit(1, best), hit(2, sound("b.wav"))), open=True)
    assert opened == [[f"/bin/{program}", best]]


def test_where_nothing_is_found_nothing_is_opened(write, opened):
    write(answer(), open=True)
    assert opened == []


def test_a_sound_that_is_gone_cannot_be_opened(write, opened, tmp_path):
    with pytest.raises(AudioError, match="--open: .*gone.wav is not there any more; restore it or embed again"):
        write(answer(hit(1, str(tmp_path / "gone.wav"))), open=True)
    assert opened == []


def test_a_machine_without_a_desktop_says_so(write, sound, monkeypatch):
    path = sound("a.wav")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(hit_files.shutil, "which", lambda program: None)
    with pytest.raises(ConfigError, match="--open: xdg-open is not installed here; open .*a.wav yourself"):
        write(answer(hit(1, path)), open=True)


def test_an_opener_that_does_not_start_is_one_line(write, sound, monkeypatch, tmp_path):
    monkeypatch.setattr(hit_files.shutil, "which", lambda program: str(tmp_path / "none"))
    with pytest.raises(
        ConfigError, match="--open: .*none cannot be started .No such file or directory.; open .*a.wav yourself"
    ):
        write(answer(hit(1, sound("a.wav"))), open=True)
