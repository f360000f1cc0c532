import json

import numpy as np
import pytest

from clapkit.config import RetrieveConfig
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.index.statistics import statistics_of
from clapkit.index.table import EmbeddingTable, TableInfo
from clapkit.steps import search
from clapkit.steps.search import EngineSource, TableSource, Wish, as_json, find

from .conftest import make_table, unit_vectors

# Cosines 1, 0.8, 0.6 and 0 with the first axis.
FALLING = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], dtype=np.float32)
FIRST_AXIS = np.array([[1, 0]], dtype=np.float32)


@pytest.fixture
def make_source(tmp_path):
    """Makes a source of a table in memory, with its statistics."""

    def make(table, *, index="exact", options=(), rows=None, statistics=True, name=""):
        info = TableInfo(table.width, "float32", {table.modality: len(table)}, "", "", id=name)
        return TableSource(
            table,
            info,
            index=index,
            options=options,
            folder=None,
            rows=None if rows is None else np.array(rows, dtype=np.int64),
            statistics=statistics_of(table) if statistics else None,
            cache=tmp_path / "cache",
        )

    return make


def first_hits(source, query=FIRST_AXIS, *, words="", **wish):
    return find([source], query, [words], Wish(**({"k": 10} | wish)))[0]


def ids(hits):
    return [hit.id for hit in hits]


# Scores -----------------------------------------------------------------------------------------------------------------


def test_hits_are_ranked_by_cosine(make_source):
    hits = first_hits(make_source(make_table(FALLING[::-1])), k=3)
    assert [(hit.rank, hit.id) for hit in hits] == [(1, "3"), (2, "2"), (3, "1")]
    np.testing.assert_allclose([hit.score for hit in hits], [1, 0.8, 0.6], atol=1e-6)


def test_z_scores_are_deviations_from_the_mean_over_all_items_whatever_is_filtered(make_source):
    vectors = unit_vectors(50)
    query = unit_vectors(1, seed=1)
    cosines = vectors.astype(np.float64) @ query[0]
    hits = first_hits(make_source(make_table(vectors), rows=range(20)), query, k=5)
    expected = (np.sort(cosines[:20])[::-1][:5] - cosines.mean()) / cosines.std()
    np.testing.assert_allclose([hit.z_score for hit in hits], expected, atol=1e-4)


def test_a_table_that_nobody_counted_or_of_one_item_has_no_z_scores(make_source):
    assert [hit.z_score for hit in first_hits(make_source(make_table(FALLING), statistics=False), k=2)] == [None, None]
    assert [hit.z_score for hit in first_hits(make_source(make_table(FALLING[:1])))] == [None]


def test_more_hits_than_items_are_all_items(make_source):
    assert ids(first_hits(make_source(make_table(FALLING)), k=1000)) == ["0", "1", "2", "3"]


def test_low_scores_are_dropped(make_source):
    source = make_source(make_table(FALLING))
    assert ids(first_hits(source, min_score=0.7)) == ["0", "1"]
    assert first_hits(source, min_score=1.1) == []


def test_where_nothing_is_wanted_nothing_is_found(make_source):
    for wish in ({}, {"hybrid": True}, {"fold": True, "group_by": "file"}):
        assert first_hits(make_source(make_table(FALLING), rows=[]), words="dog", **wish) == []


def test_k_is_at_least_one():
    with pytest.raises(ConfigError, match="^-k 0: expected at least 1$"):
        Wish.of(RetrieveConfig(k=0))


# Windows, files and copies ----------------------------------------------------------------------------------------------


@pytest.fixture
def windows(make_source):
    """One file with windows 0-2 (cosine 1), 1-3 (0.95) and 6-8 s (0.98), and another file (0.6)."""
    cosines = np.array([1, 0.95, 0.98, 0.6])
    vectors = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    spans = [(0.0, 2.0), (0.5, 2.5), (6.0, 8.0), (0.0, 2.0)]
    return make_source(make_table(vectors, ids=["a", "a", "a", "b"], paths=["/a.wav"] * 3 + ["/b.wav"], spans=spans))


def test_a_window_over_a_better_one_is_no_hit(windows):
    hits = first_hits(windows)
    assert [(hit.id, hit.start_s, hit.end_s) for hit in hits] == [("a", 0.0, 2.0), ("a", 6.0, 8.0), ("b", 0.0, 2.0)]


