import json
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.classification import classification_intervals, evaluate_classification
from clapkit.metrics.zero_shot import class_vectors, described_class_vectors, evaluate_zero_shot, zero_shot_intervals

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
    cosine, predictions = audio @ vectors.T, case["expected"]["predictions"]
    np.testing.assert_allclose(cosine, case["expected"]["cosine"], atol=1e-6)
    outcome = evaluate_zero_shot(cosine, np.eye(len(vectors))[predictions])
    assert outcome["per_query"]["predicted"].tolist() == predictions
    assert outcome["metrics"]["zero_shot_accuracy"] == 1


def test_tied_scores_match_the_golden_case():
    case = golden_case("average_precision_all_tied")
    labelled = np.array(case["labels"]).any(axis=1)
    scores, labels = np.array(case["scores"])[labelled], np.array(case["labels"])[labelled]
    expected = [share for share in labels.mean(axis=0) if share]  # of scores that are all the same, AP is the share
    outcome = evaluate_zero_shot(scores, labels)
    assert np.nanmean(outcome["per_class"]["average_precision"]) == pytest.approx(np.mean(expected))


def test_classes_with_more_texts_weigh_no_more():
    # Class 0: (1, 0) and (0, 1), mean direction (1, 1) / sqrt 2. Class 1: (0, 2) alone.
    vectors = described_class_vectors([[1.0, 0], [0, 2], [0, 5]], [0, 1, 0])
    np.testing.assert_allclose(vectors, [[0.5**0.5, 0.5**0.5], [0, 1]])


def test_the_order_of_prompts_does_not_matter():
    generator = np.random.default_rng(0)
    prompts, classes = generator.normal(size=(12, 5)), generator.integers(0, 3, 12)
    order = generator.permutation(12)
    np.testing.assert_allclose(
        described_class_vectors(prompts[order], classes[order]), described_class_vectors(prompts, classes), atol=1e-12
    )


def test_names_say_zero_shot_and_values_are_those_of_any_classification():
    generator = np.random.default_rng(0)
    labels = np.eye(4, dtype=bool)[generator.integers(0, 4, 60)]
    scores = labels + generator.normal(0, 0.7, labels.shape)
    fold, source = np.arange(60) % 3, np.arange(60) // 2
    plain, named = (evaluate(scores, labels, fold=fold) for evaluate in (evaluate_classification, evaluate_zero_shot))
    for part in ("metrics", "chance"):
        assert named[part] == {f"zero_shot_{name}": value for name, value in plain[part].items()}
    given = {"fold": fold, "source": source, "num_draws": 50, "seed": 3}
    assert zero_shot_intervals(scores, labels, **given) == {
        f"zero_shot_{name}": interval for name, interval in classification_intervals(scores, labels, **given).items()
    }


def test_draws_without_single_label_clips_do_not_spoil_the_interval():
    labels = np.array([[1, 0]] + [[1, 1]] * 9)
    lower, upper = zero_shot_intervals(np.tile([2.0, 1.0], (10, 1)), labels, num_draws=50)["zero_shot_accuracy"]
    assert lower == upper == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_vectors(np.ones((2, 3))), r"expected \[classes, prompts, width\]"),
        (lambda: class_vectors([[[1.0, 0.0], [-1.0, 0.0]]]), "norm 0"),
        (lambda: class_vectors([[[np.nan, 0.0]]]), "not finite"),
        (lambda: described_class_vectors(np.ones((2, 3)), [0]), r"\[2, 3\] for 1 classes"),
        (lambda: described_class_vectors(np.ones((2, 3)), [0, 2]), "class 1: has no prompt"),
        (lambda: evaluate_zero_shot(np.ones((2, 2)), [[1, 0], [0, 0]]), "clip 1: has no label"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(MetricError, match=message):
        call()
