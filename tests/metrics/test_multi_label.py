import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from clapkit.errors import MetricError
from clapkit.metrics.multi_label import classification_average_precision, mean_average_precision
from clapkit.metrics.statistics import bootstrap_weights

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())


def macro(scores, labels):
    return float(mean_average_precision(scores, labels)(np.ones((1, len(scores))))[0])


def test_tied_scores_form_one_threshold_as_in_the_golden_case():
    case = next(case for case in GOLDEN if case["name"] == "average_precision_all_tied")
    assert classification_average_precision(case["scores"], case["labels"]).tolist() == case["expected"]["per_class"]
    assert macro(case["scores"], case["labels"]) == case["expected"]["macro_map_over_present_classes"]


def test_average_precision_is_that_of_a_ranking_done_by_hand():
    # Positives at places 1, 3 and 4: (1/1 + 2/3 + 3/4) / 3.
    labels = np.array([[1], [0], [1], [1], [0]])
    expected = (1 + 2 / 3 + 3 / 4) / 3
    assert classification_average_precision([[5.0], [4.0], [3.0], [2.0], [1.0]], labels)[0] == pytest.approx(expected)


@pytest.mark.parametrize("levels", [2, 6, 10**6])
def test_average_precision_is_that_of_scikit_learn(levels):
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, levels, (40, 5)).astype(float), generator.random((40, 5)) < 0.3
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(5)]
    np.testing.assert_allclose(classification_average_precision(scores, labels), expected, atol=1e-12)


def test_weighted_map_is_that_of_the_repeated_clips():
    generator = np.random.default_rng(1)
    scores, labels = generator.integers(0, 6, (12, 4)).astype(float), generator.random((12, 4)) < 0.4
    weights = np.concatenate(list(bootstrap_weights(12, num_draws=20, seed=0)))
    for row, value in zip(weights, mean_average_precision(scores, labels)(weights), strict=True):
        rows = np.repeat(np.arange(12), row.astype(int))
        assert value == pytest.approx(macro(scores[rows], labels[rows]))


def test_the_order_of_clips_and_classes_does_not_matter():
    generator = np.random.default_rng(2)
    scores, labels = generator.integers(0, 4, (30, 5)).astype(float), generator.random((30, 5)) < 0.4
    clips, classes = generator.permutation(30), generator.permutation(5)
    assert macro(scores[clips][:, classes], labels[clips][:, classes]) == pytest.approx(macro(scores, labels), abs=1e-12)


def test_an_increasing_transform_of_the_scores_changes_nothing():
    generator = np.random.default_rng(3)
    scores, labels = generator.normal(size=(30, 5)), generator.random((30, 5)) < 0.4
    assert macro(np.exp(3 * scores), labels) == macro(scores, labels)


def test_classes_without_positives_do_not_count():
    per_class = classification_average_precision([[2.0, 1.0], [1.0, 2.0]], [[1, 0], [0, 0]])
    assert per_class[0] == 1
    assert np.isnan(per_class[1])
    assert macro([[2.0, 1.0], [1.0, 2.0]], [[1, 0], [0, 0]]) == 1


def test_a_draw_without_positives_has_no_value():
    summary = mean_average_precision([[2.0], [1.0]], [[1], [0]])
    assert np.isnan(summary(np.array([[0.0, 2.0]]))).all()


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.ones((2, 2)), np.zeros((2, 3)), r"labels: shape \[2, 3\]"),
        (np.ones((1, 2)), [[2, 0]], "values other than 0 and 1"),
        ([[np.nan, 1.0]], [[1, 0]], "expected a finite number"),
    ],
)
def test_bad_input_is_refused(scores, labels, message):
    for function in (classification_average_precision, mean_average_precision):
        with pytest.raises(MetricError, match=message):
            function(scores, labels)
