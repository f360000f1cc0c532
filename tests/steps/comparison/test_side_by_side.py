import json

import numpy as np
import pytest

from clapkit.errors import UnknownNameError
from clapkit.files import to_json
from clapkit.metrics.power import minimum_detectable_paired
from clapkit.steps.comparison.side_by_side import compare
from clapkit.steps.evaluation.result import Mark


def hits(rate, *, num_clips=60, seed=0):
    """Hits of five captions a clip, [clips, 5]; those of a lower rate are a subset of those of a higher one."""
    return np.random.default_rng(seed).random((num_clips, 5)) < rate


def compared(*outcomes, **options):
    return compare(outcomes, **{"num_draws": 100, "seed": 0, **options})


def test_differences_are_per_clip_and_tested_against_the_baseline(make_outcome):
    found = compared(make_outcome("bad", np.zeros((6, 2))), make_outcome("good", np.ones((6, 2))))
    assert found["baseline"] == found["baseline_method"] == "bad"
    assert found["rows"][0]["tests"] == {}
    test = found["rows"][1]["tests"]["t2a_R@1"]
    # Six differences of 1: of the 64 sign patterns two are as far from zero.
    assert test == {
        "difference": 1.0,
        "interval": (1.0, 1.0),
        "two_sided_p": pytest.approx(2 / 64),
        "num_clips": 6,
        "minimum_detectable_difference": None,
        "p_holm": pytest.approx(2 / 64),
    }
    assert found["rows"][1]["tests"]["t2a_MeanR"]["difference"] == -1


def test_another_baseline_turns_the_sign(make_outcome):
    outcomes = make_outcome("a", hits(0.3)), make_outcome("b", hits(0.6))
    first, second = compared(*outcomes), compared(*outcomes, baseline="b")
    assert second["rows"][1]["tests"] == {}
    there, back = first["rows"][1]["tests"]["t2a_R@1"], second["rows"][0]["tests"]["t2a_R@1"]
    assert back["difference"] == -there["difference"]
    assert back["two_sided_p"] == there["two_sided_p"]
    smallest = minimum_detectable_paired((hits(0.6) * 1.0 - hits(0.3)).mean(axis=1))
    assert there["minimum_detectable_difference"] == pytest.approx(smallest)


def test_holm_is_over_headline_metrics_and_other_runs(make_outcome):
    outcomes = [make_outcome(f"r{n}", hits(0.3 + n / 20), hits(0.3 + n / 20, seed=1)[:, 0]) for n in range(4)]
    tests = [row["tests"] for row in compared(*outcomes)["rows"][1:]]
    claims = [found[metric] for found in tests for metric in ("t2a_R@1", "a2t_R@1")]
    smallest = min(claims, key=lambda claim: claim["two_sided_p"])
    assert smallest["p_holm"] == pytest.approx(min(1, 6 * smallest["two_sided_p"]))
    assert all("p_holm" not in found["t2a_MeanR"] for found in tests)
    one = compared(*outcomes, headline=["t2a_MeanR"])
    assert one["headline"] == ["t2a_MeanR"]
    assert ["p_holm" in row["tests"]["t2a_R@1"] for row in one["rows"][1:]] == [False] * 3


def test_an_unknown_headline_metric_lists_those_that_there_are(make_outcome):
    with pytest.raises(UnknownNameError, match="unknown --headline metric 't2a_R1': did you mean 't2a_R@1'.*a2t_MeanR"):
        compared(make_outcome("a", hits(0.3), hits(0.3)[:, 0]), headline=["t2a_R1"])


def test_models_that_saw_other_clips_or_captions_are_not_tested(make_outcome):
    values, ids = hits(0.3, num_clips=6), [f"other{n}" for n in range(6)]
    found = compared(make_outcome("a", values), make_outcome("b", values, ids=ids))
    assert found["rows"][1]["tests"] == {}
    assert found["warnings"] == [
        "b: none of its 6 clips is among the 6 of a; what differs is not tested, evaluate both with one --data and --split"
    ]
    captions = [f"caption {n}" for n in range(29)] + ["another"]
    found = compared(make_outcome("a", values, values[:, 0]), make_outcome("b", values, values[:, 0], captions=captions))
    assert set(found["rows"][1]["tests"]) == {"a2t_R@1", "a2t_MeanR"}
    assert found["methods"][1]["verdicts"]["t2a_R@1"]["reason"].startswith("not tested")
    assert found["warnings"] == []


