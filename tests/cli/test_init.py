"""Exit codes, and what is shown when something goes wrong."""

import errno
import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clapkit
from clapkit.errors import ManifestError


def test_the_version_is_printed(clapkit_call):
    result = clapkit_call("--version")
    assert (result.exit_code, result.stdout) == (0, f"clapkit {clapkit.__version__}\n")


@pytest.mark.parametrize("command", ["prepare", "train", "embed", "retrieve", "eval"])
def test_every_command_has_help_with_an_example(command, clapkit_call):
    result = clapkit_call(command, "--help")
    assert result.exit_code == 0
    assert f"    clapkit {command}" in result.stdout


def test_success_is_0(fake_step, clapkit_call):
    fake_step("prepare")
    assert clapkit_call("prepare").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["train", "--bach-size", "8"], ["train", "--epochs", "many"], ["sing"], ["embed", "--store"]]
)
def test_wrong_usage_is_2_and_says_nothing_on_standard_output(arguments, workplace, clapkit_call):
    result = clapkit_call(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert not (workplace / "runs").exists()


def test_work_that_cannot_be_done_is_1_and_one_line(fake_step, clapkit_call):
    fake_step("prepare").error = ManifestError("a\nmessage  of\tthree lines")
    result = clapkit_call("prepare", "-q")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "error: a message of three lines\n"


def test_interrupted_is_130(fake_step, workplace, clapkit_call):
    fake_step("prepare").error = KeyboardInterrupt()
    result = clapkit_call("prepare", "--name", "x")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "error: interrupted; what was finished stays valid"
    assert json.loads((workplace / "runs/prepare/x/run.json").read_text())["status"] == "interrupted"


def test_verbose_shows_where_an_error_came_from(fake_step, clapkit_call):
    fake_step("prepare").error = ManifestError("broken")
    result = clapkit_call("prepare", "--verbose")
    assert result.exit_code == 1
    assert "error: broken" in result.stderr
    assert isinstance(result.exception, ManifestError)  # it reaches the interpreter, which prints the traceback


def test_an_unexpected_exception_is_never_hidden(fake_step, clapkit_call):
    fake_step("prepare").error = ZeroDivisionError("no idea")
    result = clapkit_call("prepare")
    assert isinstance(result.exception, ZeroDivisionError)
    assert "error:" not in result.stderr


def python(script: str, cwd: Path, **options) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(Path(clapkit.__file__).parents[1])}
    environment.pop("PYTHONUNBUFFERED", None)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=cwd, env=environment, **options)


def main_with(*arguments: str, error: str) -> str:
    """A script whose ``prepare`` ends in an error."""
    return (
        "import sys, types\n"
        "from clapkit.errors import ManifestError\n"
        "def run(*_): raise " + error + "\n"
        "sys.modules['clapkit.steps.prepare'] = step = types.ModuleType('clapkit.steps.prepare'); step.run = run\n"
        "import clapkit.steps; clapkit.steps.prepare = step\n"
        f"sys.argv = ['clapkit', *{list(arguments)!r}]\n"
        "from clapkit.cli import main; main()"
    )


@pytest.mark.parametrize(
    ("arguments", "error", "has_traceback"),
    [
        (["prepare"], "ManifestError('broken')", False),
        (["prepare", "-v"], "ManifestError('broken')", True),
        (["prepare"], "ZeroDivisionError('broken')", True),
    ],
)
def test_a_traceback_is_shown_when_asked_for_or_unexpected(arguments, error, has_traceback, workplace):
    completed = python(main_with(*arguments, error=error), workplace)
    assert completed.returncode == 1
    assert ("Traceback" in completed.stderr) == has_traceback
    assert "broken" in completed.stderr
    assert has_traceback or completed.stderr == "error: broken\n"


@pytest.mark.parametrize(("arguments", "code"), [(["prepare"], 1), (["--version"], 0), (["sing"], 2)])
def test_leaving_skips_the_last_garbage_but_not_what_was_registered(arguments, code, workplace):
    script = "import atexit, gc\natexit.register(lambda: print('frozen', gc.get_freeze_count() > 0))\n"
    completed = python(script + main_with(*arguments, error="ManifestError('broken')"), workplace)
    assert completed.returncode == code
    assert completed.stdout.splitlines()[-1] == "frozen True"


def test_a_caller_that_stays_keeps_its_collector(fake_step, clapkit_call):
    fake_step("prepare")
    before = gc.get_freeze_count()
    clapkit_call("prepare")
    assert gc.get_freeze_count() == before


def test_a_reader_that_goes_away_is_no_traceback(workplace):
    read_end, write_end = os.pipe()
    os.close(read_end)
    environment = os.environ | {"PYTHONPATH": str(Path(clapkit.__file__).parents[1])}
    environment.pop("PYTHONUNBUFFERED", None)  # a full buffer is written when the interpreter ends
    with os.fdopen(write_end) as standard_output:
        command = [sys.executable, "-m", "clapkit", "prepare", "--list"]
        completed = subprocess.run(
            command, stdout=standard_output, stderr=subprocess.PIPE, text=True, cwd=workplace, env=environment
        )
    assert completed.stderr == ""
    assert completed.returncode == 1


def test_a_full_disk_is_one_line(fake_step, clapkit_call):
    step = fake_step("embed")
    step.error = OSError(errno.ENOSPC, "No space left on device", "runs/embed/x/.audio_emb_0.npy.tmp")
    result = clapkit_call("embed", "--name", "x")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: runs/embed/x/.audio_emb_0.npy.tmp: cannot be written, the disk is full; make room")


def test_other_failures_of_the_system_come_through(fake_step, clapkit_call):
    step = fake_step("embed")
    step.error = OSError(errno.EIO, "Input/output error")
    assert isinstance(clapkit_call("embed", "--name", "x").exception, OSError)


@pytest.mark.parametrize("command", ["prepare", "train", "embed", "retrieve", "eval"])
def test_an_argument_that_is_no_text_is_one_line_and_leaves_nothing(command, workplace, clapkit_call):
    positional = () if command == "train" else (os.fsdecode(b"bad\xff.wav"),)
    result = clapkit_call(command, *positional, "--run-dir", os.fsdecode(b"run\xff"))
    assert result.exit_code == 1
    first = "'run" if command == "train" else "'bad"
    assert result.stderr == (
        f"error: {first}\\udcff{'' if command == 'train' else '.wav'}': is no UTF-8 text, expected an argument that can be "
        "recorded; rename the file, or name the folder that it lies in\n"
    )
    assert list(workplace.iterdir()) == []
