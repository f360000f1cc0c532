import itertools

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.chance import chance_average_precision, chance_levels
from clapkit.metrics.mean_average_precision import average_precision
from clapkit.metrics.ranking import best_rank, hit_probability, rank_pairs

PRECISIONS = {"mAP@3": (3, "min"), "mAP@3_R": (3, "relevant")}


def all_orders(num_relevant, num_items):
    """The ranking of every order of the items, of which the first ones are relevant."""
    orders = np.array(list(itertools.permutations(range(num_items))), dtype=float)
    query = np.repeat(np.arange(len(orders)), num_relevant)
    return rank_pairs(orders, query, np.tile(np.arange(num_relevant), len(orders)))


@pytest.mark.parametrize(("num_relevant", "num_items"), [(1, 1), (1, 4), (1, 5), (2, 5), (4, 6), (3, 3)])
def test_levels_are_the_means_over_all_orders_of_the_items(num_relevant, num_items):
    ranking = all_orders(num_relevant, num_items)
    levels = chance_levels([num_relevant] * 7, num_items, ks=(1, 3, 10), precisions=PRECISIONS)
    rank = best_rank(ranking)
    assert levels == pytest.approx(
        {
            **{f"R@{k}": hit_probability(ranking, k).mean() for k in (1, 3, 10)},
            "mAP@3": average_precision(ranking, 3).mean(),
            "mAP@3_R": average_precision(ranking, 3, denominator="relevant").mean(),
            "MRR": (1 / rank).mean(),
            "MedR": np.median(rank),
            "MeanR": rank.mean(),
        }
    )


def test_queries_with_different_numbers_of_relevant_items_are_averaged():
    one, three = (chance_levels([size], 6, precisions=PRECISIONS) for size in (1, 3))
    both = chance_levels([1, 3, 3, 3], 6, precisions=PRECISIONS)
    for name in ("R@1", "MRR", "MeanR", "mAP@3"):
        assert both[name] == pytest.approx((one[name] + 3 * three[name]) / 4)


def test_levels_of_audiocaps_are_those_of_the_literature():
    t2a = chance_levels(np.ones(4785, int), 957, precisions={})
    a2t = chance_levels(np.full(957, 5), 4785, precisions={})
    assert [round(100 * t2a[f"R@{k}"], 3) for k in (1, 5, 10)] == [0.104, 0.522, 1.045]
    assert [round(100 * a2t[f"R@{k}"], 3) for k in (1, 5, 10)] == [0.104, 0.522, 1.041]
    assert t2a["MedR"] == t2a["MeanR"] == 479  # (957 + 1) / 2


def test_with_one_relevant_item_average_precision_is_a_harmonic_number():
    # Rank r has probability 1/20 and precision 1/r up to rank 3.
    assert chance_average_precision(np.array([1]), 20, 3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 20)


@pytest.mark.parametrize("num_relevant", [[], [0], [3]])
def test_impossible_numbers_of_relevant_items_are_refused(num_relevant):
    with pytest.raises(MetricError, match="each with 1 to 2 relevant items"):
        chance_levels(num_relevant, 2, precisions={})


def test_a_cutoff_below_one_is_refused():
    with pytest.raises(MetricError, match="k = 0"):
        chance_average_precision(np.array([1]), 2, 0)
