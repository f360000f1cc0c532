"""What is claimed in simulated data sets of which the truth is known: clips of differing hardness, correlated captions."""

import numpy as np
import pytest

from clapkit.metrics.paired import holm
from clapkit.metrics.power import minimum_detectable, minimum_detectable_paired
from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.metrics.seeds import seed_difference
from clapkit.metrics.statistics import clustered_standard_error, paired_sign_flips
from clapkit.steps.comparison.side_by_side import compare

POWER = 0.8
CAPTIONS = 5


def simulate(generator, size, *rates):
    """Hits of several models, [size..., captions] each; rates are added to the chance of success of every model.

    A clip has its own chance from 0.2 to 0.6; captions of a clip share luck, and so do models on the same caption.
    """
    chance = generator.uniform(0.2, 0.6, size=(*size, 1))
    whole = generator.random((*size, 1))
    caption = np.where(generator.random((*size, CAPTIONS)) < 0.4, whole, generator.random((*size, CAPTIONS)))
    found = []
    for rate in rates:
        own = generator.random((*size, CAPTIONS))
        luck = np.where(generator.random((*size, CAPTIONS)) < 0.6, caption, own)
        found.append(luck < chance + rate)
    return found


def planted(num_clips):
    """The difference that the paired test of so many clips is said to find with the power, from a very large sample."""
    difference = 0.0
    for _ in range(3):  # the spread depends on the difference a little
        first, second = simulate(np.random.default_rng(99), (100_000,), 0.0, difference)
        by_clip = second.mean(axis=1) - first.mean(axis=1)
        difference = minimum_detectable_paired(by_clip) * np.sqrt(len(by_clip) / num_clips)
    return difference


def tolerance(share, number):
    """Three standard deviations of a share of ``number`` trials."""
    return 3 * np.sqrt(share * (1 - share) / number)


def found_by_clips(differences, num_draws=1999):
    """Whether the sign-flip test finds a difference in each data set, from [data sets, clips]."""
    return np.array([flip.two_sided_p < 0.05 for flip in paired_sign_flips(differences.T, num_draws=num_draws)])


# A planted difference ---------------------------------------------------------------------------------------------------


def check_paired_power(num_clips, num_sets):
    difference = planted(num_clips)
    first, second = simulate(np.random.default_rng(1), (num_sets, num_clips), 0.0, difference)
    differences = second.mean(axis=2) - first.mean(axis=2)
    assert abs(found_by_clips(differences).mean() - POWER) < tolerance(POWER, num_sets)
    told = [minimum_detectable_paired(by_clip) for by_clip in differences]
    assert np.median(told) == pytest.approx(difference, rel=0.05)


def test_a_planted_difference_is_found_with_the_stated_power():
    check_paired_power(num_clips=100, num_sets=600)


@pytest.mark.slow
def test_a_planted_difference_is_found_with_the_stated_power_on_a_test_set_of_the_size_of_audiocaps():
    check_paired_power(num_clips=957, num_sets=1000)


def test_independent_results_show_the_difference_that_is_told_with_the_stated_power():
    num_sets, num_clips = 500, 150
    clip = np.repeat(np.arange(num_clips), CAPTIONS)
    large = simulate(np.random.default_rng(9), (20_000,), 0.0)[0]
    difference = minimum_detectable(large.ravel(), np.repeat(np.arange(20_000), CAPTIONS)) * np.sqrt(20_000 / num_clips)
    (first,) = simulate(np.random.default_rng(1), (num_sets, num_clips), 0.0)
    (second,) = simulate(np.random.default_rng(2), (num_sets, num_clips), difference)
    shown = 0
    for ours, theirs in zip(second, first, strict=True):
        error = np.hypot(clustered_standard_error(ours.ravel(), clip), clustered_standard_error(theirs.ravel(), clip))
        shown += abs(ours.mean() - theirs.mean()) > 1.96 * error
    assert abs(shown / num_sets - POWER) < tolerance(POWER, num_sets)


# No difference ----------------------------------------------------------------------------------------------------------


def claims(found):
    """Whether a comparison claims any difference."""
    return any(v["verdict"] != "no difference shown" for method in found["methods"] for v in method["verdicts"].values())


def check_identical_runs(make_outcome, *, num_comparisons, num_clips):
    generator = np.random.default_rng(3)
    false = 0
    for _ in range(num_comparisons):
        t2a = simulate(generator, (num_clips,), 0.0, 0.0, 0.0)
        a2t = simulate(generator, (num_clips,), 0.2, 0.2, 0.2)
        outcomes = [make_outcome(f"run {n}", t2a[n], a2t[n][:, 0]) for n in range(3)]
        false += claims(compare(outcomes, num_draws=0, seed=0))
    assert false <= 0.05 * num_comparisons


