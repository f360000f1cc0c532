import json
import os
import subprocess
import sys

import numpy as np
import pytest

from clapkit.config import EmbedConfig, RetrieveConfig
from clapkit.errors import AudioError, ConfigError, EmbeddingError, UnknownNameError
from clapkit.steps import embed, inputs, retrieve


@pytest.fixture
def table(runs_root, make_run, reporter):
    """An embed run of the toy corpus."""
    run_dir = make_run("embed", "toy")
    run_dir.finish(embed.run(EmbedConfig(runs_root=runs_root, device="cpu", store="fp32"), run_dir, reporter))
    return run_dir


@pytest.fixture
def search(runs_root, reporter):
    def run(*query, run_dir=None, **options):
        config = RetrieveConfig(query=query, runs_root=runs_root, device="cpu", **options)
        return retrieve.run(config, run_dir, reporter)

    return run


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test when a model is loaded."""

    def refuse(folder, device):
        raise AssertionError("a model was loaded")

    return lambda: monkeypatch.setattr(inputs, "load_model", refuse)


def test_the_result_has_the_documented_form(search, table, runs_root, corpus):
    found = search("a dog is heard", k=2)
    assert list(found) == ["model", "embeddings", "num_items", "results"]
    assert found["num_items"] == 6
    assert found["embeddings"] == str(runs_root / "embed/toy")
    (result,) = found["results"]
    assert result["query"] == "a dog is heard"
    assert [hit["rank"] for hit in result["hits"]] == [1, 2]
    hit = result["hits"][0]
    assert list(hit) == ["rank", "score", "id", "path", "start_s", "end_s", "captions", "labels"]
    assert os.path.isabs(hit["path"])
    assert hit["start_s"] == 0.0
    assert json.loads(json.dumps(found)) is not None


def test_scores_are_the_cosines_of_query_and_items(search, table, model):
    from clapkit.steps.embedding import embed_texts
    from clapkit.types import SilentReporter

    hits = search("rain", k=6)["results"][0]["hits"]
    vectors = np.load(table.path / "audio_emb/audio_emb_0.npy")
    scores = np.sort(vectors @ embed_texts(model, ["rain"], reporter=SilentReporter())[0])[::-1]
    np.testing.assert_allclose([hit["score"] for hit in hits], scores, atol=1e-6)


def test_a_caption_finds_itself_among_the_captions(search, table):
    hits = search("the sound of a bell", target="text", k=1)["results"][0]["hits"]
    assert hits[0]["id"] == "toy/bell"
    assert hits[0]["captions"] == ["the sound of a bell"]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-6)


def test_a_sound_finds_itself(search, table, corpus):
    files = [str(corpus.root / f"{name}.wav") for name in ("wind", "dog")]
    found = search(audio=tuple(files), k=1)
    assert [result["query"] for result in found["results"]] == files
    assert [result["hits"][0]["id"] for result in found["results"]] == ["toy/wind", "toy/dog"]
    assert found["results"][0]["hits"][0]["score"] == pytest.approx(1, abs=1e-5)


def test_queries_of_all_kinds_keep_their_order(search, table, corpus, tmp_path):
    path = tmp_path / "queries.txt"
    path.write_text("rain\n\n wind \n", encoding="utf-8")
    sound = str(corpus.root / "car.wav")
    found = search("dog", "bell", queries=path, audio=(sound,), k=1)
    assert [result["query"] for result in found["results"]] == ["dog", "bell", "rain", "wind", sound]
    assert found["results"][4]["hits"][0]["id"] == "toy/car"


def test_a_filter_limits_what_is_searched(search, table):
    found = search("dog", where="split == 'train'")
    assert found["num_items"] == 2
    assert {hit["id"] for hit in found["results"][0]["hits"]} == {"toy/bird", "toy/wind"}
    assert search("dog", where="'rain_sound' in labels")["results"][0]["hits"][0]["id"] == "toy/rain"
    assert search("dog", where="id == 'nothing'")["results"][0]["hits"] == []


def test_hits_below_the_smallest_score_are_dropped(search, table):
    hits = search("dog", k=6)["results"][0]["hits"]
    threshold = hits[2]["score"]
    kept = search("dog", k=6, min_score=threshold)["results"][0]["hits"]
    assert kept == hits[:3]
    assert search("dog", min_score=1.1)["results"][0]["hits"] == []


def test_a_repeated_query_needs_no_model_and_gives_the_same_answer(search, table, no_model):
    first = search("dog", "rain")
    no_model()
    assert search("rain", "dog")["results"][::-1] == first["results"]
    with pytest.raises(AssertionError, match="a model was loaded"):
        search("dog", "something new")


def test_a_damaged_cache_is_computed_again(search, table, query_cache_dir, no_model):
    first = search("dog")
    (path,) = query_cache_dir.rglob("*.npy")
    path.write_bytes(b"damaged")
    assert search("dog") == first
    no_model()
    assert search("dog") == first


def test_a_warm_query_loads_neither_torch_nor_pandas(search, table, runs_root):
    search("dog")
    code = (
        "import sys; from pathlib import Path; from clapkit.config import RetrieveConfig; from clapkit.steps import retrieve;"
        "from clapkit.types import SilentReporter;"
        "found = retrieve.run(RetrieveConfig(query=('dog',), runs_root=Path(sys.argv[1])), None, SilentReporter());"
        "assert found['results'][0]['hits'];"
        "print(sorted({'torch', 'pandas', 'transformers', 'scipy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs_root)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_a_changed_model_is_refused_even_for_a_cached_query(search, table, runs_root):
    search("dog")
    config = runs_root / "train/first/model/config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(EmbeddingError, match="but .* now holds"):
        search("dog")


def test_a_run_directory_records_what_was_searched(search, table, make_run):
    run_dir = make_run("retrieve", "one")
    run_dir.finish(search("dog", run_dir=run_dir))
    assert run_dir.record["inputs"][0]["path"] == str(table.path / "table.json")
    assert run_dir.record["device"] == "cpu"
    assert run_dir.result["results"][0]["query"] == "dog"


def test_a_table_without_captions_cannot_be_searched_for_them(search, runs_root, make_run, reporter):
    run_dir = make_run("embed", "sounds")
    config = EmbedConfig(runs_root=runs_root, device="cpu", modality="audio")
    run_dir.finish(embed.run(config, run_dir, reporter))
    with pytest.raises(EmbeddingError, match="no text table; embed with --modality both"):
        search("dog", target="text", embeddings="sounds")


def test_a_query_is_another_in_another_language(search, table, polyglot, monkeypatch, no_model):
    monkeypatch.setattr(inputs, "load_model", lambda path, device: polyglot)
    english, german = search("gift"), search("gift", lang="de")
    assert polyglot.text_tower.seen == [("gift", "en"), ("gift", "de")]
    scores = [[hit["score"] for hit in found["results"][0]["hits"]] for found in (english, german)]
    assert scores[0] != scores[1]
    no_model()
    assert search("gift", lang="en") == english
    assert search("gift", lang="de") == german


def test_a_language_that_nobody_looks_at_is_refused(search, table, corpus):
    with pytest.raises(
        ConfigError, match="--lang de: the model .* reads all languages alike and is told none; leave --lang out"
    ):
        search("gift", lang="de")
    with pytest.raises(ConfigError, match="--lang de: belongs to queries of words, of which there are none; leave it out"):
        search(audio=(str(corpus.root / "dog.wav"),), lang="de")


def test_a_table_of_a_model_of_transformers_is_searched_and_its_queries_are_kept(
    search, runs_root, make_run, reporter, clap_folder, corpus, no_model
):
    run_dir = make_run("embed", "clap")
    config = EmbedConfig(inputs=("toy",), model=str(clap_folder), runs_root=runs_root, device="cpu", store="fp32")
    run_dir.finish(embed.run(config, run_dir, reporter))
    found = search("a dog is heard", target="text", embeddings="clap", k=1)
    assert found["results"][0]["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert found["results"][0]["hits"][0]["captions"] == ["a dog is heard"]
    sound = search(audio=(str(corpus.root / "car.wav"),), embeddings="clap", k=1)
    assert sound["results"][0]["hits"][0]["id"] == "toy/car"
    no_model()
    assert search("a dog is heard", target="text", embeddings="clap", k=1) == found


@pytest.mark.parametrize(
    ("query", "options", "error", "message"),
    [
        ((), {}, ConfigError, "no query: give words, --audio FILE or --queries FILE"),
        (("dog", "  "), {}, ConfigError, "query: is empty"),
        (("dog",), {"k": 0}, ConfigError, "-k 0: expected at least 1"),
        (("dog",), {"where": "split"}, ConfigError, "is not allowed"),
        (("dog",), {"options": ("x=1",)}, UnknownNameError, "unknown option of index 'exact'"),
        ((), {"audio": ("nowhere.wav",)}, AudioError, "nowhere.wav"),
    ],
)
def test_queries_that_cannot_be_meant_are_refused(search, table, query, options, error, message):
    with pytest.raises(error, match=message):
        search(*query, **options)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (b"\n", "holds no query"), (b"\xff", "UTF-8")])
def test_query_files_that_hold_nothing_are_refused(search, table, tmp_path, content, message):
    path = tmp_path / "q.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        search(queries=path)


def test_one_bad_sound_among_good_ones_is_an_error(search, table, corpus):
    with pytest.raises(AudioError, match="--audio nowhere.wav: "):
        search(audio=(str(corpus.root / "dog.wav"), "nowhere.wav"))
