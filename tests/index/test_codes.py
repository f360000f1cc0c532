import numpy as np
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index import _codes
from clapkit.index._codes import blocks, coded, coded_queries, codes


def test_codes_are_the_vectors_in_steps_of_a_sixteenth_of_a_deviation():
    # Width 16: a deviation is 1/4, eight of them are 2 = 127 steps, so 1 is 63.5 steps and 0.5 is 31.75.
    vectors = np.zeros((1, 16), dtype=np.float32)
    vectors[0, :4] = [0.5, -0.5, 0.02, 1 / 127]
    assert coded(vectors)[0, :5].tolist() == [32, -32, 1, 0, 0]  # 0.02 is 1.27 steps, 1/127 half a step: to even
    assert codes(vectors)[0, :5].tolist() == [160, 96, 129, 128, 128]
    wide = np.zeros((1, 256), dtype=np.float32)
    wide[0, :2] = [1, -1]  # 16 deviations
    assert coded(wide)[0, :3].tolist() == [127, -127, 0]


def test_blocks_name_the_row_of_the_table_that_is_not_finite():
    vectors = np.ones((10, 2), dtype=np.float32)
    vectors[7, 0] = np.nan
    with pytest.raises(EmbeddingError, match="row 7 "):
        list(blocks(vectors, np.array([1, 7, 9])))


@pytest.mark.parametrize("rows", [None, np.array([0, 3, 4, 9, 10])])
def test_blocks_are_the_rows_some_at_a_time_in_float32(monkeypatch, rows):
    monkeypatch.setattr(_codes, "_BLOCK_ROWS", 4)
    vectors = np.arange(22, dtype=np.float16).reshape(11, 2)
    parts = list(blocks(vectors, rows))
    wanted = np.arange(11) if rows is None else rows
    assert all(len(numbers) <= 4 and block.dtype == np.float32 for numbers, block in parts)
    np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in parts]), wanted)
    np.testing.assert_array_equal(np.concatenate([block for _, block in parts]), vectors[wanted])


def test_codes_keep_the_order_of_rows_that_differ_by_more_than_a_step():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(500, 64))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    true = vectors @ vectors[0]
    approximate = coded(vectors.astype(np.float32)) @ vectors[0] * 8 / np.sqrt(64) / 127
    # A number is off by half a step of 8 / sqrt(64) / 127 at most, a score by a deviation of 0.0079 / sqrt(12) = 0.0023.
    assert np.abs(approximate - true).max() < 5 * 0.0023


def test_queries_use_all_whole_numbers_and_keep_their_direction():
    queries = np.array([[1, 0.5, -0.25], [0, -0.001, 0.0004], [0, 0, 0]], dtype=np.float32)
    # 63.5 and -31.75 of 127; 50.8 of 127
    assert coded_queries(queries).tolist() == [[127, 64, -32], [0, -127, 51], [0, 0, 0]]
    assert coded_queries(queries).dtype == np.float32


@pytest.mark.parametrize("width", [8, 16, 24, 32, 48, 64, 512])
def test_faiss_scores_codes_by_their_product_at_every_width(width):
    import faiss

    generator = np.random.default_rng(0)
    vectors, queries = (generator.normal(size=(count, width)).astype(np.float32) for count in (300, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
    index.add(coded(vectors))
    scores, rows = index.search(coded_queries(queries), 300)
    expected = coded_queries(queries) @ coded(vectors).T
    np.testing.assert_array_equal(scores, np.take_along_axis(expected, rows, axis=1))
