"""What ``ivf`` and ``hnsw`` have in common; exact search is kept out of the way where faiss is what is tested."""

import numpy as np
import pytest

from clapkit import registry
from clapkit.errors import ConfigError, EmbeddingError, ShapeError
from clapkit.index import _faiss, exact

WIDTH = 32
both = pytest.mark.parametrize("name", ["ivf", "hnsw"])


def unit(rows, width=WIDTH, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def index_of(name, vectors, **options):
    index = registry.build("index", name, options)
    index.add(vectors)
    return index


def exact_search(queries, vectors, k, rows=None):
    index = exact.build()
    index.add(vectors)
    return index.search(queries, k, rows=rows)


@pytest.fixture
def no_exact(monkeypatch):
    """Small tables are searched by faiss, too, and whatever faiss leaves to exact search fails."""
    monkeypatch.setattr(_faiss, "_EXACT_ROWS", 0)
    monkeypatch.setattr(_faiss, "_EXACT_SHARE", 0.0)


class NoExact:
    def add(self, vectors):
        pass

    def search(self, queries, k, *, rows=None):
        raise AssertionError("searched exactly")


@pytest.mark.usefixtures("no_exact")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(("name", "options"), [("ivf", {"nlist": 4, "nprobe": 4}), ("hnsw", {"ef_search": 300})])
def test_with_all_effort_the_hits_are_those_of_exact_search(name, options, dtype):
    vectors, queries = unit(300).astype(dtype), unit(20, seed=1)
    index = index_of(name, vectors, **options)
    index._exact = NoExact()
    scores, rows = index.search(queries, 5)
    expected_scores, expected_rows = exact_search(queries, vectors, 5)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)


@pytest.mark.usefixtures("no_exact")
@pytest.mark.parametrize(("name", "options"), [("ivf", {"nlist": 6, "nprobe": 1}), ("hnsw", {"ef_search": 1})])
def test_scores_are_exact_cosines_even_where_hits_are_missing(name, options):
    vectors, queries = unit(300), unit(20, seed=1)
    scores, rows = index_of(name, vectors, **options).search(queries, 5)
    true = (queries.astype(np.float64)[:, None] * vectors[rows].astype(np.float64)).sum(axis=2)
    np.testing.assert_array_equal(scores, true.astype(np.float32))
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.usefixtures("no_exact")
def test_an_index_with_little_effort_misses_hits():
    # Otherwise the tests of recall could not fail.
    vectors, queries = unit(2000), unit(50, seed=1)
    index = index_of("ivf", vectors, nlist=40, nprobe=1)
    scores, _ = index.search(queries, 10)
    true_scores, _ = exact_search(queries, vectors, 10)
    assert (scores >= true_scores[:, -1:]).mean() < 0.5


@pytest.mark.usefixtures("no_exact")
@both
def test_candidates_are_put_into_the_order_of_float32(name):
    # 25 rows within 1e-5 of each other: bytes, whose steps are 8 / sqrt(32) / 127 = 0.011, cannot order them.
    near = unit(1) + 1e-5 * np.random.default_rng(1).normal(size=(25, WIDTH)).astype(np.float32)
    vectors = np.concatenate([unit(200, seed=2), near / np.linalg.norm(near, axis=1, keepdims=True)])
    effort = {"nlist": 2, "nprobe": 2} if name == "ivf" else {"ef_search": 225}
    _, rows = index_of(name, vectors, **effort).search(unit(1), 10)
    np.testing.assert_array_equal(rows, exact_search(unit(1), vectors, 10)[1])


