import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import clapkit
from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index import engines
from clapkit.index.table import save_tables
from clapkit.types import SilentReporter

from .conftest import expect_extra


@pytest.fixture(autouse=True)
def _extra(request):
    if "extra" not in request.node.name:
        expect_extra("lance")


def test_a_missing_extra_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(ConfigError, match=r"LanceDB is not installed; `pip install 'clapkit\[lance\]'`"):
        engines.parse(f"lance:{tmp_path}").info()
    assert "LANCEDB_LOG" not in os.environ


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "x").write_text("no table")
    with pytest.raises(EmbeddingError, match="is a file, expected a folder"):
        engines.parse(f"lance:{tmp_path / 'x'}").info()


def test_a_folder_of_other_things_holds_no_table(tmp_path):
    (tmp_path / "a.wav").write_text("")
    with pytest.raises(EmbeddingError, match="holds no table 'audio' of LanceDB; fill it with `clapkit embed --push lance:"):
        engines.parse(f"lance:{tmp_path}").count()


def test_a_table_of_somebody_else_is_neither_read_nor_replaced(tmp_path, table, described):
    import lancedb

    lancedb.connect(tmp_path).create_table("theirs", data=[{"vector": [1.0, 0.0], "name": "x"}])
    engine = engines.parse(f"lance:{tmp_path / 'theirs.lance'}")
    with pytest.raises(EmbeddingError, match="was not filled by clapkit; name another place"):
        engine.info()
    with pytest.raises(EmbeddingError, match="was not filled by clapkit; name another place"):
        engine.push(table(5), described(table(5)), reporter=SilentReporter())
    assert lancedb.connect(tmp_path).open_table("theirs").count_rows() == 1


def test_a_damaged_table_is_one_line(tmp_path, table, described):
    made = table(20)
    engine = engines.parse(f"lance:{tmp_path}")
    engine.push(made, described(made), reporter=SilentReporter())
    engine.close()
    for path in (tmp_path / "audio.lance" / "data").iterdir():
        path.write_bytes(b"x" * 100)
    with pytest.raises(EmbeddingError, match="cannot be searched by LanceDB") as caught:
        engine.search(made.vectors[:1].astype(np.float32), 3)
    assert "\n" not in str(caught.value)
    assert ".rs:" not in str(caught.value)


def test_a_reader_keeps_the_table_that_it_opened(tmp_path, table, described):
    made, other = table(20), table(30, seed=2)
    writer, reader = (engines.parse(f"lance:{tmp_path}") for _ in range(2))
    writer.push(made, described(made), reporter=SilentReporter())
    assert reader.count() == 20
    writer.push(other, described(other, table_id="t2"), reporter=SilentReporter())
    assert (reader.count(), reader.info().id) == (20, "t1")
    assert reader.search(made.vectors[3:4].astype(np.float32), 1)[0][0][1]["path"] == "/x/0/3.wav"
    reader.close()
    assert (reader.count(), reader.info().id) == (30, "t2")


def test_an_approximate_index_is_measured(tmp_path, table, described):
    made = table(400)
    said = []

    class Listener(SilentReporter):
        def say(self, message):
            said.append(message)

    engine = engines.parse(f"lance:{tmp_path}")
    pushed = engine.push(made, described(made), reporter=Listener(), approximate=True)
    assert pushed.recall is not None
    assert 0.9 <= pushed.recall <= 1
    assert said == [f"lance:{tmp_path}: recall@10 of the approximate index is {pushed.recall:.3f} for rows of the table"]
    assert len(engine._opened().list_indices()) == 1
    assert engine.search(made.vectors[9:10].astype(np.float32), 3)[0][0][1]["id"] == "c9"


KILLED = """
import os, signal, sys
from pathlib import Path
from clapkit.index import engines
from clapkit.index.table import open_table
from clapkit.types import SilentReporter

class Killer(SilentReporter):
    def track(self, description, total, unit=""):
        return self
    def __enter__(self):
        self.sent = 0
        return self
    def __exit__(self, *exc_info):
        if os.environ["MOMENT"] == "end":
            os.kill(os.getpid(), signal.SIGKILL)
    def advance(self, amount=1, **fields):
        self.sent += 1
        if os.environ["MOMENT"] == str(self.sent):
            os.kill(os.getpid(), signal.SIGKILL)

info, table = open_table(Path(os.environ["FOLDER"]), "audio")
engines.parse(os.environ["ADDRESS"]).push(table, info, reporter=Killer())
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lance", "milvus"])
@pytest.mark.parametrize("moment", ["1", "2", "end"])
def test_a_push_that_is_killed_leaves_the_old_table_or_the_new_one(kind, moment, tmp_path, table, described):
    expect_extra(kind)
    old, new = table(50), table(9000 if kind == "lance" else 2500, seed=4)
    address = f"lance:{tmp_path / 'engine'}" if kind == "lance" else f"milvus:{tmp_path / 'engine.db'}"
    engine = engines.parse(address)
    engine.push(old, described(old), reporter=SilentReporter())
    engine.close()
    info = save_tables(tmp_path / "new", [new], described(new))
    environment = os.environ | {
        "PYTHONPATH": str(Path(clapkit.__file__).parent.parent),
        "FOLDER": str(tmp_path / "new"),
        "ADDRESS": address,
        "MOMENT": moment,
    }
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert engine.info().id in ("t1", info.id)
    left, rows = (old, 50) if engine.info().id == "t1" else (new, len(new))
    assert engine.count() == rows
    assert engine.search(left.vectors[7:8].astype(np.float32), 1)[0][0][1] == left.rows([7])[0]
    engine.push(new, info, reporter=SilentReporter())
    engine.close()
    assert (engine.info().id, engine.count()) == (info.id, len(new))
    engine.close()
