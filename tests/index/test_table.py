import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index.table import SCHEMA, EmbeddingTable, TableInfo, load_table, read_info, save_tables


def unit(rows, width, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_table(modality="audio", rows=5, width=8, dtype="float16"):
    return EmbeddingTable.build(
        modality,
        unit(rows, width),
        ids=[f"clip{i}" for i in range(rows)],
        paths=[f"/sounds/{i}.wav" for i in range(rows)],
        spans=[(0.0, float(i + 1)) for i in range(rows)],
        captions=[[] if i == 0 else [f"caption {i}", "second"] for i in range(rows)],
        labels=[["dog barking"]] * rows,
        splits=[None if i == 1 else "test" for i in range(rows)],
        dtype=dtype,
    )


def make_info(**changes):
    info = TableInfo(
        width=8,
        dtype="float16",
        counts={"audio": 5},
        model_path="/models/m",
        model_fingerprint="f" * 64,
        audio_policy={"window_s": 1.0},
        data={"name": "toy"},
    )
    return dataclasses.replace(info, **changes)


@pytest.fixture
def folder(tmp_path):
    save_tables(tmp_path, [make_table()], make_info())
    return tmp_path


def test_a_table_comes_back_as_it_was_saved(folder):
    table, original = load_table(folder, "audio", info=read_info(folder)), make_table()
    np.testing.assert_array_equal(table.vectors, original.vectors)
    assert table.vectors.dtype == np.float16
    assert table.ids == original.ids
    assert table.rows([3, 0, 3]) == original.rows([3, 0, 3])
    assert table.rows([3])[0] == {
        "id": "clip3",
        "path": "/sounds/3.wav",
        "start_s": 0.0,
        "end_s": 4.0,
        "caption": "caption 3",
        "labels": ["dog barking"],
        "split": "test",
        "captions": ["caption 3", "second"],
    }
    assert table.columns(["split", "caption"])["caption"][:2] == [None, "caption 1"]
    assert (len(table), table.width) == (5, 8)


def test_the_layout_is_that_of_clip_retrieval(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["audio_emb/audio_emb_0.npy", "metadata/metadata_0.parquet", "table.json"]
    columns = pq.read_schema(folder / "metadata/metadata_0.parquet").names
    assert columns[:7] == ["id", "path", "start_s", "end_s", "caption", "labels", "split"]


def test_both_modalities_lie_side_by_side(tmp_path):
    info = make_info(counts={"audio": 5, "text": 3})
    save_tables(tmp_path, [make_table(), make_table("text", rows=3)], info)
    found = read_info(tmp_path)
    assert found.modality == "both"
    assert len(load_table(tmp_path, "text", info=found)) == 3
    assert (tmp_path / "text_emb/text_emb_0.npy").is_file()
    assert (tmp_path / "text_metadata/metadata_0.parquet").is_file()


def test_table_json_says_what_made_the_vectors(folder):
    content = json.loads((folder / "table.json").read_text())
    assert content["modality"] == "audio"
    assert content["width"] == 8
    assert content["dtype"] == "float16"
    assert content["counts"] == {"audio": 5}
    assert content["model"]["fingerprint"] == "f" * 64
    assert content["audio_policy"] == {"window_s": 1.0}
    assert read_info(folder) == make_info()


def test_a_model_that_moved_with_its_runs_is_found(tmp_path):
    model = tmp_path / "old/train/model"
    model.mkdir(parents=True)
    save_tables(tmp_path / "old/embed", [make_table()], make_info(model_path=os.fspath(model)))
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_info(tmp_path / "new/embed").model_path == os.fspath(tmp_path / "new/train/model")


def test_no_temporary_files_are_left_and_saving_again_replaces(folder):
    save_tables(folder, [make_table(dtype="float32")], make_info(dtype="float32"))
    assert load_table(folder, "audio", info=read_info(folder)).vectors.dtype == np.float32
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]


def test_columns_of_another_length_are_refused():
    with pytest.raises(EmbeddingError, match="column id has 1 rows, expected 2, one per vector"):
        EmbeddingTable.build(
            "audio",
            unit(2, 3),
            ids=["a"],
            paths=["a"] * 2,
            spans=[(0, 1)] * 2,
            captions=[[]] * 2,
            labels=[[]] * 2,
            splits=[None] * 2,
        )


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, 3.0])
def test_vectors_that_are_not_of_unit_norm_are_refused(folder, value):
    path = folder / "audio_emb/audio_emb_0.npy"
    vectors = np.load(path)
    vectors[2] = value
    np.save(path, vectors)
    with pytest.raises(EmbeddingError, match=r"row 2 has norm .*, expected 1; embed again"):
        load_table(folder, "audio", info=read_info(folder))


