import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index.layout import SCHEMA, TableInfo, read_info
from clapkit.index.statistics import ScoreStatistics
from clapkit.index.table import open_table, save_tables
from clapkit.index.writer import TableWriter, metadata_rows, next_generation, publish


def unit(rows, width=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_rows(count, **changes):
    columns = {
        "ids": [f"clip{i}" for i in range(count)],
        "paths": [None if i % 3 == 0 else f"/sounds/ä{i}.wav" for i in range(count)],
        "spans": [(float(i), None) for i in range(count)],
        "captions": [["a", "b"][: i % 3] for i in range(count)],
        "labels": [["dog"] * (i % 2) for i in range(count)],
        "splits": [None if i % 2 else "test" for i in range(count)],
        "contents": [f"{i:032x}" for i in range(count)],
    }
    return metadata_rows(**(columns | changes))


def make_info(**changes):
    info = TableInfo(width=8, dtype="float16", counts={"audio": 5}, model_path="/m", model_fingerprint="f")
    return dataclasses.replace(info, **changes)


def write(folder, vectors, rows, *, pieces=(), **options):
    """Write a table in pieces that end at these rows."""
    settings = {"modality": "audio", "width": 8, "dtype": "float16"} | options
    with TableWriter(folder, settings.pop("modality"), **settings) as writer:
        for start, stop in zip((0, *pieces), (*pieces, len(vectors)), strict=True):
            writer.append(vectors[start:stop], rows.slice(start, stop - start))
        return writer.finish()


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Content ----------------------------------------------------------------------------------------------------------------


def test_what_is_written_comes_back(tmp_path):
    vectors, rows = unit(5), make_rows(5)
    publish(tmp_path, [write(tmp_path, vectors, rows, pieces=(2,))], make_info())
    table = open_table(tmp_path, "audio")[1]
    np.testing.assert_array_equal(table.vectors, vectors.astype(np.float16))
    assert table.rows(range(5)) == rows.to_pylist()
    assert pq.read_schema(tmp_path / "metadata/metadata_0.parquet") == SCHEMA
    np.testing.assert_array_equal(np.load(tmp_path / "audio_emb/audio_emb_0.npy"), vectors.astype(np.float16))


GROUP, COUNT = 64, 2 * 64 + 10


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr("clapkit.index.writer.ROW_GROUP_ROWS", GROUP)


@pytest.mark.parametrize("pieces", [(1, 2, 3), (GROUP,), (GROUP - 1, 2 * GROUP + 1), (7, 7), tuple(range(1, COUNT))])
def test_files_and_digest_do_not_depend_on_the_pieces(tmp_path, small_groups, pieces):
    vectors, rows = unit(COUNT), make_rows(COUNT)
    whole = write(tmp_path / "whole", vectors, rows)
    parts = write(tmp_path / "parts", vectors, rows, pieces=pieces)
    assert whole == parts
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    metadata = pq.read_metadata(tmp_path / "parts/metadata/metadata_0.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [GROUP, GROUP, COUNT - 2 * GROUP]


def test_the_digest_does_not_depend_on_the_size_of_the_groups(tmp_path, monkeypatch):
    digests = set()
    for size in (3, 64, 1000):
        monkeypatch.setattr("clapkit.index.writer.ROW_GROUP_ROWS", size)
        digests.add(write(tmp_path / str(size), unit(COUNT), make_rows(COUNT)).digest)
    assert len(digests) == 1


def test_statistics_are_those_of_the_stored_vectors(tmp_path, small_groups):
    vectors = unit(COUNT)
    write(tmp_path, vectors, make_rows(COUNT))
    stored = vectors.astype(np.float16).astype(np.float64)
    found = ScoreStatistics.load(tmp_path / "statistics/audio_0.npz")
    assert found.count == COUNT
    np.testing.assert_allclose(found.mean, stored.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.covariance, np.cov(stored.T, bias=True), atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"vectors": unit(5, seed=1)},
        {"dtype": "float32"},
        {"rows": make_rows(5, ids=["clip0", "clip1", "clip2", "clip4", "clip3"])},
        {"rows": make_rows(5, ids=["clip0clip1", "", "clip2", "clip3", "clip4"])},
        {"rows": make_rows(5, paths=[""] + [None if i % 3 == 0 else f"/sounds/ä{i}.wav" for i in range(1, 5)])},
        {"rows": make_rows(5, spans=[(float(i), 1.0 if i == 4 else None) for i in range(5)])},
        {"rows": make_rows(5, labels=[["dog"], [], [], ["dog"], []])},
        {"rows": make_rows(5, captions=[["ab"[: i % 3]] for i in range(5)])},
        {"rows": make_rows(5, contents=None)},
    ],
)
def test_another_content_has_another_digest(tmp_path, change):
    digest = write(tmp_path / "a", unit(5), make_rows(5)).digest
    settings = {"vectors": unit(5), "rows": make_rows(5)} | change
    assert write(tmp_path / "b", **settings).digest != digest


