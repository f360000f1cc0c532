import json
from pathlib import Path
from typing import Any

import pytest

from clapkit.config import TrainConfig
from clapkit.run_dir import RunDir
from clapkit.steps import report
from clapkit.steps.evaluation.result import Outcome
from clapkit.steps.report import configuration_differences


@pytest.fixture
def trained(tmp_path):
    """A train run with a log; gives the folder of its model."""

    def make(name: str, *, lines: str | None = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n', **options: Any) -> Path:
        folder = tmp_path / name
        (folder / "model").mkdir(parents=True)
        record = {"step": "train", "config": TrainConfig(**options).resolved()}
        (folder / "run.json").write_text(json.dumps(record))
        if lines is not None:
            (folder / "metrics.jsonl").write_text(lines)
        return folder / "model"

    return make


@pytest.fixture
def out(tmp_path) -> RunDir:
    (tmp_path / "out").mkdir()
    return RunDir(tmp_path / "out")


def evaluated(model: Path, name: str = "run") -> dict[str, Any]:
    retrieval = {"metrics": {"t2a_R@1": 0.5}, "intervals": {"t2a_R@1": [0.4, 0.6]}, "warnings": []}
    protocol = {"data": "toy", "split": "test"}
    return {
        "run": name,
        "model": str(model),
        "model_fingerprint": "ab",
        "protocol": protocol,
        "tasks": {"retrieval": retrieval},
    }


def write_report(out: RunDir, results: dict[str, Any]) -> dict[str, str]:
    """Without evidence."""
    outcomes = [Outcome(run["run"], Path(run["model"]), "ab", run["protocol"]) for run in results["runs"]]
    return report.write_report(out, results, outcomes)


def compared(*runs: dict[str, Any]) -> dict[str, Any]:
    return {
        "runs": list(runs),
        "comparison": {"baseline": runs[0]["run"], "metrics": [], "rows": [{"label": run["run"], "tests": {}} for run in runs]},
    }


def test_the_figures_of_all_runs_and_the_page_are_written(trained, out):
    results = compared(evaluated(trained("a"), "a"), evaluated(trained("b", loss="svr"), "b"))
    assert write_report(out, results) == {"report": "report.html", "plots": "plots"}
    assert sorted(path.name for path in out.plot_dir.iterdir()) == ["loss.png", "loss.svg", "metrics.png", "metrics.svg"]
    page = (out.path / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert "--loss" in page
    assert "Without curves" not in page


def test_the_same_results_give_the_same_bytes(trained, out):
    results = {"runs": [evaluated(trained("a"))]}
    contents = []
    for _ in range(2):
        write_report(out, results)
        files = [out.path / "report.html", *sorted(out.plot_dir.iterdir())]
        contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 5


def test_a_model_that_came_alone_is_left_out_of_the_curves_and_named(trained, out, tmp_path):
    (tmp_path / "alone" / "model").mkdir(parents=True)
    results = compared(evaluated(trained("a"), "a"), evaluated(tmp_path / "alone" / "model", "lonely"))
    write_report(out, results)
    page = (out.path / "report.html").read_text()
    assert "lies beside the model: lonely." in page
    assert (out.plot_dir / "loss.png").is_file()


@pytest.mark.parametrize("record", ["{", "[]", '{"step": "embed"}'])
def test_a_folder_that_is_no_train_run_is_no_error(trained, out, record):
    model = trained("a")
    (model.parent / "run.json").write_text(record)
    write_report(out, {"runs": [evaluated(model)]})
    assert not (out.plot_dir / "loss.png").exists()
    assert "Not known, because no run.json" in (out.path / "report.html").read_text()


def test_a_line_that_a_kill_cut_is_no_error(trained, out):
    write_report(out, {"runs": [evaluated(trained("a", lines='{"step": 1, "loss": 2.0}\n{"step": 2, "lo'))]})
    assert (out.plot_dir / "loss.png").is_file()


@pytest.mark.parametrize("lines", [None, ""])
def test_without_anything_to_draw_there_are_no_plots(trained, out, lines):
    run = evaluated(trained("a", lines=lines))
    run["tasks"] = {"zero-shot": {"metrics": {"zero_shot_accuracy": 0.5}, "intervals": {}, "warnings": []}}
    assert write_report(out, {"runs": [run]}) == {"report": "report.html"}
    assert not out.plot_dir.exists()


def test_runs_of_one_name_are_told_apart(trained, out):
    write_report(out, compared(evaluated(trained("a"), "run"), evaluated(trained("b"), "run")))
    assert "<h1>Evaluation of run (1), run (2)</h1>" in (out.path / "report.html").read_text()


def test_options_that_differ_are_named_as_on_the_command_line():
    first = TrainConfig(loss="svr", options=("a=1", "b=2"), workers=1, name="x").resolved()
    second = TrainConfig(loss="svr", batch_size=64, workers=2, name="y").resolved()
    # Neither the workers nor the name make another experiment.
    assert configuration_differences([first, second]) == {"-O": ["a=1, b=2", "none"], "--batch-size": ["32", "64"]}


def test_a_single_run_is_set_beside_the_defaults():
    assert configuration_differences([TrainConfig(lr=0.01, tau=0.1).resolved()]) == {
        "--lr": ["0.001", "0.01"],
        "--tau": ["default", "0.1"],
    }


def test_an_option_that_an_older_run_did_not_know_counts_as_its_default():
    older, newer = TrainConfig().resolved(), TrainConfig().resolved()
    del older["patience"]
    assert configuration_differences([older, newer]) == {}
    newer["patience"] = 3
    assert configuration_differences([older, newer]) == {"--patience": [None, "3"]}


def test_a_run_without_a_record_says_nothing_about_differences():
    assert configuration_differences([None]) == {}
    assert configuration_differences([None, TrainConfig().resolved()]) == {}
    assert configuration_differences([None, {"future": 1}, {"future": 2}]) == {"--future": [None, "1", "2"]}
