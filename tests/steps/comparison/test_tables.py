import csv
import io

import numpy as np
import pytest

from clapkit.run_dir import RunDir
from clapkit.steps.comparison.latex import latex
from clapkit.steps.comparison.markdown import markdown
from clapkit.steps.comparison.side_by_side import compare
from clapkit.steps.comparison.tables import long_form, write_tables
from clapkit.steps.evaluation.result import Mark

HOSTILE = "bad|one_ & 100 % <b>$x$</b> [a](b) {}\\\n~^#`*"


@pytest.fixture
def compared(make_outcome):
    """A weak baseline with a hostile name and a strong run that has seen clips."""
    strong = make_outcome("good", np.ones((6, 2)), marks=[Mark("incomplete_split", "50 % of a_b")], modality_gap=0.42)
    return compare([make_outcome(HOSTILE, np.zeros((6, 2))), strong], num_draws=0, seed=0)


@pytest.fixture
def study(make_outcome, training):
    outcomes = []
    for name, rates in (("base", (0.3, 0.32)), ("new", (0.6, 0.62))):
        for seed, rate in enumerate(rates):
            values = np.random.default_rng(0).random((200, 5)) < rate
            outcomes.append(make_outcome(f"{name}-s{seed}", values, training=training(loss=name, seed=seed)))
    return compare(outcomes, num_draws=50, seed=0)


def test_all_four_files_are_written(compared, tmp_path):
    assert write_tables(RunDir(tmp_path), compared) == {
        f"comparison_{kind}": f"comparison.{kind}" for kind in ("md", "csv", "json", "tex")
    }
    assert all((tmp_path / f"comparison.{kind}").stat().st_size for kind in ("md", "csv", "json", "tex"))


def test_markdown_sorts_by_the_first_headline_metric_and_marks_with_footnotes(compared):
    lines = markdown(compared).splitlines()
    assert lines[2] == "| run | t2a_R@1 (%) |"
    assert lines[4] == "| good<sup>1</sup> | **100.00** [25.00, 75.00] |"
    assert lines[5].endswith(" (baseline) | 0.00 [25.00, 75.00] |")
    assert "1. 50 % of a_b" in lines


def test_markdown_says_which_differences_are_real_and_why(compared):
    text = markdown(compared)
    assert "**better** (+100.00 points, n = 6); p = 0.0312 after Holm; one run of each, so the training seed" in text
    assert "marked, see above" in text
    assert compared["rule"] in text


def test_markdown_shows_every_metric_in_its_unit_with_p(compared):
    lines = markdown(compared).splitlines()
    assert "| t2a_MeanR | rank | 2.0 | 1.0, p = 0.0312 |" in lines
    assert "| t2a_R@1 | % | 0.00 [25.00, 75.00] | 100.00 [25.00, 75.00], p = 0.0312 |" in lines
    assert "| modality_gap |  |  | 0.420 |" in lines


def test_tables_say_which_clips_they_are_of(compared):
    for text in (markdown(compared), latex(compared)):
        assert "Measured on toy, split test: 6 clips with 12 captions." in text


def test_rows_of_markdown_have_as_many_cells_as_the_heading(compared):
    tables = [[]]
    for line in markdown(compared).splitlines():
        if line.startswith("|"):
            tables[-1].append(line.replace("\\|", "").count("|"))
        elif tables[-1]:
            tables.append([])
    assert [set(table) for table in tables if table] == [{3}, {5}]


def test_names_are_escaped_in_markdown(compared):
    shown = "bad\\|one\\_ \\& 100 % \\<b\\>\\$x\\$\\</b\\> \\[a\\](b) {}\\\\ \\~^\\#\\`\\*"
    assert f"| {shown} (baseline) |" in markdown(compared)


def test_names_are_escaped_in_latex(compared):
    shown = (
        r"bad\textbar{}one\_ \& 100 \% \textless{}b\textgreater{}\$x\$\textless{}/b\textgreater{} [a](b) \{\}\textbackslash{} "
        r"\textasciitilde{}\textasciicircum{}\#`*"
    )
    assert f"{shown} & 0.00" in latex(compared)


