import json
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import mean_average_precision

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())


def naive(scores, relevant, k, denominator):
    order = np.argsort(-scores)
    ranks = [place + 1 for place, item in enumerate(order) if relevant[item]]
    total = sum(j / rank for j, rank in enumerate(ranks, start=1) if rank <= k)
    return total / (min(len(ranks), k) if denominator == "min" else len(ranks))


def golden_case(name):
    return next(case for case in GOLDEN if case["name"] == name)


@pytest.mark.parametrize("k", [10, 16])
@pytest.mark.parametrize(("denominator", "suffix"), [("min", "min"), ("relevant", "R")])
def test_both_denominators_match_the_golden_case_with_many_relevant_clips(k, denominator, suffix):
    case = golden_case("many_relevant_audios_ap16")
    scores = np.array(case["similarity"]).T  # queries are columns there
    relevant = np.zeros(scores.shape, dtype=bool)
    for query, items in enumerate(case["text_to_audio"]):
        relevant[query, items] = True
    values = mean_average_precision.build(k=k, denominator=denominator)(scores, relevant)
    expected = [entry[f"AP@{k}_{suffix}"] for entry in case["expected"]["per_query"]]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert values.mean() == pytest.approx(case["expected"][f"mAP@{k}_{suffix}"], abs=1e-6)


def test_values_are_those_of_a_loop_over_ranks():
    generator = np.random.default_rng(0)
    scores, relevant = generator.random((20, 15)), generator.random((20, 15)) < 0.4
    relevant[:, 3] = True
    for denominator in ("min", "relevant"):
        values = mean_average_precision.build(k=5, denominator=denominator)(scores, relevant)
        expected = [naive(s, r, 5, denominator) for s, r in zip(scores, relevant, strict=True)]
        np.testing.assert_allclose(values, expected, atol=1e-12)


def test_one_hit_of_five_at_rank_one_scores_a_fifth():
    # A denominator of hits found would give 1.0.
    scores = np.append(np.arange(20, 10, -1), [1, 2, 3, 4, 5])
    relevant = np.zeros(15, dtype=bool)
    relevant[[0, 10, 11, 12, 13]] = True
    assert mean_average_precision.build()(scores[None], relevant[None])[0] == pytest.approx(0.2)


def test_the_order_of_the_relevant_items_in_the_data_does_not_matter():
    relevant = np.array([[True] * 5 + [False] * 5])
    for scores in ([1, 2, 3, 4, 5, -1, -2, -3, -4, -5], [5, 4, 3, 2, 1, -1, -2, -3, -4, -5]):
        assert mean_average_precision.build()(np.array([scores]), relevant)[0] == 1.0


def test_with_one_relevant_item_it_is_the_reciprocal_rank_cut_at_k():
    scores = -np.arange(12)[None]
    values = [mean_average_precision.build()(scores, np.eye(12, dtype=bool)[[i]])[0] for i in range(12)]
    np.testing.assert_allclose(values, [1 / rank for rank in range(1, 11)] + [0, 0])


def test_a_cutoff_below_one_is_refused():
    with pytest.raises(MetricError, match="k = 0"):
        mean_average_precision.build(k=0)
