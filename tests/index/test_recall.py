import numpy as np
import pytest

from clapkit.index._recall import least_effort, recall_of


@pytest.mark.parametrize("goal", [1, 2, 3, 7, 40, 41, 100, 999, 1000])
def test_the_least_effort_is_found_to_a_sixteenth_with_few_trials(goal):
    tried = []

    def reaches(effort):
        tried.append(effort)
        return effort >= goal

    effort = least_effort(reaches, 1, 1000)
    assert goal <= effort <= goal + max(1, goal // 15)
    assert len(tried) <= 16


def test_an_effort_that_nothing_reaches_is_the_highest():
    assert least_effort(lambda effort: False, 1, 1000) == 1000
    assert least_effort(lambda effort: False, 16, 16) == 16


def test_equal_items_stand_in_for_each_other_in_recall():
    scores = np.array([[0.9, 0.8, 0.8], [0.9, 0.7, 0.6]], dtype=np.float32)
    true_scores = np.array([[0.9, 0.8, 0.8], [0.9, 0.8, 0.7]], dtype=np.float32)
    recall = recall_of(scores, true_scores)
    assert recall.mean == pytest.approx((3 / 3 + 2 / 3) / 2)
    assert recall.standard_error == pytest.approx((1 / 6) / np.sqrt(2))  # deviations of 1/6 from 5/6
