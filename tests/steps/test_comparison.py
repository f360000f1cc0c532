import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.run_dir import RunDir
from clapkit.steps.comparison import compare, markdown, write_per_query, write_tables


def outcome(name, similarity, owners, ids=None):
    result = evaluate_retrieval(np.array(similarity, dtype=float), owners)
    per_query = result.pop("per_query")
    names = ids or [f"clip{row}" for row in range(len(similarity))]
    directions = {d: {"id": [names[row] for row in c["clip"]], **c} for d, c in per_query.items()}
    directions["t2a"]["caption"] = [f"caption {number}" for number in range(len(owners))]
    return {
        "run": name,
        "tasks": {"retrieval": {**result, "intervals": {"t2a_R@1": (0.25, 0.75)}}},
        "per_query": {"retrieval": directions},
    }


GOOD = np.eye(4)[:, [0, 0, 1, 1, 2, 2, 3, 3]] + 0.01 * np.arange(8)
OWNERS = [0, 0, 1, 1, 2, 2, 3, 3]
BAD = -GOOD


def test_differences_are_per_clip_and_tested_against_the_first():
    compared = compare([outcome("bad", BAD, OWNERS), outcome("good", GOOD, OWNERS)], num_draws=100, seed=0)
    assert compared["baseline"] == "bad"
    assert compared["rows"][0]["tests"] == {}
    test = compared["rows"][1]["tests"]["t2a_R@1"]
    assert test["difference"] == 1
    # Four differences of 1: of the 16 sign patterns two are as far from zero.
    assert test["two_sided_p"] == pytest.approx(2 / 16)
    assert test["num_clips"] == 4
    assert test["interval"] == (1, 1)
    assert "t2a_MedR" not in compared["rows"][1]["tests"]
    assert compared["rows"][1]["tests"]["t2a_MeanR"]["difference"] < 0


def test_models_that_saw_other_clips_or_captions_are_not_tested():
    first, other = outcome("a", GOOD, OWNERS), outcome("b", GOOD, OWNERS, ids=["w", "x", "y", "z"])
    assert compare([first, other], num_draws=0, seed=0)["rows"][1]["tests"] == {}
    other = outcome("b", GOOD, OWNERS)
    other["per_query"]["retrieval"]["t2a"]["caption"][3] = "another"
    tests = compare([first, other], num_draws=0, seed=0)["rows"][1]["tests"]
    assert "t2a_R@1" not in tests
    assert tests["a2t_R@1"]["interval"] is None


def test_tables_hold_percent_for_people_and_fractions_for_programs(tmp_path):
    compared = compare([outcome("bad|one", BAD, OWNERS), outcome("good", GOOD, OWNERS)], num_draws=0, seed=0)
    run_dir = RunDir(tmp_path)
    assert write_tables(run_dir, compared)["comparison_csv"] == "comparison.csv"
    text = (tmp_path / "comparison.md").read_text()
    assert "| metric | bad\\|one | good |" in text
    assert "| t2a_R@1 | 0.00 [25.00, 75.00] | 100.00 [25.00, 75.00], p = 0.1250 |" in text
    assert "| t2a_MedR | 4.0 | 1.0 |" in text
    with (tmp_path / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    row = next(row for row in rows if row["run"] == "good" and row["metric"] == "t2a_R@1")
    assert row == {
        "run": "good",
        "metric": "t2a_R@1",
        "value": "1.0",
        "lower": "0.25",
        "upper": "0.75",
        "difference": "1.0",
        "two_sided_p": "0.125",
    }


def test_a_metric_that_one_model_lacks_leaves_its_cell_empty():
    first, second = outcome("a", GOOD, OWNERS), outcome("b", GOOD, OWNERS)
    second["tasks"]["retrieval"]["metrics"]["extra"] = 0.5
    assert "| extra |  | 50.00 |" in markdown(compare([first, second], num_draws=0, seed=0))


def test_per_query_values_of_all_models_are_stacked(tmp_path):
    write_per_query(tmp_path / "q.parquet", [outcome("a", GOOD, OWNERS), outcome("b", BAD, OWNERS)])
    table = pq.read_table(tmp_path / "q.parquet")
    assert table.num_rows == 2 * (8 + 4)
    assert table.column("run").to_pylist().count("b") == 12
    assert table.column("predicted").null_count == 24
