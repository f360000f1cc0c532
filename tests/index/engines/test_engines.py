"""Addresses, and what holds for every engine."""

import numpy as np
import pytest

from clapkit.errors import ConfigError, EmbeddingError, ShapeError
from clapkit.index import engines
from clapkit.index.engines._content import batches, describe, read_description
from clapkit.index.exact import ExactIndex
from clapkit.index.where import Where
from clapkit.types import SilentReporter

KINDS = ("lance", "milvus")


class Listener(SilentReporter):
    def __init__(self):
        self.said = []

    def say(self, message):
        self.said.append(message)


class Interrupter(SilentReporter):
    """Ends a push after its first batch."""

    def track(self, description, total, unit=""):
        class Tracking:
            def __enter__(self):
                return self

            def __exit__(self, *exc_info):
                return None

            def advance(self, amount=1, **fields):
                raise OSError("the disk is full")

        return Tracking()


def push(engine, table, info, **options):
    return engine.push(table, info, reporter=SilentReporter(), **options)


@pytest.mark.parametrize("name", ["exact", "ivf", "hnsw", "runs/embed", "C:/sounds", "/a/b", "", ":x", "a b:c"])
def test_names_and_paths_are_no_addresses(name):
    assert engines.parse(name) is None


def test_a_path_with_a_colon_is_no_address_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my:sounds").mkdir()
    assert engines.parse("my:sounds") is None


@pytest.mark.parametrize(
    ("address", "modality", "place", "name"),
    [
        ("lance:sounds", "audio", "sounds", "audio"),
        ("lance:sounds/", "text", "sounds", "text"),
        ("lance:a/b.lance", "audio", "a", "b"),
        ("lance:b.lance", "text", ".", "b_text"),
        ("s3://bucket/x.lance", "audio", "s3://bucket", "x"),
        ("gs://bucket/a/b/x.lance/", "text", "gs://bucket/a/b", "x_text"),
        ("az://box/x.lance", "audio", "az://box", "x"),
        ("lance:s3://bucket/x.lance", "audio", "s3://bucket", "x"),
    ],
)
def test_addresses_of_lance_name_a_place_and_a_table(address, modality, place, name):
    engine = engines.parse(address, modality=modality)
    assert (engine._database, engine._name, engine.modality) == (place, name, modality)


@pytest.mark.parametrize(
    ("address", "modality", "uri", "name"),
    [
        ("milvus:/x/sounds.db", "audio", "/x/sounds.db", "clapkit"),
        ("milvus:/x/sounds.db", "text", "/x/sounds.db", "clapkit_text"),
        ("milvus+http://host:19531/sounds", "audio", "http://host:19531", "sounds"),
        ("milvus+https://host/sounds", "text", "https://host:19530", "sounds_text"),
        ("milvus+http://[::1]:5/sounds", "audio", "http://[::1]:5", "sounds"),
    ],
)
def test_addresses_of_milvus_name_a_place_and_a_collection(address, modality, uri, name):
    engine = engines.parse(address, modality=modality)
    assert (engine._uri, engine._alias) == (uri, name)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("qdrant:sounds", "unknown scheme 'qdrant'; known: lance:DIR, s3://"),
        ("http://host/x", "unknown scheme 'http'; known: "),
        ("lance:", "expected a folder"),
        ("lance:a/b c.lance", "table name 'b c', expected up to 100 letters"),
        ("s3://bucket", "expected a table in a bucket"),
        ("s3://x.lance", "expected a table in a bucket"),
        ("s3://bucket/x", "expected a table in a bucket"),
        ("s3://key:hush@bucket/x.lance", "credentials or options"),
        ("milvus:sounds", "expected a file that ends in .db"),
        ("milvus+http://host:19530", "expected a host and a collection"),
        ("milvus+http://host:19530/a/b", "expected a host and a collection"),
        ("milvus+http:///sounds", "expected a host and a collection"),
        ("milvus+http://host:99999/sounds", "the port is no number"),
        ("milvus+http://root:hush@host/sounds", "credentials or options"),
        ("milvus+http://host/sounds?token=hush", "credentials or options"),
    ],
)
def test_other_addresses_are_refused_in_one_line_without_secrets(address, message):
    with pytest.raises(ConfigError, match=message) as caught:
        engines.parse(address)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)


