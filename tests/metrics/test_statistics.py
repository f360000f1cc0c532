import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import statistics
from clapkit.metrics.statistics import (
    bootstrap_intervals,
    bootstrap_weights,
    clustered_standard_error,
    paired_sign_flip,
    paired_sign_flips,
    weighted_mean,
    weighted_median,
)

GOLDEN = {
    case["name"]: case
    for case in json.loads((Path(__file__).parents[1] / "golden/golden_metrics.json").read_text())
    if case["kind"] == "statistics"
}


def test_clustered_standard_error_matches_the_golden_case():
    case = GOLDEN["clustered_standard_error"]
    hits = np.array(case["hits"])
    error = clustered_standard_error(hits.ravel(), np.repeat(np.arange(4), 5))
    assert error == pytest.approx(case["expected"]["cluster_se"], abs=1e-6)
    assert error > 2 * case["expected"]["naive_binomial_se"]


def test_clustered_standard_error_is_the_jackknife_over_clips_of_equal_size():
    values, clip = np.random.default_rng(0).random(30), np.repeat(np.arange(10), 3)
    means = np.array([values[clip != c].mean() for c in range(10)])
    jackknife = np.sqrt(9 / 10 * np.square(means - means.mean()).sum())
    assert clustered_standard_error(values, clip) == pytest.approx(jackknife)


def test_a_standard_error_of_one_clip_is_refused():
    with pytest.raises(MetricError, match="1 clips, expected at least 2"):
        clustered_standard_error([1.0, 0.0], [0, 0])


def test_sign_flip_matches_the_golden_case_exactly():
    case = GOLDEN["paired_sign_flip"]
    found = paired_sign_flip(case["differences"])
    expected = case["expected"]
    assert found.mean_difference == pytest.approx(expected["mean_difference"], abs=1e-6)
    assert found.two_sided_p == expected["two_sided_p"]
    assert found.one_sided_p == expected["one_sided_p"]
    assert found.num_patterns == expected["n_patterns"]


def test_sign_flip_is_that_of_a_loop_over_all_patterns():
    differences = np.array([0.3, -0.1, 0.2, 0.0, 0.1, 0.4, -0.2])
    sums = [sum(s * d for s, d in zip(p, differences, strict=True)) for p in itertools.product((-1, 1), repeat=7)]
    observed = differences.sum()
    expected = np.mean([abs(total) >= observed - 1e-9 for total in sums])
    assert paired_sign_flip(differences).two_sided_p == pytest.approx(expected)


def test_many_clips_are_sampled_and_the_observed_pattern_counts():
    # 40 differences of one sign: no random pattern gets as far, so only the observed one counts.
    found = paired_sign_flip(np.ones(40), num_draws=999)
    assert found.num_patterns == 1000
    assert found.two_sided_p == 1 / 1000


def test_sampled_p_is_near_the_exact_one(monkeypatch):
    differences = np.random.default_rng(1).normal(0.3, 1, 12)
    exact = paired_sign_flip(differences).two_sided_p
    monkeypatch.setattr(statistics, "MAX_EXACT_CLIPS", 5)
    assert paired_sign_flip(differences, num_draws=5000).two_sided_p == pytest.approx(exact, abs=0.03)


def test_equal_systems_give_p_one():
    assert paired_sign_flip(np.zeros(20)).two_sided_p == 1.0


@pytest.mark.parametrize("differences", [[], [np.nan, 1.0]])
def test_differences_that_cannot_be_tested_are_refused(differences):
    with pytest.raises(MetricError, match="expected at least one, all finite"):
        paired_sign_flip(differences)


def test_every_draw_holds_as_many_clips_as_there_are(monkeypatch):
    monkeypatch.setattr(statistics, "_CHUNK_WEIGHTS", 35)  # blocks of 5 draws
    weights = np.concatenate(list(bootstrap_weights(7, num_draws=23, seed=0)))
    assert weights.shape == (23, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert len(np.unique(weights, axis=0)) > 15


def test_weighted_summaries_are_those_of_the_repeated_queries():
    generator = np.random.default_rng(0)
    clip, values = np.array([0, 0, 1, 2, 2, 2, 3]), generator.integers(1, 9, 7).astype(float)
    weights = np.concatenate(list(bootstrap_weights(4, num_draws=50, seed=3)))
    means = weighted_mean(values, clip, num_clips=4)(weights)
    medians = weighted_median(values, clip, num_clips=4)(weights)
    for row, mean, median in zip(weights, means, medians, strict=True):
        repeated = np.repeat(values, row[clip].astype(int))
        assert mean == pytest.approx(repeated.mean())
        assert median == np.median(repeated)


def test_intervals_shrink_with_the_number_of_clips():
    widths = []
    for size in (20, 2000):
        values = np.random.default_rng(0).random(size)
        summary = weighted_mean(values, np.arange(size), num_clips=size)
        lower, upper = bootstrap_intervals({"m": summary}, num_clips=size, num_draws=300)["m"]
        assert lower < values.mean() < upper
        widths.append(upper - lower)
    assert widths[1] < widths[0] / 5  # sqrt(100) = 10 times narrower in the limit


def test_intervals_of_clustered_hits_are_as_wide_as_the_clustered_error_says():
    generator = np.random.default_rng(0)
    clip = np.repeat(np.arange(200), 5)
    hits = np.repeat(generator.random(200) < 0.4, 5).astype(float)  # captions of a clip succeed together
    summary = weighted_mean(hits, clip, num_clips=200)
    lower, upper = bootstrap_intervals({"m": summary}, num_clips=200, num_draws=2000)["m"]
    assert (upper - lower) / (2 * 1.96) == pytest.approx(clustered_standard_error(hits, clip), rel=0.1)


def test_a_bootstrap_without_clips_or_draws_is_refused():
    with pytest.raises(MetricError, match="no clips"):
        next(bootstrap_weights(0, num_draws=1, seed=0))
    with pytest.raises(MetricError, match="0 draws, expected at least 1"):
        bootstrap_intervals({}, num_clips=1, num_draws=0)


def test_clips_that_do_not_fit_the_values_are_refused():
    with pytest.raises(MetricError, match="one clip per query"):
        weighted_mean([1.0, 2.0], [0], num_clips=1)
    with pytest.raises(MetricError, match="indices must cover 0 to 2"):
        weighted_mean([1.0, 2.0], [0, 2], num_clips=3)


def test_several_quantities_see_the_same_patterns():
    differences = np.random.default_rng(0).normal(0.2, 1, size=(30, 4))
    together = paired_sign_flips(differences, num_draws=500, seed=3)
    alone = [paired_sign_flip(column, num_draws=500, seed=3) for column in differences.T]
    assert [(t.two_sided_p, t.one_sided_p, t.num_patterns) for t in together] == [
        (t.two_sided_p, t.one_sided_p, t.num_patterns) for t in alone
    ]
    assert [t.mean_difference for t in together] == pytest.approx([t.mean_difference for t in alone])


def test_quantities_without_clips_are_refused():
    with pytest.raises(MetricError, match=r"differences \[0, 2\], expected \[clips, quantities\]"):
        paired_sign_flips(np.empty((0, 2)))
