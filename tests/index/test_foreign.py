import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index.foreign import read_foreign
from clapkit.index.layout import SCHEMA, TableInfo
from clapkit.index.table import EmbeddingTable, save_tables


def unit(rows, width=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return path


def save_metadata(path, names, column="image_path"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({column: names, "caption": [f"caption of {name}" for name in names]}), path)


# Vectors ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_vectors_of_any_float_format_are_normalised(tmp_path, dtype, order):
    vectors = (unit(20) * np.linspace(0.5, 30, 20)[:, None]).astype(dtype)
    table = read_foreign(save(tmp_path / "v.npy", np.asarray(vectors, order=order)), None)
    exact = vectors.astype(np.float64)
    np.testing.assert_allclose(table.vectors, exact / np.linalg.norm(exact, axis=1, keepdims=True), atol=1e-7)
    assert table.vectors.dtype == np.float32
    assert table.vectors.flags.c_contiguous


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_unit_vectors_are_mapped_as_they_are(tmp_path, dtype):
    vectors = unit(200, 64).astype(dtype)
    table = read_foreign(save(tmp_path / "v.npy", vectors), None)
    assert isinstance(table.vectors, np.memmap)
    assert table.vectors.dtype == dtype
    np.testing.assert_array_equal(table.vectors, vectors)


def test_vectors_that_are_nearly_unit_are_normalised(tmp_path):
    vectors = unit(20) * np.float32(1.0001)
    table = read_foreign(save(tmp_path / "v.npy", vectors), None)
    np.testing.assert_allclose(np.linalg.norm(table.vectors, axis=1), 1, atol=1e-6)


def test_blocks_give_what_the_whole_gives(tmp_path, monkeypatch):
    path = save(tmp_path / "v.npy", unit(20) * 3)
    whole = read_foreign(path, None).vectors
    monkeypatch.setattr("clapkit.index.foreign._BLOCK_ROWS", 7)
    np.testing.assert_array_equal(read_foreign(path, None).vectors, whole)


@pytest.mark.parametrize(
    ("value", "message"),
    [(0.0, "vector of row 3 is zero"), (np.nan, "row 3 is not finite"), (np.inf, "row 3 is not finite")],
)
def test_a_vector_without_a_direction_is_named(tmp_path, value, message):
    vectors = unit(5)
    vectors[3] = value
    with pytest.raises(EmbeddingError, match=message):
        read_foreign(save(tmp_path / "v.npy", vectors), None)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 4), dtype=int), r"int64 \[3, 4\], expected floats of shape \[rows, width\]"),
        (np.ones(4), r"float64 \[4\], expected floats"),
        (np.ones((0, 4)), r"float64 \[0, 4\], expected floats"),
        (np.array([{}], dtype=object), "pickled Python objects, expected numbers"),
    ],
)
def test_arrays_that_are_no_vectors_are_refused(tmp_path, array, message):
    with pytest.raises(EmbeddingError, match=message):
        read_foreign(save(tmp_path / "v.npy", array), None)


def test_a_file_that_was_cut_short_or_is_missing_is_named(tmp_path):
    path = save(tmp_path / "v.npy", unit(5))
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(EmbeddingError, match=r"v.npy: cannot be read \(cut short: 284 bytes, expected 288"):  # 128 + 5 x 8 x 4
        read_foreign(path, None)
    with pytest.raises(EmbeddingError, match="w.npy: no such file"):
        read_foreign(tmp_path / "w.npy", None)


# Metadata ---------------------------------------------------------------------------------------------------------------


def test_without_metadata_the_ids_are_row_numbers(tmp_path):
    table = read_foreign(save(tmp_path / "v.npy", unit(3)), None, modality="text")
    assert table.modality == "text"
    assert table.rows([2]) == [{**dict.fromkeys(SCHEMA.names), "id": "2"}]


def test_metadata_are_named_or_lie_beside_the_vectors(tmp_path):
    path = save(tmp_path / "v.npy", unit(2))
    (tmp_path / "v.jsonl").write_text("\n".join(json.dumps({"id": name}) for name in "ab"))
    (tmp_path / "other.csv").write_text("filename\nc.wav\nd.wav\n")
    assert read_foreign(path, None).ids == ["a", "b"]
    assert read_foreign(path, tmp_path / "other.csv").ids == ["c.wav", "d.wav"]


def test_metadata_of_another_number_of_rows_are_refused(tmp_path):
    path = save(tmp_path / "v.npy", unit(2))
    (tmp_path / "v.csv").write_text("id\na\n")
    with pytest.raises(EmbeddingError, match="v.csv: 1 rows, expected 2, one per vector"):
        read_foreign(path, None)


