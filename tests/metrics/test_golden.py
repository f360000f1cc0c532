"""The golden cases of retrieval and statistics; every kind of case in the file must be somebody's."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import mean_average_precision
from clapkit.metrics.ranking import rank_pairs
from clapkit.metrics.retrieval import evaluate_embeddings, evaluate_retrieval
from clapkit.metrics.statistics import clustered_standard_error, paired_sign_flip

TESTS = Path(__file__).parents[1]
GOLDEN = json.loads((TESTS / "golden/golden_metrics.json").read_text())
NAMES = ("R@1", "R@5", "R@10", "MedR", "MeanR", "MRR", "mAP@10")
# What sections of the file stand for, in the words of the tests that look for one case by its name.
KINDS = sorted({case["kind"] for case in GOLDEN})


def cases(kind):
    return [pytest.param(case, id=case["name"]) for case in GOLDEN if case["kind"] == kind]


def named(name):
    return next(case for case in GOLDEN if case["name"] == name)


def from_matrix(case):
    return evaluate_retrieval(np.array(case["similarity"], dtype=float), case["text_to_audio"])


def from_embeddings(case):
    """With one axis per caption, the rows of the matrix are the clips, and captions are unit vectors."""
    similarity = np.array(case["similarity"], dtype=float)
    return evaluate_embeddings(similarity, np.eye(similarity.shape[1]), case["text_to_audio"])


evaluations = pytest.mark.parametrize("evaluate", [from_matrix, from_embeddings])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_case_has_a_test_that_asks_for_it(kind):
    names = [case["name"] for case in GOLDEN if case["kind"] == kind]
    asked = re.compile("|".join(f"[\"']{re.escape(name)}[\"']" for name in (kind, *names)))
    mine = {"retrieval", "retrieval_ties", "must_raise", "multi_positive_t2a", "statistics"}
    others = [
        path for path in TESTS.rglob("test_*.py") if path != Path(__file__) and "golden_metrics" in path.read_text("utf-8")
    ]
    assert kind in mine or any(asked.search(path.read_text("utf-8")) for path in others), kind


@evaluations
@pytest.mark.parametrize("case", cases("retrieval"))
def test_golden_retrieval_cases_match(case, evaluate):
    result = evaluate(case)
    for direction in ("t2a", "a2t"):
        expected = case["expected"][direction]
        for name in NAMES:
            assert result["metrics"][f"{direction}_{name}"] == pytest.approx(expected[name], abs=1e-6), name
        assert result["counts"][f"{direction}_num_queries"] == expected["n_queries"]
        assert result["counts"][f"{direction}_num_items"] == expected["n_gallery"]
        assert result["ties"][f"{direction}_num_tied_queries"] == 0
    assert result["per_query"]["t2a"]["rank"].tolist() == case["expected"]["t2a_ranks"]
    assert result["per_query"]["a2t"]["rank"].tolist() == [min(ranks) for ranks in case["expected"]["a2t_ranks"]]


@pytest.mark.parametrize("case", cases("retrieval"))
def test_deviating_definitions_of_the_field_are_not_ours(case):
    metrics = from_matrix(case)["metrics"]
    expected, variants = case["expected"]["a2t"], case["field_variants"]
    for k, fraction in variants["a2t_recall_fraction"].items():
        if abs(fraction - expected[f"R{k}"]) > 1e-6:
            assert metrics[f"a2t_R{k}"] != pytest.approx(fraction, abs=1e-6)
    for name in ("a2t_mAP@10_denominator_hits_found", "a2t_mAP@10_unsorted_ranks_bug"):
        if name in variants and abs(variants[name] - expected["mAP@10"]) > 1e-6:
            assert metrics["a2t_mAP@10"] != pytest.approx(variants[name], abs=1e-6)
    for direction in ("t2a", "a2t"):
        if case["expected"][direction]["MedR_floor"] != case["expected"][direction]["MedR"]:
            assert metrics[f"{direction}_MedR"] != case["expected"][direction]["MedR_floor"]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("captions_not_contiguous", "if_grouped_by_j_div_5_by_mistake"),
        ("orientation_k1", "if_matrix_is_transposed_by_mistake"),
    ],
)
def test_wrong_grouping_and_wrong_orientation_would_be_noticed(name, key):
    case = named(name)
    metrics = from_matrix(case)["metrics"]
    for direction, wrong in case[key].items():
        for metric, value in wrong.items():
            assert metrics[f"{direction}_{metric}"] != pytest.approx(value, abs=1e-6)


@evaluations
@pytest.mark.parametrize("case", cases("retrieval_ties"))
def test_golden_tie_cases_are_pessimistic_with_expected_values_beside(case, evaluate):
    result = evaluate(case)
    for direction in ("t2a", "a2t"):
        expected = case["expected"][direction]
        for name, value in expected["pessimistic"].items():
            assert result["metrics"][f"{direction}_{name}"] == pytest.approx(value, abs=1e-6)
        for name, value in expected["expected"].items():
            assert result["expected"][f"{direction}_{name}"] == pytest.approx(value, abs=1e-6)
            # All scores are equal there: what is expected of a collapsed model is chance.
            assert result["chance"][f"{direction}_{name}"] == pytest.approx(value, abs=1e-6)
        assert result["ties"][f"{direction}_num_tied_queries"] == expected["n_tied_queries"]
    assert any("tied scores" in warning for warning in result["warnings"])


@evaluations
@pytest.mark.parametrize("case", cases("must_raise"))
def test_golden_damaged_cases_are_refused(case, evaluate):
    with pytest.raises(MetricError, match=r"not finite|expected a finite number|belongs to clip 2, expected 0 to 1"):
        evaluate(case)


@pytest.mark.parametrize("case", cases("multi_positive_t2a"))
@pytest.mark.parametrize("k", [10, 16])
@pytest.mark.parametrize(("denominator", "suffix"), [("min", "min"), ("relevant", "R")])
def test_both_denominators_match_the_golden_case_with_many_relevant_clips(case, k, denominator, suffix):
    scores = np.array(case["similarity"]).T  # queries are columns there
    relevant = np.zeros(scores.shape, dtype=bool)
    for query, items in enumerate(case["text_to_audio"]):
        relevant[query, items] = True
    values = mean_average_precision.build(k=k, denominator=denominator)(scores, relevant)
    expected = [entry[f"AP@{k}_{suffix}"] for entry in case["expected"]["per_query"]]
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert values.mean() == pytest.approx(case["expected"][f"mAP@{k}_{suffix}"], abs=1e-6)
    ranking = rank_pairs(scores, *np.nonzero(relevant))
    assert ranking.rank.tolist() == [rank for entry in case["expected"]["per_query"] for rank in entry["ranks"]]


def test_clustered_standard_error_matches_the_golden_case():
    case = named("clustered_standard_error")
    hits = np.array(case["hits"])
    error = clustered_standard_error(hits.ravel(), np.repeat(np.arange(len(hits)), hits.shape[1]))
    assert error == pytest.approx(case["expected"]["cluster_se"], abs=1e-6)


def test_the_sign_flip_test_matches_the_golden_case():
    case = named("paired_sign_flip")
    found, expected = paired_sign_flip(case["differences"]), case["expected"]
    assert found.mean_difference == pytest.approx(expected["mean_difference"], abs=1e-6)
    assert (found.two_sided_p, found.one_sided_p) == (expected["two_sided_p"], expected["one_sided_p"])
    assert found.num_patterns == expected["n_patterns"]
