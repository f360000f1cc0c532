import numpy as np
import pytest

from clapkit.errors import NumericalError
from clapkit.steps.clip_vectors import ClipsInOrder, EmbeddedClip, Rejected, expect_finite, unit_norm

X, Y, Z = np.eye(3, dtype=np.float32)


def clips(pool="mean"):
    return ClipsInOrder(width=3, pool=pool)


def test_a_pooled_clip_is_the_normalised_mean_over_its_whole_span():
    order = clips()
    order.begin(5, "a")
    for start in (0.0, 1.0, 1.5):
        order.add_window(start, start + 1)
    order.end("hash")
    order.add_vectors(np.stack([X, X]))
    assert list(order.finished()) == []
    order.add_vectors(Y[None])
    (found,) = order.finished()
    # (2, 1, 0) / 3 has the direction (2, 1, 0) / sqrt(5).
    np.testing.assert_allclose(found.vectors, [[2 / 5**0.5, 1 / 5**0.5, 0]], atol=1e-7)
    assert (found.row, found.spans, found.num_windows, found.content) == (5, [(0.0, 2.5)], 3, "hash")
    assert len(order) == 0


def test_windows_that_are_not_pooled_keep_their_vectors_and_spans():
    order = clips("none")
    order.begin(0, "a")
    order.add_window(0.0, 1.0)
    order.add_window(1.0, 2.0)
    order.add_vectors(np.stack([X, Y]))
    order.end()
    (found,) = order.finished()
    np.testing.assert_array_equal(found.vectors, [X, Y])
    assert (found.spans, found.num_windows, found.content) == ([(0.0, 1.0), (1.0, 2.0)], 2, None)


def test_a_clip_waits_for_those_before_it():
    order = clips()
    for row in range(3):
        order.begin(row, str(row))
        order.add_window(0.0, 1.0)
        order.end()
    order.begin(3, "3")
    order.settle(Rejected(3, "broken"))
    assert list(order.finished()) == []
    order.add_vectors(np.stack([X, Y]))
    assert [clip.row for clip in order.finished()] == [0, 1]
    assert len(order) == 2
    order.add_vectors(Z[None])
    assert [type(clip) for clip in order.finished()] == [EmbeddedClip, Rejected]


def test_windows_of_a_clip_that_turns_out_to_be_bad_are_passed_over():
    order = clips()
    order.begin(0, "bad")
    order.add_window(0.0, 1.0)
    order.add_window(1.0, 2.0)
    order.add_vectors(X[None])
    order.settle(Rejected(0, "truncated"))
    order.begin(1, "good")
    order.add_window(0.0, 1.0)
    order.end()
    assert [clip.row for clip in order.finished()] == [0]
    order.add_vectors(np.stack([Y, Z]))
    (good,) = order.finished()
    np.testing.assert_array_equal(good.vectors, [Z])


def test_a_vector_that_is_not_finite_names_its_clip():
    order = clips()
    for row in range(2):
        order.begin(row, f"clip {row}")
        order.add_window(0.0, 1.0)
        order.end()
    with pytest.raises(NumericalError, match="1 of 2 embeddings are zero or not finite, the first of 'clip 1'"):
        order.add_vectors(np.stack([X, X * np.nan]))


def test_windows_that_cancel_each_other_name_their_clip():
    order = clips()
    order.begin(0, "nothing")
    order.add_window(0.0, 1.0)
    order.add_window(1.0, 2.0)
    order.end()
    order.add_vectors(np.stack([X, -X]))
    with pytest.raises(NumericalError, match="zero or not finite, the first of 'nothing'"):
        list(order.finished())


def test_unit_norm_is_exact_in_float32_and_marks_rows_of_zeros():
    vectors = unit_norm(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float16))
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[0], np.array([0.6, 0.8], dtype=np.float32))
    assert np.isnan(vectors[1]).all()
    expect_finite(vectors[:1], ["a"])
    with pytest.raises(NumericalError, match="1 of 2 embeddings are zero or not finite, the first of 'b'"):
        expect_finite(vectors, ["a", "b"])


def test_a_model_may_fuse_windows_itself():
    order = ClipsInOrder(width=3, pool="mean", fuse=lambda windows: windows[0] + 3 * windows[-1])
    order.begin(0, "long")
    for start in (0.0, 1.0, 1.5):
        order.add_window(start, start + 1)
    order.end("hash")
    order.begin(1, "short")
    order.add_window(0.0, 0.5)
    order.end()
    order.add_vectors(np.stack([X, X]))
    assert list(order.finished()) == []
    order.add_vectors(np.stack([Y, Z]))
    long, short = order.finished()
    # (1, 3, 0) has the length sqrt(10).
    np.testing.assert_allclose(long.vectors, [[1 / 10**0.5, 3 / 10**0.5, 0]], atol=1e-7)
    assert (long.spans, long.num_windows, long.content) == ([(0.0, 2.5)], 3, "hash")
    np.testing.assert_array_equal(short.vectors, [Z])  # one window is itself


def test_what_a_model_fuses_to_nothing_names_its_clip():
    order = ClipsInOrder(width=3, pool="mean", fuse=lambda windows: windows.sum(axis=0) * 0)
    order.begin(0, "nothing")
    order.add_window(0.0, 1.0)
    order.add_window(1.0, 2.0)
    order.end()
    order.add_vectors(np.stack([X, Y]))
    with pytest.raises(NumericalError, match="zero or not finite, the first of 'nothing'"):
        list(order.finished())


def test_windows_that_are_not_pooled_are_not_fused():
    order = ClipsInOrder(width=3, pool="none", fuse=lambda windows: windows[0])
    order.begin(0, "a")
    order.add_window(0.0, 1.0)
    order.add_window(1.0, 2.0)
    order.end()
    order.add_vectors(np.stack([X, Y]))
    (found,) = order.finished()
    np.testing.assert_array_equal(found.vectors, [X, Y])
