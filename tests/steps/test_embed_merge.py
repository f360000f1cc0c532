"""``embed --shard`` and ``embed --merge``: parts that are put together are the whole."""

import json
import os
import shutil

import pytest

from clapkit.cli import embed as command
from clapkit.cli.execute import execute
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError, RunDirError
from clapkit.index.stored import stored_names
from clapkit.index.table import open_table, read_info
from clapkit.steps import embed
from clapkit.steps.embed_options import Shard


@pytest.fixture
def call(runs_root, reporter):
    """Calls ``clapkit embed`` as the command line does; gives the run directory and the result."""
    reporter.attach = lambda run_dir: None

    def call(*addresses, **given):
        given = {"inputs": [str(address) for address in addresses] or None, "runs_root": runs_root, **given}
        config = command.configure({"device": "cpu", "batch_size": 2, "workers": 1, "store": "fp32"} | given)
        return execute("embed", config, ["clapkit", "embed"], embed.run, reporter)

    return call


@pytest.fixture
def shards(call):
    """Embeds all parts of some data; gives the names of their runs."""

    def embed_shards(*addresses, count, **options):
        for number in range(count):
            call(*addresses, name=f"part{number}", shard=f"{number}/{count}", **options)
        return [f"part{number}" for number in range(count)]

    return embed_shards


def content(run_dir, modality):
    _, table = open_table(run_dir.path, modality)
    return table.rows(range(len(table))), table.vectors.tobytes()


@pytest.mark.parametrize("count", [1, 2, 4, 6])
@pytest.mark.parametrize("pool", ["mean", "none"])
def test_parts_that_are_merged_are_the_whole_bit_for_bit(call, shards, count, pool):
    names = shards("toy", count=count, pool=pool)
    whole, expected = call("toy", name="whole", pool=pool)
    merged, result = call(*reversed(names), merge=True, name="merged")
    for modality in ("audio", "text"):
        assert content(merged, modality) == content(whole, modality)
    info, other = read_info(merged.path), read_info(whole.path)
    assert (info.id, info.data, info.audio_policy, info.counts) == (other.id, other.data, other.audio_policy, other.counts)
    assert result["num_windows"] == expected["num_windows"]
    assert result["model"] == expected["model"]
    assert len(merged.record["inputs"]) == count


