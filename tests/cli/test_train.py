"""What ``train --resume`` takes over; the step itself does nothing here."""

import json

import pytest

from clapkit.run_dir import RunDir


@pytest.fixture
def interrupted(fake_step, clapkit_call, workplace):
    """A step that was interrupted once, in the run ``x``, and would now succeed."""
    step = fake_step("train")
    step.error = KeyboardInterrupt()
    assert clapkit_call("train", "--name", "x", "--epochs", "3", "--loss", "siglip", "-O", "dropout=0.1").exit_code == 130
    step.error = None
    step.configs.clear()
    return step


def test_the_metrics_at_the_best_step_are_shown(fake_step, clapkit_call):
    fake_step("train")
    rows = [line.split() for line in clapkit_call("train").stdout.splitlines()]
    assert ["best", "step", "4", "of", "8"] in rows
    assert ["t2a_R@1", "25.0", "%"] in rows
    assert ["t2a_MedR", "3.0"] in rows
    assert ["wall", "time", "12", "s"] in rows


@pytest.mark.parametrize("address", [[], ["--name", "x"], ["--run-dir", "runs/train/x"]])
def test_resume_goes_on_with_the_options_of_the_start(address, interrupted, clapkit_call, workplace):
    result = clapkit_call("train", "--resume", *address)
    assert result.exit_code == 0
    (config,) = interrupted.configs
    assert (config.epochs, config.loss, config.options, config.resume) == (3, "siglip", ("dropout=0.1",), True)
    assert interrupted.run_dirs[-1].path.resolve() == workplace / "runs/train/x"
    assert RunDir(workplace / "runs/train/x").finished


def test_resume_may_change_what_changes_no_result(interrupted, clapkit_call):
    assert clapkit_call("train", "--resume", "--workers", "1", "--log-every", "2", "--json").exit_code == 0
    (config,) = interrupted.configs
    assert (config.workers, config.log_every, config.epochs) == (1, 2, 3)


def test_resume_refuses_another_experiment(interrupted, clapkit_call):
    result = clapkit_call("train", "--resume", "--epochs", "9", "--lr", "0.5")
    assert result.exit_code == 1
    assert result.stderr == ("error: --resume: --epochs, --lr differ from what runs/train/x was started with; leave them out\n")
    assert interrupted.configs == []


def test_resume_of_a_finished_run_gives_its_result(fake_step, clapkit_call):
    step = fake_step("train")
    first = clapkit_call("train", "--name", "x", "--json")
    again = clapkit_call("train", "--name", "x", "--resume", "--json")
    assert (again.exit_code, json.loads(again.stdout)) == (0, json.loads(first.stdout))
    assert "finished already, nothing to resume" in again.stderr
    assert len(step.configs) == 1


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ([], "--resume: no unfinished train run under runs/train; name one with --run-dir"),
        (["--name", "x"], "--resume: runs/train/x holds no run; start it without --resume, or name another with --run-dir"),
    ],
)
def test_nothing_to_resume_is_said(address, message, workplace, clapkit_call):
    result = clapkit_call("train", "--resume", *address)
    assert (result.exit_code, result.stderr) == (1, f"error: {message}\n")
    assert not (workplace / "runs").exists()


def test_the_newest_unfinished_run_is_resumed(interrupted, clapkit_call, workplace):
    older = workplace / "runs/train/older"
    older.mkdir()
    record = json.loads((workplace / "runs/train/x/run.json").read_text())
    (older / "run.json").write_text(json.dumps(record | {"started_at": "2001-01-01T00:00:00+00:00"}))
    clapkit_call("train", "--resume")
    assert interrupted.run_dirs[-1].path.name == "x"


SWEEP_LINE = ("train", "--name", "x", "--epochs", "3", "--loss", "siglip", "-O", "dropout=0.1", "--skip-existing", "--resume")


def test_a_line_of_a_sweep_starts_a_run(fake_step, clapkit_call, workplace):
    step = fake_step("train")
    assert clapkit_call(*SWEEP_LINE).exit_code == 0
    assert len(step.configs) == 1
    assert RunDir(workplace / "runs/train/x").finished


def test_a_line_of_a_sweep_goes_on_with_an_unfinished_run(interrupted, clapkit_call, workplace):
    assert clapkit_call(*SWEEP_LINE).exit_code == 0
    assert [config.resume for config in interrupted.configs] == [True]
    assert RunDir(workplace / "runs/train/x").finished


def test_a_line_of_a_sweep_finds_a_finished_run(fake_step, clapkit_call):
    step = fake_step("train")
    clapkit_call(*SWEEP_LINE)
    again = clapkit_call(*SWEEP_LINE)
    assert again.exit_code == 0
    assert "finished already" in again.stderr
    assert len(step.configs) == 1


def test_a_line_of_a_sweep_refuses_the_run_of_another_line(fake_step, clapkit_call):
    fake_step("train")
    clapkit_call(*SWEEP_LINE)
    result = clapkit_call(*(word if word != "siglip" else "dcl" for word in SWEEP_LINE))
    assert (result.exit_code, result.stderr) == (
        1,
        "error: --resume: --loss differ from what runs/train/x was started with; leave them out\n",
    )
