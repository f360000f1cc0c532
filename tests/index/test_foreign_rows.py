import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clapkit.errors import EmbeddingError
from clapkit.index.foreign_rows import expect_distinct, read_rows, unknown_rows
from clapkit.index.layout import SCHEMA

ROWS = [
    {"Filename": "a/1.wav", "caption": "a dog, barking", "labels": "dog; bark", "split": "test", "start_s": 0.5, "n": 1},
    {"Filename": "a/2.wav", "caption": None, "labels": None, "split": None, "start_s": None, "n": 2},
]


def write(path, rows=ROWS):
    match path.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case ".jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
        case ".csv" | ".tsv":
            import csv

            with path.open("w", newline="", encoding="utf-8-sig") as file:
                writer = csv.DictWriter(file, list(rows[0]), delimiter="," if path.suffix == ".csv" else "\t")
                writer.writeheader()
                writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".tsv", ".jsonl", ".CSV"])
def test_every_kind_of_file_says_the_same(tmp_path, suffix):
    path = write(tmp_path / f"m{suffix.lower()}").rename(tmp_path / f"m{suffix}")
    rows = read_rows(path, num_rows=2)
    assert rows.schema == SCHEMA
    assert rows.to_pylist() == [
        {
            "id": "a/1.wav",
            "path": "a/1.wav",
            "start_s": 0.5,
            "end_s": None,
            "caption": "a dog, barking",
            "labels": ["dog", "bark"],
            "split": "test",
            "captions": ["a dog, barking"],
            "content": None,
        },
        {**dict.fromkeys(SCHEMA.names), "id": "a/2.wav", "path": "a/2.wav"},
    ]


@pytest.mark.parametrize("name", ["image_path", "audio_path", "file", "filename", "fname", "PATH", "wav"])
def test_names_of_other_programs_for_the_path_are_known(tmp_path, name):
    rows = read_rows(write(tmp_path / "m.jsonl", [{name: "x.wav", "text": "rain"}]), num_rows=1).to_pylist()
    assert (rows[0]["id"], rows[0]["path"], rows[0]["caption"]) == ("x.wav", "x.wav", "rain")


def test_an_id_goes_before_a_path_and_the_best_name_before_others(tmp_path):
    row = {"fname": "worse.wav", "id": 7, "path": "best.wav", "text": "worse", "caption": "best"}
    found = read_rows(write(tmp_path / "m.jsonl", [row]), num_rows=1).to_pylist()[0]
    assert (found["id"], found["path"], found["caption"]) == ("7", "best.wav", "best")


def test_ids_of_a_csv_keep_their_zeros_and_captions_their_lines(tmp_path):
    (tmp_path / "m.csv").write_text('id,caption\n007,"two\nlines"\nNA,null\n')
    rows = read_rows(tmp_path / "m.csv", num_rows=2).to_pylist()
    assert [(row["id"], row["caption"]) for row in rows] == [("007", "two\nlines"), ("NA", "null")]


def test_lists_stay_lists(tmp_path):
    row = {"id": "a", "captions": ["one", "two"], "labels": ["a; b", "c"]}
    found = read_rows(write(tmp_path / "m.parquet", [row]), num_rows=1).to_pylist()[0]
    assert (found["caption"], found["captions"], found["labels"]) == ("one", ["one", "two"], ["a; b", "c"])


def test_without_id_and_path_the_numbers_of_the_rows_are_ids(tmp_path):
    path = write(tmp_path / "m.jsonl", [{"caption": "a"}, {"caption": "b"}])
    assert read_rows(path, num_rows=2, first_row=10).column("id").to_pylist() == ["10", "11"]
    assert unknown_rows(3).column("id").to_pylist() == ["0", "1", "2"]
    assert unknown_rows(3).schema == SCHEMA


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "id\na\n", "m.csv: 1 rows, expected 2, one per vector"),
        ("m.csv", "x,y\n1,2\n3,4\n", "m.csv: cannot be read .columns x, y, expected id, path or caption among them"),
        ("m.csv", "", "m.csv: cannot be read .columns none"),
        ("m.csv", "id,ID\n1,2\n3,4\n", "columns ID, id have one name"),
        ("m.csv", "id,n\n1,2\n3\n", "m.csv: cannot be read .*Expected 2 columns"),
        ("m.csv", b"id\n\xff\xfe\n1\n", "m.csv: cannot be read"),
        ("m.csv", "path,start_s\na,soon\nb,1\n", "column start_s: .*expected double"),
        ("m.csv", "id,n\n,2\na,3\n", "row 0 has no id; fill in id"),
        ("m.jsonl", '{"id": "a"}\n{', "m.jsonl: cannot be read .line 2"),
        ("m.jsonl", '{"id": "a"}\n[1]\n', "line 2: list, expected an object"),
        ("m.jsonl", '{"path": "a"}\n{"id": 3}\n', "row 0 has no id"),
        ("m.jsonl", '{"id": {"a": 1}}\n{"id": {"a": 2}}\n', "column id: .*expected string"),
        ("m.parquet", "no parquet", "m.parquet: cannot be read"),
        ("m.xlsx", "", "unknown kind '.xlsx', expected .parquet, .csv, .tsv, .jsonl"),
        ("m.csv", None, "m.csv: no such file, expected the metadata of the vectors"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(EmbeddingError, match=message) as caught:
        read_rows(path, num_rows=2)
    assert "\n" not in str(caught.value)


def rows_of(*keys):
    columns = {"id": [k[0] for k in keys], "start_s": [k[1] for k in keys], "caption": [k[2] for k in keys]}
    rest = {name: [None] * len(keys) for name in SCHEMA.names if name not in columns}
    return pa.table({**columns, **rest}).select(SCHEMA.names).cast(SCHEMA)


def test_ids_repeat_only_where_spans_differ_or_captions_of_a_text_table():
    expect_distinct(rows_of(("a", 0.0, None), ("a", 1.0, None)), name="m", by_caption=False)
    captions = rows_of(("a", None, "x"), ("a", None, "y"))
    expect_distinct(captions, name="m", by_caption=True)
    with pytest.raises(EmbeddingError, match="m: id 'a' repeats in rows 0 and 1, expected one row per id"):
        expect_distinct(captions, name="m", by_caption=False)
    with pytest.raises(EmbeddingError, match="id 'b' repeats in rows 1 and 2"):
        expect_distinct(rows_of(("a", None, "x"), ("b", 2.0, "x"), ("b", 2.0, "x")), name="m", by_caption=True)
