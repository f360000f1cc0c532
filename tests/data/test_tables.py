import json
from pathlib import Path

import pytest

from clapkit.data.tables import read_table
from clapkit.errors import ConfigError, ManifestError


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_cells_of_a_csv_stay_text(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "id,audio,n\n1234567e890,a.wav,\n007,nan,NA\n"))
    assert table.columns == ["id", "audio", "n"]
    assert [row.cells for row in table.rows] == [
        {"id": "1234567e890", "audio": "a.wav", "n": ""},
        {"id": "007", "audio": "nan", "n": "NA"},
    ]


def test_quoted_commas_quotes_and_line_breaks_are_one_cell_and_lines_are_counted(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", 'a,b\n"x, ""y""\nz",1\n\nu,2\n'))
    assert [(row.place, row.cells["a"]) for row in table.rows] == [("line 2", 'x, "y"\nz'), ("line 5", "u")]


def test_a_row_with_too_many_or_too_few_cells_is_a_problem_of_that_row(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", "a,b\n1,2,3\n4\n5,6\n"))
    assert [row.problem is None for row in table.rows] == [False, False, True]
    assert table.rows[0].problem == "3 cells found, 2 expected from the header; quote cells that hold the delimiter"


def test_tabs_and_other_delimiters_are_read(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "t.tsv", "a\tb\n1\t2,3\n")).rows[0].cells == {"a": "1", "b": "2,3"}
    assert read_table(write(tmp_path / "t.csv", "a;b\n1;2,3\n"), delimiter=";").rows[0].cells == {"a": "1", "b": "2,3"}


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "t.csv", b"\xef\xbb\xbfaudio\na.wav\n")).columns == ["audio"]


def test_json_lines_keep_their_values_and_all_columns_in_order(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.jsonl", '{"a": [1]}\n\n{"b": "x\u2028y", "a": null}\n'))
    assert table.columns == ["a", "b"]
    assert [(row.place, row.cells) for row in table.rows] == [
        ("line 1", {"a": [1]}),
        ("line 3", {"b": "x\u2028y", "a": None}),
    ]


def test_the_header_of_a_manifest_is_no_row(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "m.jsonl", '{"clapkit_manifest": 1, "name": "x", "root": "."}\n{"audio": "a"}\n'))
    assert table.columns == ["audio"]


def test_json_is_a_list_or_has_it_under_data(tmp_path: Path) -> None:
    rows = [{"id": "1"}, {"id": "2"}]
    plain = read_table(write(tmp_path / "a.json", json.dumps(rows)))
    wavcaps = read_table(write(tmp_path / "b.json", json.dumps({"num_captions_per_audio": 1, "data": rows})))
    assert [row.cells for row in plain.rows] == [row.cells for row in wavcaps.rows] == rows
    assert (plain.is_wavcaps, wavcaps.is_wavcaps) == (False, True)
    assert wavcaps.rows[1].place == "item 2"


def test_parquet_is_read_row_by_row(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    content = pyarrow.table({"audio": ["a.wav", "b.wav"], "captions": [["x", "y"], []]})
    parquet.write_table(content, tmp_path / "t.parquet")
    table = read_table(tmp_path / "t.parquet")
    assert table.rows[0].cells == {"audio": "a.wav", "captions": ["x", "y"]}
    assert table.rows[1].place == "row 2"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "t.csv: is empty"),
        ("t.csv", b"audio,caption\n", "holds a header and no row"),
        ("t.csv", b"audio,audio\na,b\n", "line 1: column 'audio' comes twice"),
        ("t.csv", b'audio\n"open\n', r"line 2: not CSV \(unexpected end of data\)"),
        ("t.csv", b"audio,caption\na.wav,caf\xe9\n", r"line 2: byte 23 \(0xe9\) is not utf-8, .*-O encoding=latin-1"),
        ("t.csv", "audio\na".encode("utf-16"), "line 1: is UTF-16, .*-O encoding=utf-16"),
        ("t.jsonl", b'{"a": 1}\n{"a"\n', "line 2: not JSON"),
        ("t.jsonl", b"[1]\n", "line 1: holds a list, expected an object"),
        ("t.json", b'{"a": 1}\n{"a": 2}\n', "not JSON .*name it .jsonl"),
        ("t.json", b'{"rows": []}', "no rows found, expected a list of objects"),
        ("t.json", b"[]", "holds no row"),
        ("t.parquet", b"PAR1 no PAR1", "cannot be read as Parquet"),
        ("t.xlsx", b"x", "is no table, expected one of .csv"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_table(write(tmp_path / name, content))


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", b"caption\ncaf\xe9\n")
    assert read_table(path, encoding="latin-1").rows[0].cells == {"caption": "café"}


def test_an_encoding_or_delimiter_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a\n1\n")
    with pytest.raises(ConfigError, match="encoding=klingon: no such encoding"):
        read_table(path, encoding="klingon")
    with pytest.raises(ConfigError, match="delimiter=::: expected one character"):
        read_table(path, delimiter="::")


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"cannot be read \(No such file"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(ManifestError, match=r"cannot be read as Parquet \("):
        read_table(tmp_path / "t.parquet")


def test_a_csv_without_header_takes_the_given_names(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "t.csv", 'x1,"a, b"\nx2,c,d\n'), columns=("id", "label"))
    assert table.columns == ["id", "label"]
    assert table.rows[0].cells == {"id": "x1", "label": "a, b"}
    assert (table.rows[0].place, table.rows[0].problem) == ("line 1", None)
    assert "3 cells found, 2 expected" in (table.rows[1].problem or "")


def test_comment_lines_are_no_rows_and_keep_their_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", '# made, by "hand\n#\n# id, label\nx1, "a, b"\n')
    (row,) = read_table(path, columns=("id", "label"), comment="#").rows
    assert "3 cells found, 2 expected" in (row.problem or "")  # the blank keeps the quote from opening a cell
    table = read_table(path, columns=("id", "label"), comment="#", skip_initial_space=True)
    assert [(row.place, row.cells) for row in table.rows] == [("line 4", {"id": "x1", "label": "a, b"})]
    with pytest.raises(ManifestError, match="holds no row, expected at least one"):
        read_table(write(tmp_path / "c.csv", "# nothing\n"), columns=("id", "label"), comment="#")