def test_the_digest_does_not_depend_on_how_arrow_keeps_the_rows(tmp_path):
    rows = make_rows(9)
    shifted = pa.concat_tables([make_rows(2), rows]).combine_chunks().slice(2)  # offsets that do not begin at 0
    chunked = pa.concat_tables([rows.slice(0, 4), rows.slice(4)])
    digests = {write(tmp_path / str(i), unit(9), same).digest for i, same in enumerate((rows, shifted, chunked))}
    assert len(digests) == 1


def test_a_piece_may_be_overwritten_once_it_was_appended(tmp_path):
    vectors, buffer = unit(4).astype(np.float16), np.empty((2, 8), np.float16)
    with TableWriter(tmp_path, "audio", width=8, dtype="float16") as writer:
        for start in (0, 2):
            buffer[:] = vectors[start : start + 2]
            writer.append(buffer, make_rows(4).slice(start, 2))
        writer.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "audio_emb/audio_emb_0.npy"), vectors)


def test_a_table_without_rows_can_be_written_and_opened(tmp_path):
    publish(tmp_path, [write(tmp_path, unit(0), make_rows(0))], make_info(counts={"audio": 0}))
    table = open_table(tmp_path, "audio")[1]
    assert (len(table), table.width, table.ids, table.rows([])) == (0, 8, [], [])


def test_no_more_than_a_row_group_waits_in_memory(tmp_path, small_groups):
    with TableWriter(tmp_path, "audio", width=8, dtype="float16") as writer:
        for count in (40, 40, 500, 1):
            writer.append(unit(count), make_rows(count))
            assert writer._num_pending < GROUP


# What is refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_a_vector_that_is_not_of_unit_norm_is_named_by_its_id(tmp_path, value):
    vectors = unit(5)
    vectors[4] = value
    with pytest.raises(EmbeddingError, match=r"audio table: row 4 \('clip4'\) has norm .*, expected 1") as caught:
        write(tmp_path, vectors, make_rows(5), pieces=(2,))
    assert "\n" not in str(caught.value)
    assert not files(tmp_path)


def test_norms_within_the_rounding_of_float16_pass(tmp_path):
    assert write(tmp_path, unit(50).astype(np.float16), make_rows(50)).count == 50


@pytest.mark.parametrize(
    ("vectors", "rows", "message"),
    [
        (unit(3, 9), make_rows(3), r"vectors of shape \[3, 9\], expected \[rows, 8\]"),
        (unit(3)[0], make_rows(3), r"vectors of shape \[8\]"),
        (unit(3), make_rows(2), "2 rows of id, path, .* for 3 vectors, expected one"),
        (unit(3), make_rows(3).drop_columns(["split"]), "3 rows of id, path, .* expected one of id, .*split"),
    ],
)
def test_pieces_that_do_not_fit_are_refused(tmp_path, vectors, rows, message):
    with TableWriter(tmp_path, "audio", width=8, dtype="float16") as writer, pytest.raises(EmbeddingError, match=message):
        writer.append(vectors, rows)


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(EmbeddingError, match="metadata: column labels has 1 rows, expected 3, one per id"):
        make_rows(3, labels=[[]])


