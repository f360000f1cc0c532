"""How an embedding ends: index, engine and result."""

import numpy as np
import pytest

from clapkit.cli import embed as command
from clapkit.cli.execute import execute
from clapkit.errors import UnknownNameError
from clapkit.index import engines
from clapkit.index.engines import Pushed
from clapkit.index.stored import open_stored
from clapkit.index.table import open_table, read_info
from clapkit.steps import embed, embed_outcome


@pytest.fixture
def call(runs_root, reporter):
    """Calls ``clapkit embed`` as the command line does; gives the run directory and the result."""
    reporter.attach = lambda run_dir: None

    def call(*addresses, **given):
        given = {"inputs": [str(address) for address in addresses] or None, "runs_root": runs_root, **given}
        config = command.configure({"device": "cpu"} | given)
        return execute("embed", config, ["clapkit", "embed"], embed.run, reporter)

    return call


def test_an_index_of_each_table_is_built_and_its_recall_said(call, reporter):
    run_dir, result = call("toy", name="x", index="hnsw")
    info, table = open_table(run_dir.path, "audio")
    index = open_stored("hnsw", run_dir.path, "audio", info=info, table=table)
    assert index.search(table.vectors[4:5].astype(np.float32), 1)[1].tolist() == [[4]]
    assert [report["modality"] for report in result["indexes"]] == ["audio", "text"]
    assert result["indexes"][0]["queries"]["kind"] == "text"
    assert any(
        "index hnsw over audio: recall@10 1.000 against exact search with 12 text queries" in said for said in reporter.said
    )


def test_an_index_that_misses_its_recall_is_warned_about(call, reporter, monkeypatch):
    from clapkit.index import stored

    build = stored.build_stored

    def poor(*given, **named):
        return build(*given, **named) | {"recall@10": 0.5, "reached_target": False, "target_recall": 0.95}

    monkeypatch.setattr(stored, "build_stored", poor)
    call("toy", name="x", modality="audio", index="hnsw")
    assert any("recall@10 0.500 against exact search" in said and "expected 0.95" in said for said in reporter.warned)


def test_options_of_the_index_are_looked_at_before_anything_is_embedded(call, runs_root):
    with pytest.raises(UnknownNameError, match="option of index 'hnsw': 'legs'"):
        call("toy", name="x", index="hnsw", options=["legs=4"])
    assert not (runs_root / "embed/x").exists()


def test_an_update_builds_an_index_that_is_asked_for(call):
    run_dir, _ = call("toy", name="x", modality="audio")
    _, result = call(update=True, name="x", index="hnsw")
    assert result["indexes"][0]["table"] == read_info(run_dir.path).id


class FakeEngine:
    """Takes everything."""

    def __init__(self, address, modality, taken):
        self.address, self.modality, self.taken = address, modality, taken

    def push(self, table, info, *, reporter):
        self.taken.append((self.address, self.modality, len(table), info.id))
        return Pushed(len(table), unchanged=False)

    def close(self):
        self.taken.append("closed")


def test_all_tables_are_pushed(call, monkeypatch, reporter):
    taken = []
    monkeypatch.setattr(engines, "parse", lambda address, modality="audio": FakeEngine(address, modality, taken))
    run_dir, result = call("toy", name="x", push="lance:there")
    id = read_info(run_dir.path).id
    assert taken == [("lance:there", "audio", 6, id), "closed", ("lance:there", "text", 12, id), "closed"]
    assert result["engine"] == {"address": "lance:there", "counts": {"audio": 6, "text": 12}}
    assert "lance:there: 6 audio items" in reporter.said


def test_queries_are_drawn_by_the_seed_and_not_too_many(monkeypatch, call):
    monkeypatch.setattr(embed_outcome, "_MAX_QUERIES", 5)
    run_dir, _ = call("toy", name="x")
    _, table = open_table(run_dir.path, "text")
    first, again, other = (embed_outcome._sample(table, seed=seed) for seed in (0, 0, 1))
    assert first.shape == (5, 16)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
