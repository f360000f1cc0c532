import numpy as np
import pytest

from clapkit import registry
from clapkit.errors import EmbeddingError, ShapeError
from clapkit.index import exact


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def index_of(vectors):
    index = registry.build("index", "exact")
    index.add(vectors)
    return index


def naive(queries, vectors, k):
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return np.argsort(-scores.astype(np.float32), axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("block_rows", [7, 8192])
def test_hits_are_those_of_a_full_sort(monkeypatch, dtype, block_rows):
    monkeypatch.setattr(exact, "_BLOCK_ROWS", block_rows)
    generator = np.random.default_rng(0)
    vectors, queries = unit(generator.normal(size=(300, 16))).astype(dtype), unit(generator.normal(size=(9, 16)))
    scores, rows = index_of(vectors).search(queries, 5)
    np.testing.assert_array_equal(rows, naive(queries, vectors, 5))
    expected = np.einsum("qkd,qd->qk", vectors[rows].astype(np.float64), queries)
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("block_rows", [3, 8192])
def test_equal_vectors_come_in_the_order_of_their_rows(monkeypatch, block_rows):
    monkeypatch.setattr(exact, "_BLOCK_ROWS", block_rows)
    generator = np.random.default_rng(1)
    three = unit(generator.normal(size=(3, 33)))
    vectors = three[np.arange(50) % 3]
    scores, rows = index_of(vectors).search(three, 20)
    for query in range(3):
        assert rows[query, :16].tolist() == list(range(query, 50, 3))[:16]
        assert len(set(scores[query, :16])) == 1


def test_scores_of_both_signs_are_ordered():
    vectors = np.array([[-1, 0], [0, 1], [1, 0], [-0.6, 0.8], [0, -1]], dtype=np.float32)
    scores, rows = index_of(vectors).search(np.array([[1.0, 0.0]], dtype=np.float32), 5)
    assert rows[0].tolist() == [2, 1, 4, 3, 0]  # cosines 1, 0, -0, -0.6, -1
    np.testing.assert_allclose(scores[0], [1, 0, 0, -0.6, -1], atol=1e-6)


@pytest.mark.parametrize("wanted", [np.arange(10, 40), np.arange(0, 100, 7), np.array([], dtype=np.int64)])
def test_only_wanted_rows_are_found(wanted):
    generator = np.random.default_rng(2)
    vectors, queries = unit(generator.normal(size=(100, 8))), unit(generator.normal(size=(3, 8)))
    scores, rows = index_of(vectors).search(queries, 4, rows=wanted)
    expected = wanted[naive(queries, vectors[wanted], 4)] if len(wanted) else np.empty((3, 0))
    np.testing.assert_array_equal(rows, expected)
    assert scores.shape == rows.shape


def test_more_hits_than_items_gives_all_items():
    vectors = unit(np.random.default_rng(0).normal(size=(4, 3)))
    _, rows = index_of(vectors).search(vectors[:1], 100)
    assert sorted(rows[0].tolist()) == [0, 1, 2, 3]


def test_queries_in_blocks_find_the_same(monkeypatch):
    generator = np.random.default_rng(3)
    vectors, queries = unit(generator.normal(size=(60, 8))), unit(generator.normal(size=(11, 8)))
    whole = index_of(vectors).search(queries, 3)
    monkeypatch.setattr(exact, "_BLOCK_SCORES", 8192 * 4)
    blocks = index_of(vectors).search(queries, 3)
    np.testing.assert_array_equal(blocks[0], whole[0])
    np.testing.assert_array_equal(blocks[1], whole[1])


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


def test_vectors_that_are_no_matrix_are_refused():
    with pytest.raises(ShapeError, match="vectors: shape"):
        index_of(np.ones(3))