def test_no_difference_is_claimed_between_identical_models_in_95_percent_of_comparisons(make_outcome):
    check_identical_runs(make_outcome, num_comparisons=60, num_clips=40)


@pytest.mark.slow
def test_no_difference_is_claimed_between_identical_models_in_95_percent_of_200_comparisons(make_outcome):
    check_identical_runs(make_outcome, num_comparisons=200, num_clips=300)


@pytest.mark.slow
def test_no_difference_is_claimed_between_models_that_embed_with_the_same_noise(make_outcome):
    """Real retrieval: models see the same sounds and captions, each through noise of its own."""
    generator = np.random.default_rng(4)
    num_clips, width, false = 150, 16, 0
    owner = np.repeat(np.arange(num_clips), CAPTIONS)
    for _ in range(200):
        sound = generator.normal(size=(num_clips, width))
        caption = sound[owner] + generator.normal(0, 1.2, size=(len(owner), width))
        outcomes = []
        for name in ("a", "b"):
            audio, text = (x + generator.normal(0, 0.6, size=x.shape) for x in (sound, caption))
            audio, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (audio, text))
            hits = evaluate_retrieval(audio @ text.T, owner)["per_query"]
            outcomes.append(make_outcome(name, hits["t2a"]["R@1"].reshape(num_clips, CAPTIONS), hits["a2t"]["R@1"]))
        assert 0.1 < outcomes[0].metrics["t2a_R@1"] < 0.9
        false += claims(compare(outcomes, num_draws=0, seed=0))
    assert false <= 10


def test_uncorrected_tests_of_many_runs_claim_too_much():
    # Eight differences without Holm: some p is below 0.05 in about 1 - 0.95^8 = 34 % (less, as all share the baseline).
    models = simulate(np.random.default_rng(5), (200, 60), *[0.0] * 9)
    base = models[0].mean(axis=2)
    p = np.array([[f.two_sided_p for f in paired_sign_flips((m.mean(axis=2) - base).T, num_draws=999)] for m in models[1:]]).T
    assert (p.min(axis=1) < 0.05).mean() > 0.15
    assert np.mean([min(holm(row)) < 0.05 for row in p]) <= 0.05


# Seeds ------------------------------------------------------------------------------------------------------------------


def seeds_of(generator, num_sets, *, rate=0.0, deviation=0.04, num_seeds=3):
    """Deviations in the rate of each seed, for ``num_seeds`` runs of a method: [seeds][data sets, 1, 1]."""
    return [rate + generator.normal(0, deviation, size=(num_sets, 1, 1)) for _ in range(num_seeds)]


def seeds_study(*, num_sets, num_clips, difference, seed):
    """For each data set: whether the clips alone show a difference of the first runs, and of the methods by the rule."""
    generator = np.random.default_rng(seed)
    rates = seeds_of(generator, num_sets) + seeds_of(generator, num_sets, rate=difference)
    runs = np.stack([hits.mean(axis=2) for hits in simulate(generator, (num_sets, num_clips), *rates)])  # [6, sets, clips]
    alone = found_by_clips(runs[3] - runs[0])
    clips = found_by_clips(runs[3:].mean(axis=0) - runs[:3].mean(axis=0))
    intervals = np.array([seed_difference(runs[3:, n], runs[:3, n]).interval for n in range(num_sets)])
    return alone, clips & ((intervals[:, 0] > 0) | (intervals[:, 1] < 0))


def test_seeds_of_one_method_are_not_called_two_though_single_runs_would_be():
    alone, ruled = seeds_study(num_sets=1000, num_clips=100, difference=0.0, seed=6)
    assert alone.mean() > 0.2
    assert ruled.mean() <= 0.05


def test_a_difference_well_above_both_errors_is_found_over_seeds():
    # Standard error of the difference: sqrt(2 / 3) * 0.04 from seeds and about 0.02 from clips; planted: five times 0.038.
    _, ruled = seeds_study(num_sets=100, num_clips=300, difference=0.19, seed=7)
    assert ruled.mean() > POWER


@pytest.mark.slow
def test_no_difference_is_claimed_between_seeds_in_95_percent_of_200_comparisons(make_outcome, training):
    generator = np.random.default_rng(8)
    false = 0
    for _ in range(200):
        rates = generator.normal(0, 0.04, size=6)
        hits = simulate(generator, (200,), *rates)
        outcomes = [
            make_outcome(f"{name}-s{seed}", hits[3 * place + seed], training=training(loss=name, seed=seed))
            for place, name in enumerate(("infonce", "svr"))
            for seed in range(3)
        ]
        found = compare(outcomes, num_draws=0, seed=0)
        assert [len(method["runs"]) for method in found["methods"]] == [3, 3]
        false += claims(found)
    assert false <= 10
