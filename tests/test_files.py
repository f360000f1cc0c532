import json
import math
import os
from pathlib import Path

import pytest

from clapkit.errors import RunDirError
from clapkit.files import atomic_path, read_json, to_json


def test_nothing_is_stringified_silently() -> None:
    assert json.loads(to_json({"a": math.nan, "b": [1, 2.5], "c": Path("x"), "d": (math.inf,)})) == {
        "a": None,
        "b": [1, 2.5],
        "c": "x",
        "d": [None],
    }
    with pytest.raises(TypeError):
        to_json({"a": object()})


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")

    def interrupted_write() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        interrupted_write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RunDirError, match=r"run\.json: cannot be read as JSON"):
        read_json(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(RunDirError, match="holds a list, expected an object"):
        read_json(tmp_path / "run.json")