def test_verdicts_stand_with_methods_other_than_the_baseline(make_outcome):
    found = compared(make_outcome("a", hits(0.2)), make_outcome("b", hits(0.6)), make_outcome("c", hits(0.2)))
    assert [{k: v["verdict"] for k, v in method["verdicts"].items()} for method in found["methods"]] == [
        {},
        {"t2a_R@1": "better"},
        {"t2a_R@1": "no difference shown"},
    ]
    assert "training seed is not covered" in found["methods"][1]["verdicts"]["t2a_R@1"]["reason"]


def test_metrics_that_are_no_means_over_clips_are_shown_and_not_tested(make_outcome):
    found = compared(make_outcome("a", zero_shot_mAP=0.5), make_outcome("b", zero_shot_mAP=0.7), headline=["zero_shot_mAP"])
    assert found["methods"][1]["verdicts"]["zero_shot_mAP"]["verdict"] == "no difference shown"
    assert found["leaders"]["zero_shot_mAP"] == {"best": "b", "second": "a", "test": None, "real": False}


# Seeds ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def study(make_outcome, training):
    """Two methods of three seeds; each seed has its own hits at a rate near that of the method."""

    def make(rates, other_rates, **marks):
        outcomes = []
        for name, own in (("base", rates), ("new", other_rates)):
            for seed, rate in enumerate(own):
                config = training(loss=name, seed=seed)
                values = hits(rate, num_clips=300, seed=0)
                outcomes.append(make_outcome(f"{name}-s{seed}", values, training=config, **marks))
        return compared(*outcomes)

    return make


def test_a_method_has_the_mean_and_deviation_of_its_seeds_and_both_errors(study):
    found = study([0.30, 0.32, 0.34], [0.50, 0.52, 0.54])
    base, new = found["methods"]
    assert (base["method"], base["runs"], base["seeds"]) == ("base", ["base-s0", "base-s1", "base-s2"], [0, 1, 2])
    runs = [row["metrics"]["t2a_R@1"] for row in found["rows"][3:]]
    spread = new["spread"]["t2a_R@1"]
    assert new["metrics"]["t2a_R@1"] == pytest.approx(np.mean(runs))
    assert spread["deviation"] == pytest.approx(np.std(runs, ddof=1))
    assert (spread["worst"], spread["best"]) == (min(runs), max(runs))
    assert spread["seed_error"] == pytest.approx(np.std(runs, ddof=1) / np.sqrt(3))
    assert new["intervals"]["t2a_R@1"] == spread["interval"]
    assert (new["spread"]["t2a_MeanR"]["worst"], new["spread"]["t2a_MeanR"]["best"]) == (2 - min(runs), 2 - max(runs))


def test_a_difference_above_both_errors_is_real(study):
    new = study([0.30, 0.32, 0.34], [0.50, 0.52, 0.54])["methods"][1]
    assert new["verdicts"]["t2a_R@1"]["verdict"] == "better"
    assert "with the seeds (3 and 3 runs)" in new["verdicts"]["t2a_R@1"]["reason"]
    assert new["tests"]["t2a_R@1"]["seeds"]["worst_above_best"]
    assert new["tests"]["t2a_MeanR"]["seeds"]["worst_above_best"]


def test_the_interval_of_a_share_stays_a_share(make_outcome, training):
    # With two seeds Student's t has one degree of freedom: 12.7 standard errors reach far beyond 0 and 1.
    outcomes = [make_outcome(f"s{seed}", hits(rate), training=training(seed=seed)) for seed, rate in enumerate((0.2, 0.8))]
    (method,) = compared(*outcomes)["methods"]
    assert method["intervals"]["t2a_R@1"] == (0.0, 1.0)
    lower, upper = method["intervals"]["t2a_MeanR"]  # a rank may be anything
    assert lower < 1 < upper