def test_tables_that_do_not_fit_their_description_are_not_saved(tmp_path):
    with pytest.raises(EmbeddingError, match="do not fit the description"):
        save_tables(tmp_path, [make_table()], make_info(width=9))


def damage(folder, kind):
    vectors, metadata = folder / "audio_emb/audio_emb_0.npy", folder / "metadata/metadata_0.parquet"
    if kind == "no vectors":
        vectors.unlink()
    elif kind == "cut vectors":
        vectors.write_bytes(vectors.read_bytes()[:-7])
    elif kind == "empty vectors":
        vectors.write_bytes(b"")
    elif kind == "pickled vectors":
        np.save(vectors, np.array([{}], dtype=object), allow_pickle=True)
    elif kind == "narrow":
        np.save(vectors, unit(5, 4).astype(np.float16))
    elif kind == "wide type":
        np.save(vectors, unit(5, 8))
    elif kind == "row missing":
        np.save(vectors, unit(4, 8).astype(np.float16))
    elif kind == "no metadata":
        metadata.unlink()
    elif kind == "cut metadata":
        metadata.write_bytes(metadata.read_bytes()[:-9])
    elif kind == "short metadata":
        pq.write_table(pq.read_table(metadata).slice(0, 4), metadata)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no vectors", "audio_emb_0.npy: no such file"),
        ("cut vectors", "audio_emb_0.npy: cannot be read"),
        ("empty vectors", "audio_emb_0.npy: cannot be read"),
        ("pickled vectors", "audio_emb_0.npy: cannot be read"),
        ("narrow", r"float16 \[5, 4\], expected float16 \[5, 8\]"),
        ("wide type", r"float32 \[5, 8\], expected float16 \[5, 8\]"),
        ("row missing", r"\[4, 8\], expected float16 \[5, 8\]"),
        ("no metadata", "metadata_0.parquet: no such file"),
        ("cut metadata", "metadata_0.parquet: cannot be read as parquet"),
        ("short metadata", "4 rows, expected 5, one per vector"),
    ],
)
def test_damaged_tables_are_refused_in_one_line(folder, kind, message):
    damage(folder, kind)
    with pytest.raises(EmbeddingError, match=message) as caught:
        load_table(folder, "audio", info=read_info(folder))
    assert "\n" not in str(caught.value)


def test_metadata_without_a_column_are_refused(folder):
    path = folder / "metadata/metadata_0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["split"]), path)
    table = load_table(folder, "audio", info=read_info(folder))
    with pytest.raises(EmbeddingError, match="cannot be read as parquet"):
        table.columns(["split"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "table.json: no such file"),
        ("{", "cannot be read as JSON"),
        ("[]", "table format None"),
        ('{"clapkit_table": 99}', "table format 99, this clapkit reads 1"),
        ('{"clapkit_table": 1}', "damaged .KeyError"),
    ],
)
def test_a_damaged_description_is_refused(folder, text, message):
    path = folder / "table.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(EmbeddingError, match=message):
        read_info(folder)


def test_a_description_without_known_tables_is_refused(folder):
    path = folder / "table.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"counts": {"video": 3}}))
    with pytest.raises(EmbeddingError, match=r"counts name \['video'\]"):
        read_info(folder)


def test_a_modality_that_was_not_embedded_is_named(folder):
    with pytest.raises(EmbeddingError, match="holds audio only, no text table; embed with --modality both"):
        load_table(folder, "text", info=read_info(folder))


def test_the_schema_is_kept_where_every_value_is_missing(tmp_path):
    table = EmbeddingTable.build(
        "audio", unit(1, 8), ids=["a"], paths=["a"], spans=[(None, None)], captions=[[]], labels=[[]], splits=[None]
    )
    save_tables(tmp_path, [table], make_info(counts={"audio": 1}, dtype="float32"))
    stored = pq.read_schema(tmp_path / "metadata/metadata_0.parquet")
    assert [stored.field(name).type for name in SCHEMA.names] == [field.type for field in SCHEMA]
    assert stored.field("labels").type == pa.list_(pa.string())
