import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_score, recall_score, top_k_accuracy_score

from clapkit.errors import MetricError
from clapkit.metrics.classification import classification_intervals, evaluate_classification, mean_of_groups


def one_hot(target, num_classes):
    return np.eye(num_classes, dtype=bool)[np.asarray(target)]


def random_problem(seed, *, num_clips=80, num_classes=6):
    generator = np.random.default_rng(seed)
    target = generator.integers(0, num_classes, num_clips)
    return one_hot(target, num_classes) * 0.8 + generator.normal(0, 0.7, (num_clips, num_classes)), target


def test_accuracy_and_mean_per_class_recall_differ_on_unbalanced_data():
    # Three clips of class 0 are right, the one of class 1 is wrong: accuracy 3/4, recall (1 + 0) / 2.
    found = evaluate_classification(np.array([[2.0, 1.0, 0.0]] * 4), one_hot([0, 0, 0, 1], 3))
    assert found["metrics"] == {"accuracy": 0.75, "mean_per_class_recall": 0.5}
    assert found["chance"] == {"accuracy": 1 / 3, "mean_per_class_recall": 1 / 3}


def test_folds_of_different_size_give_another_mean_than_all_clips():
    # Fold 1: three clips, all right; fold 2: one clip, wrong. Pooled 3/4, mean of folds (1 + 0) / 2.
    found = evaluate_classification(np.array([[2.0, 1.0]] * 4), one_hot([0, 0, 0, 1], 2), fold=[1, 1, 1, 2])
    assert found["metrics"]["accuracy"] == 0.75
    assert found["metrics"]["accuracy_folds"] == 0.5
    assert found["folds"] == {1: {"accuracy": 1.0, "num_clips": 3}, 2: {"accuracy": 0.0, "num_clips": 1}}


def test_folds_of_equal_size_have_the_mean_of_all_clips():
    scores, target = random_problem(0)
    metrics = evaluate_classification(scores, one_hot(target, 6), fold=np.arange(80) % 5)["metrics"]
    assert metrics["accuracy_folds"] == pytest.approx(metrics["accuracy"])


def test_one_fold_is_no_mean_of_folds():
    found = evaluate_classification(np.array([[2.0, 1.0]] * 2), one_hot([0, 1], 2), fold=[5, 5])
    assert "accuracy_folds" not in found["metrics"]
    assert found["folds"] == {5: {"accuracy": 0.5, "num_clips": 2}}


def test_everything_agrees_with_scikit_learn():
    scores, target = random_problem(1)
    found = evaluate_classification(scores, one_hot(target, 6))
    predicted = scores.argmax(axis=1)
    np.testing.assert_allclose(found["per_class"]["recall"], recall_score(target, predicted, average=None))
    np.testing.assert_allclose(found["per_class"]["precision"], precision_score(target, predicted, average=None))
    assert found["metrics"]["mean_per_class_recall"] == pytest.approx(recall_score(target, predicted, average="macro"))
    for k in (3, 5):
        assert found["top_k"][k] == pytest.approx(top_k_accuracy_score(target, scores, k=k))
    matrix = np.zeros((6, 6), dtype=int)
    matrix[found["confusion"]["target"], found["confusion"]["predicted"]] = found["confusion"]["count"]
    np.testing.assert_array_equal(matrix, confusion_matrix(target, predicted))


def test_a_collapsed_model_has_accuracy_zero_and_every_clip_is_confused():
    found = evaluate_classification(np.ones((4, 3)), one_hot([0, 1, 2, 0], 3))
    assert found["metrics"]["accuracy"] == 0
    assert found["counts"]["num_tied_clips"] == 4
    # A tie with a wrong class is a miss, so the confusion matrix must not show it as a hit.
    assert (found["per_query"]["predicted"] != found["per_query"]["target"]).all()


def test_the_class_that_took_most_clips_is_named():
    # Two clips of class 0 go to 2 and one to 1; class 1 is right; class 2 has no clips.
    scores = np.array([[1.0, 0, 2], [1, 0, 2], [1, 2, 0], [0, 1, 0]])
    per_class = evaluate_classification(scores, one_hot([0, 0, 0, 1], 3))["per_class"]
    assert per_class["confused_with"].tolist() == [2, -1, -1]
    assert per_class["num_confused"].tolist() == [2, 0, 0]
    np.testing.assert_array_equal(per_class["recall"], [0, 1, np.nan])
    np.testing.assert_array_equal(per_class["precision"], [np.nan, 0.5, 0])
    assert np.isnan(per_class["average_precision"][2])


def test_of_classes_that_took_as_many_clips_the_first_is_named():
    per_class = evaluate_classification([[0.0, 2, 1], [0, 1, 2]], one_hot([0, 0], 3))["per_class"]
    assert per_class["confused_with"][0] == 1


def test_top5_is_a_metric_with_many_classes_only():
    scores = -np.abs(np.arange(60)[None] - 3.0)  # class 3 is best, then 2 and 4, then 1 and 5
    found = evaluate_classification(scores, one_hot([2], 60))
    assert found["metrics"]["top5_accuracy"] == 1
    assert found["chance"]["top5_accuracy"] == pytest.approx(5 / 60)
    # Six classes are as good as class 0, or better: a tie at the end of the five is a miss.
    assert evaluate_classification(scores, one_hot([0], 60))["metrics"]["top5_accuracy"] == 0
    assert "top5_accuracy" not in evaluate_classification(scores[:, :50], one_hot([2], 50))["metrics"]


