"""``embed --update``: what comes out is what embedding anew would give, and little is embedded for it."""

import contextlib
import dataclasses
import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from clapkit.cli import embed as command
from clapkit.cli.execute import execute
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, EmbeddingError, ManifestError, RunDirError
from clapkit.index.stored import open_stored
from clapkit.index.table import open_table, read_info
from clapkit.run_dir import RunDir
from clapkit.steps import embed, embed_outcome, embed_windows, inputs
from clapkit.types import Caption

SAMPLE_RATE = 8000


@pytest.fixture
def call(runs_root, reporter):
    """Calls ``clapkit embed`` as the command line does; gives the run directory and the result."""
    reporter.attach = lambda run_dir: None

    def call(*addresses, **given):
        given = {"inputs": [str(address) for address in addresses] or None, "runs_root": runs_root, **given}
        config = command.configure({"device": "cpu", "batch_size": 2, "workers": 1} | given)
        return execute("embed", config, ["clapkit", "embed"], embed.run, reporter)

    return call


@pytest.fixture
def sounds(tmp_path, corpus):
    """A folder with the sounds of the corpus, to be changed at will."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    for clip in corpus:
        shutil.copy(corpus.root / clip.audio, folder)
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Names of the files that are decoded."""
    names = []
    stream = embed_windows.stream_samples

    def noting(path, **span):
        names.append(path.name)
        return stream(path, **span)

    monkeypatch.setattr(embed_windows, "stream_samples", noting)
    return names


def content(run_dir, modality="audio"):
    """Metadata and bytes of the vectors of a table."""
    _, table = open_table(run_dir.path, modality)
    return table.rows(range(len(table))), table.vectors.tobytes()


def write_noise(path, seed):
    soundfile.write(path, np.random.default_rng(seed).normal(0, 0.1, SAMPLE_RATE + 100 * seed), SAMPLE_RATE)


def nothing(folder):
    pass


def add(folder):
    write_noise(folder / "aaa.wav", 1)
    (folder / "deep").mkdir()
    write_noise(folder / "deep/new.wav", 2)


def change(folder):
    write_noise(folder / "bell.wav", 3)


def rename(folder):
    (folder / "dog.wav").rename(folder / "zebra.wav")


def delete(folder):
    (folder / "rain.wav").unlink()


def swap(folder):
    (folder / "dog.wav").rename(folder / "x")
    (folder / "rain.wav").rename(folder / "dog.wav")
    (folder / "x").rename(folder / "rain.wav")


def duplicate(folder):
    shutil.copy(folder / "bird.wav", folder / "copy.wav")


def all_at_once(folder):
    for step in (add, change, rename, delete, duplicate):
        step(folder)


def rename_one_of_two(folder):
    """Two copies of a sound that is gone: one is its new name, the other is new."""
    shutil.copy(folder / "dog.wav", folder / "a.wav")
    (folder / "dog.wav").rename(folder / "b.wav")


@pytest.mark.parametrize("pool", ["mean", "none"])
@pytest.mark.parametrize(
    ("edit", "counts", "embedded"),
    [
        (nothing, {"kept": 6}, []),
        (add, {"kept": 6, "new": 2}, ["aaa.wav", "new.wav"]),
        (change, {"kept": 5, "changed": 1}, ["bell.wav"]),
        (rename, {"kept": 5, "renamed": 1}, []),
        (delete, {"kept": 5, "gone": 1}, []),
        (swap, {"kept": 4, "changed": 2}, []),
        (duplicate, {"kept": 6, "new": 1}, []),
        (rename_one_of_two, {"kept": 5, "renamed": 1, "new": 1}, []),
        (all_at_once, {"kept": 3, "changed": 1, "renamed": 1, "new": 3, "gone": 1}, ["aaa.wav", "bell.wav", "new.wav"]),
    ],
)
def test_an_update_gives_what_embedding_anew_gives(call, sounds, decoded, reporter, edit, counts, embedded, pool):
    options = {"pool": pool, "hop_s": 0.5, "store": "fp32"}
    run_dir, _ = call(sounds, name="library", **options)
    edit(sounds)
    decoded.clear()
    _, result = call(update=True, name="library")
    assert sorted(decoded) == embedded
    expected = dict.fromkeys(("kept", "new", "changed", "renamed", "gone"), 0) | counts
    assert result["changes"] == expected
    assert ", ".join(f"{count} {kind}" for kind, count in expected.items()) in reporter.said
    fresh, anew = call(sounds, name="fresh", **options)
    assert content(run_dir) == content(fresh)
    info, other = read_info(run_dir.path), read_info(fresh.path)
    assert (info.id, info.counts, info.data, info.audio_policy) == (other.id, other.counts, other.data, other.audio_policy)
    assert result["num_windows"] == anew["num_windows"]


