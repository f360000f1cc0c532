from collections import Counter

import numpy as np
import pytest

from clapkit.index import _codes
from clapkit.index._codes import codes
from clapkit.index._matching import kept_rows


def stored(vectors, parts=1):
    """Rows of an index in shuffled parts."""
    order = np.random.default_rng(9).permutation(len(vectors))
    return [(part, codes(vectors[part])) for part in np.array_split(order, parts)]


def test_rows_are_recognised_wherever_they_went():
    old = np.array([[1, 0], [0, 1], [0.5, 0.5]], dtype=np.float32)
    new = np.array([[0.5, 0.5], [0.25, 0.5], [1, 0]], dtype=np.float32)
    assert kept_rows(stored(old, 2), 3, new).tolist() == [2, -1, 0]


def test_equal_rows_are_paired_once_each_in_their_order():
    old = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    new = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=np.float32)
    assert kept_rows(stored(old), 3, new).tolist() == [0, 2, -1, 1]
    assert kept_rows(stored(new), 4, old).tolist() == [0, 3, 1]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_as_many_rows_are_kept_as_two_tables_share(monkeypatch, dtype):
    monkeypatch.setattr(_codes, "_BLOCK_ROWS", 7)
    generator = np.random.default_rng(0)
    pool = generator.normal(size=(40, 3)).astype(dtype)
    old, new = pool[generator.integers(0, 40, size=100)], pool[generator.integers(0, 40, size=90)]
    kept = kept_rows(stored(old, 5), 100, new)
    shared = Counter(code.tobytes() for code in codes(old)) & Counter(code.tobytes() for code in codes(new))
    assert (kept >= 0).sum() == shared.total()
    assert len(set(kept[kept >= 0])) == shared.total()
    np.testing.assert_array_equal(codes(old[kept[kept >= 0]]), codes(new[kept >= 0]))


def test_rows_that_codes_cannot_tell_apart_stand_in_for_each_other():
    old = np.array([[1, 0]], dtype=np.float32)
    assert kept_rows(stored(old), 1, old * np.float32(1 - 1e-5)).tolist() == [0]
    assert kept_rows(stored(old), 1, old * np.float32(1 - 1e-1)).tolist() == [-1]


def test_nothing_is_kept_of_or_for_an_empty_table():
    rows = np.eye(2, dtype=np.float32)
    assert kept_rows([], 0, rows).tolist() == [-1, -1]
    assert kept_rows(stored(rows), 2, rows[:0]).tolist() == []
