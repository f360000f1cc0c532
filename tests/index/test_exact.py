import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit import registry
from clapkit.errors import EmbeddingError, ShapeError
from clapkit.index import _half, _selection, exact


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def index_of(vectors):
    index = registry.build("index", "exact")
    index.add(vectors)
    return index


def naive(queries, vectors, k):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :k]


@pytest.fixture(params=["multiplied", "scanned"])
def way(request, monkeypatch):
    """Both ways through float16, with blocks small enough that a table of a few rows has several."""
    monkeypatch.setattr(exact, "_FEWEST_SCANNED_ROWS", 1 if request.param == "scanned" else 1 << 40)
    monkeypatch.setattr(exact, "_MOST_SCANNED_QUERIES", 1 << 40)
    monkeypatch.setattr(exact, "_BLOCK_ROWS", 7)
    monkeypatch.setattr(exact, "_SCANNED_BLOCK_ROWS", 11)
    monkeypatch.setattr(exact, "_FIRST_BLOCK_ROWS", 5)
    monkeypatch.setattr(exact, "_FIRST_PRODUCT_ROWS", 6)
    monkeypatch.setattr(_selection, "_GROUP_ROWS", 3)  # blocks of 7 rows are two groups and a row
    return request.param


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_hits_are_those_of_a_full_sort(way, dtype):
    generator = np.random.default_rng(0)
    vectors, queries = unit(generator.normal(size=(300, 16))).astype(dtype), unit(generator.normal(size=(9, 16)))
    index = index_of(vectors)
    for _ in range(2):  # the second search knows that all numbers are finite
        scores, rows = index.search(queries, 5)
        np.testing.assert_array_equal(rows, naive(queries, vectors, 5))
        expected = np.einsum("qkd,qd->qk", vectors[rows].astype(np.float64), queries)
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert (np.diff(scores, axis=1) <= 0).all()


