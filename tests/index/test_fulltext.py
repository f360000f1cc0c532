import itertools
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clapkit import registry
from clapkit.errors import ConfigError, EmbeddingError
from clapkit.index import fulltext
from clapkit.index.fulltext import FullText, check_available, query_words, split_names
from clapkit.index.layout import SCHEMA, TableInfo
from clapkit.index.table import EmbeddingTable


def table_of(rows):
    """A table of (path, labels, captions)."""
    vectors = np.eye(1, 4, dtype=np.float32).repeat(len(rows), axis=0)
    return EmbeddingTable.build(
        "audio",
        vectors,
        ids=[path.rpartition("/")[2] for path, _, _ in rows],
        paths=[path for path, _, _ in rows],
        spans=[(float(row), row + 1.0) for row in range(len(rows))],
        captions=[captions for _, _, captions in rows],
        labels=[labels for _, labels, _ in rows],
        splits=[None] * len(rows),
    )


def info_of(table_id="one", generation=0):
    return TableInfo(
        width=4,
        dtype="float32",
        counts={"audio": 1},
        model_path="/m",
        model_fingerprint="f",
        id=table_id,
        generation=generation,
    )


ROWS = [
    ("lib/DogBark_01.wav", [], []),
    ("lib/rain.wav", ["rain"], ["Heavy rain falls on a roof"]),
    ("lib/x7.wav", ["wind"], ["A dog barks, and it rains"]),
    ("lib/Türklingel.wav", ["doorbell"], []),
    ("lib/x8.wav", [], ["Traffic"]),
]


@pytest.fixture
def opened(tmp_path):
    index = FullText.open(tmp_path / "table", table_of(ROWS), info=info_of(), cache=tmp_path / "cache")
    yield index
    index.close()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("dog", [0, 2]),
        ("DOGBARK", [0]),
        ("dogs barking", [0, 2]),  # English endings
        ("01", [0]),
        ("turklingel", [3]),
        ("TÜRKLINGEL", [3]),
        ("Tu\u0308rklingel", [3]),  # two signs for one letter
        ("x7", [2, 4]),  # x7, and then x8 for its x
        ("traffic zebra", [4]),
        ("zebra", []),
        ("", []),
        ("?!", []),
    ],
)
def test_rows_with_any_word_of_the_query_are_found(opened, query, expected):
    rows = opened.search(query, 10)
    assert rows.dtype == np.int64
    assert rows.tolist() == expected


def test_a_label_counts_more_than_a_caption_and_a_word_in_both_most(opened):
    assert opened.search("rain", 10).tolist() == [1, 2]
    table = table_of([("a", [], ["siren"]), ("b", ["siren"], []), ("c", [], ["x"]), ("d", [], ["y"]), ("e", [], ["z"])])
    path = opened.path.with_name("labels.sqlite")
    fulltext.write_index(path, table, table_id="labels")
    labels = FullText(path)
    assert labels.search("siren", 10).tolist() == [1, 0]
    labels.close()


@pytest.mark.parametrize(
    "query",
    [
        '"',
        'dog" OR labels:*',
        "NEAR(dog, 1)",
        "NOT dog",
        "dog AND",
        "dog*",
        "^dog",
        "{labels}: dog",
        "-dog",
        "dog\0",
        "' OR 1=1 --",
    ],
)
def test_the_syntax_of_the_engine_means_nothing_in_a_query(opened, query):
    expected = opened.search(" ".join(word for word in ("dog", "labels", "near") if word in query.lower()), 10)
    assert set(opened.search(query, 10)) == set(expected)


def test_a_query_of_a_thousand_words_is_answered(opened):
    words = ["".join(letters) for letters in itertools.product("bdfghjklmn", repeat=3)]
    assert opened.search(" ".join([*words, "traffic"]), 10).tolist() == [4]
    path = opened.path.with_name("many.sqlite")
    fulltext.write_index(path, table_of([(word, [], []) for word in words]), table_id="many")
    many = FullText(path)
    assert len(many.search(" ".join(words), 2000)) == 1000
    many.close()


def test_a_word_that_most_rows_have_does_not_decide(opened):
    assert opened.search("wav lib traffic", 10).tolist() == [4]
    assert set(opened.search("lib", 10)) == {0, 1, 2, 3, 4}  # unless there is nothing else


def test_rows_that_fit_equally_well_share_a_rank(tmp_path):
    rows = [
        ("a", ["bell"], []),
        ("b", [], ["x"]),
        ("c", ["bell"], []),
        ("d", ["bell", "bell"], []),
        ("e", [], ["y"]),
        ("f", [], []),
    ]
    index = FullText.open(tmp_path, table_of([*rows, ("g", [], []), ("h", [], [])]), info=info_of(), cache=tmp_path)
    ranking = index.ranking("bell", 10)
    assert ranking.rows.tolist() == [3, 0, 2]
    assert ranking.ranks.tolist() == [1, 2, 2]
    index.close()


def test_all_windows_of_a_clip_are_found_as_one_document(tmp_path):
    rows = (
        [("a.wav", ["bell"], [])] * 3
        + [("b.wav", ["wind"], [])] * 2
        + [("c.wav", ["bell"], ["far off"])] * 2
        + [("d", [], [])] * 9
    )
    index = FullText.open(tmp_path, table_of(rows), info=info_of(), cache=tmp_path)
    ranking = index.ranking("bell", 2)
    assert ranking.rows.tolist() == [0, 1, 2, 5, 6]  # the shorter text first
    assert ranking.ranks.tolist() == [1, 1, 1, 2, 2]
    assert index.search("bell", 1).tolist() == [0, 1, 2]
    index.close()


