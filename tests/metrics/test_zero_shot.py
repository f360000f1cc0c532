import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from clapkit.errors import MetricError
from clapkit.metrics import zero_shot
from clapkit.metrics.statistics import bootstrap_weights
from clapkit.metrics.zero_shot import (
    class_text,
    class_vectors,
    classification_average_precision,
    evaluate_multi_label,
    evaluate_single_label,
    evaluate_zero_shot,
    zero_shot_intervals,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())


def golden_case(name):
    return next(case for case in GOLDEN if case["name"] == name)


def test_prompt_ensembles_match_the_golden_case():
    case = golden_case("prompt_ensemble")
    vectors = class_vectors(case["prompt_embeddings"])
    np.testing.assert_allclose(vectors, case["expected"]["class_vectors"], atol=1e-6)
    assert np.abs(vectors - case["without_first_normalisation"]["class_vectors"]).max() > 0.1
    audio = np.array(case["audio_embeddings"], dtype=float)
    audio /= np.linalg.norm(audio, axis=1, keepdims=True)
    np.testing.assert_allclose(audio @ vectors.T, case["expected"]["cosine"], atol=1e-6)
    outcome = evaluate_single_label(audio @ vectors.T, case["expected"]["predictions"])
    assert outcome["per_query"]["predicted"].tolist() == case["expected"]["predictions"]
    assert outcome["metrics"]["zero_shot_accuracy"] == 1


def test_tied_scores_form_one_threshold_as_in_the_golden_case():
    case = golden_case("average_precision_all_tied")
    assert classification_average_precision(case["scores"], case["labels"]).tolist() == case["expected"]["per_class"]
    outcome = evaluate_multi_label(case["scores"], case["labels"])
    assert outcome["metrics"]["zero_shot_mAP"] == case["expected"]["macro_map_over_present_classes"]


def test_average_precision_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 6, (40, 5)).astype(float), generator.random((40, 5)) < 0.3
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(5)]
    np.testing.assert_allclose(classification_average_precision(scores, labels), expected, atol=1e-12)


def test_weighted_map_is_that_of_the_repeated_clips():
    generator = np.random.default_rng(1)
    scores, labels = generator.integers(0, 6, (12, 4)).astype(float), generator.random((12, 4)) < 0.4
    weights = np.concatenate(list(bootstrap_weights(12, num_draws=20, seed=0)))
    for row, value in zip(weights, zero_shot.mean_average_precision(scores, labels)(weights), strict=True):
        rows = np.repeat(np.arange(12), row.astype(int))
        assert value == pytest.approx(evaluate_multi_label(scores[rows], labels[rows])["metrics"]["zero_shot_mAP"])


def test_classes_without_positives_do_not_count():
    outcome = evaluate_multi_label([[2.0, 1.0], [1.0, 2.0]], [[1, 0], [0, 0]])
    assert outcome["num_classes_present"] == 1
    assert outcome["metrics"]["zero_shot_mAP"] == 1
    assert np.isnan(outcome["per_class"][1])


def test_accuracy_and_mean_per_class_recall_differ_on_unbalanced_data():
    # Three clips of class 0 are right, the one of class 1 is wrong: accuracy 3/4, recall (1 + 0) / 2.
    scores = np.array([[2.0, 1.0, 0.0]] * 4)
    metrics = evaluate_single_label(scores, [0, 0, 0, 1])["metrics"]
    assert metrics == {"zero_shot_accuracy": 0.75, "zero_shot_mean_per_class_recall": 0.5}


def test_a_collapsed_model_has_accuracy_zero_and_all_clips_tied():
    outcome = evaluate_single_label(np.ones((4, 3)), [0, 1, 2, 0])
    assert outcome["metrics"]["zero_shot_accuracy"] == 0
    assert outcome["num_tied_clips"] == 4


def test_top5_is_given_for_many_classes_only():
    scores = -np.abs(np.arange(60)[None] - 3.0)  # class 3 is best, then 2 and 4, then 1 and 5
    assert evaluate_single_label(scores, [0])["metrics"]["zero_shot_top5_accuracy"] == 0  # six classes are as good
    assert evaluate_single_label(scores, [2])["metrics"]["zero_shot_top5_accuracy"] == 1
    assert "zero_shot_top5_accuracy" not in evaluate_single_label(scores[:, :50], [2])["metrics"]


