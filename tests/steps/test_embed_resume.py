"""``embed --resume``: what was embedded is not embedded again, and the result is that of a run that nobody disturbed."""

import json
import shutil

import pytest

from clapkit.cli import embed as command
from clapkit.cli.execute import execute
from clapkit.errors import CheckpointError, ConfigError, EmbeddingError
from clapkit.index.table import open_table, read_info
from clapkit.run_dir import RunDir
from clapkit.steps import embed, embed_captions, embed_windows, embed_write, inputs
from clapkit.steps.embed_known import PROGRESS


@pytest.fixture
def call(runs_root, reporter):
    """Calls ``clapkit embed`` as the command line does; gives the run directory and the result."""
    reporter.attach = lambda run_dir: None

    def call(*addresses, **given):
        given = {"inputs": [str(address) for address in addresses] or None, "runs_root": runs_root, **given}
        config = command.configure({"device": "cpu", "batch_size": 2, "workers": 1, "store": "fp32"} | given)
        return execute("embed", config, ["clapkit", "embed"], embed.run, reporter)

    call.path = runs_root / "embed/stopped"
    return call


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


class Stops:
    """A function that works so many times and then stops the program."""

    def __init__(self, function, after, error):
        self.function, self.left, self.error = function, after, error

    def __call__(self, *arguments, **named):
        if not self.left:
            raise self.error
        self.left -= 1
        return self.function(*arguments, **named)


def content(run_dir):
    """Metadata and bytes of the vectors of both tables."""
    tables = [open_table(run_dir.path, modality)[1] for modality in read_info(run_dir.path).counts]
    return [(table.rows(range(len(table))), table.vectors.tobytes()) for table in tables]


@pytest.mark.parametrize("after", range(7))
def test_a_run_that_was_interrupted_ends_bit_identical(call, monkeypatch, decoded, reporter, after):
    # Batches of two: six clips of one to three windows, cut into batches that a run that goes on forms in another way.
    options = {"pool": "none", "hop_s": 0.5, "name": "stopped"}
    with monkeypatch.context() as patch:
        keep = embed_write.KnownVectors.keep
        patch.setattr(embed_write.KnownVectors, "keep", lambda *given: stops(*given))
        stops = Stops(keep, after, KeyboardInterrupt())
        if after < 6:
            with pytest.raises(KeyboardInterrupt):
                call("toy", **options)
            assert any(f"go on with: clapkit embed --resume --run-dir {call.path}" in said for said in reporter.said)
        else:
            call("toy", **options)
    path = call.path
    if after < 6:
        assert RunDir(path).record["status"] == "interrupted"
        assert not RunDir(path).finished
        decoded.clear()
        run_dir, _ = call(resume=True, run_dir=path)
        assert len(decoded) == 6 - after
    run_dir = RunDir(path)
    whole, _ = call("toy", **options | {"name": "whole"})
    assert content(run_dir) == content(whole)
    assert read_info(run_dir.path).id == read_info(whole.path).id
    assert run_dir.result["num_windows"] == whole.result["num_windows"]
    assert not list(run_dir.path.glob(f"{PROGRESS}*"))


def test_captions_that_were_embedded_are_kept_in_blocks(call, monkeypatch):
    monkeypatch.setattr(embed_captions, "_BLOCK_CAPTIONS", 4)
    seen = []
    embed_texts = embed_captions.embed_texts

    def noting(model, texts, **rest):
        seen.append(len(texts))
        return embed_texts(model, texts, **rest)

    stops = Stops(noting, 2, KeyboardInterrupt())
    monkeypatch.setattr(embed_captions, "embed_texts", lambda *given, **named: stops(*given, **named))
    with pytest.raises(KeyboardInterrupt):
        call("toy", name="stopped")
    stops.left = 10
    seen.clear()
    run_dir, _ = call(resume=True, name="stopped")
    assert seen == [4]  # the last of three blocks
    assert content(run_dir) == content(call("toy", name="whole")[0])


def test_resume_starts_a_run_where_there_is_none(call):
    run_dir, result = call("toy", resume=True, name="first")
    assert run_dir.finished
    assert result["counts"] == {"audio": 6, "text": 12}