@settings(max_examples=25, deadline=None)
@given(
    num_items=st.integers(1, 60),
    width=st.integers(1, 21),
    num_queries=st.integers(1, 6),
    k=st.integers(1, 70),
    num_different=st.integers(1, 60),
    dtype=st.sampled_from(["float16", "float32"]),
    share=st.sampled_from([None, 0.0, 0.1, 0.5, 1.0]),
    scanned=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape_with_any_duplicates_and_filter_is_sorted_by_score_and_then_by_row(
    num_items, width, num_queries, k, num_different, dtype, share, scanned, seed
):
    generator = np.random.default_rng(seed)
    different = unit(generator.normal(size=(num_different, width)))
    vectors = different[generator.integers(0, num_different, num_items)].astype(dtype)
    queries = unit(generator.normal(size=(num_queries, width)))
    rows = None if share is None else np.flatnonzero(generator.random(num_items) < share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_FEWEST_SCANNED_ROWS", 1 if scanned else 1 << 40)
        patch.setattr(exact, "_SCANNED_BLOCK_ROWS", 8)
        patch.setattr(exact, "_FIRST_BLOCK_ROWS", 3)
        patch.setattr(exact, "_BLOCK_ROWS", 8)
        index = index_of(vectors)
        for _ in range(2):
            scores, found = index.search(queries, k, rows=rows)
            wanted = np.arange(num_items) if rows is None else rows
            expected = wanted[naive(queries, vectors[wanted], k)]
            np.testing.assert_array_equal(found, expected)
            assert scores.dtype == np.float32
            assert scores.shape == found.shape == (num_queries, min(k, len(wanted)))


def test_equal_vectors_come_in_the_order_of_their_rows(way):
    generator = np.random.default_rng(1)
    three = unit(generator.normal(size=(3, 33)))
    vectors = three[np.arange(50) % 3].astype(np.float16)
    index = index_of(vectors)
    for _ in range(2):
        scores, rows = index.search(three, 20)
        for query in range(3):
            assert rows[query, :16].tolist() == list(range(query, 50, 3))[:16]
            assert len(set(scores[query, :16])) == 1


def test_thousands_of_equal_vectors_keep_their_order_across_blocks(monkeypatch):
    monkeypatch.setattr(exact, "_SCANNED_BLOCK_ROWS", 2048)
    vectors = np.repeat(unit(np.random.default_rng(4).normal(size=(2, 24))), 10_000, axis=0).astype(np.float16)
    queries = vectors[[0, -1]].astype(np.float32)
    for fewest in (1, 1 << 40):
        monkeypatch.setattr(exact, "_FEWEST_SCANNED_ROWS", fewest)
        index = index_of(vectors)
        for _ in range(2):
            _, rows = index.search(queries, 12)
            assert rows.tolist() == [list(range(12)), list(range(10_000, 10_012))]


def test_scores_closer_than_the_rounding_of_their_sums_are_in_order(way):
    # 512 products summed in single precision are off by more than 2 ** -26, by which these differ from row to row
    generator = np.random.default_rng(11)
    vectors = (unit(generator.normal(size=(1, 512))) + 2.0**-26 * generator.normal(size=(60, 512))).astype(np.float32)
    queries = unit(generator.normal(size=(4, 512)))
    _, rows = index_of(vectors).search(queries, 3)
    np.testing.assert_array_equal(rows, naive(queries, vectors, 3))
    summed_in_single_precision = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :3]
    assert (rows != summed_in_single_precision).any()


def test_scores_of_both_signs_are_ordered():
    vectors = np.array([[-1, 0], [0, 1], [1, 0], [-0.6, 0.8], [0, -1]], dtype=np.float32)
    scores, rows = index_of(vectors).search(np.array([[1.0, 0.0]], dtype=np.float32), 5)
    assert rows[0].tolist() == [2, 1, 4, 3, 0]  # cosines 1, 0, -0, -0.6, -1
    np.testing.assert_allclose(scores[0], [1, 0, 0, -0.6, -1], atol=1e-6)


@pytest.mark.parametrize(
    "wanted",
    [
        np.arange(10, 40),
        np.arange(0, 100, 7),
        np.array([], dtype=np.int64),
        np.array([99]),
        np.delete(np.arange(100), [3, 50]),
    ],
    ids=["range", "few", "none", "one", "almost all"],
)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_only_wanted_rows_are_found(way, wanted, dtype):
    generator = np.random.default_rng(2)
    vectors, queries = unit(generator.normal(size=(100, 8))).astype(dtype), unit(generator.normal(size=(3, 8)))
    index = index_of(vectors)
    index.search(queries, 1)
    scores, rows = index.search(queries, 4, rows=wanted)
    expected = wanted[naive(queries, vectors[wanted], 4)] if len(wanted) else np.empty((3, 0))
    np.testing.assert_array_equal(rows, expected)
    assert scores.shape == rows.shape


def test_more_hits_than_items_gives_all_items(way):
    vectors = unit(np.random.default_rng(0).normal(size=(4, 3))).astype(np.float16)
    _, rows = index_of(vectors).search(vectors[:1], 100)
    assert sorted(rows[0].tolist()) == [0, 1, 2, 3]


def test_one_row_is_found(way):
    scores, rows = index_of(np.array([[0.6, 0.8]], dtype=np.float16)).search(np.array([[1.0, 0.0]]), 10)
    assert rows.tolist() == [[0]]
    assert scores[0, 0] == np.float32(np.float16(0.6))


def test_no_rows_and_no_queries_give_no_hits():
    assert index_of(np.empty((0, 3), np.float16)).search(np.ones((2, 3)), 5)[1].shape == (2, 0)
    assert index_of(np.eye(3, dtype=np.float16)).search(np.empty((0, 3)), 2)[1].shape == (0, 2)


def test_queries_in_blocks_find_the_same(monkeypatch):
    generator = np.random.default_rng(3)
    vectors, queries = unit(generator.normal(size=(60, 8))), unit(generator.normal(size=(11, 8)))
    whole = index_of(vectors).search(queries, 3)
    monkeypatch.setattr(exact, "_QUERIES_TOGETHER", 4)
    blocks = index_of(vectors).search(queries, 3)
    np.testing.assert_array_equal(blocks[0], whole[0])
    np.testing.assert_array_equal(blocks[1], whole[1])


@pytest.mark.parametrize("layout", ["columns first", "every other column", "every other row", "backwards", "big-endian"])
def test_vectors_and_queries_may_lie_in_memory_as_they_like(way, layout):
    generator = np.random.default_rng(5)
    wide, asked = unit(generator.normal(size=(80, 20))).astype(np.float16), unit(generator.normal(size=(3, 20)))
    rearrange = {
        "columns first": np.asfortranarray,
        "every other column": lambda array: array[:, ::2],
        "every other row": lambda array: array[::2],
        "backwards": lambda array: array[::-1, ::-1],
        "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    }[layout]
    vectors, queries = rearrange(wide), rearrange(asked)
    _, rows = index_of(vectors).search(queries, 6)
    np.testing.assert_array_equal(rows, naive(queries, vectors, 6))


def test_a_read_only_memory_map_is_searched_where_it_lies(way, tmp_path):
    generator = np.random.default_rng(6)
    vectors, queries = unit(generator.normal(size=(90, 12))).astype(np.float16), unit(generator.normal(size=(2, 12)))
    np.save(tmp_path / "a.npy", vectors)
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    _, rows = index_of(mapped).search(queries, 4)
    np.testing.assert_array_equal(rows, naive(queries, vectors, 4))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("rows", [None, np.array([36, 37]), np.arange(20, 80)], ids=["all", "gathered", "masked"])
def test_a_row_that_is_not_finite_is_named(way, tmp_path, value, dtype, rows):
    generator = np.random.default_rng(7)
    vectors, queries = unit(generator.normal(size=(90, 12))).astype(dtype), unit(generator.normal(size=(2, 12)))
    vectors[37, 11] = value
    np.save(tmp_path / "a.npy", vectors)
    index = index_of(np.load(tmp_path / "a.npy", mmap_mode="r"))
    with pytest.raises(EmbeddingError, match=r"a\.npy: row 37 holds an infinity or a NaN.*embed again"):
        index.search(queries, 4, rows=rows)


def test_vectors_in_memory_that_are_not_finite_are_named_by_their_row():
    with pytest.raises(EmbeddingError, match="vectors: row 1 holds"):
        index_of(np.array([[1, 0], [np.nan, 0]], dtype=np.float16)).search(np.eye(2), 1)


def test_a_query_that_is_not_finite_is_named():
    with pytest.raises(EmbeddingError, match="queries: row 1 holds an infinity or a NaN"):
        index_of(np.eye(2, dtype=np.float16)).search(np.array([[1.0, 0.0], [np.nan, 0.0]]), 1)


@pytest.mark.parametrize("threads", ["1", "3", "many"])
def test_any_number_of_threads_finds_the_same(way, monkeypatch, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(exact.os, "sched_getaffinity", lambda process: range(8))
    generator = np.random.default_rng(8)
    vectors, queries = unit(generator.normal(size=(400, 10))).astype(np.float16), unit(generator.normal(size=(2, 10)))
    _, rows = index_of(vectors).search(queries, 9)
    np.testing.assert_array_equal(rows, naive(queries, vectors, 9))


def test_searches_side_by_side_do_not_disturb_each_other(way):
    generator = np.random.default_rng(9)
    vectors, queries = unit(generator.normal(size=(200, 10))).astype(np.float16), unit(generator.normal(size=(8, 10)))
    index = index_of(vectors)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: index.search(queries[number : number + 1], 5)[1][0], range(8)))
    np.testing.assert_array_equal(found, naive(queries, vectors, 5))


def test_memory_does_not_grow_with_the_table(way, monkeypatch):
    monkeypatch.setattr(exact, "_BLOCK_ROWS", 512)
    monkeypatch.setattr(exact, "_SCANNED_BLOCK_ROWS", 512)
    monkeypatch.setattr(exact, "_FIRST_BLOCK_ROWS", 512)
    vectors = unit(np.random.default_rng(10).normal(size=(1000, 64))).astype(np.float16)
    peaks = []
    for copies in (4, 32):
        index = index_of(np.tile(vectors, (copies, 1)))  # 0.5 and 4 MB, in float32 1 and 8 MB
        index.search(vectors[:1], 3)
        tracemalloc.start()
        index.search(vectors[1:2].astype(np.float32), 3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000


def test_a_small_table_is_searched_without_faiss():
    code = (
        "import sys, numpy as np; from clapkit.index import exact; i = exact.build(); i.add(np.eye(3, dtype=np.float16));"
        "i.search(np.eye(3), 1); assert not {'faiss', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("num_rows", [0, 2, 3, 10])
def test_scores_that_reach_the_floor_are_found_in_groups_and_in_the_rows_left_over(monkeypatch, num_rows):
    monkeypatch.setattr(_selection, "_GROUP_ROWS", 3)
    scores = np.random.default_rng(11).integers(0, 4, size=(num_rows, 5)).astype(np.float32)
    floors = np.array([-np.inf, 0, 2, 3, 4], dtype=np.float32)  # reached by all, all, some, some and none
    found = set(zip(*(part.tolist() for part in _selection._above(scores, floors)), strict=True))
    assert found == {(row, query) for row in range(num_rows) for query in range(5) if scores[row, query] >= floors[query]}


def test_every_float16_is_decoded_to_the_same_bits():
    half = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = half[np.isfinite(half)].reshape(-1, 8)
    decoded = np.empty(finite.shape, dtype=np.float32)
    assert _half.decode(finite, decoded) is None
    np.testing.assert_array_equal(decoded.view(np.uint32), finite.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("bad", [0x7C00, 0x7C01, 0x7FFF, 0xFC00, 0xFC01, 0xFFFF])
def test_the_first_row_that_is_not_finite_is_told_when_decoding(bad):
    half = np.full((1500, 3), 0xFBFF, dtype=np.uint16)  # the largest finite one, negative
    half[[1200, 1300], 1] = bad
    assert _half.decode(half.view(np.float16), np.empty((1500, 3), dtype=np.float32)) == 1200


def test_an_empty_index_says_so():
    with pytest.raises(EmbeddingError, match="is empty; add vectors"):
        exact.build().search(np.ones((1, 2)), 1)


@pytest.mark.parametrize(
    ("queries", "k", "message"),
    [
        (np.ones((1, 3)), 1, r"queries: shape \[1, 3\], expected \[queries, 2\]"),
        (np.ones(2), 1, r"queries: shape \[2\]"),
        (np.ones((1, 2)), 0, "k = 0"),
    ],
)
def test_queries_that_do_not_fit_are_refused(queries, k, message):
    with pytest.raises(ShapeError, match=message):
        index_of(np.eye(2, dtype=np.float32)).search(queries, k)


@pytest.mark.parametrize("rows", [[1, 0], [0, 0], [-1, 0], [0, 2]])
def test_rows_that_are_not_ascending_rows_of_the_table_are_refused(rows):
    with pytest.raises(ShapeError, match="rows: expected ascending numbers from 0 to 1, each once"):
        index_of(np.eye(2, dtype=np.float32)).search(np.ones((1, 2)), 1, rows=np.array(rows))


def test_vectors_that_are_no_matrix_are_refused():
    with pytest.raises(ShapeError, match="vectors: shape"):
        index_of(np.ones(3))
