import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from clapkit.config import EmbedConfig, RetrieveConfig
from clapkit.encoders import numpy_text
from clapkit.errors import AudioError, ClapkitError, ConfigError, EmbeddingError, NumericalError, ShapeError, UnknownNameError
from clapkit.index import engines
from clapkit.index.engines.lance import LanceEngine
from clapkit.index.stored import build_stored
from clapkit.index.table import open_table
from clapkit.steps import embed, inputs, retrieve
from clapkit.types import SilentReporter

from .conftest import make_table, unit_vectors


@pytest.fixture
def table(runs_root, make_run, reporter):
    """An embed run of the toy corpus."""
    run_dir = make_run("embed", "toy")
    run_dir.finish(embed.run(EmbedConfig(runs_root=runs_root, device="cpu", store="fp32"), run_dir, reporter))
    return run_dir


@pytest.fixture
def search(runs_root, reporter):
    def run(*query, run_dir=None, **options):
        config = RetrieveConfig(query=query, runs_root=runs_root, **{"device": "cpu"} | options)
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
    contract = ["rank", "score", "id", "path", "start_s", "end_s", "captions", "labels"]
    assert sorted(hit) == sorted([*contract, "z_score", "modality", "spans", "also"])
    assert hit["spans"] == [{"start_s": hit["start_s"], "end_s": hit["end_s"], "score": hit["score"]}]
    assert hit["also"] == []
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


@pytest.fixture
def needs_torch(monkeypatch):
    """Towers of clapkit's own are embedded with torch, as those of others are."""
    monkeypatch.setattr(numpy_text, "open_text_encoder", lambda folder: None)


def test_a_repeated_query_needs_no_model_and_gives_the_same_answer(search, table, no_model, needs_torch):
    first = search("dog", "rain")
    no_model()
    assert search("rain", "dog")["results"][::-1] == first["results"]
    with pytest.raises(AssertionError, match="a model was loaded"):
        search("dog", "something new")


def test_a_new_query_of_a_tower_of_ours_needs_no_model_either(search, table, no_model, monkeypatch, query_cache_dir):
    with monkeypatch.context() as context:
        context.setattr(numpy_text, "open_text_encoder", lambda folder: None)
        by_torch = search("a dog is heard", k=6)["results"][0]["hits"]
    shutil.rmtree(query_cache_dir)
    no_model()
    hits = search("a dog is heard", k=6)["results"][0]["hits"]
    assert [hit["id"] for hit in hits] == [hit["id"] for hit in by_torch]
    assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in by_torch], abs=2e-6)


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


def test_a_query_is_another_in_another_language(search, table, polyglot, monkeypatch, no_model, needs_torch):
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
        ((), {}, ConfigError, "no query: give words, --audio, --like, --vectors or --queries"),
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


# Queries that need no model ---------------------------------------------------------------------------------------------


def hits_of(found, number=0):
    return found["results"][number]["hits"]


def ids_of(found, number=0):
    return [hit["id"] for hit in hits_of(found, number)]


@pytest.fixture
def vector_file(tmp_path):
    """Writes vectors as ``.npy``."""

    def write(vectors, name="q.npy"):
        np.save(tmp_path / name, vectors)
        return tmp_path / name

    return write


def test_an_item_is_most_like_itself(search, write_table):
    folder = write_table(audio=unit_vectors(20))
    found = search(like=("7", "/sounds/3.wav"), embeddings=str(folder), k=2)
    assert [result["query"] for result in found["results"]] == ["7", "/sounds/3.wav"]
    assert [ids_of(found, number)[0] for number in (0, 1)] == ["7", "3"]
    assert hits_of(found)[0]["score"] == pytest.approx(1, abs=1e-6)
    assert found["model"] == ""


