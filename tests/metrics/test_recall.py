import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import recall


def test_any_relevant_item_within_k_is_a_hit():
    # Ranks of the relevant items: 1 and 4; 2 and 4; 3 and 4. A fraction found would give 0.5 for the hits.
    scores = np.array([[4, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1]])
    relevant = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 1]], dtype=bool)
    assert recall.build(k=1)(scores, relevant).tolist() == [1, 0, 0]
    assert recall.build(k=2)(scores, relevant).tolist() == [1, 1, 0]
    assert recall.build(k=99)(scores, relevant).tolist() == [1, 1, 1]


def test_ten_is_the_default_cutoff():
    scores = np.tile(-np.arange(12), (2, 1))
    relevant = np.zeros((2, 12), dtype=bool)
    relevant[0, 9] = relevant[1, 10] = True  # ranks 10 and 11
    assert recall.build()(scores, relevant).tolist() == [1, 0]


def test_a_collapsed_model_scores_nothing():
    assert recall.build(k=1)(np.ones((3, 3)), np.eye(3, dtype=bool)).sum() == 0


def test_a_cutoff_below_one_is_refused():
    with pytest.raises(MetricError, match="k = 0"):
        recall.build(k=0)