@pytest.mark.parametrize(
    "changes",
    [{"counts": {"audio": 6}}, {"counts": {"audio": 5, "text": 5}}, {"width": 9}, {"dtype": "float32"}],
)
def test_files_that_do_not_fit_the_description_are_not_published(tmp_path, changes):
    written = write(tmp_path, unit(5), make_rows(5))
    with pytest.raises(EmbeddingError, match=r"tables audio float16 \[5, 8\] do not fit the description"):
        publish(tmp_path, [written], make_info(**changes))
    assert not (tmp_path / "table.json").exists()


def test_files_of_different_generations_are_not_published_together(tmp_path):
    written = [
        write(tmp_path, unit(5), make_rows(5)),
        write(tmp_path, unit(5), make_rows(5), modality="text", generation=1),
    ]
    with pytest.raises(EmbeddingError, match=r"tables of generations \[0, 1\], expected one"):
        publish(tmp_path, written, make_info(counts={"audio": 5, "text": 5}))


def test_a_published_generation_is_not_written_again(tmp_path):
    publish(tmp_path, [write(tmp_path, unit(5), make_rows(5))], make_info())
    before = files(tmp_path)
    with pytest.raises(EmbeddingError, match="audio_emb_0.npy: is published, expected a new generation"):
        TableWriter(tmp_path, "audio", width=8, dtype="float16")
    assert files(tmp_path) == before


# Whole or not at all ----------------------------------------------------------------------------------------------------


def test_a_writer_that_fails_or_is_discarded_leaves_nothing(tmp_path):
    with contextlib.suppress(KeyError), TableWriter(tmp_path, "audio", width=8, dtype="float16") as writer:
        writer.append(unit(5), make_rows(5))
        raise KeyError
    assert not files(tmp_path)
    writer = TableWriter(tmp_path, "text", width=8, dtype="float16")
    writer.append(unit(5), make_rows(5))
    writer.discard()
    assert not files(tmp_path)


def test_discarding_after_the_end_keeps_the_files(tmp_path):
    with TableWriter(tmp_path, "audio", width=8, dtype="float16") as writer:
        writer.append(unit(5), make_rows(5))
        writer.finish()
        writer.discard()
    assert set(files(tmp_path)) == {"audio_emb/audio_emb_0.npy", "metadata/metadata_0.parquet", "statistics/audio_0.npz"}


def test_publishing_replaces_the_table_and_removes_its_files(tmp_path):
    first = publish(tmp_path, [write(tmp_path, unit(5), make_rows(5))], make_info())
    generation = next_generation(tmp_path)
    written = write(tmp_path, unit(3), make_rows(3), generation=generation)
    assert len(open_table(tmp_path, "audio")[1]) == 5  # until it is published
    second = publish(tmp_path, [written], make_info(counts={"audio": 3}))
    assert (first.generation, generation, second.generation) == (0, 1, 1)
    assert second == read_info(tmp_path)
    assert second.id != first.id
    assert set(files(tmp_path)) == {
        "table.json",
        "audio_emb/audio_emb_1.npy",
        "metadata/metadata_1.parquet",
        "statistics/audio_1.npz",
    }


def test_the_id_is_that_of_the_content_whatever_the_generation(tmp_path):
    ids = [
        publish(tmp_path, [write(tmp_path, unit(5), make_rows(5), generation=next_generation(tmp_path))], make_info()).id
        for _ in range(2)
    ]
    assert ids[0] == ids[1]
    assert len(ids[0]) == 32