def test_queries_are_combined_and_lessened_as_by_hand(search, write_table, vector_file):
    vectors = unit_vectors(20)
    folder = str(write_table(audio=vectors))
    # of unit vectors: (v0 + v1) / 2, of which the order is that of v0 + v1
    together = search(like=("0", "1"), embeddings=folder, combine=True, k=20)
    mean = (vectors[0] + vectors[1]) / np.linalg.norm(vectors[0] + vectors[1])
    assert together["results"][0]["query"] == "0 + 1"
    np.testing.assert_allclose([hit["score"] for hit in hits_of(together)], np.sort(vectors @ mean)[::-1], atol=1e-6)
    asked = search(vectors=vector_file(mean * 3), embeddings=folder, k=20)
    assert ids_of(asked) == ids_of(together)


def test_words_and_sounds_are_subtracted(search, write_table, model, model_folder, corpus):
    from clapkit.steps.embedding import embed_clips, embed_texts

    vectors = unit_vectors(20)
    folder = str(write_table(audio=vectors, model=model_folder))
    found = search(
        "dog", minus=("rain",), minus_audio=(str(corpus.root / "car.wav"),), minus_weight=0.7, embeddings=folder, k=20
    )
    dog, rain = embed_texts(model, ["dog", "rain"], reporter=SilentReporter()).astype(np.float64)
    car = embed_clips(model, corpus, reporter=SilentReporter()).vectors[3]
    query = dog - 0.7 * (rain + car) / 2
    scores = np.sort(vectors @ (query / np.linalg.norm(query)))[::-1]
    np.testing.assert_allclose([hit["score"] for hit in hits_of(found)], scores, atol=1e-5)


def test_a_query_less_itself_is_refused(search, write_table, model_folder):
    folder = str(write_table(audio=unit_vectors(3), model=model_folder))
    with pytest.raises(NumericalError, match="^query: 'dog − dog' has norm .*, expected a direction; ask for something else$"):
        search("dog", minus=("dog",), minus_weight=1.0, embeddings=folder)


def test_z_scores_come_from_the_statistics_beside_the_table(search, write_table):
    vectors = unit_vectors(40)
    hits = hits_of(search(like=("5",), embeddings=str(write_table(audio=vectors)), k=3))
    cosines = vectors.astype(np.float64) @ vectors[5]
    expected = (np.sort(cosines)[::-1][:3] - cosines.mean()) / cosines.std()
    np.testing.assert_allclose([hit["z_score"] for hit in hits], expected, atol=1e-4)


def test_sounds_and_captions_are_found_together(search, write_table):
    folder = write_table(audio=unit_vectors(5), text=make_table(unit_vectors(5), modality="text", ids=list("abcde")))
    found = search(like=("2",), target="both", embeddings=str(folder), k=2)
    assert found["num_items"] == 10
    assert [(hit["rank"], hit["modality"], hit["id"]) for hit in hits_of(found)] == [(1, "audio", "2"), (2, "text", "c")]
    with pytest.raises(EmbeddingError, match="no text table"):
        search(like=("2",), target="both", embeddings=str(write_table("sounds", audio=unit_vectors(5))))


def test_both_tables_are_of_one_generation(search, write_table, monkeypatch):
    def write(seed):
        return write_table(audio=unit_vectors(5, seed=seed), text=unit_vectors(5, seed=seed))

    folder, opened = write(0), []

    def open_and_update(place, modality):
        found = open_table(place, modality)
        opened.append(found[0].generation)
        if len(opened) == 1:
            write(1)
        return found

    monkeypatch.setattr(retrieve, "open_table", open_and_update)
    assert hits_of(search(like=("2",), target="both", embeddings=str(folder)))[0]["score"] == pytest.approx(1, abs=1e-6)
    assert opened == [0, 1, 1, 1]


# Tables of others -------------------------------------------------------------------------------------------------------


