import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index import table as table_module
from clapkit.index.table import SCHEMA, EmbeddingTable, TableInfo, load_table, open_table, read_info, save_tables


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
        "content": None,
    }
    assert table.columns(["split", "caption"])["caption"][:2] == [None, "caption 1"]
    assert (len(table), table.width) == (5, 8)


def test_the_layout_is_that_of_clip_retrieval(folder):
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["audio_emb/audio_emb_0.npy", "metadata/metadata_0.parquet", "statistics/audio_0.npz", "table.json"]
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
    files = {"audio": ("audio_emb/audio_emb_0.npy", "metadata/metadata_0.parquet")}
    found = read_info(folder)
    assert found == make_info(files=files, id=found.id, directory=folder)


def test_a_model_that_moved_with_its_runs_is_found(tmp_path):
    model = tmp_path / "old/train/model"
    model.mkdir(parents=True)
    save_tables(tmp_path / "old/embed", [make_table()], make_info(model_path=os.fspath(model)))
    (tmp_path / "old").rename(tmp_path / "new")
    assert read_info(tmp_path / "new/embed").model_path == os.fspath(tmp_path / "new/train/model")


def test_no_temporary_files_are_left_and_saving_again_replaces(folder):
    save_tables(folder, [make_table(dtype="float32")], make_info(dtype="float32"))
    assert load_table(folder, "audio", info=read_info(folder)).vectors.dtype == np.float32
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert names == ["audio_emb/audio_emb_1.npy", "metadata/metadata_1.parquet", "statistics/audio_1.npz", "table.json"]
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
def test_vectors_that_are_not_of_unit_norm_are_refused(value):
    vectors = unit(5, 8)
    vectors[2] = value
    with pytest.raises(EmbeddingError, match=r"audio table: row 2 \('c'\) has norm .*, expected 1; embed again"):
        EmbeddingTable.build(
            "audio",
            vectors,
            ids=list("abcde"),
            paths=["a"] * 5,
            spans=[(0, 1)] * 5,
            captions=[[]] * 5,
            labels=[[]] * 5,
            splits=[None] * 5,
        )


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
        ("cut vectors", r"audio_emb_0.npy: cannot be read \(cut short: 201 bytes, expected 208"),  # 128 + 5 x 8 x 2
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


def big_table(rows=20000):
    """More rows than a row group has."""
    return EmbeddingTable.build(
        "audio",
        np.tile(unit(1, 8), (rows, 1)),
        ids=[f"clip{i}" for i in range(rows)],
        paths=["a.wav"] * rows,
        spans=[(float(i), None) for i in range(rows)],
        captions=[[]] * rows,
        labels=[[]] * rows,
        splits=[None] * rows,
        contents=[f"{i:032x}" for i in range(rows)],
    )


@pytest.fixture(scope="module")
def big_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    save_tables(folder, [big_table()], make_info(counts={"audio": 20000}, dtype="float32"))
    return folder


@pytest.mark.parametrize("wanted", [[], [0], [19999], [8191, 8192], [16384, 5, 16384, 19999, 0, 8200]])
def test_rows_come_in_the_order_asked_for_from_any_row_group(big_folder, wanted):
    table = open_table(big_folder, "audio")[1]
    found = table.rows(wanted)
    assert [row["id"] for row in found] == [f"clip{i}" for i in wanted]
    assert [row["content"] for row in found] == [f"{i:032x}" for i in wanted]
    assert [row["start_s"] for row in found] == wanted


def test_only_the_row_groups_of_the_rows_are_read(big_folder):
    table = open_table(big_folder, "audio")[1]
    file = table._metadata._file
    read = []

    class Spy:
        schema_arrow = file.schema_arrow

        def read_row_groups(self, groups, columns):
            read.append((groups, columns))
            return file.read_row_groups(groups, columns=columns)

    table._metadata._file = Spy()
    table.rows([19000, 3, 18000])
    table.columns(["split"])
    assert read == [([0, 2], SCHEMA.names), ([0, 1, 2], ["split"])]  # row groups of 8192 rows