@pytest.mark.usefixtures("no_exact")
@pytest.mark.parametrize(("name", "options"), [("ivf", {"nlist": 30, "nprobe": 1}), ("hnsw", {"ef_search": 1})])
def test_there_are_k_hits_whenever_the_table_has_them(name, options):
    # 1,200 rows in 30 lists: one list has 40 rows in the mean, 400 hits and their margin take 820.
    index = index_of(name, unit(1200), **options)
    index._exact = NoExact()
    scores, rows = index.search(unit(5, seed=1), 400)
    assert rows.shape == (5, 400)
    assert all(len(set(row)) == 400 for row in rows.tolist())
    assert rows.min() >= 0
    assert np.isfinite(scores).all()


@pytest.mark.usefixtures("no_exact")
@both
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_only_wanted_rows_are_found_and_as_well_as_without_a_filter(name, share):
    vectors, queries = unit(3000), unit(40, seed=1)
    wanted = np.flatnonzero(np.random.default_rng(3).random(3000) < share)
    index = index_of(name, vectors)
    index.tune(unit(100, seed=5))
    scores, rows = index.search(queries, 10, rows=wanted)
    assert set(rows.reshape(-1)) <= set(wanted)
    true_scores, _ = exact_search(queries, vectors, 10, rows=wanted)
    assert (scores >= true_scores[:, -1:]).mean() > 0.9


@pytest.mark.usefixtures("no_exact")
@pytest.mark.parametrize(("name", "options"), [("ivf", {"nlist": 60, "nprobe": 3}), ("hnsw", {"ef_search": 30})])
def test_the_fewer_rows_are_wanted_the_greater_the_effort(monkeypatch, name, options):
    index, efforts = index_of(name, unit(3000), **options), []
    ask = index._ask
    monkeypatch.setattr(
        index, "_ask", lambda *given, effort, selector: efforts.append(effort) or ask(*given, effort=effort, selector=selector)
    )
    for wanted in (None, np.arange(0, 3000, 2), np.arange(0, 3000, 15)):
        index.search(unit(1, seed=1), 1, rows=wanted)
    assert efforts == [index.effort, 2 * index.effort, 15 * index.effort]


@both
def test_few_rows_are_searched_exactly(name, monkeypatch):
    monkeypatch.setattr(_faiss, "_EXACT_ROWS", 50)
    index = index_of(name, unit(2000))
    monkeypatch.setattr(index, "_search", NoExact().search)
    queries = unit(3, seed=1)
    wanted = np.arange(0, 2000, 40)
    np.testing.assert_array_equal(
        index.search(queries, 5, rows=wanted)[1], exact_search(queries, unit(2000), 5, rows=wanted)[1]
    )
    with pytest.raises((AssertionError, TypeError)):
        index.search(queries, 5, rows=np.arange(0, 2000, 30))