def test_ids_that_repeat_are_refused(tmp_path):
    path = save(tmp_path / "v.npy", unit(3))
    (tmp_path / "v.csv").write_text("id\na\nb\na\n")
    with pytest.raises(EmbeddingError, match="v.npy: id 'a' repeats in rows 0 and 2"):
        read_foreign(path, None)


@pytest.mark.parametrize("place", ["metadata/metadata_0.parquet", "audio_emb/metadata_0.parquet"])
def test_a_part_of_clip_retrieval_finds_its_metadata(tmp_path, place):
    path = save(tmp_path / "audio_emb/audio_emb_0.npy", unit(2))
    save_metadata(tmp_path / place, ["a.wav", "b.wav"])
    assert read_foreign(path, None).columns(["path"])["path"] == ["a.wav", "b.wav"]


def test_captions_have_metadata_of_their_own(tmp_path):
    path = save(tmp_path / "text_emb/text_emb_0.npy", unit(2))
    save_metadata(tmp_path / "metadata/metadata_0.parquet", ["x", "y"], column="id")
    assert read_foreign(path, None, modality="text").ids == ["x", "y"]
    save_metadata(tmp_path / "text_metadata/metadata_0.parquet", ["a", "b"], column="id")
    assert read_foreign(path, None, modality="text").ids == ["a", "b"]


# Folders ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["img", "audio"])
def test_the_parts_of_a_folder_are_joined_in_the_order_of_their_numbers(tmp_path, kind):
    vectors = unit(22)
    for part in range(11):
        rows = slice(2 * part, 2 * part + 2)
        save(tmp_path / f"{kind}_emb/{kind}_emb_{part:02d}.npy", vectors[rows].astype(np.float16))
        save_metadata(tmp_path / f"metadata/metadata_{part:02d}.parquet", [f"{i}.jpg" for i in range(22)[rows]])
    table = read_foreign(tmp_path, None)
    assert table.vectors.dtype == np.float16
    np.testing.assert_array_equal(table.vectors, vectors.astype(np.float16))
    assert table.ids == [f"{i}.jpg" for i in range(22)]
    assert table.rows([21])[0]["caption"] == "caption of 21.jpg"


def test_one_file_may_describe_all_parts(tmp_path):
    for part in range(2):
        save(tmp_path / f"emb_{part}.npy", unit(2, seed=part))
    (tmp_path / "all.csv").write_text("id\na\nb\nc\nd\n")
    assert read_foreign(tmp_path, tmp_path / "all.csv").ids == ["a", "b", "c", "d"]
    assert read_foreign(tmp_path, None).ids == ["0", "1", "2", "3"]


def test_parts_without_an_id_are_numbered_through(tmp_path):
    for part in range(2):
        save(tmp_path / f"text_emb/text_emb_{part}.npy", unit(2, seed=part))
        save_metadata(tmp_path / f"metadata/metadata_{part}.parquet", [f"{part}{i}" for i in range(2)], column="text_id")
    assert read_foreign(tmp_path, None, modality="text").ids == ["0", "1", "2", "3"]


def test_what_clapkit_wrote_is_read_as_foreign(tmp_path):
    table = EmbeddingTable.build(
        "audio",
        unit(3),
        ids=list("abc"),
        paths=["a", "a", "b"],
        spans=[(0, 1), (1, 2), (0, 1)],
        captions=[["x", "y"], [], ["z"]],
        labels=[["dog"], [], []],
        splits=["test"] * 3,
        contents=["0" * 32] * 3,
    )
    info = TableInfo(width=8, dtype="float32", counts={"audio": 3}, model_path="/m", model_fingerprint="f")
    save_tables(tmp_path, [table], info)
    found = read_foreign(tmp_path, None)
    assert found.rows(range(3)) == table.rows(range(3))
    np.testing.assert_array_equal(found.vectors, table.vectors)


def test_folders_that_cannot_be_put_together_are_refused(tmp_path):
    with pytest.raises(EmbeddingError, match=r"no audio_emb or img_emb with numbered parts such as audio_emb_0.npy"):
        read_foreign(tmp_path, None)
    save(tmp_path / "img_emb/img_emb_0.npy", unit(2))
    save(tmp_path / "img_emb/img_emb_1.npy", unit(2, 9))
    with pytest.raises(EmbeddingError, match=r"parts are of widths \[8, 9\], expected one"):
        read_foreign(tmp_path, None)
    save(tmp_path / "img_emb/img_emb_1.npy", unit(2))
    save_metadata(tmp_path / "metadata/metadata_0.parquet", ["a", "b"])
    with pytest.raises(EmbeddingError, match="img_emb_1.npy: has no metadata beside it, as other parts"):
        read_foreign(tmp_path, None)
