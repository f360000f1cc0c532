import json
import math
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import geometry, nearest
from clapkit.metrics.geometry import (
    PAIR_GEOMETRY,
    alignment,
    effective_rank,
    group_directions,
    margins,
    mean_negative_cosine,
    mean_positive_cosine,
    modality_gap,
    participation_ratio,
    positive_cosines,
    sample_rows,
    tolerance,
    uniformity,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())
CASES = [pytest.param(case, id=case["name"]) for case in GOLDEN if case["kind"] == "geometry"]


def unit(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("case", CASES)
def test_golden_cases_match(case):
    audio, text, expected = case["audio_embeddings"], case["text_embeddings"], case["expected"]
    values = {
        "alignment": alignment(audio, text),
        "uniformity_audio": uniformity(audio),
        "uniformity_text": uniformity(text),
        "modality_gap": modality_gap(audio, text),
        "mean_positive_cosine": mean_positive_cosine(audio, text),
        "mean_negative_cosine": mean_negative_cosine(audio, text),
        "effective_rank_audio": effective_rank(audio),
        "effective_rank_text": effective_rank(text),
        "participation_ratio_audio": participation_ratio(audio),
        "participation_ratio_text": participation_ratio(text),
    }
    assert values == {name: pytest.approx(expected[name], abs=1e-7) for name in values}
    assert {name: function(audio, text) for name, function in PAIR_GEOMETRY.items()} == {
        name: values[name] for name in ("modality_gap", "alignment", "uniformity_audio", "uniformity_text")
    }


def test_uniformity_equals_a_loop_over_pairs_in_any_chunks(monkeypatch):
    x = unit((11, 5))
    kernel = [math.exp(-2 * ((x[i] - x[j]) ** 2).sum()) for i in range(11) for j in range(i)]
    expected = math.log(sum(kernel) / 55)
    assert uniformity(x) == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(geometry, "_CHUNK_ROWS", 4)
    assert uniformity(x) == pytest.approx(expected, abs=1e-12)


def test_negative_cosine_equals_a_loop():
    audio, text = unit((6, 4)), unit((6, 4), seed=1)
    cosines = [audio[i] @ text[j] for i in range(6) for j in range(6) if i != j]
    assert mean_negative_cosine(audio, text) == pytest.approx(np.mean(cosines), abs=1e-12)


def test_two_antipodal_points_have_uniformity_minus_eight():
    assert uniformity([[1, 0], [-1, 0]]) == pytest.approx(-8.0)  # exp(-2 * 2^2)


def test_collapsed_embeddings_are_finite_and_aligned():
    same = np.tile(unit((1, 7)), (5, 1))
    values = {name: function(same, same) for name, function in PAIR_GEOMETRY.items()}
    assert values == pytest.approx({"modality_gap": 0, "alignment": 0, "uniformity_audio": 0, "uniformity_text": 0}, abs=1e-12)
    assert effective_rank(same) == pytest.approx(1.0, abs=1e-6)


def test_alignment_is_what_the_positive_cosine_says():
    audio, text = unit((9, 6)), unit((9, 6), seed=1)
    assert alignment(audio, text) == pytest.approx(2 - 2 * mean_positive_cosine(audio, text))


def test_an_orthonormal_basis_has_full_rank():
    assert effective_rank(np.eye(6)) == pytest.approx(6.0)
    # Centred, one of the six directions is gone and the other five are alike.
    assert participation_ratio(np.eye(6)) == pytest.approx(5.0)


def test_rotation_changes_nothing():
    audio, text = unit((9, 6)), unit((9, 6), seed=1)
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(6, 6)))
    for function in (*PAIR_GEOMETRY.values(), mean_negative_cosine):
        assert function(audio @ rotation, text @ rotation) == pytest.approx(function(audio, text))
    for function in (effective_rank, participation_ratio):
        assert function(audio @ rotation) == pytest.approx(function(audio))


@pytest.mark.parametrize("function", [alignment, mean_positive_cosine, mean_negative_cosine])
def test_pairs_need_the_same_shape(function):
    with pytest.raises(MetricError, match=r"audio is \[3, 2\] and text \[4, 2\]; expected the same \[N, D\] twice"):
        function(unit((3, 2)), unit((4, 2)))


def test_modalities_may_differ_in_number_and_not_in_width():
    assert modality_gap([[1, 0], [1, 0]], [[-1, 0]]) == pytest.approx(2.0)
    with pytest.raises(MetricError, match="audio is 2 wide and text 3; expected the same width"):
        modality_gap(unit((3, 2)), unit((3, 3)))


@pytest.mark.parametrize("function", [uniformity, effective_rank, participation_ratio])
def test_embeddings_that_cannot_be_meant_are_refused(function):
    with pytest.raises(MetricError, match=r"embeddings: shape \[3\], expected \[N, D\]"):
        function(np.ones(3))
    with pytest.raises(MetricError, match="embeddings: holds values that are not finite"):
        function([[1.0, 0.0], [math.nan, 0.0]])


@pytest.mark.parametrize("function", [uniformity, lambda x: mean_negative_cosine(x, x)])
def test_one_row_has_no_pairs(function):
    with pytest.raises(MetricError, match=r"shape \[1, 2\], expected \[N, D\] with N of 2 or more"):
        function([[1.0, 0.0]])


