import subprocess
import sys
from pathlib import Path

import pytest

from clapkit.errors import RunDirError
from clapkit.files import read_json
from clapkit.run_dir import RunDir


def started(path: Path, **options: object) -> RunDir:
    return RunDir.create(path, step="train", config={"lr": 0.1}, argv=["clapkit"], **options)


def test_result_is_written_last_and_means_finished(tmp_path: Path) -> None:
    run = started(tmp_path / "r", seed=3)
    assert not run.finished
    run.finish({"x": 1})
    assert run.finished
    assert run.result == {"x": 1}
    record = read_json(run.run_json)
    assert (record["step"], record["status"], record["seed"]) == ("train", "finished", 3)
    assert record["started_at"] <= record["finished_at"]
    assert "torch" in record["versions"]


def test_a_directory_in_use_is_refused_with_its_owner(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from clapkit.run_dir import RunDir\n"
        "run = RunDir.create(pathlib.Path(sys.argv[1]), step='train', config={})\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "r")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(RunDirError, match=f"in use by process {other.pid}"):
            started(tmp_path / "r", overwrite=True)
        other.kill()
    started(tmp_path / "r", overwrite=True).finish({})


def test_a_directory_that_is_not_empty_is_refused_unless_overwritten(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    (run.path / "model").mkdir()
    run.finish({})
    with pytest.raises(RunDirError, match="already holds a finished run; .*--overwrite"):
        started(tmp_path / "r")
    again = started(tmp_path / "r", overwrite=True)
    assert not (again.path / "model").exists()
    assert not again.finished
    again.fail("failed")


def test_overwrite_never_deletes_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunDirError, match=r"no run\.json, so --overwrite will not delete"):
        started(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_path_that_cannot_be_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="cannot be made"):
        started(tmp_path / "file" / "r")


def test_a_run_that_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    run.log("hello")
    run.fail("failed")
    run.discard_if_empty()
    assert not run.path.exists()
    kept = started(tmp_path / "k")
    kept.write_lines(kept.rejected_path, [{"item": "a", "reason": "b"}])
    kept.fail("failed")
    kept.discard_if_empty()
    assert kept.rejected_path.exists()


def test_resume_keeps_the_start_and_the_inputs(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    run.add_input(tmp_path / "manifest.jsonl", "abc")
    start = run.record["started_at"]
    run.fail("interrupted")
    again = started(tmp_path / "r", resume=True)
    assert again.record["started_at"] == start
    assert again.record["inputs"] == [{"path": str(tmp_path / "manifest.jsonl"), "fingerprint": "abc"}]
    again.fail("failed")


def test_an_overwritten_run_is_kept_until_the_new_one_has_finished(tmp_path: Path) -> None:
    first = started(tmp_path / "r")
    (first.path / "model").mkdir()
    (first.path / "model" / "weights").write_text("one")
    first.finish({"run": 1})
    failed = started(tmp_path / "r", overwrite=True)
    failed.fail("failed")
    failed.discard_if_empty()
    assert RunDir(tmp_path / "r").result == {"run": 1}
    assert (tmp_path / "r" / "model" / "weights").read_text() == "one"
    broken = started(tmp_path / "r", overwrite=True)
    broken.write_text(broken.path / "half.txt", "half")
    broken.fail("failed")
    broken.discard_if_empty()
    assert not RunDir(tmp_path / "r").finished
    last = started(tmp_path / "r", overwrite=True)
    assert not (last.path / "half.txt").exists()
    assert (last.path / ".replaced" / "model" / "weights").read_text() == "one"
    last.finish({"run": 2})
    assert sorted(path.name for path in last.path.iterdir()) == [".lock", "result.json", "run.json"]