def test_vectors_in_half_precision_are_not_rounded_twice(call, sounds):
    run_dir, _ = call(sounds, name="library")
    before = content(run_dir)
    for _ in range(2):
        call(update=True, name="library")
    assert content(run_dir) == before
    assert read_info(run_dir.path).generation == 2
    assert sorted(path.name for path in (run_dir.path / "audio_emb").iterdir()) == ["audio_emb_2.npy"]


def test_the_newest_run_is_updated_where_none_is_named(call, sounds):
    call(sounds, name="old")
    run_dir, _ = call(sounds, name="new")
    updated, _ = call(update=True)
    assert updated.path == run_dir.path


def test_the_run_stays_finished_and_records_the_update(call, sounds, monkeypatch):
    run_dir, before = call(sounds, name="library")
    finished_at = run_dir.record["finished_at"]
    write = embed.embed_update.write_tables

    def watching(*arguments, **named):
        record = json.loads(run_dir.run_json.read_text())
        assert (record["status"], record["updates"][-1]["status"]) == ("finished", "running")
        assert json.loads(run_dir.result_json.read_text()) == before
        return write(*arguments, **named)

    monkeypatch.setattr(embed.embed_update, "write_tables", watching)
    add(sounds)
    call(update=True, name="library")
    record = RunDir(run_dir.path).record
    (update,) = record["updates"]
    assert (record["status"], record["finished_at"], update["status"]) == ("finished", finished_at, "finished")
    assert [entry["path"] for entry in update["inputs"]] == [entry["path"] for entry in record["inputs"]]
    assert RunDir(run_dir.path).result["changes"]["new"] == 2
    assert not list(run_dir.path.glob(".progress*"))


def test_relative_inputs_are_found_from_elsewhere_and_keep_their_ids(call, sounds, monkeypatch, tmp_path):
    monkeypatch.chdir(sounds.parent)
    run_dir, _ = call("sounds", name="library")
    before = content(run_dir)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, result = call(update=True, name="library")
    assert result["changes"]["kept"] == 6
    assert content(run_dir) == before
    assert before[0][0]["id"] == "sounds/bell.wav"


def test_other_inputs_may_be_named(call, sounds, tmp_path):
    run_dir, _ = call(sounds, name="library")
    moved = sounds.rename(tmp_path / "moved")
    with pytest.raises(RunDirError, match="no such file or folder"):
        call(update=True, name="library")
    _, result = call(moved, update=True, name="library")
    assert result["changes"] == {"kept": 0, "new": 0, "changed": 0, "renamed": 6, "gone": 0}
    assert read_info(run_dir.path).data["inputs"] == [str(moved)]
    assert call(update=True, name="library")[1]["changes"]["kept"] == 6


def test_a_file_that_became_bad_is_listed_and_gone(call, sounds):
    run_dir, _ = call(sounds, name="library")
    (sounds / "dog.wav").write_bytes(b"nonsense")
    _, result = call(update=True, name="library")
    assert result["changes"] == {"kept": 5, "new": 0, "changed": 0, "renamed": 0, "gone": 1}
    assert "dog.wav" in json.loads(run_dir.rejected_path.read_text())["item"]