def test_vectors_of_others_are_searched(search, vector_file, tmp_path):
    vectors = unit_vectors(6)
    library = str(vector_file(vectors * 5, "library.npy"))
    found = search(vectors=vector_file(vectors[4]), embeddings=library, k=2)
    assert (found["embeddings"], found["num_items"], found["model"]) == (library, 6, "")
    assert ids_of(found)[0] == "4"
    assert hits_of(found)[0] | {"path": "", "start_s": None, "captions": []} == hits_of(found)[0]
    assert hits_of(found)[0]["z_score"] is not None
    (tmp_path / "names.csv").write_text("id,path\n" + "".join(f"n{row},/x/{row}.wav\n" for row in range(6)))
    named = search(like=("n2",), embeddings=library, ids=tmp_path / "names.csv", k=1, where="path == '/x/2.wav'")
    assert ids_of(named) == ["n2"]


def test_hybrid_search_follows_the_names_that_are_given(search, vector_file, tmp_path, model_folder):
    library = str(vector_file(unit_vectors(4), "library.npy"))
    for word, row in (("glass", 1), ("door", 3)):
        names = [word if number == row else f"x{number}" for number in range(4)]
        (tmp_path / "names.csv").write_text("id\n" + "\n".join(names))
        found = search(word, embeddings=library, ids=tmp_path / "names.csv", hybrid=True, model=str(model_folder), k=4)
        # found by its word, it gains at least 1 / 61 over its rank by vector: first or second of four
        assert word in ids_of(found)[:2]


def test_words_need_the_model_of_the_vectors(search, vector_file, model_folder, model):
    from clapkit.steps.embedding import embed_texts

    library = str(vector_file(embed_texts(model, ["dog", "rain"], reporter=SilentReporter()), "library.npy"))
    with pytest.raises(EmbeddingError, match="model that made these vectors is not known; name it with --model, or ask with"):
        search("rain", embeddings=library)
    found = search("rain", embeddings=library, model=str(model_folder), k=1)
    assert ids_of(found) == ["1"]
    assert hits_of(found)[0]["score"] == pytest.approx(1, abs=1e-5)


def test_a_model_of_another_width_is_one_line(search, vector_file, model_folder):
    with pytest.raises(ClapkitError, match=r"width 8|\[queries, 8\]|expected \[.*8\]"):
        search("rain", embeddings=str(vector_file(unit_vectors(3, width=8), "library.npy")), model=str(model_folder))


def test_vectors_of_another_width_are_one_line(search, write_table, vector_file):
    with pytest.raises(ShapeError, match="--vectors: width 8, the table has 16; pass vectors of its model"):
        search(vectors=vector_file(unit_vectors(1, width=8)), embeddings=str(write_table(audio=unit_vectors(3))))


def test_a_folder_of_numbered_parts_is_searched(search, tmp_path):
    (tmp_path / "theirs/img_emb").mkdir(parents=True)
    np.save(tmp_path / "theirs/img_emb/img_emb_0.npy", unit_vectors(3))
    assert ids_of(search(like=("1",), embeddings=str(tmp_path / "theirs"), k=1)) == ["1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "both"}, "--target both: vectors of others are one table; name --target audio or text"),
        ({"index": "ivf"}, "--index ivf: belongs to an embed run"),
    ],
)
def test_what_vectors_of_others_have_not_is_refused(search, vector_file, options, message):
    with pytest.raises(ConfigError, match=message):
        search(like=("1",), embeddings=str(vector_file(unit_vectors(3), "library.npy")), **options)


@pytest.mark.parametrize("options", [{"ids": "x.csv"}, {"model": "first"}])
def test_a_table_of_ours_knows_its_ids_and_its_model(search, write_table, options):
    with pytest.raises(ConfigError, match="--ids and --model: belong to --embeddings FILE.npy"):
        search(like=("1",), embeddings=str(write_table(audio=unit_vectors(3))), **options)


# Windows, words, copies -------------------------------------------------------------------------------------------------