def test_a_difference_that_seeds_explain_is_not_claimed_though_the_clips_are_sure(study):
    new = study([0.30, 0.45, 0.60], [0.40, 0.55, 0.70])["methods"][1]
    test = new["tests"]["t2a_R@1"]
    assert test["p_holm"] < 0.001
    assert new["verdicts"]["t2a_R@1"]["verdict"] == "no difference shown"
    assert "holds zero" in new["verdicts"]["t2a_R@1"]["reason"]
    assert not test["seeds"]["worst_above_best"]


def test_single_runs_of_a_study_are_tested_without_a_verdict(study):
    found = study([0.30, 0.32, 0.34], [0.50, 0.52, 0.54])
    assert found["rows"][1]["method"] == "base"
    assert set(found["rows"][1]["tests"]) == set(found["rows"][3]["tests"])
    assert all("verdicts" not in row for row in found["rows"])


# Leaders ----------------------------------------------------------------------------------------------------------------


def test_the_leader_is_real_where_it_differs_from_the_second(make_outcome):
    outcomes = [make_outcome("a", hits(0.2)), make_outcome("b", hits(0.6)), make_outcome("c", hits(0.61))]
    leader = compared(*outcomes, headline=["t2a_R@1", "t2a_MeanR"])["leaders"]
    assert (leader["t2a_R@1"]["best"], leader["t2a_R@1"]["second"], leader["t2a_R@1"]["real"]) == ("c", "b", False)
    assert leader["t2a_MeanR"]["best"] == "c"
    leader = compared(*outcomes[:2], headline=["t2a_R@1", "t2a_MeanR"])["leaders"]
    assert [leader[metric]["real"] for metric in ("t2a_R@1", "t2a_MeanR")] == [True, True]


@pytest.mark.parametrize("kind", ["seen_clips", "selected_on_test"])
def test_a_model_that_knows_the_test_clips_leads_nothing(make_outcome, kind):
    marked = make_outcome("b", hits(0.6), marks=[Mark(kind, "it did")])
    assert not compared(make_outcome("a", hits(0.2)), marked)["leaders"]["t2a_R@1"]["real"]


def test_a_run_alone_leads_without_being_better_than_any(make_outcome):
    found = compared(make_outcome("a", hits(0.2)))
    assert found["leaders"]["t2a_R@1"] == {"best": "a", "second": None, "test": None, "real": False}


# Documents --------------------------------------------------------------------------------------------------------------


def test_the_comparison_survives_json(make_outcome, study):
    for found in (study([0.3, 0.4], [0.5]), compared(make_outcome("a"), make_outcome("b", hits(0.2)))):
        assert json.loads(to_json(found))["rows"][0]["run"] == found["rows"][0]["run"]


def test_rows_carry_what_tables_show(make_outcome):
    mark = Mark("seen_clips", "the model was trained on 3 of the clips")
    found = compared(make_outcome("a", hits(0.3)), make_outcome("b", hits(0.2), marks=[mark], protocol={"precision": "bf16"}))
    row = found["rows"][1]
    assert row["marks"] == [{"kind": "seen_clips", "text": "the model was trained on 3 of the clips"}]
    assert found["methods"][1]["marks"] == [{"run": "b", **row["marks"][0]}]
    assert row["protocol_differences"] == ["precision"]
    assert row["chance"] == {"t2a_R@1": 0.125}
    assert row["minimum_detectable"]["t2a_R@1"] > 0.05


def test_runs_of_one_name_keep_apart(make_outcome):
    found = compared(make_outcome("a", hits(0.3)), make_outcome("a", hits(0.6)))
    assert [row["label"] for row in found["rows"]] == ["a (1)", "a (2)"]
    assert [method["method"] for method in found["methods"]] == ["a (1)", "a (2)"]


def test_the_order_of_the_runs_changes_no_difference(make_outcome):
    outcomes = [make_outcome(name, hits(rate)) for name, rate in (("a", 0.3), ("b", 0.5), ("c", 0.4))]
    one = {row["run"]: row["tests"] for row in compared(*outcomes, baseline="a")["rows"]}
    other = {row["run"]: row["tests"] for row in compared(*outcomes[::-1], baseline="a")["rows"]}
    for run, tests in one.items():
        for metric, test in tests.items():
            for key in ("difference", "two_sided_p", "interval", "minimum_detectable_difference"):
                assert test[key] == pytest.approx(other[run][metric][key])