def prepare(runs_root, corpus, clips):
    folder = runs_root / "prepare/toy"
    manifest = Manifest.write(folder / "manifest.jsonl", clips, root=corpus.root, name="toy")
    (folder / "result.json").write_text(json.dumps({"fingerprint": manifest.fingerprint}))


def test_captions_and_metadata_follow_the_manifest(call, corpus, runs_root, decoded, monkeypatch):
    run_dir, _ = call("toy", name="library")
    clips = [dataclasses.replace(corpus.clips[0], captions=(Caption("a puppy"), *corpus.clips[0].captions), labels=("puppy",))]
    clips += [dataclasses.replace(corpus.clips[2], split="val", id="toy/gong"), *corpus.clips[3:]]
    prepare(runs_root, corpus, clips)
    decoded.clear()
    told = []
    texts = embed.embed_update.write_tables.__globals__["write_captions"].__globals__
    encode = texts["embed_texts"]
    monkeypatch.setitem(
        texts, "embed_texts", lambda model, sentences, **rest: told.extend(sentences) or encode(model, sentences, **rest)
    )
    _, result = call(update=True, name="library")
    assert (decoded, told) == ([], ["a puppy"])
    assert result["changes"] == {"kept": 4, "new": 0, "changed": 0, "renamed": 1, "gone": 1}
    fresh, _ = call("toy", name="fresh")
    for modality in ("audio", "text"):
        rows, vectors = content(run_dir, modality)
        expected_rows, expected = content(fresh, modality)
        assert rows == expected_rows
        np.testing.assert_allclose(np.frombuffer(vectors, np.float16), np.frombuffer(expected, np.float16), atol=1e-3)


