import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clapkit.data.file_table import FileRecord
from clapkit.data.manifest import Manifest
from clapkit.errors import CheckpointError, ManifestError
from clapkit.steps import lineage
from clapkit.steps.inputs import DataSource
from clapkit.steps.lineage import keys_of, lineage_of, read_lineage, unknown_lineage, write_lineage
from clapkit.types import Clip


@pytest.fixture
def data(corpus):
    return DataSource(corpus.root / "manifest.jsonl", corpus)


def test_a_lineage_holds_the_recordings_of_both_splits(data):
    found = lineage_of([data], train_split="train", val_split="test")
    assert len(found.keys["trained"]) == 2
    assert len(found.keys["selected"]) == 4
    assert found.data == {"trained": ("toy (train)",), "selected": ("toy (test)",)}
    assert set(found.keys["trained"]) == {key for clip in data.manifest.split("train") for key in keys_of(clip, {})}


def test_validation_data_may_be_another_corpus(data):
    other = DataSource(data.path, replace(data.manifest, name="other"))
    found = lineage_of([data, other], train_split="train", val_split="train")
    assert found.data == {"trained": ("toy (train)",), "selected": ("other (train)",)}


def test_takes_of_one_recording_have_a_key_in_common():
    first, second = (Clip(id=f"x/{n}", audio=f"{n}.wav", source="freesound/7") for n in "ab")
    assert keys_of(first, {}) == keys_of(second, {})
    assert keys_of(first, {}) != keys_of(replace(first, source=None), {})


def test_the_same_bytes_have_a_key_in_common_whatever_the_file_is_called():
    files = {name: FileRecord(name, 8, "00ff", None) for name in ("a.wav", "b.wav")}
    first, second = keys_of(Clip(id="x/a", audio="a.wav"), files), keys_of(Clip(id="y/b", audio="b.wav"), files)
    assert len(set(first) & set(second)) == 1


def test_a_span_is_not_recognised_by_the_bytes_of_its_file():
    files = {"a.wav": FileRecord("a.wav", 8, "00ff", None)}
    assert len(keys_of(Clip(id="x/a", audio="a.wav", start_s=0.0, end_s=1.0), files)) == 1


def test_what_is_written_is_read(data, tmp_path):
    written = lineage_of([data], train_split="train", val_split="test").joined(unknown_lineage("laion/clap"))
    write_lineage(tmp_path, written)
    found = read_lineage(tmp_path, name="x")
    for role in ("trained", "selected"):
        np.testing.assert_array_equal(found.keys[role], written.keys[role])
    assert (found.data, found.unknown) == (written.data, ("laion/clap",))


def test_a_lineage_goes_on_from_the_weights_that_a_run_starts_from(data):
    first = lineage_of([data], train_split="test", val_split="train")
    second = lineage_of([data], train_split="train", val_split="test").joined(first)
    assert len(second.keys["trained"]) == 6
    assert second.data["trained"] == ("toy (test)", "toy (train)")


def test_a_model_without_one_is_of_unknown_lineage(tmp_path):
    found = read_lineage(tmp_path, name="laion/clap")
    assert found.unknown == ("laion/clap",)
    assert not len(found.keys["trained"])


@pytest.fixture
def old_run(corpus, make_run):
    """A finished train run that wrote no lineage."""

    def make(**config):
        run = make_run("train", "old", config={"train_split": "train", "val_split": "test", **config})
        manifest = run.path / "data.jsonl"
        run.model_dir.mkdir()
        written = Manifest.write(manifest, corpus.clips, root=corpus.root, name="toy")
        run.add_input(manifest, written.fingerprint)
        run.finish({})
        return run

    return make


def test_the_lineage_of_an_earlier_run_follows_from_its_record(old_run):
    found = read_lineage(old_run().model_dir, name="old")
    assert (len(found.keys["trained"]), found.unknown) == (2, ())


def test_the_lineage_of_an_earlier_run_is_not_known_if_its_data_are_others_now(old_run, corpus):
    run = old_run()
    Manifest.write(run.path / "data.jsonl", corpus.clips[1:], root=corpus.root, name="toy")
    assert read_lineage(run.model_dir, name="old").unknown == ("old",)


def test_the_lineage_of_an_earlier_run_is_not_known_if_it_started_from_weights(old_run):
    assert read_lineage(old_run(init="laion/clap").model_dir, name="old").unknown == ("old",)


def test_a_damaged_lineage_is_an_error(tmp_path):
    (tmp_path / lineage.FILE).write_bytes(b"PAR1 no")
    with pytest.raises(CheckpointError, match=r"lineage\.parquet: cannot be read .* restore it, or delete it"):
        read_lineage(tmp_path, name="x")


def test_another_table_is_no_lineage(tmp_path):
    pq.write_table(pa.table({"role": ["trained"], "key": [1]}), tmp_path / lineage.FILE)
    with pytest.raises(CheckpointError, match="is no lineage that this clapkit reads"):
        read_lineage(tmp_path, name="x")


def test_a_split_that_is_not_there_is_an_error(data):
    with pytest.raises(ManifestError, match="no clip in split 'val'"):
        lineage_of([data], train_split="train", val_split="val")


def test_lineage_names_no_clip(data, tmp_path):
    write_lineage(tmp_path, lineage_of([data], train_split="train", val_split="test"))
    table = pq.read_table(tmp_path / lineage.FILE)
    assert "toy/bird" not in json.dumps(table.to_pylist()) + str(table.schema.metadata)


def test_writing_again_leaves_one_file(data, tmp_path):
    found = lineage_of([data], train_split="train", val_split="test")
    for _ in range(2):
        write_lineage(tmp_path, found)
    assert [path.name for path in tmp_path.iterdir()] == [lineage.FILE]
