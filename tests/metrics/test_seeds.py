import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.seeds import seed_difference, seed_error
from clapkit.metrics.student_t import student_t_critical


def test_errors_match_a_hand_computed_example():
    # Seeds have means 1 and 3: variance 2, so 2 / 2 seeds = 1. Clips have means 1, 2, 3: variance 1, so 1 / 3 clips.
    # Rows are parallel: no rest. Total 1 + 1 / 3.
    found = seed_error([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    assert found.mean == 2
    assert found.seed_error == pytest.approx(1.0)
    assert found.test_error == pytest.approx(np.sqrt(1 / 3))
    # Satterthwaite: (4 / 3)^2 / (1^2 / 1 + (1 / 3)^2 / 2) = 1.684211 degrees of freedom.
    half = student_t_critical(0.95, degrees=(4 / 3) ** 2 / (1 + 1 / 18)) * np.sqrt(4 / 3)
    assert found.interval == pytest.approx((2 - half, 2 + half))


def test_the_rest_is_counted_once():
    # Seed and clip effects are zero: both parts estimate the variance of the rest, and the whole is that as well.
    generator = np.random.default_rng(0)
    parts, widths = [], []
    for _ in range(300):
        found = seed_error(generator.normal(size=(4, 50)))
        parts.append((found.seed_error**2, found.test_error**2))
        widths.append(found.interval[1] - found.interval[0])
    assert np.mean(parts, axis=0) == pytest.approx([1 / 200, 1 / 200], rel=0.15)
    assert np.median(widths) < 2 * 2.1 * np.sqrt(1.7 / 200)  # were it counted twice, 2 t sqrt(2 / 200)


def test_identical_seeds_leave_the_error_of_the_clips():
    values = np.random.default_rng(0).random(30)
    found = seed_error(np.tile(values, (3, 1)))
    assert found.seed_error == pytest.approx(0, abs=1e-12)
    assert found.test_error == pytest.approx(values.std(ddof=1) / np.sqrt(30))


def test_the_difference_pairs_clips_and_adds_the_errors_of_both_seeds():
    generator = np.random.default_rng(1)
    hard = generator.normal(size=100)  # hardness of a clip, which both methods share
    first, second = (hard + generator.normal(0, 0.1, (3, 1)) + generator.normal(0, 0.1, (3, 100)) for _ in range(2))
    found = seed_difference(first, second)
    assert found.mean == pytest.approx(first.mean() - second.mean())
    assert found.test_error == pytest.approx((first.mean(0) - second.mean(0)).std(ddof=1) / 10)
    assert found.test_error < 0.2 * seed_error(first).test_error
    expected = np.hypot(seed_error(first).seed_error, seed_error(second).seed_error)
    assert found.seed_error == pytest.approx(expected)
    swapped = seed_difference(second, first)
    assert swapped.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_a_method_of_one_run_borrows_the_seed_variance_of_the_other():
    first = np.array([[0.0, 1.0, 2.0], [2.0, 3.0, 4.0]])
    # Variance 2 of single runs: 2 / 2 for the first and 2 / 1 for the second.
    assert seed_difference(first, first[:1]).seed_error == pytest.approx(np.sqrt(1 + 2))
    assert seed_difference(first[:1], first).seed_error == pytest.approx(np.sqrt(2 + 1))


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(400):
        first, second = (0.5 + generator.normal(0, 0.05, (3, 1)) + generator.normal(0, 0.3, (3, 80)) for _ in range(2))
        lower, upper = seed_difference(first, second).interval
        covered += lower <= 0 <= upper
    assert covered / 400 > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 400)


def test_all_equal_values_have_no_error():
    found = seed_difference(np.ones((2, 5)), np.zeros((3, 5)))
    assert found.interval == (1.0, 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: seed_error(np.ones((1, 5))), "1 run, expected at least 2"),
        (lambda: seed_error(np.ones((2, 1))), "at least 2 clips"),
        (lambda: seed_error([[np.nan, 1.0], [1.0, 1.0]]), "all finite"),
        (lambda: seed_difference(np.ones((2, 5)), np.ones((2, 6))), "5 and 6 clips, expected the same clips"),
        (lambda: seed_difference(np.ones((1, 5)), np.ones((1, 5))), "1 run of each method"),
    ],
)
def test_what_cannot_be_told_is_refused(call, message):
    with pytest.raises(MetricError, match=message):
        call()
