import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.errors import ConfigError, ShapeError
from clapkit.index.fusion import reciprocal_rank_fusion


def ints(*values):
    return np.array(values, dtype=np.int64)


def naive(rankings, *, k, weights, constant):
    sums, best = {}, {}
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, row in enumerate(ranking, start=1):
            sums.setdefault(row, []).append(weight / (constant + rank))
            best[row] = min(best.get(row, rank), rank)
    ordered = sorted(sums, key=lambda row: (-sum(sorted(sums[row])), best[row], row))
    return ordered[:k], [sum(sorted(sums[row])) for row in ordered[:k]]


def test_sums_are_those_of_the_formula():
    scores, rows = reciprocal_rank_fusion([ints(7, 3), ints(3, 9, 7)], k=10)
    # 3: 1/62 + 1/61 = 0.032522; 7: 1/61 + 1/63 = 0.032266; 9: 1/62 = 0.016129
    assert rows.tolist() == [3, 7, 9]
    np.testing.assert_allclose(scores, [0.0325225, 0.0322664, 0.0161290], atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_fusion_equals_a_naive_loop(data):
    rows = st.lists(st.integers(0, 15), unique=True, max_size=12)
    rankings = data.draw(st.lists(rows, min_size=1, max_size=4))
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(rankings), max_size=len(rankings)))
    k, constant = data.draw(st.integers(1, 20)), data.draw(st.sampled_from([0.0, 1.0, 60.0]))
    scores, found = reciprocal_rank_fusion([ints(*one) for one in rankings], k=k, weights=weights, constant=constant)
    expected_rows, expected_scores = naive(rankings, k=k, weights=weights, constant=constant)
    assert found.tolist() == expected_rows
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-12)


def test_equal_sums_are_ordered_by_the_best_rank_and_then_by_row():
    # 5 and 2 have ranks 1 and 2 in turn: a tie in every respect, so the smaller row is first.
    _, rows = reciprocal_rank_fusion([ints(5, 2), ints(2, 5)], k=2)
    assert rows.tolist() == [2, 5]
    # With weights 1 and 2 and constant 0, 8 has 1/1 and 4 has 2/2: the better rank is first although its row is larger.
    _, rows = reciprocal_rank_fusion([ints(8), ints(6, 4)], k=3, weights=[1, 2], constant=0)
    assert rows.tolist() == [6, 8, 4]


def test_ties_are_exact_whatever_ranking_gave_which_rank():
    # 1/61 + 1/62 + 1/67 rounds differently in other orders of addition.
    one, two = 900, 100
    fill = iter(range(1000, 1100))

    def ranking(**places):
        rows = [next(fill) for _ in range(7)]
        for row, place in ((one, places["one"]), (two, places["two"])):
            rows[place - 1] = row
        return ints(*rows)

    rankings = [ranking(one=1, two=7), ranking(one=2, two=1), ranking(one=7, two=2)]
    scores, rows = reciprocal_rank_fusion(rankings, k=2)
    assert rows.tolist() == [two, one]
    assert scores[0] == scores[1]


def test_the_order_of_the_rankings_does_not_matter():
    generator = np.random.default_rng(0)
    rankings = [generator.permutation(50)[:20] for _ in range(3)]
    forward, backward = (reciprocal_rank_fusion(some, k=50) for some in (rankings, rankings[::-1]))
    np.testing.assert_array_equal(forward[0], backward[0])
    np.testing.assert_array_equal(forward[1], backward[1])


def test_rows_that_tie_in_one_ranking_are_ordered_by_the_other():
    by_vector, by_words = ints(3, 1, 2), ints(1, 2, 3)
    _, rows = reciprocal_rank_fusion([by_vector, by_words], k=3, ranks=[None, ints(1, 1, 1)])
    assert rows.tolist() == [3, 1, 2]


def test_an_empty_ranking_changes_nothing():
    alone, with_empty = (reciprocal_rank_fusion(some, k=5) for some in ([ints(4, 2)], [ints(4, 2), ints()]))
    assert alone[1].tolist() == with_empty[1].tolist() == [4, 2]
    np.testing.assert_array_equal(alone[0], with_empty[0])


@pytest.mark.parametrize("rankings", [[], [ints()]])
def test_nothing_ranked_gives_nothing(rankings):
    scores, rows = reciprocal_rank_fusion(rankings, k=5)
    assert len(scores) == len(rows) == 0
    assert rows.dtype == np.int64


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ConfigError, "k = 0, constant = 60.0, expected at least 1 and 0"),
        ({"constant": -1}, ConfigError, "constant = -1, expected at least 1 and 0"),
        ({"weights": [1]}, ShapeError, "1 weights and 2 lists of ranks for 2 rankings"),
        ({"ranks": [None]}, ShapeError, "2 weights and 1 lists of ranks for 2 rankings"),
        ({"ranks": [None, ints(1, 2)]}, ShapeError, r"ranks \[2\] for rows \[1\]"),
        ({"weights": [1, -1]}, ConfigError, "expected none below 0"),
        ({"weights": [1, float("nan")]}, ConfigError, "expected none below 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        reciprocal_rank_fusion([ints(1, 2), ints(1)], **{"k": 3, **options})


def test_a_row_that_is_ranked_twice_is_refused():
    with pytest.raises(ShapeError, match="names some of them twice"):
        reciprocal_rank_fusion([ints(1, 2, 1)], k=3)
