import json
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.composition import composition_chance, composition_scores

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())
KINDS = ("text", "audio", "group")


@pytest.mark.parametrize("case", [case for case in GOLDEN if case["kind"] == "winoground"], ids=lambda case: case["name"])
def test_golden_pairs_match(case):
    solved = composition_scores(case["similarity"])
    for kind in KINDS:
        assert solved[kind].tolist() == [item[kind] for item in case["expected"]["per_item"]]
        assert solved[kind].mean() == pytest.approx(case["expected"][f"{kind}_score"], abs=1e-6)
        assert composition_chance(2)[kind] == pytest.approx(case["expected"]["chance"][kind], abs=1e-6)


def test_the_text_score_chooses_the_text_of_a_clip():
    # Rows are clips. Clip 0: 5 > 4, clip 1: 7 > 6: both choose their caption. Caption 0 prefers clip 1: 6 > 5.
    solved = composition_scores([[[5, 4], [6, 7]]])
    assert {kind: bool(solved[kind][0]) for kind in KINDS} == {"text": True, "audio": False, "group": False}


@pytest.mark.parametrize("size", [2, 3, 4])
def test_scores_are_those_of_a_loop(size):
    similarity = np.random.default_rng(size).integers(0, 4, (300, size, size))
    for number in range(size):  # so that many items are solved
        similarity[:, number, number] += 2
    solved = composition_scores(similarity)
    for item, matrix in enumerate(similarity):
        text = all(matrix[i][i] > matrix[i][j] for i in range(size) for j in range(size) if i != j)
        audio = all(matrix[j][j] > matrix[i][j] for i in range(size) for j in range(size) if i != j)
        assert (solved["text"][item], solved["audio"][item], solved["group"][item]) == (text, audio, text and audio)
    assert 0 < solved["group"].sum() < solved["text"].sum() < len(similarity)


def test_a_perfect_scorer_solves_all_and_a_constant_one_nothing():
    perfect, constant = composition_scores(np.tile(np.eye(3), (5, 1, 1))), composition_scores(np.full((5, 2, 2), 0.3))
    assert all(perfect[kind].all() for kind in KINDS)
    assert not any(constant[kind].any() for kind in KINDS)


def test_swapping_the_modalities_swaps_text_and_audio():
    similarity = np.random.default_rng(0).normal(size=(50, 2, 2))
    solved, swapped = composition_scores(similarity), composition_scores(similarity.transpose(0, 2, 1))
    assert solved["text"].tolist() == swapped["audio"].tolist()
    assert solved["group"].tolist() == swapped["group"].tolist()


def test_the_order_inside_an_item_and_increasing_transforms_change_nothing():
    similarity = np.random.default_rng(1).normal(size=(50, 3, 3))
    order = [2, 0, 1]
    for changed in (similarity[:, order][:, :, order], np.exp(similarity) - 7):
        for kind in KINDS:
            assert composition_scores(changed)[kind].tolist() == composition_scores(similarity)[kind].tolist()


@pytest.mark.parametrize(
    ("size", "expected"),
    # Group of three: 2! / 5! = 1/60; text: each of three rows right, (1/3)^3.
    [(2, {"text": 1 / 4, "audio": 1 / 4, "group": 1 / 6}), (3, {"text": 1 / 27, "audio": 1 / 27, "group": 1 / 60})],
)
def test_chance_is_what_random_scores_solve(size, expected):
    assert composition_chance(size) == pytest.approx(expected)
    similarity = np.random.default_rng(0).random((100_000, size, size))
    for kind, solved in composition_scores(similarity).items():
        error = np.sqrt(expected[kind] / len(similarity))
        assert solved.mean() == pytest.approx(expected[kind], abs=4 * error)


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.zeros((4, 2, 3)), r"similarity: shape \[4, 2, 3\], expected \[items, C, C\] with C of 2 or more"),
        (np.zeros((4, 1, 1)), "C of 2 or more"),
        (np.zeros((2, 2)), r"shape \[2, 2\], expected \[items, C, C\]"),
        (np.zeros((0, 2, 2)), "expected a matrix with at least one row"),
        (np.full((1, 2, 2), np.nan), "expected a finite number"),
    ],
)
def test_what_is_no_item_is_refused(similarity, message):
    with pytest.raises(MetricError, match=message):
        composition_scores(similarity)


def test_chance_of_one_caption_is_refused():
    with pytest.raises(MetricError, match="items of 1 captions, expected at least 2"):
        composition_chance(1)
