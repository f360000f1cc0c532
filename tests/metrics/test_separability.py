import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.separability import modality_separability


def unit(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_modalities_in_cones_of_their_own_are_told_apart():
    axis = np.eye(8)[0]
    assert modality_separability(unit((40, 8)) + 4 * axis, unit((40, 8), seed=1) - 4 * axis) == 1


def test_modalities_that_mix_are_not():
    assert modality_separability(unit((4000, 8)), unit((4000, 8), seed=1)) == pytest.approx(0.5, abs=0.03)


def test_the_same_vectors_cannot_be_told_apart():
    x = unit((20, 4))
    # Equal means: no direction at all, and a score of 0 is wrong for either.
    assert modality_separability(x, x) <= 0.5
    assert modality_separability(np.ones((6, 3)), np.ones((6, 3))) == 0
    assert modality_separability(np.full((6, 3), 0.3), np.full((6, 3), 0.3, np.float32)) == 0  # apart by rounding


def test_the_probe_is_the_ridge_regression_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    audio, text = unit((50, 6)) + 0.15, unit((50, 6), seed=1) - 0.15
    fold, right = np.arange(50) % 5, 0
    for held in range(5):
        x = np.concatenate((audio[fold != held], text[fold != held]))
        y = np.repeat([1.0, -1.0], len(x) // 2)
        penalty = 1e-3 * np.square(x - x.mean(axis=0)).sum() / 6  # the mean variance, times rows
        ridge = linear_model.Ridge(alpha=penalty).fit(x, y)
        right += (ridge.predict(audio[fold == held]) > 0).sum() + (ridge.predict(text[fold == held]) < 0).sum()
    assert 0.5 < right / 100 < 1
    assert modality_separability(audio, text) == right / 100


def test_more_directions_than_pairs_can_be_solved():
    found = modality_separability(unit((6, 50)) + np.eye(50)[0], unit((6, 50), seed=1) - np.eye(50)[0])
    assert found == 1


def test_two_pairs_are_enough_and_one_is_not():
    assert modality_separability([[1, 0], [1, 0.1]], [[-1, 0], [-1, 0.1]]) == 1
    with pytest.raises(MetricError, match=r"audio is \[1, 2\] and text \[1, 2\]; expected the same \[N, D\] twice, N of 2"):
        modality_separability([[1, 0]], [[0, 1]])


def test_wrong_input_is_refused():
    with pytest.raises(MetricError, match="holds values that are not finite"):
        modality_separability([[1, 0], [np.inf, 1]], [[1, 0], [0, 1]])
    with pytest.raises(MetricError, match="num_folds 1: expected at least 2"):
        modality_separability(unit((4, 2)), unit((4, 2)), num_folds=1)