def test_a_merged_table_can_be_updated(call, shards, corpus, tmp_path):
    folder = tmp_path / "sounds"
    shutil.copytree(corpus.root, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    names = shards(folder, count=2, pool="none")
    merged, _ = call(*names, merge=True, name="merged")
    (folder / "dog.wav").rename(folder / "hound.wav")
    _, result = call(update=True, name="merged")
    assert result["changes"] == {"kept": 5, "new": 0, "changed": 0, "renamed": 1, "gone": 0}
    assert content(merged, "audio") == content(call(folder, name="fresh", pool="none")[0], "audio")


def test_rejections_of_all_parts_are_listed(call, shards, corpus, tmp_path):
    folder = tmp_path / "sounds"
    shutil.copytree(corpus.root, folder, ignore=shutil.ignore_patterns("*.jsonl"))
    for name in ("a.wav", "z.wav"):
        (folder / name).write_bytes(b"nonsense")
    merged, result = call(*shards(folder, count=2), merge=True, name="merged")
    assert result["num_rejected"] == 2
    assert [json.loads(line)["item"][-5:] for line in merged.rejected_path.read_text().splitlines()] == ["a.wav", "z.wav"]


def test_a_name_that_cannot_be_kept_is_listed_by_one_part(call, shards, corpus, tmp_path, reporter):
    folder = tmp_path / "sounds"
    shutil.copytree(corpus.root, folder, ignore=shutil.ignore_patterns("manifest.jsonl"))
    (folder / "dog.wav").rename(os.fsdecode(os.fsencode(folder) + b"/dog\xff.wav"))
    merged, result = call(*shards(folder, count=2), merge=True, name="merged")
    assert (result["counts"], result["num_rejected"]) == ({"audio": 5}, 1)
    assert "dog" in json.loads(merged.rejected_path.read_text())["item"]
    assert reporter.warned[-1].startswith("1 of 6 clips could not be embedded")


def test_a_part_without_captions_has_no_text_table(call, shards, retag, runs_root):
    told = retag(lambda clip: {"captions": clip.captions if clip.id == "toy/wind" else ()})
    Manifest.write(runs_root / "prepare/toy/manifest.jsonl", told.clips, root=told.root, name="toy")
    names = shards("toy", count=2)
    assert read_info(runs_root / "embed/part0").modality == "audio"
    merged, result = call(*names, merge=True, name="merged")
    assert result["counts"] == {"audio": 6, "text": 2}
    assert content(merged, "text") == content(call("toy", name="whole")[0], "text")
    with pytest.raises(ManifestError, match="shard 0/2: its 3 clips have no captions; make fewer parts"):
        call("toy", name="words", shard="0/2", modality="text")


def test_an_index_is_built_over_the_whole(call, shards):
    names = shards("toy", count=2)
    with pytest.raises(ConfigError, match="--index hnsw: is built over the whole table; give it to embed --merge"):
        call("toy", name="x", shard="0/2", index="hnsw")
    merged, result = call(*names, merge=True, name="merged", index="hnsw")
    assert stored_names(merged.path, read_info(merged.path)) == [("hnsw", "audio"), ("hnsw", "text")]
    assert [report["modality"] for report in result["indexes"]] == ["audio", "text"]


def test_parts_differ_by_one_clip_at_most_and_keep_the_fingerprint(corpus):
    parts = [Shard(number, 4).of(corpus) for number in range(4)]
    assert [len(part) for part in parts] == [1, 2, 1, 2]  # 6 * 1 / 4, 6 * 2 / 4, ... rounded down: 0, 1, 3, 4, 6
    assert tuple(clip for part in parts for clip in part) == corpus.clips
    assert {part.fingerprint for part in parts} == {corpus.fingerprint}


def test_more_parts_than_clips_are_refused(call, runs_root):
    with pytest.raises(ConfigError, match="shard 6/7: toy has 6 clips, expected no more parts than clips"):
        call("toy", name="x", shard="6/7")
    assert not (runs_root / "embed/x").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "--merge: names no parts; name the embed runs of --shard 0/n"),
        (("part0",), "part 1/3, 2/3 is missing; embed it with --shard and name it, too"),
        (("part0", "part1", "part2", "part1"), "part 1/3 is there more than once; name every part once"),
        (("part0", "part1", "whole"), "--merge whole: is a whole table, expected parts, which embed --shard i/n makes"),
        (("part0", "part1", "half"), r"--merge half: differs from part0 in number of parts \(2 instead of 3\)"),
        (("part0", "part1", "pooled"), "--merge pooled: differs from part0 in how audio is cut"),
        (("part0", "part1", "small"), r"--merge small: differs from part0 in number format \(float16 instead of float32\)"),
        (("part0", "part1", "test"), "--merge test: differs from part0 in data"),
    ],
)
def test_runs_that_do_not_make_one_table_are_named(call, shards, names, message, runs_root):
    shards("toy", count=3)
    for name, options in {
        "whole": {},
        "half": {"shard": "1/2"},
        "pooled": {"shard": "2/3", "pool": "none"},
        "small": {"shard": "2/3", "store": "fp16"},
        "test": {"shard": "2/3", "split": "test"},
    }.items():
        if name in names:
            call("toy", name=name, **options)
    with pytest.raises(ConfigError, match=message):
        call(*names, merge=True, name="merged")
    assert not (runs_root / "embed/merged").exists()


def test_parts_of_two_models_are_named(call, shards, make_run, model):
    shards("toy", count=2)
    other = make_run("train", "other")
    model.save(other.model_dir)
    config = other.model_dir / "config.json"
    config.write_text(config.read_text() + "\n")
    other.finish({})
    call("toy", name="alien", shard="1/2", model="other")
    with pytest.raises(ConfigError, match="--merge alien: differs from part0 in model"):
        call("part0", "alien", merge=True, name="merged")


def test_a_part_that_is_not_there_is_named(call):
    with pytest.raises(RunDirError, match="no embed run 'part7'"):
        call("part7", merge=True, name="merged")


def test_parts_of_other_modalities_are_named(call, shards):
    shards("toy", count=2)
    call("toy", name="silent", shard="1/2", modality="text")
    with pytest.raises(ConfigError, match=r"--merge silent: differs from part0 in modality \(text instead of None\)"):
        call("part0", "silent", merge=True, name="merged")
