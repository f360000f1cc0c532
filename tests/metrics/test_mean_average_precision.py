import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import mean_average_precision


def naive(scores, relevant, k, denominator):
    order = np.argsort(-scores)
    ranks = [place + 1 for place, item in enumerate(order) if relevant[item]]
    total = sum(j / rank for j, rank in enumerate(ranks, start=1) if rank <= k)
    return total / (min(len(ranks), k) if denominator == "min" else len(ranks))


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
