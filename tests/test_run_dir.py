import subprocess
import sys
from pathlib import Path

import pytest

from clapkit import run_dir
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


def test_a_finished_run_is_reopened_and_stays_finished(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    run.add_input(tmp_path / "old", "1")
    run.finish({"x": 1})
    again = RunDir.reopen(tmp_path / "r", step="train", config={"lr": 0.2}, argv=["clapkit", "--update"])
    again.add_input(tmp_path / "new", "2")
    again.set_device("cpu")
    record = read_json(run.run_json)
    assert (record["status"], record["inputs"][0]["path"], record["device"]) == ("finished", str(tmp_path / "old"), None)
    assert (record["updates"][0]["status"], record["updates"][0]["device"]) == ("running", "cpu")
    assert again.result == {"x": 1}
    with pytest.raises(RunDirError, match="in use by process"):
        RunDir.reopen(tmp_path / "r", step="train", config={})
    again.finish({"x": 2})
    record = read_json(run.run_json)
    assert again.result == {"x": 2}
    assert (record["config"], record["updates"][0]["config"]) == ({"lr": 0.1}, {"lr": 0.2})
    assert [entry["path"] for entry in record["inputs"]] == [str(tmp_path / "new")]


def test_an_update_that_fails_leaves_result_and_inputs(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    run.add_input(tmp_path / "old", "1")
    run.finish({"x": 1})
    (run.path / ".result.json.abc.tmp").touch()  # of a process that was killed while it wrote
    again = RunDir.reopen(run.path, step="train", config={})
    again.add_input(tmp_path / "new", "2")
    again.fail("failed")
    again.discard_if_empty()
    record = read_json(run.run_json)
    assert (record["status"], record["updates"][0]["status"]) == ("finished", "failed")
    assert [entry["path"] for entry in record["inputs"]] == [str(tmp_path / "old")]
    assert run.result == {"x": 1}
    assert not list(run.path.glob(".*.tmp"))


def test_the_last_updates_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_dir, "_KEPT_UPDATES", 3)
    run = started(tmp_path / "r")
    run.finish({})
    for number in range(5):
        RunDir.reopen(run.path, step="train", config={"number": number}).finish({})
    assert [update["config"]["number"] for update in read_json(run.run_json)["updates"]] == [2, 3, 4]


def test_what_is_no_finished_run_is_not_reopened(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="holds no run; name a finished run of train"):
        RunDir.reopen(tmp_path / "r", step="train", config={})
    run = started(tmp_path / "r")
    run.release()
    with pytest.raises(RunDirError, match=r"the train run is not finished \(no result.json\); go on with it by --resume"):
        RunDir.reopen(tmp_path / "r", step="train", config={})
    with pytest.raises(RunDirError, match="is no embed run but one of train; name another"):
        RunDir.reopen(tmp_path / "r", step="embed", config={})
    started(tmp_path / "r", overwrite=True).fail("failed")  # the lock was given up


def test_a_run_that_left_empty_folders_came_to_nothing(tmp_path: Path) -> None:
    run = started(tmp_path / "r")
    (run.path / "audio_emb").mkdir()
    run.fail("failed")
    run.discard_if_empty()
    assert not run.path.exists()
    run = started(tmp_path / "r")
    (run.path / "audio_emb").mkdir()
    (run.path / "audio_emb/x.npy").touch()
    run.fail("failed")
    run.discard_if_empty()
    assert run.path.exists()
