import dataclasses
import json
from pathlib import Path

import pytest

from clapkit.cli.console import Console
from clapkit.cli.execute import execute, run_path
from clapkit.config import EmbedConfig, PrepareConfig, TrainConfig, resolve
from clapkit.errors import ManifestError, RunDirError
from clapkit.run_dir import RunDir


def answer(value):
    return lambda config, run_dir, reporter: {"value": value}


def never(config, run_dir, reporter):
    raise AssertionError("must not run")


def failing(error):
    def run(config, run_dir, reporter):
        raise error

    return run


@pytest.fixture
def config(tmp_path):
    return resolve(PrepareConfig, {"runs_root": tmp_path / "runs", "seed": 3})


def call(config, run, step="prepare"):
    return execute(step, config, ["clapkit", step], run, Console(quiet=True))


# Where -----------------------------------------------------------------------------------------------------------------


def test_a_run_is_where_it_is_put(config, tmp_path):
    assert run_path("prepare", dataclasses.replace(config, run_dir=Path("a/b"))) == Path("a/b")
    assert run_path("prepare", dataclasses.replace(config, name="x")) == tmp_path / "runs/prepare/x"


@pytest.mark.parametrize("name", ["a/b", "../x", "/x", "", ".", ".."])
def test_a_name_is_no_path(name, config):
    with pytest.raises(RunDirError, match="expected a plain name; use --run-dir for a path"):
        run_path("prepare", dataclasses.replace(config, name=name))


def test_two_unnamed_runs_in_one_second_do_not_collide(config):
    first, _ = call(config, answer(1))
    second, _ = call(config, answer(2))
    assert first.path != second.path
    assert (first.result, second.result) == ({"value": 1}, {"value": 2})


# What is left -----------------------------------------------------------------------------------------------------------


def test_a_finished_run_says_what_was_run(config):
    run, result = call(config, answer(1))
    assert json.loads(run.result_json.read_text()) == result == {"value": 1}
    record = run.record
    assert (record["step"], record["argv"], record["seed"]) == ("prepare", ["clapkit", "prepare"], 3)
    assert record["status"] == "finished"
    assert record["config"] == config.resolved()
    assert "run directory" in run.log_path.read_text()


def test_a_run_that_came_to_nothing_is_not_left_behind(config):
    config = dataclasses.replace(config, name="x")
    with pytest.raises(ManifestError):
        call(config, failing(ManifestError("broken")))
    assert not run_path("prepare", config).exists()
    assert call(config, answer(1))[1] == {"value": 1}  # so the same command works once its cause is gone


def test_a_failed_run_keeps_what_it_wrote_and_why_it_failed(config):
    def run(config, run_dir, reporter):
        run_dir.write_text(run_dir.path / "part.txt", "half")
        raise ManifestError("broken")

    with pytest.raises(ManifestError):
        call(dataclasses.replace(config, name="x"), run)
    left = RunDir(config.runs_root / "prepare/x")
    assert left.record["status"] == "failed"
    assert not left.finished
    assert "error: broken" in left.log_path.read_text()


def test_an_unexpected_exception_leaves_its_run_to_look_at(config):
    with pytest.raises(ZeroDivisionError):
        call(dataclasses.replace(config, name="x"), failing(ZeroDivisionError("oops")))
    left = RunDir(config.runs_root / "prepare/x")
    assert left.record["status"] == "failed"
    assert "ZeroDivisionError('oops')" in left.log_path.read_text()


# What is there already --------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_touched_without_being_told(config):
    config = dataclasses.replace(config, name="x")
    run, _ = call(config, answer(1))
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(
        RunDirError, match="already holds a finished run; choose another --run-dir or --name, or pass --overwrite"
    ):
        call(config, never)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_overwrite_replaces_a_finished_run_whole(config):
    config = dataclasses.replace(config, name="x")
    run, _ = call(config, answer(1))
    (run.path / "old.txt").write_text("old")
    _, result = call(dataclasses.replace(config, overwrite=True), answer(2))
    assert result == run.result == {"value": 2}
    assert not (run.path / "old.txt").exists()


