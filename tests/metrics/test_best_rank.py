import numpy as np

from clapkit.metrics import best_rank


def test_the_best_of_several_relevant_items_counts_and_ranks_start_at_one():
    scores = np.array([[9, 5, 7, 1], [2, 3, 1, 8]])
    relevant = np.array([[1, 1, 0, 0], [0, 1, 1, 0]], dtype=bool)
    assert best_rank.build()(scores, relevant).tolist() == [1, 2]


def test_ties_count_against_the_query():
    assert best_rank.build()(np.ones((1, 4)), np.array([[True, False, False, False]])).tolist() == [4]
