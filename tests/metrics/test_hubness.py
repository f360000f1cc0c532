import json
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import nearest
from clapkit.metrics.hubness import hubness, k_occurrence, largest_hubs, skewness

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())
CASES = [pytest.param(case, id=case["name"]) for case in GOLDEN if case["kind"] == "hubness"]


def unit(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def of_scores(scores, k):
    """Counts for scores [Q, N]: products of the queries, which are unit vectors, and the columns."""
    return k_occurrence(np.eye(len(scores)), np.transpose(scores).astype(float), k)


@pytest.mark.parametrize("case", CASES)
def test_golden_cases_match(case):
    scores, expected = np.array(case["similarity"]).T, case["expected"]  # [queries, clips]
    first, second = of_scores(scores, 1), of_scores(scores, 2)
    assert first.tolist() == expected["N_1"]
    assert second.tolist() == expected["N_2"]
    found = hubness(first, num_queries=5)
    assert found.skewness == pytest.approx(expected["skewness_N_1"], abs=1e-6)
    assert found.never_retrieved_share == expected["never_retrieved_share_k1"]
    assert found.largest_share == expected["largest_share_k1"]
    assert hubness(second, num_queries=5).skewness == pytest.approx(expected["skewness_N_2"], abs=1e-6)
    assert hubness(second, num_queries=5).never_retrieved_share == expected["never_retrieved_share_k2"]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_counts_equal_sorted_lists_in_any_chunks(monkeypatch, k):
    queries, items = unit((20, 5)), unit((8, 5), seed=1)
    expected = np.zeros(8)
    for query in queries:
        for item in np.argsort(-(items @ query))[:k]:
            expected[item] += 1
    assert k_occurrence(queries, items, k).tolist() == expected.tolist()
    monkeypatch.setattr(nearest, "_CHUNK_SCORES", 24)  # three queries at a time
    assert k_occurrence(queries, items, k).tolist() == expected.tolist()


def test_tied_items_share_the_places_that_are_left():
    # One item is ahead, three tie for the one place behind it, and the last is in no list.
    assert of_scores([[4.0, 2.0, 2.0, 2.0, 1.0]], 2).tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0])


def test_ties_come_out_as_random_orders_do_on_average():
    scores = np.random.default_rng(0).integers(0, 3, (4, 6)).astype(float)
    drawn = np.zeros(6)
    generator = np.random.default_rng(1)
    for _ in range(4000):
        order = generator.permutation(6)
        for row in scores:
            drawn[order[np.argsort(-row[order], kind="stable")[:2]]] += 1 / 4000
    assert of_scores(scores, 2) == pytest.approx(drawn, abs=0.1)


def test_a_collapsed_model_has_no_hubs():
    same = np.tile(unit((1, 6)), (9, 1))
    counts = k_occurrence(same, same, 3)
    assert counts == pytest.approx(np.full(9, 3.0))
    found = hubness(counts, num_queries=9)
    assert (found.skewness, found.never_retrieved_share) == (0, 0)


def test_equal_vectors_tie_wherever_they_stand():
    items = unit((7, 512))[[0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6]]
    counts = k_occurrence(unit((50, 512), seed=1), items, 1)
    assert counts[:7] == pytest.approx(counts[7:])


def test_the_order_of_queries_and_items_changes_nothing():
    scores = np.random.default_rng(0).integers(0, 4, (30, 12)).astype(float)
    rows, columns = np.random.default_rng(1).permutation(30), np.random.default_rng(2).permutation(12)
    assert of_scores(scores[rows][:, columns], 3) == pytest.approx(of_scores(scores, 3)[columns])


def test_every_list_is_counted_once():
    assert k_occurrence(unit((25, 4)), unit((9, 4), seed=1), 4).sum() == pytest.approx(100)


def test_skewness_of_three_values():
    # 0, 0, 3: mean 1, deviations -1, -1, 2; mean cube 6 / 3 = 2, variance 6 / 3 = 2; 2 / 2^1.5.
    assert skewness([0, 0, 3]) == pytest.approx(2**-0.5)
    assert skewness([5.0]) == 0


def test_the_largest_hubs_come_first_and_the_earlier_of_equals_before():
    assert largest_hubs([2, 5, 1, 5], 3).tolist() == [1, 3, 0]
    assert largest_hubs([2.0], 10).tolist() == [0]


def test_wrong_input_is_refused():
    with pytest.raises(MetricError, match="k = 4: the gallery has 3 items, expected at most that many"):
        k_occurrence(unit((2, 3)), unit((3, 3)), 4)
    with pytest.raises(MetricError, match="k = 0: expected at least 1"):
        k_occurrence(unit((2, 3)), unit((4, 3)), 0)
    with pytest.raises(MetricError, match="queries: 3 wide, items: 5 wide; expected the same width"):
        k_occurrence(unit((2, 3)), unit((4, 5)), 1)
    with pytest.raises(MetricError, match="queries: row 0 holds a value that is not finite"):
        k_occurrence([[np.nan, 1.0]], unit((4, 2)), 1)
    with pytest.raises(MetricError, match="hubness: 0 items and 3 queries, expected at least one of each"):
        hubness([], num_queries=3)
