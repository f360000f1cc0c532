import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.paired import holm, paired_tests
from clapkit.metrics.power import minimum_detectable_paired
from clapkit.metrics.statistics import bootstrap_intervals, paired_sign_flip, weighted_mean


def test_columns_are_tested_as_each_would_be_alone():
    differences = np.random.default_rng(0).normal(0.2, 1, size=(40, 3))
    tests = paired_tests(differences, num_draws=200, seed=4)
    for number, found in enumerate(tests):
        column = differences[:, number]
        alone = paired_sign_flip(column, seed=4)
        summary = weighted_mean(column, np.arange(40), num_clips=40)
        interval = bootstrap_intervals({"m": summary}, num_clips=40, num_draws=200, seed=4)["m"]
        assert found.difference == pytest.approx(column.mean())
        assert found.two_sided_p == alone.two_sided_p
        assert found.interval == pytest.approx(interval)
        assert found.num_clips == 40
        assert found.minimum_detectable_difference == minimum_detectable_paired(column)


def test_without_draws_there_is_no_interval():
    assert paired_tests(np.ones((7, 1)), num_draws=0)[0].interval is None


def test_too_few_clips_or_no_spread_say_nothing_of_power():
    assert paired_tests([[1.0], [0.0]], num_draws=0)[0].minimum_detectable_difference is None
    assert paired_tests(np.ones((20, 1)), num_draws=0)[0].minimum_detectable_difference is None


def test_no_columns_are_no_tests():
    assert paired_tests(np.empty((5, 0))) == []


def test_holm_matches_a_hand_computed_example():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and the last may not fall below: 0.06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


def test_holm_rejects_as_the_sequential_procedure_does():
    generator = np.random.default_rng(0)
    for _ in range(200):
        p = generator.random(5) ** 4
        rejected = set()
        for step, index in enumerate(np.argsort(p)):
            if p[index] * (5 - step) >= 0.05:
                break
            rejected.add(int(index))
        assert {number for number, value in enumerate(holm(p)) if value < 0.05} == rejected


def test_holm_leaves_one_test_and_no_tests_alone():
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_p_out_of_range_is_refused():
    with pytest.raises(MetricError, match="expected 0 to 1"):
        holm([0.1, 1.5])
