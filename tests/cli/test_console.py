import io
import json

import pytest

from clapkit.cli.console import Console, Table, show_metric
from clapkit.run_dir import RunDir


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_messages_go_to_standard_error_and_results_to_standard_output(capsys):
    console = Console()
    console.say("said")
    console.warn("careful")
    console.error("failed\n because")
    console.result({"a": 1}, tables=[Table("title", ["name", ">value"], [["x", "1"]])])
    captured = capsys.readouterr()
    assert captured.err == "said\nwarning: careful\nerror: failed because\n"
    assert "title" in captured.out
    assert "name" in captured.out


def test_quiet_leaves_warnings_errors_and_results(capsys):
    console = Console(quiet=True)
    console.say("said")
    console.warn("careful")
    console.error("failed")
    console.result({}, tables=[Table("title", ["name"], [])])
    captured = capsys.readouterr()
    assert captured.err == "warning: careful\nerror: failed\n"
    assert captured.out.startswith("title")


def test_json_is_one_document_without_tables(capsys):
    Console(json_mode=True).result({"é": float("nan"), "third": 1 / 3}, tables=[Table("title", ["name"], [])])
    out = capsys.readouterr().out
    assert json.loads(out) == {"é": None, "third": 1 / 3}  # floats unrounded, no NaN
    assert "é" in out


def test_everything_said_is_logged_even_when_quiet(tmp_path, capsys):
    run = RunDir.create(tmp_path / "run", step="prepare", config={})
    console = Console(quiet=True)
    console.attach(run)
    console.say("said")
    console.warn("careful")
    run.release()
    assert [line.split(" ", 1)[1] for line in run.log_path.read_text().splitlines()] == ["said", "warning: careful"]
    assert capsys.readouterr().err == "warning: careful\n"


def test_a_terminal_gets_a_progress_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    with Console().track("embedding", 3, "clips") as tracker:
        for _ in range(3):
            tracker.advance(1, loss="1.5")
    import sys

    shown = sys.stderr.getvalue()
    assert "embedding" in shown
    assert "3/3" in shown
    assert "loss 1.5" in shown


@pytest.mark.parametrize(("stream", "quiet"), [(io.StringIO, False), (Terminal, True)])
def test_there_is_no_bar_without_a_terminal_or_when_quiet(stream, quiet, monkeypatch):
    standard_error = stream()
    monkeypatch.setattr("sys.stderr", standard_error)
    with Console(quiet=quiet).track("embedding", 3) as tracker:
        tracker.advance(3)
    assert standard_error.getvalue() == ""


def test_cells_are_shown_as_they_are(capsys):
    Table("“[bold]q”", ["caption", ">n"], [["a [red] dog", "7"], ["b", "10"]]).show()
    out = capsys.readouterr().out
    assert "“[bold]q”" in out
    assert "a [red] dog" in out
    lines = [line.rstrip() for line in out.splitlines() if line.rstrip().endswith(("7", "10"))]
    assert len(lines[0]) == len(lines[1])  # the column ends at one place: aligned to the right


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("t2a_R@1", 0.2534, "25.3 %"),
        ("a2t_MedR", 3.5, "3.5"),
        ("t2a_MeanR", 12.0, "12.0"),
        ("zero_shot_accuracy", 1.0, "100.0 %"),
    ],
)
def test_fractions_are_percent_and_ranks_are_ranks(name, value, shown):
    assert show_metric(name, value) == shown
