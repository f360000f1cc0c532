import dataclasses

import numpy as np
import pytest

from clapkit.errors import EmbeddingError, ShapeError
from clapkit.index.layout import TableInfo, write_info
from clapkit.index.statistics import ScoreStatistics, calibrated, load_statistics, statistics_of
from clapkit.index.table import EmbeddingTable, save_tables


def unit(rows, width, seed=0, *, shift=0.0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width)) + shift
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_table(vectors):
    count = len(vectors)
    return EmbeddingTable.build(
        "audio",
        vectors,
        ids=[str(i) for i in range(count)],
        paths=["a.wav"] * count,
        spans=[(None, None)] * count,
        captions=[[]] * count,
        labels=[[]] * count,
        splits=[None] * count,
    )


def info_of(table):
    return TableInfo(width=table.width, dtype="float32", counts={"audio": len(table)}, model_path="/m", model_fingerprint="f")


def test_by_hand():
    # Vectors (1, 0) and (0, 1); the query (1, 0) scores 1 and 0: mean 0.5, deviations 0.5 and -0.5, std 0.5.
    # The query (0.6, 0.8) scores 0.6 and 0.8: mean 0.7, std 0.1.
    statistics = ScoreStatistics.empty(2)
    statistics.add(np.eye(2, dtype=np.float32))
    mean, std = statistics.of(np.array([[1.0, 0.0], [0.6, 0.8]]))
    np.testing.assert_allclose(mean, [0.5, 0.7], atol=1e-7)
    np.testing.assert_allclose(std, [0.5, 0.1], atol=1e-7)
    # C = [[0.25, -0.25], [-0.25, 0.25]]
    np.testing.assert_allclose(statistics.covariance, [[0.25, -0.25], [-0.25, 0.25]], atol=1e-7)


