import os
from pathlib import Path

import pytest

from clapkit.errors import RunDirError
from clapkit.run_dir import RunDir
from clapkit.runs import default_name, newest_run, open_run


def started(path: Path, **options: object) -> RunDir:
    return RunDir.create(path, step="train", config={"lr": 0.1}, argv=["clapkit"], **options)


def test_runs_are_found_by_path_by_name_and_by_age(tmp_path: Path) -> None:
    for number, name in enumerate(["a", "b"]):
        run = started(tmp_path / "train" / name)
        run.finish({})
        os.utime(run.result_json, (number, number))
    started(tmp_path / "train" / "c").fail("failed")
    assert newest_run("train", runs_root=tmp_path).path.name == "b"
    assert open_run("a", step="train", runs_root=tmp_path).path == tmp_path / "train" / "a"
    assert open_run(str(tmp_path / "train" / "a"), step="train", runs_root=Path("elsewhere")).path.name == "a"
    with pytest.raises(RunDirError, match="is not finished .*--resume"):
        open_run("c", step="train", runs_root=tmp_path)
    with pytest.raises(RunDirError, match="is a train run, expected a prepare run"):
        open_run("train/a", step="prepare", runs_root=tmp_path)
    with pytest.raises(RunDirError, match=r"no train run 'zzz': looked for run\.json in zzz, "):
        open_run("zzz", step="train", runs_root=tmp_path)
    with pytest.raises(RunDirError, match="run `clapkit embed` first"):
        newest_run("embed", runs_root=tmp_path)


def test_the_default_name_tells_configurations_apart() -> None:
    one, other = default_name({"lr": 0.1}), default_name({"lr": 0.2})
    assert one[-6:] != other[-6:]
    assert default_name({"lr": 0.1})[-6:] == one[-6:]