def test_the_first_generation_of_a_folder_is_zero(tmp_path):
    assert next_generation(tmp_path / "new") == 0


def test_what_a_killed_writer_left_is_removed(tmp_path):
    publish(tmp_path, [write(tmp_path, unit(5), make_rows(5))], make_info())
    before = files(tmp_path)
    write(tmp_path, unit(3), make_rows(3), generation=1)  # finished, never published
    writer = TableWriter(tmp_path, "text", width=8, dtype="float16", generation=1)  # never finished
    assert len(files(tmp_path)) > len(before)
    assert next_generation(tmp_path) == 1
    assert files(tmp_path) == before
    writer.discard()


@pytest.mark.parametrize("step", range(12))  # 11 steps; the last one fails nowhere
def test_a_failure_at_any_step_leaves_the_old_table_or_the_new_one(tmp_path, monkeypatch, step):
    publish(tmp_path, [write(tmp_path, unit(5), make_rows(5))], make_info())
    calls = iter(range(1000))

    def failing(original):
        def call(*args, **kwargs):
            if next(calls) == step:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "replace", failing(Path.replace))
        patch.setattr(os, "fsync", failing(os.fsync))
        publish(tmp_path, [write(tmp_path, unit(3), make_rows(3), generation=1)], make_info(counts={"audio": 3}))
    info, table = open_table(tmp_path, "audio")
    expected = {0: 5, 1: 3}[info.generation]
    assert len(table) == len(table.ids) == expected
    np.testing.assert_array_equal(table.vectors, unit(expected).astype(np.float16))
    assert next_generation(tmp_path) == info.generation + 1
    assert len(files(tmp_path)) == 4


# Every table of this program holds one number, so that a mixture of two would show.
UPDATES = """
import itertools, sys
from pathlib import Path
import numpy as np
from clapkit.index.layout import TableInfo
from clapkit.index.writer import TableWriter, metadata_rows, next_generation, publish

folder = Path(sys.argv[1])
for _ in itertools.count():
    generation = next_generation(folder)
    count = 3 + generation % 5
    vectors = np.zeros((count, 64), np.float32)
    vectors[:, generation % 64] = 1
    name = [str(generation)] * count
    rows = metadata_rows(ids=name, paths=name, spans=[(None, None)] * count, captions=[name] * count,
                         labels=[name] * count, splits=name)
    with TableWriter(folder, "audio", width=64, dtype="float32", generation=generation) as writer:
        writer.append(vectors, rows)
        written = writer.finish()
    publish(folder, [written], TableInfo(width=64, dtype="float32", counts={"audio": count}, model_path="/m",
                                         model_fingerprint="f", data={"number": generation}))
    print(generation, flush=True)
"""


def check_one_table(folder):
    info, table = open_table(folder, "audio")
    number = info.data["number"]
    assert len(table) == 3 + number % 5
    assert set(table.ids) == {str(number)}
    assert (np.argmax(table.vectors, axis=1) == number % 64).all()
    return number


def test_a_killed_update_leaves_one_table_and_readers_always_see_one(tmp_path):
    random = np.random.default_rng(0)
    for _ in range(2):
        writer = subprocess.Popen([sys.executable, "-c", UPDATES, os.fspath(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert writer.stdout.readline(), "the program that updates the table did not start"
            end = time.monotonic() + random.uniform(0.05, 0.3)
            while time.monotonic() < end:
                check_one_table(tmp_path)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        number = check_one_table(tmp_path)
        assert next_generation(tmp_path) == number + 1
        assert len(files(tmp_path)) == 4
    assert number >= 1  # each of them published at least one


def test_save_tables_goes_through_generations(tmp_path):
    publish(tmp_path, [write(tmp_path, unit(5), make_rows(5))], make_info())
    table = open_table(tmp_path, "audio")[1]
    assert save_tables(tmp_path, [table], make_info()).id == read_info(tmp_path).id
    assert read_info(tmp_path).generation == 1
