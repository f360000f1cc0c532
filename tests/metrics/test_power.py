import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics.power import minimum_detectable, minimum_detectable_paired
from clapkit.metrics.statistics import clustered_standard_error, paired_sign_flip


def test_a_large_paired_test_has_the_textbook_value():
    # 20000 differences of +-1: standard deviation 1, and 1.95996 + 0.84162 = 2.80159 standard errors.
    differences = np.tile([1.0, -1.0], 10_000)
    assert minimum_detectable_paired(differences) == pytest.approx(2.80159 / np.sqrt(20_000), rel=1e-4)


def test_few_clips_take_the_t_distribution():
    # 6 differences of standard deviation 1: t(0.975, 5) = 2.570582, t(0.8, 5) = 0.919544.
    differences = np.array([-1.0, 1, -1, 1, -1, 1]) * np.sqrt(5 / 6)
    assert minimum_detectable_paired(differences) == pytest.approx((2.570582 + 0.919544) / np.sqrt(6), rel=1e-5)


def test_unpaired_is_root_two_clustered_errors():
    generator = np.random.default_rng(0)
    clip = np.repeat(np.arange(6000), 3)
    values = np.repeat(generator.random(6000) < 0.4, 3).astype(float)
    expected = 2.80159 * np.sqrt(2) * clustered_standard_error(values, clip)
    assert minimum_detectable(values, clip) == pytest.approx(expected, rel=1e-3)


def test_the_observed_difference_plays_no_part():
    differences = np.random.default_rng(0).normal(size=50)
    assert minimum_detectable_paired(differences + 7) == pytest.approx(minimum_detectable_paired(differences))


def test_four_times_the_clips_halve_the_difference_and_more_power_raises_it():
    differences = np.tile([1.0, -1.0, 0.5, -0.5], 500)
    small = minimum_detectable_paired(differences)
    assert minimum_detectable_paired(np.tile(differences, 4)) == pytest.approx(small / 2, rel=2e-3)
    assert minimum_detectable_paired(differences, power=0.9) > small
    assert minimum_detectable_paired(differences, significance=0.01) > small


def test_five_clips_can_show_nothing_and_are_refused():
    # Five differences of one sign: 2 of 32 patterns are as extreme, p = 0.0625; six: 2 of 64.
    assert paired_sign_flip(np.ones(5)).two_sided_p > 0.05 > paired_sign_flip(np.ones(6)).two_sided_p
    with pytest.raises(MetricError, match="5 clips, expected at least 6"):
        minimum_detectable_paired(np.arange(5))
    with pytest.raises(MetricError, match="2 clips, expected at least 6"):
        minimum_detectable([0, 1, 0, 1, 0, 1], [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("asked", [{"power": 0.5}, {"power": 1.0}, {"significance": 0.0}])
def test_powers_that_cannot_be_meant_are_refused(asked):
    with pytest.raises(MetricError, match="expected a power from 0.5 to 1"):
        minimum_detectable_paired(np.arange(10), **asked)
