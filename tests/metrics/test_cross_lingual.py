import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.cross_lingual import consistency, mean_over_languages, parallel_distance, top1_agreement
from clapkit.metrics.nearest import top_items
from clapkit.metrics.ranking import best_rank, rank_pairs

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())
CASE = next(case for case in GOLDEN if case["kind"] == "cross_lingual")
LANGUAGES = list(CASE["similarity"])
SCORES = np.array([np.transpose(CASE["similarity"][language]) for language in LANGUAGES], dtype=float)  # [L, Q, N]
RANKS = np.array([best_rank(rank_pairs(scores, np.arange(4), np.array(CASE["text_to_audio"]))) for scores in SCORES])


def top(k):
    return np.array([top_items(np.eye(4), scores.T, k) for scores in SCORES])  # unit vectors: products are the scores


def test_golden_ranks_and_means_match():
    expected = CASE["expected"]
    assert {name: rank.tolist() for name, rank in zip(LANGUAGES, RANKS, strict=True)} == expected["ranks"]
    hits = [rank == 1 for rank in RANKS]
    assert {name: hit.mean() for name, hit in zip(LANGUAGES, hits, strict=True)} == expected["R@1"]
    mean = mean_over_languages(hits, [np.arange(4)] * 3, num_clips=4)
    assert mean(np.ones((1, 4)))[0] == pytest.approx(expected["mean_R@1"], abs=1e-6)


def test_golden_consistency_matches():
    expected, found = CASE["expected"], consistency(RANKS, top(2))
    assert found["rank_variance"].mean() == pytest.approx(expected["mean_rank_variance_population"], abs=1e-6)
    assert found["rank_variance"].mean() != pytest.approx(expected["mean_rank_variance_sample"], abs=1e-6)
    assert found["right_in_every_language"].mean() == expected["right_in_every_language@1"]
    assert found["right_in_any_language"].mean() == expected["right_in_any_language@1"]
    assert found["top1_agreement"].mean() == pytest.approx(expected["mean_top1_agreement"], abs=1e-6)
    assert found["top2_jaccard"].mean() == pytest.approx(expected["mean_top2_jaccard"], abs=1e-6)
    agreement = top1_agreement(top(1)[:, :, 0])
    for pair, value in expected["top1_agreement"].items():
        i, j = (LANGUAGES.index(name) for name in pair.split("-"))
        assert agreement[i, j] == agreement[j, i] == pytest.approx(value, abs=1e-6)
    assert agreement.diagonal().tolist() == [1, 1, 1]


def test_variances_are_those_worked_out_by_hand():
    # Ranks 1, 3, 8: mean 4, variance (9 + 1 + 16) / 3. Logarithms of 1 and e^2: mean 1, variance 1.
    best = np.zeros((3, 1, 1), dtype=int)
    assert consistency([[1], [3], [8]], best)["rank_variance"][0] == pytest.approx(26 / 3)
    assert consistency([[1], [np.e**2]], best[:2])["log_rank_variance"][0] == pytest.approx(1)


def test_overlap_is_that_of_a_loop_over_pairs_of_languages():
    generator = np.random.default_rng(0)
    best = np.array([[generator.permutation(12)[:5] for _ in range(7)] for _ in range(4)])  # [L, Q, K]
    found = consistency(np.ones((4, 7)), best)
    for query in range(7):
        sets = [set(best[language, query].tolist()) for language in range(4)]
        overlaps = [len(a & b) / len(a | b) for a, b in combinations(sets, 2)]
        firsts = [a == b for a, b in combinations(best[:, query, 0].tolist(), 2)]
        assert found["top5_jaccard"][query] == pytest.approx(np.mean(overlaps))
        assert found["top1_agreement"][query] == pytest.approx(np.mean(firsts))


def test_equal_languages_agree_completely():
    ranks, best = np.tile([1, 5, 9], (3, 1)), np.tile(np.arange(6).reshape(3, 2), (3, 1, 1))
    found = consistency(ranks, best)
    assert not found["rank_variance"].any()
    assert not found["log_rank_variance"].any()
    assert (found["top1_agreement"] == 1).all()
    assert (found["top2_jaccard"] == 1).all()
    assert found["right_in_every_language"].tolist() == found["right_in_any_language"].tolist() == [1, 0, 0]


def test_the_order_of_languages_changes_nothing():
    order = [2, 0, 1]
    for name, values in consistency(RANKS, top(2)).items():
        assert consistency(RANKS[order], top(2)[order])[name] == pytest.approx(values)


def test_distance_of_parallel_captions_is_the_mean_over_pairs():
    # Cosines of the pairs of (1, 0), (0, 1), (-1, 0): 0, -1, 0; distances 1, 2, 1.
    vectors = np.array([[[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]])
    assert parallel_distance(vectors).tolist() == [pytest.approx(4 / 3)]
    assert parallel_distance(np.repeat(vectors[:1], 2, axis=0)).tolist() == [0]


def test_languages_count_alike_however_many_captions_they_have():
    # Language 0: 3 captions of clips 0, 0, 1, mean 2/3; language 1: one caption of clip 1, mean 0. Mean of the two: 1/3.
    summary = mean_over_languages([[1, 1, 0], [0]], [[0, 0, 1], [1]], num_clips=2)
    # Clip 1 twice: language 0 has its caption twice, 0/2, language 1 0/2. Clip 0 twice: language 1 is not there, so 4/4.
    assert summary(np.array([[1.0, 1.0], [0.0, 2.0], [2.0, 0.0]])).tolist() == [pytest.approx(1 / 3), 0, 1]


def test_a_draw_without_any_query_has_no_mean():
    summary = mean_over_languages([[1.0]], [[0]], num_clips=2)
    assert np.isnan(summary(np.array([[0.0, 2.0]]))).all()


@pytest.mark.parametrize(
    ("rank", "best", "message"),
    [
        (np.ones((1, 4)), np.zeros((1, 4, 2), int), "expected \\[languages, queries\\] with 2 languages or more"),
        (np.ones((2, 0)), np.zeros((2, 0, 2), int), r"rank: shape \[2, 0\]"),
        (np.ones(4), np.zeros((2, 4, 2), int), r"rank: shape \[4\]"),
        (np.ones((2, 4)), np.zeros((2, 3, 2), int), r"top: int64 \[2, 3, 2\], expected whole numbers \[2, 4, K\]"),
        (np.ones((2, 4)), np.zeros((2, 4, 0), int), r"expected whole numbers \[2, 4, K\]"),
        (np.ones((2, 4)), np.zeros((2, 4, 2)), r"top: float64 \[2, 4, 2\], expected whole numbers"),
        (np.zeros((2, 4)), np.zeros((2, 4, 2), int), "rank: smallest is 0.0, expected 1 or more"),
    ],
)
def test_ranks_that_cannot_be_compared_are_refused(rank, best, message):
    with pytest.raises(MetricError, match=message):
        consistency(rank, best)


def test_other_wrong_shapes_are_refused():
    with pytest.raises(MetricError, match=r"top1: shape \[3\], expected \[languages, queries\]"):
        top1_agreement([1, 2, 3])
    with pytest.raises(MetricError, match=r"vectors: shape \[1, 2, 3\], expected .* 2 languages or more"):
        parallel_distance(np.zeros((1, 2, 3)))
    with pytest.raises(MetricError, match="0 lists of values and 0 of clips"):
        mean_over_languages([], [], num_clips=1)
    with pytest.raises(MetricError, match=r"language 1: \[2\] values of \[1\] clips, expected one clip per query"):
        mean_over_languages([[1.0], [1.0, 0.0]], [[0], [0]], num_clips=1)
