import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from clapkit.errors import MetricError
from clapkit.metrics.probe import choose_strength, fit_probe


def problem(seed, *, num_clips=60, width=8, num_classes=4):
    generator = np.random.default_rng(seed)
    target = generator.integers(0, num_classes, num_clips)
    centres = generator.normal(size=(num_classes, width))
    # Features of very different scale and offset, as towers have them.
    return (centres[target] + generator.normal(size=(num_clips, width))) * np.logspace(-3, 3, width) + 5, target


def standardised(features):
    return (features - features.mean(axis=0)) / features.std(axis=0)


@pytest.mark.parametrize("strength", [1e-2, 1e-1, 10.0])
def test_the_multinomial_probe_is_that_of_scikit_learn(strength):
    x, target = problem(0)
    probe = fit_probe(x, np.eye(4)[target], strength=strength)
    oracle = LogisticRegression(C=1 / (len(x) * strength), max_iter=10_000, tol=1e-10).fit(standardised(x), target)
    np.testing.assert_allclose(probe.weight, oracle.coef_, atol=1e-3)
    # Offsets are fixed up to a constant that all classes share.
    np.testing.assert_allclose(probe.offset - probe.offset.mean(), oracle.intercept_ - oracle.intercept_.mean(), atol=1e-3)
    np.testing.assert_allclose(probe.scores(x), oracle.predict_log_proba(standardised(x)), atol=1e-3)
    assert probe.has_converged


def test_one_against_the_rest_is_that_of_scikit_learn():
    x, target = problem(1)
    labels = np.eye(4, dtype=bool)[target] | (x[:, :1] > np.median(x[:, 0]))[:, [0, 0, 0, 0]] & [True, False, False, False]
    probe = fit_probe(x, labels, strength=0.05, is_multi_label=True)
    oracle = OneVsRestClassifier(LogisticRegression(C=1 / (len(x) * 0.05), max_iter=10_000, tol=1e-10))
    oracle.fit(standardised(x), labels.astype(int))
    np.testing.assert_allclose(probe.scores(x), oracle.decision_function(standardised(x)), atol=1e-3)


def test_scale_and_offset_of_the_features_change_nothing():
    x, target = problem(2)
    labels = np.eye(4)[target]
    scaled = x * np.linspace(0.1, 50, 8) - 3
    expected = fit_probe(x, labels, strength=0.01).scores(x)
    np.testing.assert_allclose(fit_probe(scaled, labels, strength=0.01).scores(scaled), expected, atol=1e-4)


def test_the_order_of_clips_changes_nothing():
    x, target = problem(3)
    order = np.random.default_rng(0).permutation(len(x))
    expected = fit_probe(x, np.eye(4)[target], strength=0.01).scores(x)
    np.testing.assert_allclose(fit_probe(x[order], np.eye(4)[target[order]], strength=0.01).scores(x), expected, atol=1e-3)


def test_a_constant_feature_says_nothing():
    x, target = problem(4)
    labels, wide = np.eye(4)[target], np.column_stack([x, np.full(len(x), 0.1)])
    changed = wide.copy()
    changed[:, -1] = 7.0
    probe = fit_probe(wide, labels, strength=0.01)
    np.testing.assert_allclose(probe.weight[:, -1], 0, atol=1e-9)
    np.testing.assert_allclose(probe.scores(changed), fit_probe(x, labels, strength=0.01).scores(x), atol=1e-5)


def test_a_very_strong_penalty_leaves_the_shares_of_the_classes():
    x, target = problem(5)
    shares = np.bincount(target) / len(target)
    scores = fit_probe(x, np.eye(4)[target], strength=1e6).scores(x)
    np.testing.assert_allclose(np.exp(scores), np.tile(shares, (len(x), 1)), atol=1e-3)


def test_a_class_without_training_clips_is_never_predicted():
    x, target = problem(6)
    labels = np.eye(6)[target * 1]  # classes 4 and 5 have no clips
    scores = fit_probe(x, labels, strength=0.01).scores(x)
    assert np.isfinite(scores).all()
    assert (scores[:, 4:] < scores[:, :4].min()).all()