def test_latex_is_a_table_with_caption_and_footnotes(compared):
    text = latex(compared)
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r" & t2a\_R@1 (\%) \\" in text
    assert r"good$^{1}$ & \textbf{100.00} {\scriptsize [25.00, 75.00]} \\" in text
    assert r"\par\footnotesize $^{1}$ 50 \% of a\_b" in text
    assert "the training seed is not covered" in text
    for opened in ("table", "tabular"):
        assert text.count(f"\\begin{{{opened}}}") == text.count(f"\\end{{{opened}}}") == 1
    bare = text.replace(r"\{", "").replace(r"\}", "")
    assert bare.count("{") == bare.count("}")


def test_bold_is_only_what_leads(make_outcome):
    values = np.random.default_rng(0).random((60, 5)) < 0.5
    near = compare([make_outcome("a", values), make_outcome("b", values)], num_draws=0, seed=0)
    assert "textbf" not in latex(near)
    assert "**5" not in markdown(near)


def test_seeds_are_shown_as_mean_and_deviation(study):
    method = study["methods"][1]
    value, deviation = (f"{100 * x:.2f}" for x in (method["metrics"]["t2a_R@1"], method["spread"]["t2a_R@1"]["deviation"]))
    lower, upper = (f"{100 * x:.2f}" for x in method["intervals"]["t2a_R@1"])
    assert f"| new (2 seeds) | **{value} ± {deviation}** [{lower}, {upper}] |" in markdown(study)
    assert f"new (2 seeds) & \\textbf{{{value}}} $\\pm$ {deviation} {{\\scriptsize [{lower}, {upper}]}}" in latex(study)
    assert "mean ± standard deviation over seeds" in markdown(study)
    assert "not covered" not in latex(study)


def test_the_smallest_detectable_difference_stands_under_the_numbers(study):
    smallest = study["rows"][0]["minimum_detectable"]["t2a_R@1"]
    assert f"shows with 80 % probability: t2a_R@1 {100 * smallest:.2f} points (from base-s0;" in markdown(study)


def test_csv_holds_fractions_of_runs_and_methods(compared, study):
    rows = list(csv.DictReader(io.StringIO(long_form(compared))))
    assert {row["kind"] for row in rows} == {"run"}
    row = next(row for row in rows if row["run"] == "good" and row["metric"] == "t2a_R@1")
    expected = {"value": "1.0", "lower": "0.25", "upper": "0.75", "difference": "1.0", "two_sided_p": "0.03125"}
    expected |= {"p_holm": "0.03125", "num_clips": "6", "chance": "0.125", "verdict": "better", "difference_lower": ""}
    assert {key: row[key] for key in expected} == expected
    assert rows[0]["run"] == HOSTILE
    rows = list(csv.DictReader(io.StringIO(long_form(study))))
    assert [row["kind"] for row in rows] == ["run"] * 8 + ["method"] * 4
    method = next(row for row in rows if row["method"] == "new" and row["kind"] == "method" and row["metric"] == "t2a_R@1")
    assert (method["num_runs"], method["verdict"]) == ("2", "better")
    assert float(method["deviation"]) == study["methods"][1]["spread"]["t2a_R@1"]["deviation"]
    assert all(not row["verdict"] for row in rows if row["kind"] == "run")


def test_warnings_come_first(make_outcome):
    values = np.ones((6, 2))
    found = compare([make_outcome("a", values), make_outcome("b", values, ids=list("uvwxyz"))], num_draws=0, seed=0)
    assert markdown(found).splitlines()[2].startswith("**Warning:** b: none of its 6 clips is among the 6 of a")


def test_a_metric_that_one_model_lacks_leaves_its_cell_empty(make_outcome):
    values = np.ones((6, 2))
    outcomes = [make_outcome("a", values), make_outcome("b", values, zero_shot_accuracy=0.5)]
    found = compare(outcomes, num_draws=0, seed=0)
    assert "| zero_shot_accuracy | % |  | 50.00 |" in markdown(found)
    assert "| a (baseline) | 100.00 [25.00, 75.00] |  |" in markdown(found)
    assert r"a & 100.00 {\scriptsize [25.00, 75.00]} & -- \\" in latex(found)


def test_without_headline_metrics_there_is_no_leaderboard(make_outcome):
    found = compare([make_outcome("a", modality_gap=0.5), make_outcome("b", modality_gap=0.4)], num_draws=0, seed=0)
    assert "No headline metric was measured." in markdown(found)
    assert "| modality_gap |  | 0.500 | 0.400 |" in markdown(found)
