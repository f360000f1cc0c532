import numpy as np
import pytest

from clapkit.index._codes import coded
from clapkit.index._projection import Projection, _enough


def flat(rows, width=64, core=8, noise=0.01, seed=0):
    """Unit vectors near a subspace that is the same for every seed, and a mean that is not 0."""
    axes = np.random.default_rng(99).normal(size=(core, width)) / np.sqrt(width)
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, core)) @ axes + noise * generator.normal(size=(rows, width)) + 0.1
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_components_are_counted_by_the_squares_of_their_variances():
    # Squares 9, 1, 0.25: 9 / 10.25 = 0.88 and 10 / 10.25 = 0.976 are too little; a multiple of 32 within the width.
    assert _enough(np.array([3.0, 1.0, 0.5])) == 3
    variances = np.zeros(100)
    variances[:32] = 1
    assert _enough(variances) == 32
    variances[32] = 0.6  # 32 / 32.36 = 0.9889
    assert _enough(variances) == 64
    variances[32] = 0.5  # 32 / 32.25 = 0.9922
    assert _enough(variances) == 32


def test_a_projection_is_made_where_half_of_the_numbers_say_nearly_all():
    projection = Projection.fitted([flat(700)], components=None)
    assert projection.directions.shape == (32, 64)
    assert Projection.fitted([flat(700, core=64, noise=1.0)], components=None) is None


def test_too_few_rows_cannot_tell_and_are_kept_whole():
    assert Projection.fitted([flat(639)], components=None) is None  # 10 for each of 64 numbers
    assert Projection.fitted([flat(640)], components=None) is not None


@pytest.mark.parametrize("components", [5, 63])
def test_as_many_components_are_kept_as_are_asked_for(components):
    projection = Projection.fitted([flat(100)], components=components)
    assert projection.rows(flat(3)).shape == projection.queries(flat(3)).shape == (3, components)


def test_all_components_are_whole_vectors():
    assert Projection.fitted([flat(100)], components=64) is None


def test_codes_are_the_components_of_the_rows_without_their_mean():
    vectors = flat(2000)
    projection = Projection.fitted([vectors[:900], vectors[900:]], components=4)
    numbers = coded(vectors).astype(np.float64)
    centred = numbers - numbers.mean(axis=0)
    _, spread, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:4].T
    expected *= 127 / 5 / (spread[0] / np.sqrt(2000))  # five deviations of the first component are 127
    codes = projection.rows(vectors)
    signs = np.sign((codes * expected).sum(axis=0))
    inside = np.abs(expected) < 126
    assert np.abs(codes - signs * expected)[inside].max() < 0.7  # rounding is half, and directions are rounded, too
    assert np.abs(codes).max() <= 127
    np.testing.assert_array_equal(codes, np.rint(codes))


def test_products_of_codes_order_rows_as_vectors_do():
    vectors, queries = flat(2000), flat(20, seed=1)
    projection = Projection.fitted([vectors], components=8)
    scores, true = projection.queries(queries) @ projection.rows(vectors).T, queries @ vectors.T
    best = np.argsort(-true, axis=1)[:, :10]
    found = np.argsort(-scores, axis=1)[:, :40]
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(best.tolist(), found.tolist(), strict=True)]) > 0.95


def test_a_row_has_the_same_codes_whatever_is_beside_it():
    vectors = flat(400, width=256, core=40)
    projection = Projection.fitted([vectors], components=32)
    codes = projection.rows(vectors)
    np.testing.assert_array_equal(codes, np.concatenate([projection.rows(vectors[row : row + 1]) for row in range(400)]))
    exact = coded(vectors).astype(np.int64) @ projection.directions.T.astype(np.int64)
    assert np.abs(exact).max() < 2**24  # float32 holds it
    expected = np.rint((exact - projection.offset.astype(np.int64)) / 8192).clip(-127, 127)
    np.testing.assert_array_equal(codes, expected)


@pytest.mark.parametrize("width", [8, 64, 768])
def test_no_sum_is_too_large_for_float32_even_where_rows_are_nearly_equal(width):
    # The smaller the deviation, the longer the directions would have to be.
    vectors = np.full((50, width), 1 / np.sqrt(width)) + 1e-4 * np.random.default_rng(0).normal(size=(50, width))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    projection = Projection.fitted([vectors], components=2)
    rows = np.concatenate([vectors, projection.directions / np.linalg.norm(projection.directions, axis=1, keepdims=True)])
    products = np.abs(coded(rows)).astype(np.float64) @ np.abs(projection.directions).T
    assert products.max() < 2**24
    assert np.abs(projection.offset).max() < 2**24
    assert np.isfinite(projection.rows(vectors)).all()


def test_rows_that_are_all_equal_have_equal_codes():
    vectors = np.full((30, 16), 0.25, dtype=np.float32)
    projection = Projection.fitted([vectors], components=3)
    assert (projection.rows(vectors) == projection.rows(vectors[:1])).all()
    assert Projection.fitted([np.tile(vectors, (10, 1))], components=None) is None


def test_faiss_keeps_a_projection_as_it_is():
    projection = Projection.fitted([flat(100)], components=7)
    kept = Projection.of_faiss(projection.to_faiss())
    np.testing.assert_array_equal(kept.directions, projection.directions)
    np.testing.assert_array_equal(kept.offset, projection.offset)
    np.testing.assert_array_equal(kept.queries(flat(5)), projection.queries(flat(5)))