def test_ranks_of_nothing_are_refused():
    with pytest.raises(MetricError, match="embeddings: all are 0, expected some that are not"):
        effective_rank(np.zeros((3, 2)))
    with pytest.raises(MetricError, match="embeddings: all rows are the same, expected some spread"):
        participation_ratio(np.tile(unit((1, 7)), (5, 1)))


@pytest.mark.parametrize("case", CASES)
def test_golden_cosines_give_the_margins(case):
    audio, text, cosine = case["audio_embeddings"], case["text_embeddings"], np.array(case["expected"]["cosine"])
    assert positive_cosines(audio, text) == pytest.approx(cosine.diagonal())
    # Rows of the cosine: 0.96 - 1, 1 - 0.8, 0.96 - 0.8, 0.6 - 0.8; columns: 0.96 - 0.8, 1 - 0.8, 0.96 - 0.6, 0.6 - 1.
    assert margins(audio, text, np.arange(4)) == pytest.approx([-0.04, 0.2, 0.16, -0.2], abs=1e-6)
    assert margins(text, audio, np.arange(4)) == pytest.approx([0.16, 0.2, 0.36, -0.4], abs=1e-6)


def test_margins_equal_a_loop_in_any_chunks(monkeypatch):
    queries, items = unit((13, 5)), unit((7, 5), seed=1)
    own = np.random.default_rng(2).integers(0, 7, 13)
    expected = [queries[i] @ items[own[i]] - max(queries[i] @ items[j] for j in range(7) if j != own[i]) for i in range(13)]
    assert margins(queries, items, own) == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(nearest, "_CHUNK_SCORES", 14)  # two rows at a time
    assert margins(queries, items, own) == pytest.approx(expected, abs=1e-6)


def test_margins_not_above_zero_are_the_queries_that_miss():
    queries, items = unit((40, 3)), unit((40, 3), seed=1)
    hits = (queries @ items.T).argmax(axis=1) == np.arange(40)
    assert (margins(queries, items, np.arange(40)) > 0).tolist() == hits.tolist()


def test_equal_items_have_a_margin_of_exactly_zero():
    item = unit((1, 64))
    items = np.concatenate((item, unit((5, 64), seed=1), item))
    assert margins(unit((9, 64), seed=2), items, np.zeros(9, int)).max() <= 0
    assert (margins(item, items, [0]) == 0).all()


def test_margins_refuse_what_has_no_item():
    with pytest.raises(MetricError, match="excluded: entry 1 is 3, expected 0 to 2"):
        margins(unit((2, 4)), unit((3, 4)), np.array([0, 3]))
    with pytest.raises(MetricError, match="queries: 4 wide, items: 5 wide; expected the same width"):
        margins(unit((2, 4)), unit((3, 5)), np.array([0, 1]))
    with pytest.raises(MetricError, match="k = 1: the gallery has 0 items"):
        margins(unit((2, 4)), unit((1, 4)), np.array([0, 0]))


def test_tolerance_equals_a_loop_over_pairs():
    x = unit((9, 4))
    labels = np.random.default_rng(1).random((9, 3)) < 0.5
    cosines = [x[i] @ x[j] for c in range(3) for i in range(9) for j in range(i) if labels[i, c] and labels[j, c]]
    assert tolerance(x, labels) == pytest.approx(np.mean(cosines), abs=1e-12)


def test_tolerance_is_the_cosine_of_the_only_pair():
    # (1, 0) and (0.6, 0.8) share the first label: cosine 0.6; the third is alone.
    labels = np.array([[True, False], [True, False], [False, True]])
    assert tolerance([[1, 0], [0.6, 0.8], [0, 1]], labels) == pytest.approx(0.6)


def test_tolerance_needs_a_pair():
    with pytest.raises(MetricError, match="no two rows share one, expected at least one pair"):
        tolerance(unit((2, 3)), np.eye(2, dtype=bool))
    with pytest.raises(MetricError, match=r"labels: int64 \[2, 2\], expected bool \[2, classes\]"):
        tolerance(unit((2, 3)), np.eye(2, dtype=int))


def test_directions_of_groups_are_unit_means_in_any_order():
    vectors, group = unit((7, 4)), np.array([5, 2, 5, 9, 2, 5, 9])
    groups, directions = group_directions(vectors, group)
    assert groups.tolist() == [2, 5, 9]
    for number, direction in zip(groups, directions, strict=True):
        mean = vectors[group == number].mean(axis=0)
        assert direction == pytest.approx(mean / np.linalg.norm(mean))


def test_groups_that_cancel_have_no_direction():
    with pytest.raises(MetricError, match="group 4: its vectors cancel each other; expected a mean with a direction"):
        group_directions([[1, 0], [0, 1], [0, -1]], np.array([3, 4, 4]))
    with pytest.raises(MetricError, match=r"group: int64 \[2\], expected 3 whole numbers, one per vector"):
        group_directions(unit((3, 2)), np.array([1, 2]))


def test_a_sample_is_everything_where_it_fits_and_repeats_where_it_does_not():
    assert sample_rows(5, limit=5, seed=0).tolist() == [0, 1, 2, 3, 4]
    drawn = sample_rows(1000, limit=10, seed=3)
    assert len(set(drawn)) == 10
    assert drawn.tolist() == sorted(drawn)
    assert drawn.tolist() == sample_rows(1000, limit=10, seed=3).tolist()
    assert drawn.tolist() != sample_rows(1000, limit=10, seed=4).tolist()