def test_a_file_of_captions_is_updated_by_line(call, tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a dog\nrain\nwind\n")
    run_dir, _ = call(path, name="words")
    path.write_text("a dog\nhail\nwind\nrain\n")
    _, result = call(update=True, name="words")
    # Line 2 says something else, and what it said stands in line 4, which is new: its id was not there.
    assert result["changes"] == {"kept": 2, "new": 1, "changed": 1, "renamed": 0, "gone": 0}
    assert content(run_dir, "text")[0] == content(call(path, name="fresh")[0], "text")[0]


def test_a_clip_whose_span_moved_is_embedded_again(call, corpus, runs_root, decoded):
    # One file, cut into spans: equal content, other sound.
    wind = corpus.clips[5]
    spans = [(0.0, 1.0), (1.0, 2.0), (2.0, None)]
    cut = [
        dataclasses.replace(wind, id=f"toy/{number}", start_s=start, end_s=end, duration_s=(end or 3.0) - start)
        for number, (start, end) in enumerate(spans)
    ]
    prepare(runs_root, corpus, cut)
    run_dir, _ = call("toy", name="library", modality="audio", store="fp32")
    moved = [
        dataclasses.replace(cut[0], end_s=1.5, duration_s=1.5),
        cut[1],
        dataclasses.replace(cut[2], id="toy/end"),
        dataclasses.replace(wind, id="toy/whole"),
    ]
    prepare(runs_root, corpus, moved)
    decoded.clear()
    _, result = call(update=True, name="library")
    assert decoded == ["wind.wav"] * 2  # the first, and the whole
    assert result["changes"]["kept"] == 1
    assert content(run_dir) == content(call("toy", name="fresh", modality="audio", store="fp32")[0])


def test_a_stored_index_answers_for_the_updated_table(call, sounds):
    run_dir, _ = call(sounds, name="library", index="hnsw")
    add(sounds)
    _, result = call(update=True, name="library")
    info, table = open_table(run_dir.path, "audio")
    index = open_stored("hnsw", run_dir.path, "audio", info=info, table=table)
    scores, rows = index.search(table.vectors[:1].astype(np.float32), 8)
    assert rows[0, 0] == 0
    assert scores[0, 0] == pytest.approx(1, abs=1e-3)
    assert result["indexes"][0]["table"] == info.id
    assert len(list((run_dir.path / "index").iterdir())) == 2


def test_an_interrupted_update_leaves_the_old_table_and_what_it_embedded(call, sounds, decoded, monkeypatch, reporter):
    run_dir, _ = call(sounds, name="library")
    before = content(run_dir)
    change(sounds)
    add(sounds)
    with monkeypatch.context() as patch:
        patch.setattr(embed.embed_update, "going_on", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            call(update=True, name="library")
    assert content(run_dir) == before
    assert RunDir(run_dir.path).record["updates"][-1]["status"] == "interrupted"
    decoded.clear()
    call(update=True, name="library")
    assert decoded == []
    assert content(run_dir) == content(call(sounds, name="fresh")[0])


@contextlib.contextmanager
def _interrupted(command, reporter):
    yield
    raise KeyboardInterrupt


def test_an_update_that_was_killed_is_noted_by_the_next(call, sounds):
    run_dir, _ = call(sounds, name="library")
    RunDir.reopen(run_dir.path, step="embed", config={}).release()
    call(update=True, name="library")
    assert [update["status"] for update in RunDir(run_dir.path).record["updates"]] == ["interrupted", "finished"]


def test_a_second_writer_is_kept_out(call, sounds):
    run_dir, _ = call(sounds, name="library")
    writer = RunDir.reopen(run_dir.path, step="embed", config={})
    with pytest.raises(RunDirError, match="in use by process"):
        call(update=True, name="library")
    writer.release()


def test_a_folder_without_sounds_does_not_empty_the_table(call, sounds):
    run_dir, _ = call(sounds, name="library")
    before = content(run_dir)
    for path in sounds.iterdir():
        path.unlink()
    with pytest.raises(ManifestError, match="no audio files"):
        call(update=True, name="library")
    assert content(run_dir) == before
    assert RunDir(run_dir.path).record["updates"][-1]["status"] == "failed"
    assert RunDir(run_dir.path).finished


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "none"}, r"was embedded in another way \(pool none instead of mean\); embed anew"),
        ({"window_s": 0.5, "hop_s": 0.5}, r"\(window_s 0.5 instead of 1.0, hop_s 0.5 instead of 1.0\)"),
        ({"precision": "bf16"}, r"\(precision bf16 instead of fp32\)"),
        ({"store": "fp32"}, r"\(store float32 instead of float16\)"),
        ({"model": "other"}, "was embedded by model [0-9a-f]{12}, other is [0-9a-f]{12}; embed anew"),
        ({"shard": "0/2"}, "--update: does not go together with --shard: a run is brought up to date as a whole"),
        ({"overwrite": True, "resume": True}, "does not go together with --resume, --overwrite"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(call, sounds, runs_root, make_run, model, options, message):
    other = make_run("train", "other")
    model.save(other.model_dir)
    config = json.loads((other.model_dir / "config.json").read_text())
    (other.model_dir / "config.json").write_text(json.dumps(config, indent=7))
    other.finish({})
    run_dir, _ = call(sounds, name="library", model="first")
    before = content(run_dir)
    with pytest.raises(ConfigError, match=message):
        call(update=True, name="library", **options)
    assert content(run_dir) == before


def test_a_model_that_is_gone_is_named(call, sounds, runs_root):
    call(sounds, name="library")
    shutil.rmtree(runs_root / "train/first/model")
    with pytest.raises(EmbeddingError, match="was made by the model in .*model, which is gone; restore it or embed again"):
        call(update=True, name="library")


def test_paths_from_standard_input_must_be_piped_in_again(call, sounds, monkeypatch):
    listing = f"{sounds / 'dog.wav'}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(listing))
    call("-", name="library")
    with pytest.raises(ConfigError, match="came from standard input; pipe them in again and name - as input"):
        call(update=True, name="library")
    monkeypatch.setattr("sys.stdin", io.StringIO(listing))
    assert call("-", update=True, name="library")[1]["changes"]["kept"] == 1


def test_a_run_that_cannot_be_updated_is_named(call, sounds, make_run, runs_root):
    with pytest.raises(RunDirError, match="no finished embed run under"):
        call(update=True)
    call(sounds, name="part", shard="0/2")
    with pytest.raises(ConfigError, match="is part 0/2 of a table; update the table that embed --merge made"):
        call(update=True, name="part")
    make_run("embed", "begun")
    with pytest.raises(RunDirError, match="the embed run is not finished"):
        call(update=True, name="begun")


def test_a_table_of_an_earlier_version_is_embedded_again(call, sounds, decoded):
    run_dir, _ = call(sounds, name="library")
    info = read_info(run_dir.path)
    metadata = run_dir.path / info.files["audio"][1]
    pq.write_table(pq.read_table(metadata).drop_columns(["content"]), metadata)
    described = json.loads((run_dir.path / "table.json").read_text())
    for key in ("files", "generation", "id"):
        del described[key]
    described |= {"clapkit_table": 1, "data": {key: described["data"][key] for key in ("name", "fingerprint", "split")}}
    (run_dir.path / "table.json").write_text(json.dumps(described))
    decoded.clear()
    _, result = call(update=True, name="library")
    assert result["changes"]["changed"] == len(decoded) == 6
    assert call(update=True, name="library")[1]["changes"]["kept"] == 6


def test_the_model_is_the_one_of_the_table_and_not_the_newest(call, sounds, make_run, model, monkeypatch):
    call(sounds, name="library")
    newer = make_run("train", "newer")
    model.save(newer.model_dir)
    newer.finish({})
    loaded = []
    load = inputs.load_model
    monkeypatch.setattr(inputs, "load_model", lambda path, device: loaded.append(path) or load(path, device=device))
    _, result = call(update=True, name="library")
    assert [path.parent.name for path in loaded] == ["first"]
    assert result["model"] == "first"


@pytest.mark.parametrize("option", ["resume", "skip_existing"])
def test_a_finished_run_is_not_taken_for_one_with_nothing_to_update(call, sounds, option):
    call(sounds, name="library")
    with pytest.raises(ConfigError, match=f"--update: does not go together with --{option.replace('_', '-')}"):
        command.configure({"update": True, "name": "library", option: True, "runs_root": sounds.parent / "runs"})


def test_captions_do_not_take_the_place_of_sounds(call, sounds, tmp_path):
    run_dir, _ = call(sounds, name="library", index="hnsw")
    before = content(run_dir)
    captions = tmp_path / "captions.txt"
    captions.write_text("a dog barks\n")
    with pytest.raises(ConfigError, match="holds sounds, captions.txt would leave captions only; make a table of its own"):
        call(captions, update=True, name="library")
    assert content(run_dir) == before
    assert RunDir(run_dir.path).finished


def test_a_table_is_seen_with_its_index_or_not_at_all(call, sounds, monkeypatch):
    run_dir, _ = call(sounds, name="library", index="ivf")
    shutil.copy(next(sounds.iterdir()), sounds / "another.wav")
    seen = []
    commit = embed_outcome.commit

    def look_around(folder, described):
        for moment in (lambda: None, lambda: commit(folder, described)):
            moment()
            info, table = open_table(folder, "audio")
            open_stored("ivf", folder, "audio", info=info, table=table)
            seen.append(info.generation)

    monkeypatch.setattr(embed_outcome, "commit", look_around)
    call(name="library", update=True)
    assert seen == [0, 1]