def test_a_file_is_one_hit_with_its_best_spans(windows):
    first, second = first_hits(windows, group_by="file")
    assert [(span.start_s, span.end_s) for span in first.spans] == [(0.0, 2.5), (6.0, 8.0)]
    np.testing.assert_allclose([span.score for span in first.spans], [1, 0.98], atol=1e-6)
    assert (first.id, first.start_s, first.end_s, second.id) == ("a", 0.0, 2.5, "b")


def test_enough_files_are_found_behind_many_windows_of_one(make_source):
    vectors = np.concatenate([np.tile(FALLING[0], (40, 1)), FALLING[1:]])
    spans = [(float(start), start + 1.0) for start in range(40)] + [(0.0, 1.0)] * 3
    source = make_source(make_table(vectors, paths=["/long.wav"] * 40 + ["/1.wav", "/2.wav", "/3.wav"], spans=spans))
    assert [hit.path for hit in first_hits(source, k=3, group_by="file")] == ["/long.wav", "/1.wav", "/2.wav"]


def test_copies_are_one_hit_that_names_the_others(make_source):
    vectors = FALLING[[0, 1, 0, 2]]
    table = make_table(vectors, contents=["x", "y", "x", "z"])
    hits = first_hits(make_source(table), fold=True, k=3)
    assert [(hit.id, hit.also) for hit in hits] == [("0", ("/sounds/2.wav",)), ("1", ()), ("3", ())]
    assert ids(first_hits(make_source(table), k=3)) == ["0", "2", "1"]


def test_copies_without_a_hash_are_known_by_their_vectors(make_source):
    hits = first_hits(make_source(make_table(FALLING[[0, 1, 0]])), fold=True)
    assert [(hit.id, hit.also) for hit in hits] == [("0", ("/sounds/2.wav",)), ("1", ())]


@pytest.mark.parametrize("wish", [{}, {"fold": True}, {"group_by": "file"}, {"hybrid": True}])
def test_items_of_which_nothing_is_known_are_hits_too(make_source, wish):
    nothing = {"paths": [None] * 4, "spans": [(None, None)] * 4}
    hits = first_hits(make_source(make_table(FALLING, **nothing)), words="dog", **wish)
    assert hits[0].path == ""
    assert hits[0].start_s is None
    assert json.loads(json.dumps(as_json(hits[0])))["captions"] == []


# Several tables ---------------------------------------------------------------------------------------------------------


def test_sounds_and_captions_are_in_one_order_by_how_unusual_they_are(make_source):
    # Sounds: cosines 0.3, 0.1, 0.1, 0.1: mean 0.15, deviation 0.0866, z of the first 1.73.
    # Captions: cosines 0.9, 0.8, 0.7, 0.8: mean 0.8, deviation 0.0707, z of the first 1.41, of the next 0.
    sounds, captions = ([[c, (1 - c * c) ** 0.5] for c in some] for some in ([0.3, 0.1, 0.1, 0.1], [0.9, 0.8, 0.7, 0.8]))
    sources = [make_source(make_table(sounds)), make_source(make_table(captions, modality="text"))]
    (hits,) = find(sources, FIRST_AXIS, [""], Wish(k=3))
    assert [(hit.rank, hit.modality, hit.id) for hit in hits] == [(1, "audio", "0"), (2, "text", "0"), (3, "text", "1")]
    np.testing.assert_allclose([hit.z_score for hit in hits], [1.732, 1.414, 0], atol=1e-3)


def test_hits_with_and_without_z_scores_are_ordered_by_cosine(make_source):
    sources = [make_source(make_table(FALLING[1:2])), make_source(make_table(FALLING, modality="text"))]
    (hits,) = find(sources, FIRST_AXIS, [""], Wish(k=10))
    assert [(hit.modality, hit.id) for hit in hits[:3]] == [("text", "0"), ("audio", "0"), ("text", "1")]


def test_hits_of_queries_stay_with_their_queries(make_source):
    sources = [make_source(make_table(FALLING)), make_source(make_table(FALLING, modality="text"))]
    queries = np.array([[1, 0], [0, 1]], dtype=np.float32)
    together = find(sources, queries, ["", ""], Wish(k=4))
    assert together == [find(sources, query[None], [""], Wish(k=4))[0] for query in queries]
    assert ids(together[0])[:2] == ["0", "0"]
    assert ids(together[1])[:2] == ["3", "3"]


