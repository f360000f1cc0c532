import errno
import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
from pyarrow import parquet

from clapkit.errors import ConfigError, RunDirError
from clapkit.steps import prepare_export


@pytest.fixture
def sounds(tmp_path, write_melody):
    for key in range(3):
        write_melody(tmp_path / "sounds" / f"note_{'abc'[key]}.wav", key)
    return tmp_path / "sounds"


def members(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive.getmembers()}


def test_shards_hold_the_stored_bytes_and_the_captions(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test", export="webdataset", shard_size=2)
    shards = sorted((done.path / "shards" / "test").glob("*.tar"))
    assert [path.name for path in shards] == ["000000.tar", "000001.tar"]
    first = members(shards[0])
    assert list(first) == ["note_a.json", "note_a.wav", "note_b.json", "note_b.wav"]
    assert first["note_a.wav"] == (sounds / "note_a.wav").read_bytes()
    assert json.loads(first["note_a.json"])["text"] == ["note a"]
    exported = done.result["export"]
    assert (exported["path"], exported["format"], exported["num_clips"]) == ("shards", "webdataset", 3)
    assert exported["splits"] == {"test": {"num_clips": 3, "num_files": 2}}


def test_a_hugging_face_data_set_holds_the_columns_of_the_manifest(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test", export="hf", shard_size=2)
    files = sorted((done.path / "hub" / "data").glob("*.parquet"))
    rows = [row for path in files for row in parquet.read_table(path).to_pylist()]
    assert [row["id"] for row in rows] == done.ids == ["note_a", "note_b", "note_c"]
    assert rows[1]["audio"]["bytes"] == (sounds / "note_b.wav").read_bytes()
    assert rows[1]["captions"] == ["note b"]
    assert (len(files), done.result["export"]["format"], done.result["export"]["path"]) == (2, "hf", "hub")


def test_without_the_option_nothing_is_exported(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test")
    assert "export" not in done.result
    assert not (done.path / "shards").exists()
    assert not (done.path / "hub").exists()


def test_the_decoded_copies_are_what_is_exported(call_prepare, sounds):
    done = call_prepare(recipe=str(sounds), split="test", export="webdataset", cache_audio="flac", cache_rate=4000)
    first = members(done.path / "shards" / "test" / "000000.tar")
    samples, rate = soundfile.read(io.BytesIO(first["note_a.flac"]))
    assert (rate, samples.shape) == (4000, (16000,))
    assert np.abs(samples).max() > 0.05


def test_an_export_that_was_cut_off_starts_anew(call_prepare, sounds, tmp_path, monkeypatch):
    given = {"recipe": str(sounds), "split": "test", "export": "webdataset"}
    undisturbed = call_prepare(name="whole", **given)
    write = prepare_export.write_shards

    def killed(manifest, folder, **options):
        write(manifest, folder, **options)
        (folder / "test" / ".000001.tar.tmp").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_export, "write_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        call_prepare(**given)
    monkeypatch.undo()
    done = call_prepare(**given, resume=True)
    assert done.result == undisturbed.result
    assert sorted(path.name for path in (done.path / "shards" / "test").iterdir()) == ["000000.tar", "sizes.json"]
    assert members(done.path / "shards/test/000000.tar") == members(undisturbed.path / "shards/test/000000.tar")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shard_size": 5}, "--shard-size 5: nothing is exported; add --export webdataset or hf"),
        ({"shard_size": 0, "export": "hf"}, "--shard-size 0: expected at least 1"),
    ],
)
def test_sizes_that_cannot_be_meant_are_refused(call_prepare, sounds, given, message):
    with pytest.raises(ConfigError, match=message):
        call_prepare(recipe=str(sounds), **given)


@pytest.mark.parametrize(("form", "writer"), [("webdataset", "write_shards"), ("hf", "write_hub")])
def test_a_full_disk_ends_the_export_with_the_way_out(call_prepare, sounds, monkeypatch, form, writer):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_export, writer, fail)
    with pytest.raises(RunDirError, match=r"the export cannot be written \(No space left on device\); make room, then go on"):
        call_prepare(recipe=str(sounds), split="test", export=form)


def test_what_was_unpacked_for_clips_that_are_left_out_goes(tmp_path, call_prepare, write_melody):
    for number in range(3):
        write_melody(tmp_path / "sounds" / ("dog", "cat")[number % 2] / f"{number}.wav", number)
    shards = call_prepare(recipe=str(tmp_path / "sounds"), split="train", export="webdataset").path / "shards"
    done = call_prepare(name="some", recipe="webdataset", source=str(shards), where="'cat' in labels")
    assert sorted(path.name for path in (done.path / "audio").rglob("*.*")) == ["1.wav"]
    done = call_prepare(name="copied", recipe="webdataset", source=str(shards), cache_audio="flac")
    assert not (done.path / "audio").exists()
    assert sorted(path.name for path in (done.path / "decoded").rglob("*.*")) == ["0.wav.flac", "1.wav.flac", "2.wav.flac"]


def test_the_page_shows_what_was_unpacked_before_it_goes(tmp_path, call_prepare, write_melody):
    write_melody(tmp_path / "sounds" / "dog" / "loud.wav", 1, gain=30.0)
    shards = call_prepare(recipe=str(tmp_path / "sounds"), split="train", export="webdataset").path / "shards"
    done = call_prepare(name="copied", recipe="webdataset", source=str(shards), cache_audio="flac")
    assert done.report["clipped"]["num_clips"] == 1
    assert "data:image/png" in (done.path / "report.html").read_text()