@pytest.mark.usefixtures("no_exact")
@both
def test_the_effort_is_the_least_that_reaches_the_recall_that_is_asked_for(name):
    vectors, queries = unit(1500), unit(100, seed=1)
    efforts = []
    for target in (0.5, 0.8, 0.99):
        index = index_of(name, vectors, recall=target)
        recall = index.tune(queries)
        scores, _ = index.search(queries, 10)
        true_scores, _ = exact_search(queries, vectors, 10)
        assert recall.mean == pytest.approx((scores >= true_scores[:, -1:]).mean())
        assert recall.mean >= target
        assert recall.num_queries == 100
        efforts.append(index.effort)
    assert efforts == sorted(efforts)
    if name == "ivf":
        below = index_of(name, vectors, nprobe=efforts[1] // 2).tune(queries)
        assert below.mean - below.standard_error < 0.8


@pytest.mark.usefixtures("no_exact")
def test_recall_that_is_measured_with_few_queries_has_to_be_better():
    index = index_of("ivf", unit(1500), nlist=40, recall=0.8)
    for seed in range(5):
        index.effort = None
        recall = index.tune(unit(8, seed=1 + seed))
        assert recall.mean - recall.standard_error >= 0.8


@pytest.mark.usefixtures("no_exact")
@both
def test_an_effort_that_the_user_chose_is_kept_and_its_recall_measured(name):
    index = index_of(name, unit(2000), **({"nprobe": 2} if name == "ivf" else {"ef_search": 17}))
    recall = index.tune(unit(100, seed=1))
    assert index.effort == {"ivf": 2, "hnsw": 17}[name]
    assert 0 < recall.mean < 1


@pytest.mark.usefixtures("no_exact")
def test_a_row_that_stands_in_for_a_query_does_not_count_as_a_hit():
    # Rows of their own: each finds itself in the first list, which says nothing about the others.
    vectors = unit(3000)
    index = index_of("ivf", vectors, nlist=60, nprobe=1)
    own = index.tune().mean
    rows = np.sort(np.random.default_rng(0).permutation(3000)[:500])
    scores, _ = index.search(vectors[rows], 11)
    true_scores, _ = exact_search(vectors[rows], vectors, 11)
    found = (scores >= true_scores[:, -1:]).sum(axis=1)
    assert own == pytest.approx(((found - 1) / 10).mean(), abs=1e-9)


@both
def test_a_search_without_tuning_tunes_with_rows_of_the_table(name, monkeypatch):
    monkeypatch.setattr(_faiss, "_EXACT_ROWS", 100)
    searched, tuned = (index_of(name, unit(1500)) for _ in range(2))
    searched.search(unit(1, seed=1), 3)
    tuned.tune()
    assert searched.effort == tuned.effort


@both
def test_a_small_table_has_perfect_recall_because_it_is_searched_exactly(name):
    index = index_of(name, unit(60))
    recall = index.tune(unit(7, seed=1))
    assert (recall.mean, recall.standard_error, recall.num_queries) == (1.0, 0.0, 7)
    assert index.effort is not None


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_named(name, bad):
    vectors = unit(50)
    vectors[17, 3] = bad
    with pytest.raises(EmbeddingError, match="vectors: row 17 is not finite; embed again"):
        index_of(name, vectors)


@both
def test_queries_and_rows_that_do_not_fit_are_refused(name):
    index = index_of(name, unit(50))
    with pytest.raises(ShapeError, match=r"queries: shape \[32\], expected \[queries, 32\]"):
        index.search(unit(1)[0], 1)
    with pytest.raises(ShapeError, match="rows: 3 to 50, expected rows of a table of 50"):
        index.search(unit(1), 1, rows=np.array([3, 50]))
    with pytest.raises(ShapeError, match="vectors: shape"):
        index_of(name, np.ones(3))


@pytest.mark.usefixtures("no_exact")
@both
def test_a_query_that_is_not_finite_is_refused(name):
    queries = unit(3)
    queries[1] = np.nan
    with pytest.raises(EmbeddingError, match="queries: row 1 holds an infinity or a NaN"):
        index_of(name, unit(200)).search(queries, 3)


@pytest.mark.usefixtures("no_exact")
@both
def test_an_index_of_a_larger_table_is_found_out(name):
    index = index_of(name, unit(300))
    index.attach(index.inner, unit(100), effort=8)
    with pytest.raises(EmbeddingError, match=rf"{name} index: names row \d+ of a table of 100 rows"):
        index.search(unit(20, seed=1), 10)


@both
@pytest.mark.parametrize("recall", [0.0, -1.0, 1.01, float("nan")])
def test_a_recall_that_is_no_share_is_refused(name, recall):
    with pytest.raises(ConfigError, match="option recall=.*expected a share"):
        registry.build("index", name, {"recall": recall})


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("ivf", "nlist", 0),
        ("ivf", "nprobe", -1),
        ("ivf", "iterations", 0),
        ("hnsw", "neighbors", 1),
        ("hnsw", "ef_search", 0),
        ("hnsw", "ef_construction", 0),
        ("hnsw", "threads", 0),
    ],
)
def test_counts_that_are_too_small_are_refused(name, option, value):
    with pytest.raises(ConfigError, match=f"option {option}={value}: expected at least"):
        registry.build("index", name, {option: value})
