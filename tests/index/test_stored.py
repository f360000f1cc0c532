import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from clapkit.errors import ConfigError, EmbeddingError, UnknownNameError
from clapkit.index import _faiss, _index_files, exact, stored
from clapkit.index._codes import coded
from clapkit.index.stored import build_stored, open_stored, remove_outdated, stored_names, update_stored
from clapkit.index.table import EmbeddingTable, TableInfo, open_table, save_tables

WIDTH, ROWS = 16, 800
OPTIONS = {"ivf": {"nlist": 12}, "hnsw": {"threads": 1}}
both = pytest.mark.parametrize("name", ["ivf", "hnsw"])


def unit(rows, width=WIDTH, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def save(folder, vectors, modality="audio"):
    """The table as the next generation, as it is opened afterwards."""
    none = [[]] * len(vectors)
    names = [str(row) for row in range(len(vectors))]
    spans, splits = [(None, None)] * len(vectors), [None] * len(vectors)
    table = EmbeddingTable.build(
        modality, vectors, ids=names, paths=names, spans=spans, captions=none, labels=none, splits=splits, dtype="float16"
    )
    save_tables(folder, [table], TableInfo(vectors.shape[1], "float16", {modality: len(vectors)}, "/m", "f"))
    return open_table(folder, modality)


def build(name, folder, table, info, *, queries=None, seed=0, **options):
    return build_stored(name, folder, table, info=info, options=OPTIONS[name] | options, queries=queries, seed=seed)


def hits(index, queries, k=10):
    return index.search(queries, k)


def recall(name, folder, table, info, queries):
    index, truth = open_stored(name, folder, table.modality, info=info, table=table), exact.build()
    truth.add(table.vectors)
    scores, true_scores = index.search(queries, 10)[0], truth.search(queries, 10)[0]
    return (scores >= true_scores[:, -1:]).mean()


@pytest.fixture(autouse=True)
def no_exact(monkeypatch):
    monkeypatch.setattr(_faiss, "_EXACT_ROWS", 0)
    monkeypatch.setattr(_faiss, "_EXACT_SHARE", 0.0)


@pytest.fixture
def table(tmp_path):
    return save(tmp_path, unit(ROWS))


@both
@pytest.mark.parametrize("modality", ["audio", "text"])
def test_an_index_that_is_opened_answers_as_the_one_that_was_built(tmp_path, name, modality):
    info, table = save(tmp_path, unit(ROWS), modality)
    queries = unit(60, seed=1)
    report = build(name, tmp_path, table, info, queries=queries)
    built = stored._new_index(name, OPTIONS[name], seed=0)
    built.add(table.vectors)
    built.tune(queries)
    opened = open_stored(name, tmp_path, modality, info=info, table=table)
    assert opened.effort == built.effort == report[built.method.effort_name]
    for found, expected in zip(hits(opened, queries), hits(built, queries), strict=True):
        np.testing.assert_array_equal(found, expected)


@both
def test_the_report_says_what_was_built_and_how_well_it_does(tmp_path, table, name):
    info, table = table
    queries = unit(60, seed=1)
    report = build(name, tmp_path, table, info, queries=queries, recall="0.9")
    file = tmp_path / "index" / f"{name}_audio_0.faiss"
    effort = {"ivf": "nprobe", "hnsw": "ef_search"}[name]
    assert report["kind"] == name
    assert report["options"] == OPTIONS[name] | {"recall": "0.9"}
    assert report["target_recall"] == 0.9
    assert report["reached_target"] is True
    assert report["queries"] == {"kind": "text", "count": 60}
    assert report["bytes"] == file.stat().st_size
    assert report["table"] == info.id
    assert report[effort] >= 1
    assert report["build_s"] > 0
    assert report["recall@10"] == pytest.approx(recall(name, tmp_path, table, info, queries))
    assert json.loads(file.with_suffix(".json").read_text())["report"] == report


@pytest.mark.parametrize("queries", [None, unit(0)])
def test_without_queries_recall_is_measured_with_rows_of_the_table(tmp_path, table, queries):
    info, table = table
    assert build("ivf", tmp_path, table, info, queries=queries)["queries"] == {"kind": "audio", "count": 500}


@both
def test_a_target_that_is_missed_is_said_and_the_index_written(tmp_path, table, name):
    info, table = table
    effort = {"ivf": {"nprobe": 1}, "hnsw": {"ef_search": 1}}[name]
    report = build(name, tmp_path, table, info, queries=unit(60, seed=1), recall=1.0, **effort)
    assert report["reached_target"] is False
    assert report["recall@10"] < report["target_recall"]
    assert stored_names(tmp_path, info) == [(name, "audio")]


def test_equal_seeds_give_equal_files(tmp_path):
    contents = []
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        info, table = save(tmp_path / folder, unit(ROWS))
        build("ivf", tmp_path / folder, table, info, seed=seed)
        contents.append((tmp_path / folder / "index" / "ivf_audio_0.faiss").read_bytes())
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_a_seed_among_the_options_wins(tmp_path, table):
    info, table = table
    build("ivf", tmp_path, table, info, seed=4)
    expected = (tmp_path / "index" / "ivf_audio_0.faiss").read_bytes()
    build_stored("ivf", tmp_path, table, info=info, options=OPTIONS["ivf"] | {"seed": "4"}, queries=None, seed=0)
    assert (tmp_path / "index" / "ivf_audio_0.faiss").read_bytes() == expected


def test_a_plugin_with_nothing_to_store_is_refused(tmp_path, table):
    info, table = table
    with pytest.raises(ConfigError, match="--index exact: has nothing to build"):
        build_stored("exact", tmp_path, table, info=info, options={}, queries=None, seed=0)
    with pytest.raises(UnknownNameError, match="nlists"):
        build("ivf", tmp_path, table, info, nlists=3)
    assert not (tmp_path / "index").exists()


@both
def test_opening_reads_little_of_a_file(tmp_path, name):
    # A small index is opened first: what faiss and NumPy load and allocate on first use is not the index's.
    few = {"neighbors": 4, "ef_construction": 4} if name == "hnsw" else {}
    folders = {num_rows: tmp_path / str(num_rows) for num_rows in (100, 6000)}
    sizes = {}
    for num_rows, folder in folders.items():
        info, table = save(folder, unit(num_rows, 512))
        options = few if name == "hnsw" else {"nlist": 4}
        sizes[num_rows] = build(name, folder, table, info, queries=unit(5, 512), **options)["bytes"]
    script = """
import sys
from pathlib import Path
from clapkit.index.stored import open_stored
from clapkit.index.table import open_table
def read_bytes():
    return next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
def resident():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
name, *folders = sys.argv[1:]
kept = []
for folder in map(Path, folders):
    info, table = open_table(folder, "audio")
    before = read_bytes() + resident()
    kept.append(open_stored(name, folder, "audio", info=info, table=table))
    grown = read_bytes() + resident() - before
print(grown)
"""
    if not os.path.exists("/proc/self/io"):
        pytest.skip("needs /proc")
    command = [sys.executable, "-c", script, name, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sizes[6000] > 3_000_000
    assert int(done.stdout) < sizes[6000] / 2


# Updates ----------------------------------------------------------------------------------------------------------------


def changed(vectors, *, dropped, added, seed=5):
    """Some rows gone, others moved, new ones in between."""
    generator = np.random.default_rng(seed)
    rest = vectors[generator.permutation(len(vectors))[dropped:]]
    return np.concatenate([rest[:100], unit(added, seed=100 + seed), rest[100:]])


def update(name, folder, table, info, *, queries=None):
    return update_stored(name, folder, table, info=info, queries=queries, seed=0)


def test_an_updated_ivf_answers_as_one_with_its_lists_that_has_always_had_the_rows(tmp_path, table):
    info, table = table
    queries = unit(60, seed=1)
    build("ivf", tmp_path, table, info, queries=queries)
    old = open_stored("ivf", tmp_path, "audio", info=info, table=table)
    lists = old.inner.quantizer.reconstruct_n(0, 12)
    new_info, new_table = save(tmp_path, changed(unit(ROWS), dropped=40, added=60))
    report = update("ivf", tmp_path, new_table, new_info, queries=queries)
    assert report["update"] == {"added": 60, "removed": 40, "rebuilt": None}
    assert report["options"] == OPTIONS["ivf"]
    assert report["table"] == new_info.id
    updated = open_stored("ivf", tmp_path, "audio", info=new_info, table=new_table)
    fresh = stored._new_index("ivf", OPTIONS["ivf"], seed=0)
    fresh.add(new_table.vectors)
    fresh.inner.reset()
    fresh.inner.quantizer.reset()
    fresh.inner.quantizer.add(lists)
    fresh.inner.add(coded(new_table.vectors.astype(np.float32)))
    fresh.tune(queries)
    assert updated.effort == fresh.effort
    for found, expected in zip(hits(updated, queries), hits(fresh, queries), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert report["recall@10"] == pytest.approx(recall("ivf", tmp_path, new_table, new_info, queries))


def flat(rows, seed=0):
    """Unit vectors of 64 numbers near a subspace of 8, the same for every seed."""
    axes = np.random.default_rng(99).normal(size=(8, 64)) / 8
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, 8)) @ axes + 0.02 * generator.normal(size=(rows, 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_an_ivf_of_components_is_opened_and_updated_with_the_candidates_that_were_chosen(tmp_path):
    queries, vectors = flat(60, seed=1), flat(ROWS)
    info, table = save(tmp_path, vectors)
    report = build("ivf", tmp_path, table, info, queries=queries, components=5)
    assert report["components"] == 5
    assert report["candidates"] > 40
    opened = open_stored("ivf", tmp_path, "audio", info=info, table=table)
    assert opened.candidates == report["candidates"]
    assert report["recall@10"] == pytest.approx(recall("ivf", tmp_path, table, info, queries))
    new_info, new_table = save(tmp_path, np.concatenate([vectors[100:], flat(30, seed=2), vectors[:50]]))
    report = update("ivf", tmp_path, new_table, new_info, queries=queries)
    assert report["update"] == {"added": 30, "removed": 50, "rebuilt": None}
    assert report["components"] == 5
    assert recall("ivf", tmp_path, new_table, new_info, queries) >= 0.95


def test_an_index_from_before_candidates_were_chosen_opens_as_it_was(tmp_path, table):
    info, table = table
    build("ivf", tmp_path, table, info)
    path = tmp_path / "index" / "ivf_audio_0.json"
    description = json.loads(path.read_text())
    expected = hits(open_stored("ivf", tmp_path, "audio", info=info, table=table), unit(5, seed=1))
    del description["report"]["candidates"], description["report"]["components"]
    path.write_text(json.dumps(description))
    index = open_stored("ivf", tmp_path, "audio", info=info, table=table)
    assert index.candidates == 40
    for found, wanted in zip(hits(index, unit(5, seed=1)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    path.write_text(json.dumps(description | {"report": description["report"] | {"candidates": 3}}))
    with pytest.raises(EmbeddingError, match="candidates is 3, expected a whole number from 40 on"):
        open_stored("ivf", tmp_path, "audio", info=info, table=table)


def test_an_hnsw_takes_new_rows_without_a_rebuild_and_is_built_anew_where_rows_are_gone(tmp_path, table):
    info, table = table
    queries = unit(60, seed=1)
    build("hnsw", tmp_path, table, info, queries=queries)
    grown_info, grown = save(tmp_path, changed(unit(ROWS), dropped=0, added=50))
    report = update("hnsw", tmp_path, grown, grown_info, queries=queries)
    assert report["update"] == {"added": 50, "removed": 0, "rebuilt": None}
    assert recall("hnsw", tmp_path, grown, grown_info, queries) >= 0.95
    less_info, less = save(tmp_path, np.asarray(grown.vectors[1:]))
    report = update("hnsw", tmp_path, less, less_info, queries=queries)
    assert report["update"] == {"added": 0, "removed": 1, "rebuilt": "hnsw cannot take rows out"}
    index = open_stored("hnsw", tmp_path, "audio", info=less_info, table=less)
    fresh = stored._new_index("hnsw", OPTIONS["hnsw"], seed=0)
    fresh.add(less.vectors)
    fresh.tune(queries)
    np.testing.assert_array_equal(hits(index, queries)[1], hits(fresh, queries)[1])


def test_an_index_is_built_anew_once_half_of_its_rows_have_changed_however_slowly(tmp_path, table):
    build("ivf", tmp_path, table[1], table[0])
    vectors, rebuilt = unit(ROWS), []
    for step in range(4):  # 150 rows out and 150 in: 300, 600 of 800
        vectors = changed(vectors, dropped=150, added=150, seed=step)
        info, table = save(tmp_path, vectors)
        rebuilt.append(update("ivf", tmp_path, table, info)["update"]["rebuilt"])
    again = "600 rows changed since it was built, more than half of 800"
    assert rebuilt == [None, again, None, again]


@both
def test_a_table_of_another_width_is_indexed_anew(tmp_path, table, name):
    build(name, tmp_path, table[1], table[0])
    info, table = save(tmp_path, unit(ROWS, width=8))
    report = update(name, tmp_path, table, info)
    assert report["update"] == {"added": ROWS, "removed": ROWS, "rebuilt": "vectors have 8 numbers, not 16"}
    assert open_stored(name, tmp_path, "audio", info=info, table=table).search(unit(2, width=8), 3)[1].shape == (2, 3)


def test_an_update_of_the_same_table_does_nothing(tmp_path, table):
    info, table = table
    report = build("ivf", tmp_path, table, info)
    file = tmp_path / "index" / "ivf_audio_0.faiss"
    before = file.stat().st_mtime_ns
    assert update("ivf", tmp_path, table, info) == report
    assert update("ivf", tmp_path, table, dataclasses.replace(info, generation=7)) == report
    assert file.stat().st_mtime_ns == before


def test_an_update_needs_an_index(tmp_path, table):
    info, table = table
    with pytest.raises(EmbeddingError, match="no ivf index of the audio table"):
        update("ivf", tmp_path, table, info)


def test_an_index_that_is_open_survives_an_update_and_what_is_outdated_is_removed(tmp_path, table):
    info, table = table
    queries = unit(20, seed=1)
    build("ivf", tmp_path, table, info)
    build("hnsw", tmp_path, table, info)
    index = open_stored("ivf", tmp_path, "audio", info=info, table=table)
    expected = hits(index, queries)
    new_info, new_table = save(tmp_path, changed(unit(ROWS), dropped=10, added=10))
    update("ivf", tmp_path, new_table, new_info)
    left = tmp_path / "index" / ".ivf_audio_0.faiss.1.tmp"
    left.write_bytes(b"killed")
    foreign = tmp_path / "index" / "notes.txt"
    foreign.write_text("mine")
    assert stored_names(tmp_path) == [("hnsw", "audio"), ("ivf", "audio")]
    assert stored_names(tmp_path, new_info) == [("ivf", "audio")]
    remove_outdated(tmp_path, new_info)
    assert sorted(path.name for path in (tmp_path / "index").iterdir()) == [
        "ivf_audio_1.faiss",
        "ivf_audio_1.json",
        "notes.txt",
    ]
    for found, before in zip(hits(index, queries), expected, strict=True):
        np.testing.assert_array_equal(found, before)


def test_a_build_that_fails_leaves_the_old_index(tmp_path, table, monkeypatch):
    info, table = table
    build("ivf", tmp_path, table, info)
    before = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}
    monkeypatch.setattr(_index_files.json, "dumps", lambda *values, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build("ivf", tmp_path, table, info, seed=8)
    assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == before


def test_a_folder_without_indexes_has_none(tmp_path, table):
    assert stored_names(tmp_path) == []
    remove_outdated(tmp_path, table[0])


# What is refused --------------------------------------------------------------------------------------------------------


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def built(tmp_path, table):
    info, table = table
    build("ivf", tmp_path, table, info)
    return tmp_path / "index" / "ivf_audio_0.json"


def opening(built, table):
    return open_stored("ivf", built.parent.parent, "audio", info=table[0], table=table[1])


def test_where_no_index_was_built_the_command_is_named(tmp_path, table):
    with pytest.raises(
        EmbeddingError, match="no hnsw index of the audio table; build it with `clapkit embed --update --index hnsw`"
    ):
        open_stored("hnsw", tmp_path, "audio", info=table[0], table=table[1])


def test_an_index_older_than_the_table_is_refused(built, tmp_path):
    with pytest.raises(
        EmbeddingError, match=r"ivf_audio_0.json: index older than the table \(of generation 0, the table is of 1\)"
    ):
        opening(built, save(tmp_path, unit(ROWS, seed=3)))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_damaged_description_is_refused(built, table, content):
    built.write_bytes(content)
    with pytest.raises(EmbeddingError, match="ivf_audio_0.json: cannot be read as JSON .*; delete it and build it with"):
        opening(built, table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clapkit_index": 2}, "index format 2, this clapkit reads 1"),
        ({"rows": "many"}, r"damaged \(ValueError"),
        ({"report": None}, r"damaged \(TypeError"),
        ({"report": {}}, "nprobe is None, expected a whole number"),
        ({"width": 17}, "index of 800 x 17, the table is 800 x 16"),
        ({"rows": 801}, "index of 801 x 16, the table is 800 x 16"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(built, table, changes, message):
    rewrite(built, **changes)
    with pytest.raises(EmbeddingError, match=message):
        opening(built, table)


def test_a_missing_or_truncated_file_is_refused(built, table):
    file = built.with_suffix(".faiss")
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 1)
    with pytest.raises(
        EmbeddingError, match=rf"ivf_audio_0.faiss: {size - 1} bytes, expected {size}; delete it and build it with"
    ):
        opening(built, table)
    file.unlink()
    with pytest.raises(EmbeddingError, match=r"ivf_audio_0.faiss: cannot be read \(No such file"):
        opening(built, table)


def test_a_file_of_another_faiss_is_refused_on_one_line(built, table):
    rewrite(built, faiss="9.9.9")
    with built.with_suffix(".faiss").open("r+b") as stream:
        stream.write(b"IwNw")
    with pytest.raises(
        EmbeddingError, match=r"ivf_audio_0.faiss: faiss .* cannot read what faiss 9.9.9 wrote \(.*\)"
    ) as caught:
        opening(built, table)
    assert "\n" not in str(caught.value)


def test_a_file_with_other_rows_than_its_description_says_is_refused(built, tmp_path, table):
    info, other = save(tmp_path / "other", unit(ROWS - 1))
    build("ivf", tmp_path / "other", other, info)
    content = (tmp_path / "other" / "index" / "ivf_audio_0.faiss").read_bytes()
    built.with_suffix(".faiss").write_bytes(content)
    rewrite(built, bytes=len(content))
    with pytest.raises(EmbeddingError, match="ivf_audio_0.faiss: 799 x 16, expected 800 x 16"):
        opening(built, table)


def test_an_update_builds_a_damaged_file_anew_even_if_the_table_is_the_same(tmp_path, table):
    info, table = table
    build("ivf", tmp_path, table, info)
    (file,) = (tmp_path / "index").glob("*.faiss")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EmbeddingError, match="delete it and build it with `clapkit embed --update --index ivf`"):
        open_stored("ivf", tmp_path, "audio", info=info, table=table)
    report = update_stored("ivf", tmp_path, table, info=info, queries=None, seed=0)
    assert "bytes, expected" in report["update"]["rebuilt"]
    assert file.read_bytes() == whole
    file.unlink()
    changed = save(tmp_path, np.concatenate([table.vectors.astype(np.float32), unit(5, seed=4)]))
    report = update_stored("ivf", tmp_path, changed[1], info=changed[0], queries=None, seed=0)
    assert "cannot be read" in report["update"]["rebuilt"]
    assert len(open_stored("ivf", tmp_path, "audio", info=changed[0], table=changed[1]).search(unit(1), 3)[1][0]) == 3