def test_a_description_comes_back_as_it_was(table, described):
    made = table(3)
    info = read_description(describe(described(made), "audio", count=3), address="x:y")
    assert info.counts == {"audio": 3}
    assert (info.width, info.dtype, info.id) == (16, "float16", "t1")
    assert (info.model_path, info.model_fingerprint) == ("/models/m", "abcdef0123456789")
    assert info.audio_policy == {"window_s": None, "pool": "mean"}
    assert info.data == {"name": "things"}


@pytest.mark.parametrize("text", [None, "", "{}", "[1]", '{"clapkit_engine": 1}', "x"])
def test_what_is_no_description_is_refused(text):
    with pytest.raises(EmbeddingError, match="x:y: was not filled by clapkit"):
        read_description(text, address="x:y")


def test_a_description_of_another_version_is_refused():
    with pytest.raises(EmbeddingError, match="engine format 7, this clapkit reads 1"):
        read_description('{"clapkit_engine": 7}', address="x:y")


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_batches_are_the_table_in_order(table, size):
    made = table(7)
    parts = list(batches(made, size))
    assert [first for first, _, _ in parts] == list(range(0, 7, size))
    assert np.array_equal(np.concatenate([vectors for _, vectors, _ in parts]), made.vectors)
    assert [row for _, _, rows in parts for row in rows.to_pylist()] == made.rows(range(7))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_search_finds_what_the_exact_one_finds(kind, dtype, opened, table, described):
    made = table(150, dtype=dtype)
    engine = opened(kind)
    assert push(engine, made, described(made)) == engines.Pushed(150, unchanged=False)
    queries = table(70, seed=1, dtype="float32").vectors  # more than go in one message
    index = ExactIndex()
    index.add(made.vectors)
    scores, rows = index.search(queries, 10)
    answers = engine.search(queries, 10)
    assert [[row for _, row in hits] for hits in answers] == [made.rows(numbers) for numbers in rows]
    assert np.abs(np.array([[score for score, _ in hits] for hits in answers]) - scores).max() < 1e-3
    assert engine.count() == 150
    assert engine.info().counts == {"audio": 150}
    assert engine.info().audio_policy == {"window_s": None, "pool": "mean"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_keeps_to_the_filter_and_to_what_there_is(kind, opened, table, described):
    made = table(60)
    engine = opened(kind)
    push(engine, made, described(made))
    query = made.vectors[:1].astype(np.float32)
    assert len(engine.search(query, 100)[0]) == 60
    where = "'dog' in labels and not split == 'test' and start_s > 5"
    mask = Where(where).mask_table(made.arrow(Where(where).columns))
    expected = {row["id"] for row in made.rows(np.flatnonzero(mask))}
    assert len(expected) > 1
    assert {row["id"] for _, row in engine.search(query, 100, where=where)[0]} == expected
    assert engine.search(query, 5, where="id == 'nobody'") == [[]]
    assert engine.search(np.empty((0, 16), dtype=np.float32), 5) == []
    with pytest.raises(ShapeError, match=r"queries have the shape \[1, 4\], expected \[queries, 16\]"):
        engine.search(query[:, :4], 5)
    with pytest.raises(ShapeError, match="k = 0, expected at least 1"):
        engine.search(query, 0)
    with pytest.raises(ConfigError, match="no column 'nothing'"):
        engine.search(query, 5, where="nothing == 1")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_are_in_the_order_of_the_rows(kind, opened, table, described):
    one = table(1)
    made = type(one).build(
        "audio",
        np.repeat(one.vectors.astype(np.float32), 12, axis=0),
        ids=[f"c{i}" for i in range(12)],
        paths=["p"] * 12,
        spans=[(None, None)] * 12,
        captions=[[]] * 12,
        labels=[[]] * 12,
        splits=[None] * 12,
    )
    engine = opened(kind)
    push(engine, made, described(made))
    hits = engine.search(made.vectors[:1].astype(np.float32), 12)[0]
    assert [row["id"] for _, row in hits] == [f"c{i}" for i in range(12)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_table_is_not_sent_twice_and_another_takes_its_place(kind, opened, table, described):
    made, other = table(20), table(30, seed=2)
    engine = opened(kind)
    push(engine, made, described(made))
    listener = Listener()
    assert engine.push(made, described(made), reporter=listener) == engines.Pushed(20, unchanged=True)
    assert "holds this audio table already: 20 rows, nothing is sent" in listener.said[0]
    assert push(engine, other, described(other, table_id="t2")) == engines.Pushed(30, unchanged=False)
    for reader in (engine, opened(kind)):
        assert reader.count() == 30
        assert reader.info().id == "t2"
        assert reader.search(other.vectors[7:8].astype(np.float32), 1)[0][0][1]["path"] == "/x/2/7.wav"


@pytest.mark.parametrize("kind", KINDS)
def test_sounds_and_captions_lie_side_by_side(kind, opened, table, described):
    sounds, captions = table(20), table(12, seed=3, modality="text")
    push(opened(kind), sounds, described(sounds))
    push(opened(kind, modality="text"), captions, described(captions))
    assert opened(kind).count() == 20
    assert opened(kind, modality="text").count() == 12
    assert opened(kind, modality="text").info().counts == {"text": 12}


@pytest.mark.parametrize("kind", KINDS)
def test_tables_that_do_not_belong_there_are_refused(kind, opened, table, described):
    made = table(20)
    engine = opened(kind)
    push(engine, made, described(made))
    with pytest.raises(EmbeddingError, match=r"holds vectors of the model /models/m \(abcdef012345\), these are of .*\(fff\)"):
        push(engine, made, described(made, table_id="t2", fingerprint="fff"))
    with pytest.raises(ConfigError, match="is for audio, got the text table"):
        push(engine, table(5, modality="text"), described(made))
    with pytest.raises(EmbeddingError, match="has no rows, expected some"):
        push(engine, table(0), described(made, table_id="t3"))
    assert opened(kind).count() == 20


@pytest.mark.parametrize("kind", KINDS)
def test_a_push_that_breaks_off_leaves_the_old_table(kind, opened, table, described):
    made, other = table(20), table(30, seed=2)
    with pytest.raises((EmbeddingError, OSError), match="disk is full"):
        opened(kind).push(made, described(made), reporter=Interrupter())
    with pytest.raises(EmbeddingError, match="fill it with `clapkit embed --push"):
        opened(kind).count()
    push(opened(kind), made, described(made))
    with pytest.raises((EmbeddingError, OSError), match="disk is full"):
        opened(kind).push(other, described(other, table_id="t2"), reporter=Interrupter())
    assert opened(kind).count() == 20
    assert opened(kind).info().id == "t1"
    push(opened(kind), other, described(other, table_id="t2"))
    assert opened(kind).count() == 30


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_holds_nothing_says_how_it_is_filled(kind, opened, tmp_path):
    with pytest.raises(EmbeddingError, match="holds no (table|collection) .*fill it with `clapkit embed --push ") as caught:
        opened(kind).info()
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []  # and leaves nothing behind


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_written_to_the_standard_streams(kind, opened, table, described, capfd):
    made = table(20)
    engine = opened(kind)
    push(engine, made, described(made))
    engine.search(made.vectors[:2].astype(np.float32), 3)
    with pytest.raises(EmbeddingError):
        push(engine, made, described(made, table_id="t2", fingerprint="fff"))
    engine.close()
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""