def test_a_table_of_windows_gives_files_with_spans(search, runs_root, make_run, reporter, corpus):
    run_dir = make_run("embed", "windows")
    config = EmbedConfig(runs_root=runs_root, device="cpu", modality="audio", pool="none", window_s=0.5, hop_s=0.1)
    run_dir.finish(embed.run(config, run_dir, reporter))
    sound = (str(corpus.root / "wind.wav"),)
    found = search(audio=sound, embeddings="windows", k=6)
    assert found["num_items"] > 40
    by_clip = [(hit["id"], hit["start_s"], hit["end_s"]) for hit in hits_of(found)]
    for place, (name, start, end) in enumerate(by_clip):
        for other, other_start, other_end in by_clip[:place]:
            assert name != other or min(end, other_end) - max(start, other_start) <= 0.25 + 1e-9
    files = hits_of(search(audio=sound, embeddings="windows", group_by="file", k=6))
    assert sorted(hit["id"] for hit in files) == sorted(clip.id for clip in corpus)
    assert all(1 <= len(hit["spans"]) <= 3 for hit in files)
    assert max(span["end_s"] - span["start_s"] for hit in files for span in hit["spans"]) > 0.5


def test_words_of_names_are_found_with_their_cosines(search, write_table, model_folder):
    vectors = unit_vectors(30)
    paths = ["/sounds/BrokenGlass.wav" if row == 11 else f"/sounds/{row}.wav" for row in range(30)]
    folder = str(write_table(audio=make_table(vectors, paths=paths), model=model_folder))
    plain = search("glass", embeddings=folder, k=30)
    found = search("glass", embeddings=folder, k=30, hybrid=True)
    assert ids_of(found).index("11") <= 1
    assert {hit["id"]: hit["score"] for hit in hits_of(found)} == pytest.approx(
        {hit["id"]: hit["score"] for hit in hits_of(plain)}, abs=1e-6
    )
    assert os.listdir(os.path.join(folder, "index")) == ["fulltext_audio_0.sqlite"]
    filtered = search('glass" OR *', embeddings=folder, hybrid=True, where="id in ['1', '2']")
    assert sorted(ids_of(filtered)) == ["1", "2"]
    assert search("glass", embeddings=folder, hybrid=True, where="id == 'none'")["results"][0]["hits"] == []


def test_copies_are_folded(search, write_table):
    table = make_table(unit_vectors(4)[[0, 1, 0, 2]], contents=["a", "b", "a", "c"])
    hits = hits_of(search(like=("0",), embeddings=str(write_table(audio=table)), fold=True))
    assert [hit["also"] for hit in hits] == [["/sounds/2.wav"], [], []]
    assert len(hits) == 3


# Indexes and engines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def indexed(write_table):
    """The folder of a table of 300 vectors with an IVF index."""
    folder = write_table(audio=unit_vectors(300))
    info, table = open_table(folder, "audio")
    build_stored("ivf", folder, table, info=info, options={}, queries=None, seed=0)
    return str(folder)


def test_a_stored_index_finds_what_is_near(search, indexed):
    exact, near = (search(like=("7",), embeddings=indexed, k=10, index=index) for index in ("exact", "ivf"))
    assert hits_of(near)[0] == hits_of(exact)[0]
    assert len(set(ids_of(near)) & set(ids_of(exact))) >= 8


@pytest.mark.parametrize("options", [{"where": "id in ['3', '4', '5']"}, {"fold": True}, {"group_by": "file"}, {"k": 1000}])
def test_a_stored_index_does_what_the_exact_one_does(search, indexed, options):
    hits = hits_of(search(like=("7",), embeddings=indexed, index="ivf", **options))
    expected = hits_of(search(like=("7",), embeddings=indexed, **options))
    assert hits[0] == expected[0]
    assert {hit["id"] for hit in hits} <= {str(row) for row in range(300)}


def test_a_stored_index_joins_rankings_too(search, write_table, model_folder):
    paths = ["/glass.wav" if row == 11 else f"/{row}.wav" for row in range(300)]
    folder = write_table(audio=make_table(unit_vectors(300), paths=paths), model=model_folder)
    info, table = open_table(folder, "audio")
    build_stored("ivf", folder, table, info=info, options={}, queries=None, seed=0)
    for options in ({}, {"where": "id != '3'"}):
        found = search("glass", embeddings=str(folder), index="ivf", hybrid=True, k=5, **options)
        assert ids_of(found).index("11") <= 1