def test_a_run_in_use_is_refused_even_with_overwrite(config):
    config = dataclasses.replace(config, name="x", overwrite=True)
    owner = RunDir.create(run_path("prepare", config), step="prepare", config={})
    with pytest.raises(RunDirError, match=r"x: in use by process \d+; wait for it or choose another --run-dir"):
        call(config, never)
    owner.release()


@pytest.mark.parametrize("name", ["x", None])
def test_skip_existing_gives_the_earlier_result_without_running(name, config):
    config = dataclasses.replace(config, name=name)
    first, _ = call(config, answer(1))
    again, result = call(dataclasses.replace(config, skip_existing=True), never)
    assert (again.path, result) == (first.path, {"value": 1})


def test_skip_existing_refuses_another_configuration_under_the_same_name(config):
    call(dataclasses.replace(config, name="x"), answer(1))
    with pytest.raises(RunDirError, match=r"another configuration \(differs in limit, seed\)"):
        call(dataclasses.replace(config, name="x", skip_existing=True, seed=4, limit=2), never)


def test_skip_existing_takes_an_option_that_a_run_does_not_know_for_its_default(config):
    run, _ = call(dataclasses.replace(config, name="old"), answer(1))
    record = json.loads(run.run_json.read_text())
    del record["config"]["check"]
    run.run_json.write_text(json.dumps(record))
    again = dataclasses.replace(config, name="old", skip_existing=True)
    assert call(again, never)[1] == {"value": 1}
    with pytest.raises(RunDirError, match="differs in check"):
        call(dataclasses.replace(again, check="header"), never)


def test_skip_existing_runs_another_configuration_that_is_not_named(config):
    call(config, answer(1))
    assert call(dataclasses.replace(config, skip_existing=True, seed=4), answer(2))[1] == {"value": 2}


def test_skip_existing_runs_what_did_not_finish(config):
    with pytest.raises(ZeroDivisionError):
        call(config, failing(ZeroDivisionError()))
    assert call(dataclasses.replace(config, skip_existing=True), answer(1))[1] == {"value": 1}


def test_options_that_change_no_result_are_no_other_configuration(config):
    call(config, answer(1))
    changed = dataclasses.replace(config, skip_existing=True, workers=7, quiet=True, json=True)
    assert call(changed, never)[1] == {"value": 1}


def test_skip_existing_sees_that_there_is_newer_input(config, tmp_path):
    def train(config, run_dir, reporter):
        run_dir.add_input(tmp_path / "runs/prepare/a/manifest.jsonl", "0")
        return {"value": 1}

    call(dataclasses.replace(config, name="a"), answer(0))
    training = resolve(TrainConfig, {"runs_root": tmp_path / "runs", "skip_existing": True})
    call(training, train, step="train")
    assert call(training, never, step="train")[1] == {"value": 1}
    call(dataclasses.replace(config, name="b", seed=5), answer(0))
    assert call(training, answer(2), step="train")[1] == {"value": 2}


def test_skip_existing_names_the_newer_input_of_a_named_run(config, tmp_path):
    for name in ("one", "two"):
        call(
            dataclasses.replace(resolve(TrainConfig, {}), runs_root=tmp_path / "runs", name=name, data="x"),
            answer(0),
            step="train",
        )
        embedding = resolve(EmbedConfig, {"runs_root": tmp_path / "runs", "skip_existing": True, "name": "e"})
        if name == "one":
            call(embedding, lambda c, run_dir, r: run_dir.add_input(tmp_path / "runs/train/one/model", "0") or {}, step="embed")
    with pytest.raises(RunDirError, match=r"differs in model: there is a newer train run\)"):
        call(embedding, never, step="embed")


def test_skip_existing_needs_the_input_no_more(config, tmp_path):
    training = resolve(TrainConfig, {"runs_root": tmp_path / "runs", "skip_existing": True})
    call(training, answer(1), step="train")
    assert call(training, never, step="train")[1] == {"value": 1}