def test_the_newest_unfinished_run_is_gone_on_with(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(embed_write.KnownVectors, "keep", Stops(None, 0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            call("toy", name="stopped", modality="audio")
    run_dir, result = call(resume=True)
    assert run_dir.path.name == "stopped"
    assert result["modality"] == "audio"


def test_options_that_contradict_the_run_are_refused(call, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(embed_write.KnownVectors, "keep", Stops(None, 0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            call("toy", name="stopped")
    with pytest.raises(ConfigError, match="--resume: --pool differ from what .*stopped was started with; leave them out"):
        call(resume=True, name="stopped", pool="none")


def test_a_run_goes_on_with_the_model_that_it_was_started_with(call, monkeypatch, make_run, model, runs_root):
    with monkeypatch.context() as patch:
        patch.setattr(embed_write.KnownVectors, "keep", Stops(None, 0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            call("toy", name="stopped")
    newer = make_run("train", "newer")
    model.save(newer.model_dir)
    newer.finish({})
    _, result = call(resume=True, name="stopped")
    assert result["model"] == "first"


def test_a_model_that_was_replaced_meanwhile_is_named(call, monkeypatch, runs_root):
    with monkeypatch.context() as patch:
        patch.setattr(embed_write.KnownVectors, "keep", Stops(None, 0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            call("toy", name="stopped")
    shutil.rmtree(runs_root / "train/first/model")
    with pytest.raises(CheckpointError, match="--resume: .*stopped was started with the model .*, which is gone or another"):
        call(resume=True, name="stopped")


def test_a_run_whose_last_steps_fail_keeps_what_it_embedded(call, monkeypatch, decoded):
    def unreachable(*given, **named):
        raise EmbeddingError("lance:x: cannot be written; make room")

    with monkeypatch.context() as patch:
        patch.setattr("clapkit.steps.embed_outcome._push", unreachable)
        with pytest.raises(EmbeddingError, match="cannot be written"):
            call("toy", name="stopped", push="lance:x")
        decoded.clear()
        with pytest.raises(EmbeddingError, match="cannot be written"):
            call(resume=True, name="stopped")
    assert decoded == []


def test_a_run_that_embedded_nothing_leaves_nothing(call, tmp_path, runs_root):
    (tmp_path / "bad.wav").write_bytes(b"nonsense")
    with pytest.raises(Exception, match="none of 1 clips can be embedded; the first reason: .*bad.wav"):
        call(tmp_path / "bad.wav", name="bad")
    assert not (runs_root / "embed/bad").exists()


def test_a_cache_serves_other_runs_with_the_same_sounds_model_and_policy(call, tmp_path, decoded, corpus):
    cache = tmp_path / "shared/vectors.sqlite"
    first, _ = call("toy", name="first", cache=cache)
    decoded.clear()
    shutil.copytree(corpus.root, tmp_path / "moved", ignore=shutil.ignore_patterns("*.jsonl"))
    second, result = call(tmp_path / "moved", name="second", cache=cache)
    assert decoded == []
    assert result["counts"] == {"audio": 6}
    vectors = {row["content"]: bytes(vector) for row, vector in rows(first)}
    assert all(vectors[row["content"]] == bytes(vector) for row, vector in rows(second))
    call(tmp_path / "moved", name="third", cache=cache, pool="none")
    assert len(decoded) == 6


def rows(run_dir):
    _, table = open_table(run_dir.path, "audio")
    return list(zip(table.rows(range(len(table))), table.vectors, strict=True))


def test_a_cache_that_is_none_is_named(call, tmp_path, runs_root):
    (tmp_path / "notes.txt").write_text("no cache at all " * 100)
    with pytest.raises(EmbeddingError, match="notes.txt: is no cache"):
        call("toy", name="x", cache=tmp_path / "notes.txt")
    assert not (runs_root / "embed/x").exists()


def test_what_a_run_did_not_finish_is_no_table(call, monkeypatch, runs_root):
    with monkeypatch.context() as patch:
        patch.setattr("clapkit.steps.embed_outcome._push", Stops(None, 0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            call("toy", name="stopped", push="lance:x")
        table = runs_root / "embed/stopped/table.json"
        assert json.loads(table.read_text())["generation"] == 0
        patch.setattr(inputs, "load_model", Stops(None, 0, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            call(resume=True, name="stopped")
    assert not table.exists()


def test_an_address_or_index_that_was_mistyped_costs_no_second_embedding(call, decoded, tmp_path, runs_root):
    with pytest.raises(ConfigError, match="there are 6 rows; expected at most one list per row"):
        call("toy", modality="audio", name="x", index="ivf", options=("nlist=1000",))
    assert len(decoded) == 6
    decoded.clear()
    _, result = call(name="x", resume=True, index="ivf", options=("nlist=2",))
    assert (decoded, result["indexes"][0]["options"]) == ([], {"nlist": "2"})
    assert json.loads((runs_root / "embed/x/run.json").read_text())["config"]["options"] == ["nlist=2"]