@pytest.mark.parametrize("row", [-1, 5])
def test_a_row_that_is_not_there_is_refused(folder, row):
    for table in (open_table(folder, "audio")[1], make_table()):
        with pytest.raises(EmbeddingError, match=f"audio table: no row {row}, expected 0 to 4"):
            table.rows([0, row])


def test_blocks_are_the_table_in_its_order(big_folder):
    for table in (open_table(big_folder, "audio")[1], big_table()):
        blocks = list(table.blocks())
        assert [len(vectors) for vectors, _ in blocks] == [8192, 8192, 3616]
        assert pa.concat_tables([rows for _, rows in blocks]).column("id").to_pylist() == table.ids


def test_a_table_in_memory_has_no_file(folder):
    assert make_table().metadata_path is None
    assert open_table(folder, "audio")[1].metadata_path == folder / "metadata/metadata_0.parquet"


def as_format_1(folder):
    """What clapkit wrote before it knew of generations."""
    path = folder / "metadata/metadata_0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["content"]), path)
    (folder / "statistics/audio_0.npz").unlink()
    content = json.loads((folder / "table.json").read_text()) | {"clapkit_table": 1}
    for name in ("files", "generation", "id"):
        del content[name]
    (folder / "table.json").write_text(json.dumps(content))


def test_a_table_of_format_1_is_read_and_has_no_content_hashes(folder):
    as_format_1(folder)
    info, table = open_table(folder, "audio")
    assert table.rows([4, 1]) == make_table().rows([4, 1])
    assert table.columns(["content", "id"]) == {"content": [None] * 5, "id": make_table().ids}
    assert info.generation == 0


def test_a_table_of_format_1_can_be_replaced(folder):
    as_format_1(folder)
    save_tables(folder, [open_table(folder, "audio")[1]], make_info())
    assert open_table(folder, "audio")[0].generation == 1
    assert open_table(folder, "audio")[1].rows([2]) == make_table().rows([2])


def test_an_open_table_outlives_an_update(folder):
    table = open_table(folder, "audio")[1]
    save_tables(folder, [make_table(rows=2)], make_info(counts={"audio": 2}))
    assert table.rows([4]) == make_table().rows([4])
    np.testing.assert_array_equal(table.vectors, make_table().vectors)
    assert len(open_table(folder, "audio")[1]) == 2


def test_a_table_that_is_updated_while_it_is_opened_is_opened_again(folder, monkeypatch):
    original, calls = table_module.load_table, []

    def slow(*args, **kwargs):
        calls.append(1)
        if len(calls) <= 3:
            save_tables(folder, [make_table(rows=2)], make_info(counts={"audio": 2}))
        return original(*args, **kwargs)

    monkeypatch.setattr(table_module, "load_table", slow)
    info, table = open_table(folder, "audio")
    assert (info.generation, len(table), len(calls)) == (3, 2, 4)


def test_a_table_that_never_holds_still_is_given_up(folder, monkeypatch):
    def vanished(*args, **kwargs):
        save_tables(folder, [make_table()], make_info())
        raise EmbeddingError("no such file")

    monkeypatch.setattr(table_module, "load_table", vanished)
    with pytest.raises(EmbeddingError, match="was updated 20 times while it was opened"):
        open_table(folder, "audio")


def test_a_file_that_is_missing_is_named_at_once(folder):
    (folder / "metadata/metadata_0.parquet").unlink()
    with pytest.raises(EmbeddingError, match="metadata_0.parquet: no such file; embed again"):
        open_table(folder, "audio")


def test_opening_and_reading_hits_loads_no_pandas(folder):
    as_format_1(folder)
    code = (
        "import sys; from pathlib import Path; from clapkit.index.table import open_table;"
        "from clapkit.index.statistics import load_statistics;"
        "info, table = open_table(Path(sys.argv[1]), 'audio'); table.rows([3, 0]); table.columns(['content', 'labels']);"
        "load_statistics(Path(sys.argv[1]), 'audio', info);"
        "print(sorted({'pandas', 'torch', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, os.fspath(folder)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