def test_multi_label_data_get_map_over_all_and_accuracy_over_single_label_clips():
    scores = np.array([[3.0, 2.0], [1.0, 2.0], [5.0, 4.0]])
    found = evaluate_classification(scores, [[1, 0], [1, 0], [1, 1]])
    assert found["counts"] == {
        "num_clips": 3,
        "num_single_label_clips": 2,
        "num_classes": 2,
        "num_classes_present": 2,
        "num_tied_clips": 0,
    }
    assert found["metrics"]["accuracy"] == 0.5
    # Class 0: every clip is positive, AP 1. Class 1: its only positive has the highest score, AP 1.
    assert found["metrics"]["mAP"] == 1
    # Shares of positives: 3/3 and 1/3.
    assert found["chance"]["mAP"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["per_query"]["clip"].tolist() == [0, 1]


def test_data_with_several_labels_everywhere_get_map_only():
    found = evaluate_classification([[1.0, 2.0, 0.0]], [[1, 1, 0]], fold=[1])
    assert list(found["metrics"]) == ["mAP"]
    assert found["top_k"] == found["folds"] == {}
    assert len(found["per_query"]["clip"]) == 0


def test_the_order_of_clips_and_classes_changes_no_metric():
    scores, target = random_problem(2)
    generator = np.random.default_rng(0)
    clips, classes = generator.permutation(80), generator.permutation(6)
    labels = one_hot(target, 6)
    expected = evaluate_classification(scores, labels)["metrics"]
    turned = evaluate_classification(scores[clips][:, classes], labels[clips][:, classes])["metrics"]
    assert turned == pytest.approx(expected)


def test_mean_of_groups_skips_groups_that_a_draw_misses():
    summary = mean_of_groups([1.0, 0.0, 1.0], [7, 7, 3])
    # All clips: (1/2 + 1) / 2. Without the last: 1/2. Nothing: no value.
    np.testing.assert_array_equal(summary(np.array([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]])), [0.75, 0.5, np.nan])


@pytest.mark.parametrize("multi", [False, True])
def test_intervals_hold_the_metrics(multi):
    scores, target = random_problem(3)
    labels = one_hot(target, 6)
    if multi:
        labels[:20, 0] = True
    fold = np.arange(80) % 5
    metrics = evaluate_classification(scores, labels, fold=fold)["metrics"]
    intervals = classification_intervals(scores, labels, fold=fold, num_draws=200)
    assert intervals.keys() == metrics.keys()
    for name, (lower, upper) in intervals.items():
        assert lower < metrics[name] < upper, name


def test_takes_of_one_recording_widen_the_interval_as_much_as_they_are_alike():
    # Ten recordings of eight takes that are right or wrong together are ten observations, not eighty.
    right = np.repeat(np.arange(10) < 6, 8)
    scores, labels = np.where(right[:, None], [1.0, 0.0], [0.0, 1.0]), one_hot(np.zeros(80, dtype=int), 2)
    alone = classification_intervals(scores[::8], labels[::8])["accuracy"]
    takes = classification_intervals(scores, labels, source=np.repeat(np.arange(10), 8))["accuracy"]
    assert takes == pytest.approx(alone)
    naive = classification_intervals(scores, labels)["accuracy"]
    assert takes[1] - takes[0] > 2 * (naive[1] - naive[0])


def test_names_of_recordings_do_not_matter_and_every_clip_is_its_own_by_default():
    scores, target = random_problem(4)
    labels = one_hot(target, 6)
    assert classification_intervals(scores, labels, source=np.arange(80) * 3 - 7, num_draws=50) == classification_intervals(
        scores, labels, num_draws=50
    )


def test_blocks_of_draws_change_nothing(monkeypatch):
    scores, target = random_problem(5)
    labels, source = one_hot(target, 6), np.arange(80) // 4
    expected = classification_intervals(scores, labels, source=source, num_draws=50)
    monkeypatch.setattr("clapkit.metrics.classification._CHUNK_WEIGHTS", 200)
    assert classification_intervals(scores, labels, source=source, num_draws=50) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate_classification(np.ones((2, 2)), [[1, 0], [0, 0]]), "clip 1: has no label"),
        (lambda: evaluate_classification(np.ones((2, 2)), [[1, 0]]), r"labels: shape \[1, 2\]"),
        (lambda: evaluate_classification([[np.nan, 1.0]], [[1, 0]]), "expected a finite number"),
        (lambda: evaluate_classification(np.ones((2, 2)), np.eye(2), fold=[1]), "one fold per clip"),
        (lambda: evaluate_classification(np.ones((2, 2)), np.eye(2), fold=[1.5, 2]), "expected integers"),
        (lambda: classification_intervals(np.ones((2, 2)), np.eye(2), source=[1]), "one recording per clip"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(MetricError, match=message):
        call()


def test_the_margin_is_that_to_the_best_other_class():
    # Right by 3 - 2, wrong by 1 - 4, a tie.
    scores = np.array([[3.0, 2.0, 0.0], [1.0, 4.0, 2.0], [0.0, 5.0, 5.0]])
    found = evaluate_classification(scores, one_hot([0, 0, 2], 3))["per_query"]
    assert found["margin"].tolist() == [1, -3, 0]
    assert (found["margin"] > 0).tolist() == found["correct"].astype(bool).tolist()


def test_with_one_class_there_is_no_margin():
    found = evaluate_classification(np.ones((2, 1)), np.ones((2, 1), dtype=bool))
    assert np.isnan(found["per_query"]["margin"]).all()
