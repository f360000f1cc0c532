"""``embed vectors.npy``: vectors that something else has made become a table like any other."""

import json

import numpy as np
import pytest

from clapkit.cli import embed as command
from clapkit.cli.execute import execute
from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index.table import open_table
from clapkit.steps import embed


@pytest.fixture
def call(runs_root, reporter):
    """Calls ``clapkit embed`` as the command line does; gives the run directory and the result."""
    reporter.attach = lambda run_dir: None

    def call(*addresses, **given):
        given = {"inputs": [str(address) for address in addresses] or None, "runs_root": runs_root, **given}
        config = command.configure({"device": "cpu", "store": "fp32"} | given)
        return execute("embed", config, ["clapkit", "embed"], embed.run, reporter)

    return call


@pytest.fixture
def vectors(tmp_path):
    """Ten vectors of width 16, twice as long as they should be, with what is known of them beside them."""
    drawn = np.random.default_rng(0).normal(size=(10, 16)).astype(np.float32)
    np.save(tmp_path / "sounds.npy", 2 * drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
    lines = [{"id": f"s{row}", "path": f"/x/{row}.wav", "caption": f"sound {row}"} for row in range(10)]
    (tmp_path / "known.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "sounds.npy"


def test_a_table_is_made_of_vectors_and_what_is_known_of_them(call, vectors):
    run_dir, result = call(vectors, ids=vectors.with_name("known.jsonl"), name="foreign")
    info, table = open_table(run_dir.path, "audio")
    assert (result["counts"], result["width"], result["model"]) == ({"audio": 10}, 16, "foreign")
    assert (info.model_fingerprint, info.model_path) == ("foreign", "")
    np.testing.assert_allclose(table.vectors, np.load(vectors) / 2, atol=1e-6)
    assert table.rows([3])[0]["id"] == "s3"
    assert table.rows([3])[0]["captions"] == ["sound 3"]
    assert [entry["path"] for entry in run_dir.record["inputs"]] == [str(vectors), str(vectors.with_name("known.jsonl"))]


def test_captions_of_others_become_a_text_table(call, vectors):
    run_dir, result = call(vectors, modality="text", name="words", store="fp16")
    assert (result["counts"], result["dtype"]) == ({"text": 10}, "float16")
    assert open_table(run_dir.path, "text")[1].ids == [str(row) for row in range(10)]


def test_the_model_that_made_the_vectors_may_be_named(call, vectors, runs_root):
    run_dir, result = call(vectors, model="first", name="mine")
    info, _ = open_table(run_dir.path, "audio")
    assert info.model_path == str(runs_root / "train/first/model")
    assert (result["model"], info.audio_policy["window_s"]) == ("first", 1.0)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"modality": "both"}, ConfigError, "--modality both: a file of vectors is one table; say audio or text"),
        (
            {"window_s": 1.0, "split": "test"},
            ConfigError,
            "does not go together with --split, --window-s: the vectors are made",
        ),
        ({"shard": "0/2"}, ConfigError, "does not go together with --shard"),
        ({"ids": "nowhere.csv"}, EmbeddingError, "nowhere.csv"),
    ],
)
def test_what_belongs_to_embedding_is_refused(call, vectors, runs_root, given, error, message):
    with pytest.raises(error, match=message):
        call(vectors, name="x", **given)
    assert not (runs_root / "embed/x").exists()


def test_a_model_of_another_width_is_refused(call, vectors, runs_root):
    np.save(vectors, np.eye(5, dtype=np.float32))
    with pytest.raises(ConfigError, match="--model first: makes vectors of width 16, .*sounds.npy holds 5; name the model"):
        call(vectors, name="x", model="first")
    assert not (runs_root / "embed/x").exists()


def test_vectors_that_are_damaged_are_named(call, vectors, runs_root):
    vectors.write_bytes(vectors.read_bytes()[:-7])
    with pytest.raises(EmbeddingError, match="sounds.npy: cannot be read .*cut short"):
        call(vectors, name="x")
    assert not (runs_root / "embed/x").exists()


def test_two_files_of_vectors_stand_alone(call, vectors):
    with pytest.raises(ConfigError, match="a file of vectors stands alone; make one table of each"):
        call(vectors, vectors, name="x")


def test_a_table_of_others_cannot_be_updated(call, vectors):
    call(vectors, name="foreign")
    with pytest.raises(ConfigError, match="holds vectors that something else has made"):
        call(update=True, name="foreign")


def test_a_folder_that_is_called_like_a_file_of_vectors_is_named(call, tmp_path):
    (tmp_path / "parts.npy").mkdir()
    with pytest.raises(ConfigError, match=r"parts.npy: is a folder, expected one .npy file; name the file in it"):
        call(tmp_path / "parts.npy")
