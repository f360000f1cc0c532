import math

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from clapkit.errors import MetricError
from clapkit.metrics import neighbours
from clapkit.metrics.neighbours import neighbour_scores


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_votes_of_two_neighbours_are_those_done_by_hand():
    # Cosines with (1, 0): 1, 0.8 and -1; the last is no neighbour. Votes exp(1 / 0.07) and exp(0.8 / 0.07).
    scores = neighbour_scores([[1.0, 0]], [[1.0, 0], [0.8, 0.6], [-1, 0]], labels=[[1, 0, 0], [0, 1, 0], [0, 0, 1]], k=2)
    second = math.exp(-0.2 / 0.07)
    np.testing.assert_allclose(scores, [[1 / (1 + second), second / (1 + second), 0]], rtol=1e-6)


@pytest.mark.parametrize("k", [1, 10])
def test_predictions_are_those_of_scikit_learn(k):
    generator = np.random.default_rng(0)
    training, clips = unit(generator.normal(size=(100, 8))), unit(generator.normal(size=(40, 8)))
    target = generator.integers(0, 4, 100)
    oracle = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = oracle.fit(training, target).predict_proba(clips)
    np.testing.assert_allclose(neighbour_scores(clips, training, labels=np.eye(4)[target], k=k), expected, atol=1e-5)


def test_ties_at_the_kth_neighbour_all_vote():
    training, labels = np.array([[1.0, 0], [1, 0], [0, 1]]), np.eye(3)
    np.testing.assert_allclose(neighbour_scores([[1.0, 0]], training, labels=labels, k=1), [[0.5, 0.5, 0]])


def test_the_order_of_training_clips_does_not_matter():
    generator = np.random.default_rng(1)
    training = unit(generator.integers(-1, 2, (50, 3)) + 0.5)  # many of them equal
    clips, labels = unit(generator.normal(size=(20, 3))), np.eye(4)[generator.integers(0, 4, 50)]
    order = generator.permutation(50)
    np.testing.assert_allclose(
        neighbour_scores(clips, training[order], labels=labels[order], k=3),
        neighbour_scores(clips, training, labels=labels, k=3),
        atol=1e-12,
    )


def test_fewer_training_clips_than_neighbours_all_vote():
    training, labels = unit(np.random.default_rng(2).normal(size=(3, 4))), np.eye(3)
    expected = neighbour_scores(training, training, labels=labels, k=3)
    np.testing.assert_array_equal(neighbour_scores(training, training, labels=labels, k=10), expected)
    assert (expected > 0).all()


def test_a_neighbour_with_several_labels_votes_for_all():
    np.testing.assert_array_equal(neighbour_scores([[1.0, 0]], [[1.0, 0]], labels=[[1, 0, 1]], k=1), [[1, 0, 1]])


def test_blocks_change_nothing(monkeypatch):
    generator = np.random.default_rng(3)
    training, clips = unit(generator.normal(size=(30, 5))), unit(generator.normal(size=(20, 5)))
    labels = np.eye(3)[generator.integers(0, 3, 30)]
    expected = neighbour_scores(clips, training, labels=labels, k=4)
    monkeypatch.setattr(neighbours, "_CHUNK_SCORES", 100)
    np.testing.assert_allclose(neighbour_scores(clips, training, labels=labels, k=4), expected, atol=1e-6)


def test_no_clips_have_no_scores():
    assert neighbour_scores(np.empty((0, 2)), [[1.0, 0]], labels=[[1, 0]], k=1).shape == (0, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k is 0, expected at least 1"),
        ({"training": np.ones((3, 5))}, r"clips \[2, 4\], training \[3, 5\]"),
        ({"training": np.ones((0, 4)), "labels": np.ones((0, 2))}, r"training \[0, 4\]"),
        ({"labels": np.ones((2, 2))}, r"labels \[2, 2\], expected \[3, classes\]"),
        ({"clips": np.full((2, 4), np.nan)}, "not finite"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"clips": np.ones((2, 4)), "training": np.ones((3, 4)), "labels": np.ones((3, 2)), "k": 1} | change
    with pytest.raises(MetricError, match=message):
        neighbour_scores(given.pop("clips"), given.pop("training"), **given)
