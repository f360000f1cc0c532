import math
from statistics import NormalDist

import pytest

from clapkit.errors import MetricError
from clapkit.metrics.student_t import student_t_critical


def test_one_degree_of_freedom_is_the_cauchy_distribution():
    # P(-t < T < t) = 2 atan(t) / pi, so t = tan(0.95 pi / 2) = 12.706.
    assert student_t_critical(0.95, degrees=1) == pytest.approx(math.tan(0.95 * math.pi / 2), rel=1e-9)


def test_two_degrees_have_a_closed_form():
    # P(-t < T < t) = t / sqrt(2 + t^2), so t = level sqrt(2 / (1 - level^2)).
    assert student_t_critical(0.6, degrees=2) == pytest.approx(0.6 * math.sqrt(2 / 0.64), rel=1e-8)


def test_quantiles_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats", exc_type=ImportError)
    for degrees in (1.3, 2.5, 4, 30, 956, 9999):
        for level in (0.05, 0.6, 0.95, 0.99):
            expected = stats.t.ppf((1 + level) / 2, degrees)
            assert student_t_critical(level, degrees=degrees) == pytest.approx(expected, rel=1e-5)


def test_many_degrees_are_the_normal_distribution():
    assert student_t_critical(0.95, degrees=math.inf) == NormalDist().inv_cdf(0.975)
    assert student_t_critical(0.95, degrees=9999) == pytest.approx(NormalDist().inv_cdf(0.975), abs=3e-4)


@pytest.mark.parametrize(("level", "degrees"), [(0, 3), (1, 3), (0.95, 0.5), (0.95, math.nan)])
def test_what_is_out_of_range_is_refused(level, degrees):
    with pytest.raises(MetricError, match="expected 0 to 1, and at least 1"):
        student_t_critical(level, degrees=degrees)