@pytest.mark.parametrize("shift", [0.0, 5.0])  # 5: a narrow cone, where all cosines are near 1
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_closed_form_is_that_of_all_cosines(shift, dtype):
    vectors, queries = unit(3000, 24, shift=shift).astype(dtype), unit(7, 24, seed=1, shift=shift)
    statistics = ScoreStatistics.empty(24)
    statistics.add(vectors)
    cosines = queries.astype(np.float64) @ vectors.astype(np.float64).T
    mean, std = statistics.of(queries)
    np.testing.assert_allclose(mean, cosines.mean(axis=1), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(std, cosines.std(axis=1), rtol=1e-5)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    vectors = unit(1000, 16, shift=1.0)
    whole, pieces = ScoreStatistics.empty(16), ScoreStatistics.empty(16)
    whole.add(vectors)
    monkeypatch.setattr("clapkit.index.statistics._BLOCK_ROWS", 70)
    for start in (0, 1, 300):
        pieces.add(vectors[start : {0: 1, 1: 300, 300: 1000}[start]])
    assert pieces.count == whole.count == 1000
    np.testing.assert_allclose(pieces.mean, whole.mean, rtol=1e-9)
    np.testing.assert_allclose(pieces.covariance, whole.covariance, atol=1e-7)


def test_adding_nothing_changes_nothing():
    statistics = ScoreStatistics.empty(3)
    statistics.add(np.empty((0, 3), np.float32))
    assert statistics.count == 0
    assert not statistics.covariance.any()


@pytest.mark.parametrize("rows", [1, 50])
def test_where_all_items_score_the_same_there_is_no_calibrated_score(rows):
    table = make_table(np.repeat(unit(1, 8), rows, axis=0))
    mean, std = statistics_of(table).of(unit(2, 8, seed=3))
    np.testing.assert_allclose(std, 0, atol=1e-7)
    scores = np.ones((2, 1), np.float32)
    assert calibrated(scores, mean, std) == [[None], [None]]


def test_a_calibrated_score_counts_standard_deviations():
    # (0.7 - 0.1) / 0.2 = 3 and (0.1 - 0.1) / 0.2 = 0; (0.5 - 0.5) / 0.1 = 0 and (0.4 - 0.5) / 0.1 = -1.
    found = calibrated(np.array([[0.7, 0.1], [0.5, 0.4]]), np.array([0.1, 0.5]), np.array([0.2, 0.1]))
    np.testing.assert_allclose(found, [[3, 0], [0, -1]], atol=1e-12)


def test_shapes_that_do_not_fit_and_empty_statistics_are_refused():
    statistics = ScoreStatistics.empty(3)
    with pytest.raises(ShapeError, match=r"vectors: shape \[2, 4\], expected \[items, 3\]"):
        statistics.add(np.ones((2, 4)))
    with pytest.raises(ShapeError, match=r"queries: shape \[3\], expected \[queries, 3\]"):
        statistics.of(np.ones(3))
    with pytest.raises(EmbeddingError, match="of no items"):
        statistics.of(np.ones((1, 3)))


def test_statistics_come_back_as_they_were_saved(tmp_path):
    statistics = ScoreStatistics.empty(16)
    statistics.add(unit(500, 16))
    statistics.save(tmp_path / "s" / "audio_0.npz")
    loaded = ScoreStatistics.load(tmp_path / "s" / "audio_0.npz")
    queries = unit(4, 16, seed=2)
    assert loaded.count == 500
    np.testing.assert_allclose(loaded.of(queries), statistics.of(queries), rtol=1e-6)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["audio_0.npz"]


def test_a_saved_table_has_the_statistics_of_its_vectors(tmp_path):
    table = make_table(unit(100, 8))
    info = save_tables(tmp_path, [table], info_of(table))
    stored = load_statistics(tmp_path, "audio", info)
    np.testing.assert_allclose(stored.covariance, statistics_of(table).covariance, atol=1e-8)
    assert (tmp_path / "statistics/audio_0.npz").is_file()


def test_a_table_without_statistics_has_none(tmp_path):
    table = make_table(unit(5, 8))
    info = save_tables(tmp_path, [table], info_of(table))
    (tmp_path / "statistics/audio_0.npz").unlink()
    assert load_statistics(tmp_path, "audio", info) is None


def test_statistics_that_an_update_deleted_are_not_taken_for_none(tmp_path):
    table = make_table(unit(5, 8))
    old = save_tables(tmp_path, [table], info_of(table))
    save_tables(tmp_path, [table], info_of(table))
    with pytest.raises(EmbeddingError, match="was updated while it was read; ask again"):
        load_statistics(tmp_path, "audio", old)


@pytest.mark.parametrize("data", [b"", b"PK", "cut", "empty", "shape"])
def test_damaged_statistics_are_named_in_one_line(tmp_path, data):
    path = tmp_path / "statistics/audio_0.npz"
    ScoreStatistics(2, np.zeros(4), np.eye(4)).save(path)
    if data == "empty":
        np.savez(path, count=1)
    elif data == "shape":
        np.savez(path, count=1, mean=np.zeros(3), covariance=np.eye(4))
    else:
        path.write_bytes(path.read_bytes()[:-30] if data == "cut" else data)
    with pytest.raises(EmbeddingError, match="audio_0.npz: .*; embed again") as caught:
        ScoreStatistics.load(path)
    assert "\n" not in str(caught.value)


def test_missing_statistics_are_named(tmp_path):
    with pytest.raises(EmbeddingError, match="x.npz: no such file; embed again"):
        ScoreStatistics.load(tmp_path / "x.npz")


def test_statistics_of_another_table_are_refused(tmp_path):
    info = dataclasses.replace(info_of(make_table(unit(5, 8))), files={"audio": ("v", "m")}, id="x")
    write_info(tmp_path, info)
    ScoreStatistics(4, np.zeros(8), np.eye(8)).save(tmp_path / "statistics/audio_0.npz")
    with pytest.raises(EmbeddingError, match=r"statistics of \[4, 8\] vectors, expected \[5, 8\]; embed again"):
        load_statistics(tmp_path, "audio", info)