def test_an_index_that_is_not_there_or_gets_options_is_refused(search, indexed, write_table):
    with pytest.raises(ConfigError, match="-O nprobe: the index was built with options of its own; leave -O out"):
        search(like=("7",), embeddings=indexed, index="ivf", options=("nprobe=3",))
    with pytest.raises(EmbeddingError, match="ivf"):
        search(like=("7",), embeddings=str(write_table("bare", audio=unit_vectors(3))), index="ivf")
    write_table(audio=unit_vectors(300, seed=1))
    with pytest.raises(EmbeddingError, match="index older than the table"):
        search(like=("7",), embeddings=indexed, index="ivf")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"index": "redis:x"}, "unknown scheme 'redis'; known: lance:DIR"),
        ({"index": "lance:x", "embeddings": "toy"}, "the engine holds the vectors; leave out --embeddings, --ids and -O"),
        ({"index": "lance:x", "options": ("a=1",)}, "the engine holds the vectors"),
        ({"index": "lance:x", "where": "split"}, "is not allowed"),
    ],
)
def test_engines_that_cannot_be_meant_are_refused(search, options, message):
    with pytest.raises(ConfigError, match=message):
        search("dog", **options)


def test_a_table_in_an_engine_is_searched(search, write_table, model_folder, tmp_path, vector_file):
    pytest.importorskip("lancedb", reason="pip install 'clapkit[lance]'")
    vectors = unit_vectors(20)
    info, table = open_table(write_table(audio=vectors, model=model_folder), "audio")
    address = f"lance:{tmp_path / 'engine'}"
    engine = engines.parse(address)
    assert isinstance(engine, LanceEngine)
    engine.push(table, info, reporter=SilentReporter())
    engine.close()
    found = search("rain", vectors=vector_file(vectors[7]), index=address, k=3)
    assert (found["embeddings"], found["num_items"], found["model"]) == (address, 20, str(model_folder))
    exact = search("rain", vectors=vector_file(vectors[7]), embeddings=str(info.directory), k=3)
    for number in (0, 1):
        assert ids_of(found, number) == ids_of(exact, number)
        scores = [[hit["score"] for hit in hits_of(one, number)] for one in (found, exact)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert {hit["z_score"] for hit in hits_of(found)} == {None}
    with pytest.raises(EmbeddingError, match="--like 7: an engine does not give vectors back; pass the sound to --audio"):
        search(like=("7",), index=address)


# What is left behind ----------------------------------------------------------------------------------------------------


def test_what_was_written_is_part_of_the_result(search, table, tmp_path, corpus):
    found = search("dog", k=2, copy_to=tmp_path / "found", csv=tmp_path / "hits.csv", playlist=tmp_path / "hits.m3u8")
    assert list(found) == ["model", "embeddings", "num_items", "results", "csv", "playlist", "copied", "not_copied"]
    names = [f"{hit['rank']:03d} {os.path.basename(hit['path'])}" for hit in hits_of(found)]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == names
    original = (corpus.root / names[0].split(" ")[1]).read_bytes()
    assert (tmp_path / "found" / names[0]).read_bytes() == original


def test_lines_are_answered_with_one_table_and_one_model(write_table, model_folder, runs_root, reporter, monkeypatch):
    config = RetrieveConfig(embeddings=str(write_table(audio=unit_vectors(5), model=model_folder)), runs_root=runs_root, k=2)
    opened = []
    monkeypatch.setattr(retrieve, "open_table", lambda *where: opened.append(where) or open_table(*where))
    answers = list(retrieve.converse(config, ["dog", "@nowhere.wav", "rain"], reporter))
    assert len(opened) == 1
    assert [isinstance(answer, ClapkitError) for answer in answers] == [False, True, False]
    assert answers[2] == retrieve.run(RetrieveConfig(**vars(config) | {"query": ("rain",)}), None, reporter)
