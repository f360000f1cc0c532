import json
import math
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import geometry
from clapkit.metrics.geometry import (
    PAIR_GEOMETRY,
    alignment,
    effective_rank,
    mean_negative_cosine,
    mean_positive_cosine,
    modality_gap,
    participation_ratio,
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
