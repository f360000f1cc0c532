import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from clapkit.errors import MetricError
from clapkit.metrics import ranking
from clapkit.metrics.ranking import best_rank, hit_probability, rank_pairs, rank_relevant

# Few distinct values, so that ties are common.
SCORES = hnp.arrays(np.int64, st.tuples(st.integers(1, 6), st.integers(1, 7)), elements=st.integers(-3, 3))


def with_truth(scores, seed):
    relevant = np.random.default_rng(seed).random(scores.shape) < 0.4
    relevant[:, 0] |= ~relevant.any(axis=1)
    return relevant


def naive_ranks(scores, relevant):
    """Place wrong items before right ones of the same score, then read off where the right ones stand."""
    rows = []
    for score, truth in zip(scores, relevant, strict=True):
        order = sorted(range(len(score)), key=lambda item: (-score[item], truth[item]))
        rows.append([place + 1 for place, item in enumerate(order) if truth[item]])
    return rows


def test_ranks_start_at_one_and_count_the_items_ahead():
    # 9 > 7 > 5 > 1: the relevant 9 and 5 stand at 1 and 3.
    found = rank_relevant([[9, 5, 7, 1]], np.array([[True, True, False, False]]))
    assert found.rank.tolist() == [1, 3]
    assert found.position.tolist() == [1, 2]


@settings(max_examples=100, deadline=None)
@given(scores=SCORES, seed=st.integers(0, 1000))
def test_ranks_are_those_of_a_sort_that_puts_wrong_items_first(scores, seed):
    relevant = with_truth(scores, seed)
    found = rank_relevant(scores, relevant)
    expected = naive_ranks(scores, relevant)
    assert [found.rank[found.query == query].tolist() for query in range(len(scores))] == expected
    assert best_rank(found).tolist() == [row[0] for row in expected]


@settings(max_examples=40, deadline=None)
@given(scores=SCORES, seed=st.integers(0, 1000), k=st.integers(1, 8))
def test_expected_values_lie_between_pessimistic_and_optimistic_ones(scores, seed, k):
    found = rank_relevant(scores, with_truth(scores, seed))
    low, middle, high = (hit_probability(found, k, ties=t) for t in ("pessimistic", "expected", "optimistic"))
    assert (low <= middle + 1e-12).all()
    assert (middle <= high + 1e-12).all()
    assert (best_rank(found, ties="optimistic") <= best_rank(found, ties="expected")).all()
    assert (best_rank(found, ties="expected") <= best_rank(found)).all()


def test_expected_values_are_means_over_random_orders_of_tied_items():
    scores = np.array([[3, 1, 1, 1, 1, 0]])
    relevant = np.array([[False, True, False, True, False, True]])
    found = rank_relevant(scores, relevant)
    generator = np.random.default_rng(0)
    ranks = []
    for _ in range(4000):
        order = np.lexsort((generator.random(6), -scores[0]))
        ranks.append(1 + np.flatnonzero(relevant[0][order])[0])
    assert best_rank(found, ties="expected")[0] == pytest.approx(np.mean(ranks), abs=0.05)
    assert hit_probability(found, 2, ties="expected")[0] == pytest.approx(np.mean(np.array(ranks) <= 2), abs=0.03)


@settings(max_examples=40, deadline=None)
@given(scores=SCORES, seed=st.integers(0, 1000), shift=st.integers(-5, 5))
def test_strictly_increasing_transforms_change_nothing(scores, seed, shift):
    relevant = with_truth(scores, seed)
    expected = rank_relevant(scores, relevant).rank
    np.testing.assert_array_equal(rank_relevant(scores + shift, relevant).rank, expected)
    np.testing.assert_array_equal(rank_relevant(scores**3 + 2 * scores, relevant).rank, expected)


@settings(max_examples=40, deadline=None)
@given(scores=SCORES, seed=st.integers(0, 1000), distractor=st.integers(-3, 3))
def test_a_distractor_never_improves_a_rank(scores, seed, distractor):
    relevant = with_truth(scores, seed)
    column = np.full((len(scores), 1), distractor)
    more = rank_relevant(np.hstack((scores, column)), np.hstack((relevant, np.zeros_like(column, dtype=bool))))
    assert (more.rank >= rank_relevant(scores, relevant).rank).all()


def test_chunks_change_nothing(monkeypatch):
    generator = np.random.default_rng(0)
    scores, relevant = generator.integers(0, 9, (30, 20)), generator.random((30, 20)) < 0.3
    relevant[:, 0] = True
    whole = rank_relevant(scores, relevant).rank
    monkeypatch.setattr(ranking, "_CHUNK_SCORES", 45)
    np.testing.assert_array_equal(rank_relevant(scores, relevant).rank, whole)


def test_a_query_is_tied_when_any_relevant_item_ties_with_a_wrong_one():
    scores = np.array([[5, 3, 3], [5, 3, 2]])
    relevant = np.array([[True, True, False], [True, True, False]])
    assert rank_relevant(scores, relevant).is_tied.tolist() == [True, False]


def test_equal_scores_of_right_items_alone_are_no_tie():
    found = rank_relevant([[5, 5, 3]], np.array([[True, True, False]]))
    assert found.num_tied_queries == 0
    assert found.rank.tolist() == [1, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(bad):
    with pytest.raises(MetricError, match=r"entry \[1, 0\] is (nan|inf|-inf), expected a finite number"):
        rank_pairs([[1.0, 0.0], [bad, 0.0]], [0, 1], [0, 1])


def test_half_precision_scores_are_refused():
    with pytest.raises(MetricError, match="float16 makes ties"):
        rank_pairs(np.ones((1, 2), dtype=np.float16), [0], [0])


@pytest.mark.parametrize("scores", [np.ones(3), np.ones((0, 3)), np.ones((2, 0))])
def test_scores_that_are_no_matrix_are_refused(scores):
    with pytest.raises(MetricError, match="expected a matrix"):
        rank_pairs(scores, [0], [0])


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(MetricError, match="type <U1, expected float32"):
        rank_pairs([["a"]], [0], [0])


def test_a_query_without_relevant_item_is_refused():
    with pytest.raises(MetricError, match="query 1: has no relevant item"):
        rank_relevant(np.ones((2, 2)), np.array([[True, False], [False, False]]))


@pytest.mark.parametrize(
    ("query", "item", "message"),
    [
        ([0, 1], [0, 2], "item: entry 1 is 2, expected 0 to 1"),
        ([0, -1], [0, 0], "query: entry 1 is -1"),
        ([0, 1], [0], "item: 1 entries, expected 2"),
        ([0.5, 1], [0, 1], "query: float64"),
    ],
)
def test_pairs_that_point_nowhere_are_refused(query, item, message):
    with pytest.raises(MetricError, match=message):
        rank_pairs(np.ones((2, 2)), query, item)


@pytest.mark.parametrize(
    ("relevant", "message"), [(np.ones((2, 3), dtype=bool), r"shape \[2, 3\]"), (np.ones((2, 2)), "type float64")]
)
def test_relevance_of_another_shape_or_type_is_refused(relevant, message):
    with pytest.raises(MetricError, match=message):
        rank_relevant(np.ones((2, 2)), relevant)


def test_a_cutoff_below_one_is_refused():
    with pytest.raises(MetricError, match="k = 0: expected at least 1"):
        hit_probability(rank_pairs([[1.0]], [0], [0]), 0)