def test_a_class_that_every_training_clip_has_is_above_all():
    x, target = problem(7)
    labels = np.column_stack([np.eye(4)[target], np.ones(len(x))])
    scores = fit_probe(x, labels, strength=0.01, is_multi_label=True).scores(x)
    assert np.isfinite(scores).all()
    assert (scores[:, 4] > scores[:, :4].max()).all()


def test_the_loss_is_the_mean_cross_entropy():
    x, target = problem(8)
    probe = fit_probe(x, np.eye(4)[target], strength=0.1)
    assert probe.loss(x, np.eye(4)[target]) == pytest.approx(-probe.scores(x)[np.arange(len(x)), target].mean())


def test_the_strength_with_the_lowest_loss_on_held_out_clips_is_chosen():
    x, target = problem(9, num_clips=120)
    labels, held_out = np.eye(4)[target], np.arange(120) % 5 == 0
    choice = choose_strength(x, labels, held_out=held_out, strengths=(1e-5, 1e-1, 1e3))
    expected = {
        strength: fit_probe(x[~held_out], labels[~held_out], strength=strength).loss(x[held_out], labels[held_out])
        for strength in (1e-5, 1e-1, 1e3)
    }
    assert choice.losses == pytest.approx(expected, rel=0.02)  # fitted as closely as the choice needs
    assert choice.strength == min(expected, key=expected.get) == 1e-1
    assert not choice.is_at_edge


def test_a_strength_at_the_end_of_the_grid_is_said():
    x, target = problem(10)
    held_out = np.arange(len(x)) % 5 == 0
    assert choose_strength(x, np.eye(4)[target], held_out=held_out, strengths=(1e-1, 1e3, 1e4)).is_at_edge
    assert not choose_strength(x, np.eye(4)[target], held_out=held_out, strengths=(1e-1,)).is_at_edge


def test_a_probe_learns_where_gradients_are_off():
    with torch.no_grad():
        x, target = problem(11)
        assert fit_probe(x, np.eye(4)[target], strength=0.01).has_converged


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones((3, 2))}, "3 rows of features and 4 of labels"),
        ({"features": np.full((4, 2), np.inf)}, "of finite numbers"),
        ({"strength": 0.0}, "strength 0.0, expected more than 0"),
        ({"labels": [[1, 1], [1, 0], [0, 1], [0, 1]]}, "clip 0 has 2 labels, expected one"),
        ({"labels": [[1, 0], [0, 0], [0, 1], [0, 1]]}, "clip 1 has 0 labels, expected one"),
        ({"labels": [[3, 0]] * 4}, "expected bool"),
        ({"labels": [[1, 0]] * 4}, "1 classes can be told apart"),
        ({"labels": [[1, 1]] * 4, "is_multi_label": True}, "0 classes can be told apart"),
    ],
)
def test_bad_input_is_refused(change, message):
    given = {"features": np.ones((4, 2)), "labels": np.eye(2)[[0, 1, 0, 1]], "strength": 1.0} | change
    with pytest.raises(MetricError, match=message):
        fit_probe(given.pop("features"), given.pop("labels"), **given)


def test_no_clip_held_out_is_refused():
    with pytest.raises(MetricError, match="one of them True"):
        choose_strength(np.ones((4, 2)), np.eye(2)[[0, 1, 0, 1]], held_out=np.zeros(4, dtype=bool))


def test_a_fit_that_starts_elsewhere_ends_at_the_same_minimum():
    x, target = problem(10)
    labels = np.eye(4)[target]
    plain = fit_probe(x, labels, strength=1e-2)
    warm = fit_probe(x, labels, strength=1e-2, start=fit_probe(x, labels, strength=1.0))
    np.testing.assert_allclose(warm.weight, plain.weight, atol=1e-5)
    np.testing.assert_allclose(warm.offset, plain.offset, atol=1e-5)


def test_with_fewer_clips_than_features_the_weights_are_those_of_the_whole_problem():
    generator = np.random.default_rng(11)
    x, target = generator.normal(size=(20, 50)), np.arange(20) % 3
    probe = fit_probe(x, np.eye(3)[target], strength=0.1)
    standardised = (x - probe.mean) / probe.scale
    # At the minimum the penalty holds the gradient of the loss: strength W = (Y - P)^T X / M.
    logits = probe.logits(x)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(0.1 * probe.weight, (np.eye(3)[target] - shares).T @ standardised / 20, atol=1e-6)
