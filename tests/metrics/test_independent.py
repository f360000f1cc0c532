"""The same numbers from libraries that were written by others, on random problems with and without ties.

Where scores tie, each library orders equal items in its own way or groups them. They are then given the order that our
convention stands for, wrong items first, as distinct scores: what is compared is the metric, not how a library orders ties.
Scores for torchmetrics are above 0, because it takes items with other scores for wrong ones.
"""

import numpy as np
import pytest
import pytrec_eval
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics

from clapkit.metrics.classification import evaluate_classification
from clapkit.metrics.hubness import skewness
from clapkit.metrics.mean_average_precision import average_precision
from clapkit.metrics.ranking import best_rank, hit_probability, rank_relevant
from clapkit.metrics.retrieval import evaluate_embeddings, evaluate_retrieval
from clapkit.metrics.statistics import bootstrap_intervals, paired_sign_flip, weighted_mean, weighted_median

SEEDS = range(5)
TIED = pytest.mark.parametrize("tied", [False, True])


def problem(seed, *, tied, num_queries=20, num_items=37):
    """Scores and truth [Q, N]; tied scores take four values."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(size=(num_queries, num_items))
    relevant = generator.random(scores.shape) < 0.15
    relevant[np.arange(num_queries), generator.integers(0, num_items, num_queries)] = True
    return np.ceil(scores) if tied else scores, relevant


def strict(scores, relevant):
    """Distinct positive scores in the order of ours, with wrong items before right ones of the same score."""
    order = np.lexsort((relevant, -scores))
    positive = np.empty(scores.shape)
    np.put_along_axis(positive, order, np.arange(scores.shape[1], 0, -1.0)[None].repeat(len(scores), axis=0), axis=1)
    return positive


@TIED
@pytest.mark.parametrize("seed", SEEDS)
def test_ranks_agree_with_torchmetrics(seed, tied):
    from torchmetrics.functional import retrieval as torch_retrieval  # seconds, which collecting need not take

    scores, relevant = problem(seed, tied=tied)
    ranking, given = rank_relevant(scores, relevant), torch.from_numpy(strict(scores, relevant))
    truth = torch.from_numpy(relevant)
    for query in range(len(scores)):
        row, right = given[query], truth[query]
        assert 1 / best_rank(ranking)[query] == pytest.approx(torch_retrieval.retrieval_reciprocal_rank(row, right).item())
        whole = average_precision(ranking, scores.shape[1])[query]
        assert whole == pytest.approx(torch_retrieval.retrieval_average_precision(row, right).item(), abs=1e-6)
        for k in (1, 5, 10):
            assert hit_probability(ranking, k)[query] == torch_retrieval.retrieval_hit_rate(row, right, top_k=k).item()


@TIED
@pytest.mark.parametrize("seed", SEEDS)
def test_ranks_agree_with_trec_eval(seed, tied):
    scores, relevant = problem(seed, tied=tied)
    ranking, given = rank_relevant(scores, relevant), strict(scores, relevant)
    truth = {f"q{q}": {f"d{n}": int(right) for n, right in enumerate(row)} for q, row in enumerate(relevant)}
    run = {f"q{q}": {f"d{n}": float(score) for n, score in enumerate(row)} for q, row in enumerate(given)}
    found = pytrec_eval.RelevanceEvaluator(truth, {"recip_rank", "map", "map_cut.10", "success.1,5,10"}).evaluate(run)
    ours = {
        "recip_rank": 1 / best_rank(ranking),
        "map": average_precision(ranking, scores.shape[1]),
        "map_cut_10": average_precision(ranking, 10, denominator="relevant"),
        **{f"success_{k}": hit_probability(ranking, k) for k in (1, 5, 10)},
    }
    for name, values in ours.items():
        np.testing.assert_allclose(values, [found[f"q{q}"][name] for q in range(len(scores))], atol=1e-6, err_msg=name)


@TIED
@pytest.mark.parametrize("evaluate", ["matrix", "embeddings"])
@pytest.mark.parametrize("seed", SEEDS)
def test_both_directions_agree_with_trec_eval(seed, evaluate, tied):
    generator = np.random.default_rng(seed)
    owners = generator.integers(0, 12, 31)
    similarity = generator.normal(size=(12, 31))
    similarity = (np.ceil(similarity) if tied else similarity).astype(np.float32)
    relevant = owners[None, :] == np.arange(12)[:, None]
    if evaluate == "matrix":
        metrics = evaluate_retrieval(similarity, owners)["metrics"]
    else:
        metrics = evaluate_embeddings(similarity, np.eye(31, dtype=np.float32), owners)["metrics"]
    asked = relevant.any(axis=1)
    for direction, scores, truth in (("t2a", similarity.T, relevant.T), ("a2t", similarity[asked], relevant[asked])):
        given = strict(scores, truth)
        qrel = {f"q{q}": {f"d{n}": int(right) for n, right in enumerate(row)} for q, row in enumerate(truth)}
        run = {f"q{q}": {f"d{n}": float(score) for n, score in enumerate(row)} for q, row in enumerate(given)}
        found = pytrec_eval.RelevanceEvaluator(qrel, {"recip_rank", "map_cut.10", "success.1,5,10"}).evaluate(run).values()
        names = {"MRR": "recip_rank", "mAP@10": "map_cut_10", **{f"R@{k}": f"success_{k}" for k in (1, 5, 10)}}
        for ours, theirs in names.items():
            # No clip has more than ten captions here, so that the two denominators are one.
            assert metrics[f"{direction}_{ours}"] == pytest.approx(np.mean([query[theirs] for query in found]), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_average_precision_agrees_with_scikit_learn(seed):
    scores, relevant = problem(seed, tied=False)
    ours = average_precision(rank_relevant(scores, relevant), scores.shape[1])
    theirs = [sklearn_metrics.average_precision_score(truth, row) for truth, row in zip(relevant, scores, strict=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_recall_agrees_with_the_top_k_accuracy_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    scores, target = generator.normal(size=(40, 15)), generator.integers(0, 15, 40)
    ranking = rank_relevant(scores, np.arange(15) == target[:, None])
    for k in (1, 5, 10):
        theirs = sklearn_metrics.top_k_accuracy_score(target, scores, k=k, labels=np.arange(15))
        assert hit_probability(ranking, k).mean() == pytest.approx(theirs)


@TIED
@pytest.mark.parametrize("seed", SEEDS)
def test_classification_agrees_with_scikit_learn(seed, tied):
    """Its average precision makes one threshold of equal scores, as ours does, so that ties need no order."""
    scores, labels = problem(seed, tied=tied, num_queries=60, num_items=7)
    several = evaluate_classification(scores, labels)["metrics"]["mAP"]
    assert several == pytest.approx(sklearn_metrics.average_precision_score(labels, scores, average="macro"), abs=1e-12)
    target = labels.argmax(axis=1)
    single = evaluate_classification(strict(scores, np.arange(7) == target[:, None]), np.arange(7) == target[:, None])[
        "metrics"
    ]
    predicted = strict(scores, np.arange(7) == target[:, None]).argmax(axis=1)
    assert single["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(target, predicted))
    assert single["mean_per_class_recall"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(target, predicted))


def test_intervals_agree_with_the_bootstrap_of_scipy():
    """Two samples of draws: bounds agree up to their own error, a tenth of the width."""
    generator = np.random.default_rng(0)
    clip = np.repeat(np.arange(80), 3)
    values = generator.normal(size=80)[clip] + generator.normal(size=240)
    summaries = {"mean": weighted_mean(values, clip, num_clips=80), "median": weighted_median(values, clip, num_clips=80)}
    ours = bootstrap_intervals(summaries, num_clips=80, num_draws=4000, seed=1)
    queries = values.reshape(80, 3)
    for name, statistic in (("mean", np.mean), ("median", np.median)):
        theirs = stats.bootstrap(
            (np.arange(80),),
            lambda drawn, statistic=statistic: statistic(queries[drawn]),
            vectorized=False,
            n_resamples=4000,
            method="percentile",
            rng=np.random.default_rng(2),
        ).confidence_interval
        width = theirs.high - theirs.low
        np.testing.assert_allclose(ours[name], (theirs.low, theirs.high), atol=width / 10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [5, 11])
def test_exact_sign_flip_tests_agree_with_scipy(seed, size):
    differences = np.random.default_rng(seed).normal(0.3, 1, size)
    ours = paired_sign_flip(differences)
    for alternative, value in (("two-sided", ours.two_sided_p), ("greater", ours.one_sided_p)):
        theirs = stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative=alternative
        )
        assert value == pytest.approx(theirs.pvalue)


def test_drawn_sign_flip_tests_agree_with_scipy():
    differences = np.random.default_rng(3).normal(0.25, 1, 60)
    theirs = stats.permutation_test(
        (differences,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    # Each p has a standard error of at most sqrt(0.25 / 10,000) = 0.005.
    assert paired_sign_flip(differences).two_sided_p == pytest.approx(theirs.pvalue, abs=0.02)


@pytest.mark.parametrize("seed", SEEDS)
def test_skewness_agrees_with_scipy(seed):
    values = np.random.default_rng(seed).poisson(3, 50)
    assert skewness(values) == pytest.approx(stats.skew(values), abs=1e-12)