def test_a_file_is_indexed_like_a_table_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(fulltext, "_BATCH_ROWS", 2)
    rows = [row for row in ROWS for _ in range(3)]  # runs that cross batches
    table = table_of(rows)
    pq.write_table(table.arrow(SCHEMA.names), tmp_path / "m.parquet", row_group_size=4)
    indexes = [
        FullText.open(tmp_path / name, one, info=info_of(), cache=tmp_path)
        for name, one in [("memory", table), ("file", EmbeddingTable("audio", table.vectors, metadata=tmp_path / "m.parquet"))]
    ]
    for query in ("dog", "rain", "wav"):
        memory, file = (index.ranking(query, 10) for index in indexes)
        np.testing.assert_array_equal(memory.rows, file.rows)
        np.testing.assert_array_equal(memory.ranks, file.ranks)
    for index in indexes:
        index.close()


def test_unknown_words_are_named(opened):
    assert opened.unknown_words("zebra dogs Quagga?") == ["zebra", "quagga"]
    assert opened.unknown_words("dog barking") == []


def test_names_are_cut_where_case_and_kind_of_sign_change():
    assert split_names("DogBark01") == "DogBark01 Dog Bark 01"
    assert split_names("a/SFXDoor-slam.wav") == "a/SFXDoor-slam.wav SFX Door"
    assert split_names("dog bark") == "dog bark"
    assert query_words("DogBark, dog!") == ["dogbark", "dog", "bark"]


class Counter:
    """Counts how often an index is written."""

    def __init__(self, monkeypatch):
        self.paths: list[Path] = []
        write = fulltext.write_index

        def counting(path, table, *, table_id):
            self.paths.append(path)
            write(path, table, table_id=table_id)

        monkeypatch.setattr(fulltext, "write_index", counting)


def open_and_close(folder, table, info, cache):
    index = FullText.open(folder, table, info=info, cache=cache)
    index.close()
    return index.path


def test_an_index_is_built_once_and_again_for_another_table(tmp_path, monkeypatch):
    counter, table, cache = Counter(monkeypatch), table_of(ROWS), tmp_path / "cache"
    first = open_and_close(tmp_path, table, info_of("one"), cache)
    assert first == tmp_path / "index" / "fulltext_audio_0.sqlite"
    assert open_and_close(tmp_path, table, info_of("one"), cache) == first
    assert len(counter.paths) == 1
    open_and_close(tmp_path, table, info_of("two"), cache)  # same generation, other content: embedded from scratch
    assert len(counter.paths) == 2
    open_and_close(tmp_path, table, info_of("three", generation=1), cache)
    assert [path.name for path in (tmp_path / "index").iterdir()] == ["fulltext_audio_1.sqlite"]
    assert not cache.exists()


@pytest.mark.parametrize("damage", [b"", b"SQLite format 3\0 and then nothing", b"x" * 9000])
def test_a_damaged_index_is_built_again(tmp_path, damage):
    path = open_and_close(tmp_path, table_of(ROWS), info_of(), tmp_path)
    path.write_bytes(damage)
    with pytest.raises(EmbeddingError, match="cannot be read as a full-text index") as caught:
        FullText(path)
    assert "\n" not in str(caught.value)
    index = FullText.open(tmp_path, table_of(ROWS), info=info_of(), cache=tmp_path)
    assert index.search("traffic", 5).tolist() == [4]
    index.close()


def test_an_index_that_cannot_lie_beside_the_table_lies_in_the_cache(tmp_path):
    (tmp_path / "table").write_text("a file where a folder is expected")
    path = open_and_close(tmp_path / "table", table_of(ROWS), info_of(), tmp_path / "cache")
    assert path == tmp_path / "cache" / "fulltext" / "one_audio.sqlite"
    assert open_and_close(None, table_of(ROWS), info_of(), tmp_path / "cache") == path


def test_an_index_that_can_be_written_nowhere_is_one_line(tmp_path):
    (tmp_path / "table").write_text("a file")
    with pytest.raises(EmbeddingError, match="full-text index cannot be written .*, nor in .*; set CLAPKIT_CACHE") as caught:
        FullText.open(tmp_path / "table", table_of(ROWS), info=info_of(), cache=tmp_path / "table")
    assert "\n" not in str(caught.value)


def test_a_full_disk_leaves_no_half_written_index(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(fulltext, "_fill", fail)
    with pytest.raises(EmbeddingError, match="database or disk is full"):
        FullText.open(tmp_path / "t", table_of(ROWS), info=info_of(), cache=tmp_path / "c")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_python_without_full_text_search_is_named(monkeypatch):
    class Connection:
        def execute(self, _):
            raise sqlite3.OperationalError("no such module: fts5")

        def close(self):
            pass

    check_available()
    monkeypatch.setattr(sqlite3, "connect", lambda _: Connection())
    with pytest.raises(ConfigError, match=r"Python 3\..* has SQLite 3\..* without full-text search \(no such module: fts5\)"):
        check_available()


def test_a_full_text_index_is_no_index_back_end():
    assert "fulltext" not in registry.names("index")