def test_single_label_data_get_accuracy_only():
    outcome = evaluate_zero_shot([[2.0, 1.0], [2.0, 1.0]], [[1, 0], [0, 1]])
    assert outcome["metrics"] == {"zero_shot_accuracy": 0.5, "zero_shot_mean_per_class_recall": 0.5}
    assert outcome["counts"]["num_single_label_clips"] == 2


def test_multi_label_data_get_map_over_all_and_accuracy_over_single_label_clips():
    scores = np.array([[3.0, 2.0], [1.0, 2.0], [5.0, 4.0]])
    outcome = evaluate_zero_shot(scores, [[1, 0], [1, 0], [1, 1]])
    assert outcome["counts"] == {
        "num_clips": 3,
        "num_single_label_clips": 2,
        "num_classes": 2,
        "num_classes_present": 2,
        "num_tied_clips": 0,
    }
    assert outcome["metrics"]["zero_shot_accuracy"] == 0.5
    # Class 0: every clip is positive, AP 1. Class 1: its only positive has the highest score, AP 1.
    assert outcome["metrics"]["zero_shot_mAP"] == 1
    assert outcome["per_query"]["clip"].tolist() == [0, 1]


def test_data_with_several_labels_everywhere_get_map_only():
    outcome = evaluate_zero_shot([[1.0, 2.0, 0.0]], [[1, 1, 0]])
    assert list(outcome["metrics"]) == ["zero_shot_mAP"]
    assert outcome["per_query"] == {}


@pytest.mark.parametrize("multi", [False, True])
def test_intervals_hold_the_metrics(multi):
    generator = np.random.default_rng(0)
    labels = np.eye(4, dtype=bool)[generator.integers(0, 4, 60)]
    if multi:
        labels[:20, 0] = True
    scores = labels + generator.normal(0, 0.7, labels.shape)
    metrics = evaluate_zero_shot(scores, labels)["metrics"]
    intervals = zero_shot_intervals(scores, labels, num_draws=200)
    assert intervals.keys() == metrics.keys()
    for name, (lower, upper) in intervals.items():
        assert lower < metrics[name] < upper, name


def test_draws_without_single_label_clips_do_not_spoil_the_interval():
    labels = np.array([[1, 0]] + [[1, 1]] * 9)
    lower, upper = zero_shot_intervals(np.tile([2.0, 1.0], (10, 1)), labels, num_draws=50)["zero_shot_accuracy"]
    assert lower == upper == 1


def test_class_names_lose_underscores_and_keep_case():
    assert class_text("crying_baby") == "crying baby"
    assert class_text("  Gunshot_and__gunfire ") == "Gunshot and gunfire"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_vectors(np.ones((2, 3))), r"expected \[classes, prompts, width\]"),
        (lambda: class_vectors([[[1.0, 0.0], [-1.0, 0.0]]]), "norm 0"),
        (lambda: class_vectors([[[np.nan, 0.0]]]), "not finite"),
        (lambda: evaluate_single_label(np.ones((2, 2)), [0]), "one class per clip"),
        (lambda: evaluate_single_label(np.ones((2, 2)), [0, 2]), "entry 1 is 2"),
        (lambda: evaluate_single_label([[np.nan, 1.0]], [0]), "expected a finite number"),
        (lambda: evaluate_multi_label(np.ones((2, 2)), np.zeros((2, 2))), "no class has a positive"),
        (lambda: evaluate_multi_label(np.ones((2, 2)), np.zeros((2, 3))), r"labels: shape \[2, 3\]"),
        (lambda: evaluate_multi_label(np.ones((1, 2)), [[2, 0]]), "values other than 0 and 1"),
        (lambda: evaluate_zero_shot(np.ones((2, 2)), [[1, 0], [0, 0]]), "clip 1: has no label"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(MetricError, match=message):
        call()