def test_what_is_known_of_items_is_read_once_for_thousands_of_queries(make_source, monkeypatch):
    source = make_source(make_table(unit_vectors(40, width=4)))
    calls = []
    read = EmbeddingTable.rows
    monkeypatch.setattr(EmbeddingTable, "rows", lambda table, wanted: calls.append(len(wanted)) or read(table, wanted))
    found = find([source], unit_vectors(1000, width=4, seed=1), [""] * 1000, Wish(k=3))
    assert len(found) == 1000
    assert len(calls) == 1


# Words ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def named(make_source):
    """Fifty sounds; the last one is far from the query and is called glass."""
    vectors = np.concatenate([np.tile(FALLING[0], (49, 1)), [[-1.0, 0.0]]])
    paths = [f"/sounds/{number}.wav" for number in range(49)] + ["/sounds/BrokenGlass.wav"]
    return make_source(make_table(vectors, paths=paths), name="named")


def test_a_word_that_only_a_file_name_has_is_found(named):
    assert "49" not in ids(first_hits(named, words="glass breaks"))
    hits = first_hits(named, words="glass breaks", hybrid=True)
    assert "49" in ids(hits)[:2]
    assert hits[ids(hits).index("49")].score == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("words", ['"', "glass*", "NEAR(", "AND OR NOT", 'path:"x"', "-", "(glass", "'; DROP TABLE words", ""])
def test_signs_that_mean_something_to_a_database_are_harmless(named, words):
    hits = first_hits(named, words=words, hybrid=True, k=3)
    assert len(hits) == 3
    assert ("49" in ids(hits)) == ("glass" in words)


def test_without_words_the_order_is_that_of_the_vectors(make_source):
    table = make_table(unit_vectors(30))
    query = unit_vectors(1, seed=1)
    assert first_hits(make_source(table, name="x"), query, hybrid=True) == first_hits(make_source(table), query)


def test_words_find_only_what_the_filter_leaves(make_source, named):
    filtered = make_source(named._table, rows=range(10), name="named")
    hits = first_hits(filtered, words="glass", hybrid=True, k=50)
    assert ids(hits) == [str(number) for number in range(10)]


def test_joined_rankings_keep_the_smallest_score(named):
    assert ids(first_hits(named, words="glass", hybrid=True, min_score=0.0, k=2)) == ["0", "1"]


# Back ends --------------------------------------------------------------------------------------------------------------


def test_an_approximate_index_belongs_to_a_folder(make_source):
    with pytest.raises(ConfigError, match="--index ivf: belongs to an embed run, these vectors are a file; leave --index out"):
        make_source(make_table(FALLING), index="ivf")
    with pytest.raises(UnknownNameError, match="unknown index 'ivv'.*did you mean"):
        make_source(make_table(FALLING), index="ivv")
    with pytest.raises(UnknownNameError, match="index 'exact'"):
        make_source(make_table(FALLING), options=("x=1",))


class FakeEngine:
    """Two rows that are always found."""

    def __init__(self):
        self.asked = []
        known = {"captions": None, "labels": None, "start_s": None, "end_s": None, "content": None}
        self.rows = [known | {"id": name, "path": f"/{name}.wav"} for name in "ab"]

    def count(self):
        return len(self.rows)

    def search(self, queries, k, *, where=None):
        self.asked.append((k, where))
        return [list(zip((0.9, 0.5), self.rows, strict=True))[:k] for _ in queries]


def test_what_an_engine_finds_are_hits_without_z_scores():
    engine = FakeEngine()
    source = EngineSource(engine, modality="audio", where="split == 'test'")
    found = find([source], np.concatenate([FIRST_AXIS, FIRST_AXIS]), ["", ""], Wish(k=1))
    assert [[(hit.rank, hit.id, hit.z_score) for hit in hits] for hits in found] == [[(1, "a", None)]] * 2
    assert ids(first_hits(source, group_by="file")) == ["a", "b"]
    assert engine.asked[0] == (1, "split == 'test'")


def test_an_engine_can_neither_search_words_nor_compare_vectors():
    source = EngineSource(FakeEngine(), modality="audio", where=None)
    with pytest.raises(ConfigError, match="--hybrid: needs the names and captions of a table"):
        first_hits(source, words="dog", hybrid=True)
    with pytest.raises(ConfigError, match="--fold: the engine does not give vectors back; leave --fold out"):
        first_hits(source, fold=True)


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("CLAPKIT_CACHE", str(tmp_path / "here"))
    assert search.cache_folder() == tmp_path / "here"
