import subprocess
import sys

import numpy as np
import pytest

from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index import engines
from clapkit.index.engines import milvus
from clapkit.types import SilentReporter

from .conftest import expect_extra


@pytest.fixture(autouse=True)
def _extra(request):
    if "extra" not in request.node.name:
        expect_extra("milvus")


@pytest.mark.parametrize("module", ["pymilvus", "milvus_lite"])
def test_a_missing_extra_says_how_to_get_it(monkeypatch, tmp_path, module):
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "x.db").mkdir()
    with pytest.raises(ConfigError, match=r"not installed; `pip install 'clapkit\[milvus\]'`"):
        engines.parse(f"milvus:{tmp_path / 'x.db'}").info()


def test_a_server_that_does_not_answer_is_one_line_without_its_token(monkeypatch, capfd):
    monkeypatch.setenv("MILVUS_TOKEN", "hush")
    monkeypatch.setattr(milvus, "_TIMEOUT_S", 0.5)
    engine = engines.parse("milvus+http://127.0.0.1:9/sounds")
    with pytest.raises(
        EmbeddingError, match=r"milvus\+http://127.0.0.1:9/sounds: cannot be opened by Milvus .*MILVUS_TOKEN"
    ) as c:
        engine.count()
    assert "\n" not in str(c.value)
    assert "hush" not in str(c.value)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_something_else_is_one_line(tmp_path):
    (tmp_path / "x.db").write_text("no database")
    with pytest.raises(EmbeddingError, match="cannot be opened by Milvus .*check that the file is of Milvus Lite"):
        engines.parse(f"milvus:{tmp_path / 'x.db'}").info()


def test_a_file_that_another_process_has_open_is_one_line(tmp_path, table, described):
    made = table(5)
    engine = engines.parse(f"milvus:{tmp_path / 'x.db'}")
    engine.push(made, described(made), reporter=SilentReporter())
    script = f"from clapkit.index import engines; engines.parse({engine.address!r}).info()"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    engine.close()
    assert "no other process has it open" in other.stderr.splitlines()[-1]
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_collection_of_somebody_else_is_neither_read_nor_replaced(tmp_path, table, described):
    from pymilvus import MilvusClient

    client = MilvusClient(str(tmp_path / "x.db"))
    client.create_collection("clapkit", dimension=4)
    engine = engines.parse(f"milvus:{tmp_path / 'x.db'}")
    with pytest.raises(EmbeddingError, match="'clapkit' is a collection that was not filled by clapkit; name another one"):
        engine.info()
    with pytest.raises(EmbeddingError, match="'clapkit' is a collection that was not filled by clapkit; name another one"):
        engine.push(table(5), described(table(5)), reporter=SilentReporter())
    client.close()
    engine.close()


def test_old_collections_are_dropped_and_others_stay(tmp_path, table, described):
    made = table(5)
    engine = engines.parse(f"milvus:{tmp_path / 'x.db'}")
    engine.push(made, described(made), reporter=SilentReporter())
    client = engine._client()
    for name in ("clapkit__7", "clapkit__x", "clapkit_text__1"):
        client.create_collection(name, dimension=4)
    engine.push(made, described(made, table_id="t2"), reporter=SilentReporter())
    assert sorted(client.list_collections()) == ["clapkit__2", "clapkit__x", "clapkit_text__1"]
    assert engine.info().id == "t2"
    engine.close()


def test_more_hits_than_milvus_gives_are_refused(tmp_path, table, described, monkeypatch):
    made = table(20)
    monkeypatch.setattr(milvus, "_MAX_HITS", 10)
    engine = engines.parse(f"milvus:{tmp_path / 'x.db'}")
    engine.push(made, described(made), reporter=SilentReporter())
    query = made.vectors[:1].astype(np.float32)
    assert len(engine.search(query, 10)[0]) == 10
    with pytest.raises(ConfigError, match="11 hits wanted, Milvus gives at most 10; narrow the search with --where"):
        engine.search(query, 11)
    engine.close()


def test_a_text_that_is_too_long_for_milvus_is_one_line(tmp_path, table, described):
    one = table(1)
    made = type(one).build(
        "audio",
        one.vectors.astype(np.float32),
        ids=["x" * 70_000],
        paths=["p"],
        spans=[(None, None)],
        captions=[[]],
        labels=[[]],
        splits=[None],
    )
    engine = engines.parse(f"milvus:{tmp_path / 'x.db'}")
    with pytest.raises(EmbeddingError, match="cannot be written by Milvus") as caught:
        engine.push(made, described(made), reporter=SilentReporter())
    assert len(str(caught.value)) < 1000
    engine.close()


def test_an_approximate_index_is_measured(tmp_path, table, described):
    made = table(400)
    engine = engines.parse(f"milvus:{tmp_path / 'x.db'}")
    queries = table(30, seed=5, dtype="float32").vectors
    pushed = engine.push(made, described(made), reporter=SilentReporter(), approximate=True, queries=queries)
    assert pushed.recall is not None
    assert 0.9 <= pushed.recall <= 1
    engine.close()
