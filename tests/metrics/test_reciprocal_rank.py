import numpy as np

from clapkit.metrics import reciprocal_rank


def test_it_is_one_over_the_best_rank_without_a_cutoff():
    scores = np.tile(-np.arange(20), (2, 1))
    relevant = np.zeros((2, 20), dtype=bool)
    relevant[0, [3, 7]] = relevant[1, 19] = True  # best ranks 4 and 20
    assert reciprocal_rank.build()(scores, relevant).tolist() == [1 / 4, 1 / 20]
