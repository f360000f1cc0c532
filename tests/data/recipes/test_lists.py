from pathlib import Path

import pytest

from clapkit.data.recipes._lists import (
    audio_root,
    find_list,
    find_lists,
    read_json_object,
    read_lines,
    repeated,
    require_columns,
    warn_of_torn_sources,
)
from clapkit.data.tables import Table
from clapkit.errors import ManifestError
from clapkit.types import Clip, RecipeRequest, SilentReporter


def request(source: Path, audio_dir: Path | None = None) -> RecipeRequest:
    return RecipeRequest(source, audio_dir, source, seed=0, workers=1, reporter=SilentReporter())


def test_the_first_of_the_names_is_found_and_a_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    for name in ("meta/list.csv", "list.csv"):
        (tmp_path / name).write_text("a\n1\n")
    assert find_list(tmp_path, ("meta/list.csv", "list.csv"), corpus="X") == tmp_path / "meta" / "list.csv"
    assert find_list(tmp_path, ("nope.csv", "list.csv"), corpus="X") == tmp_path / "list.csv"
    assert find_list(tmp_path / "list.csv", ("meta/list.csv",), corpus="X") == tmp_path / "list.csv"
    with pytest.raises(ManifestError, match=r"is no X, no gone\.csv found, expected it below the folder"):
        find_list(tmp_path, ("gone.csv",), corpus="X")


def test_audio_lies_where_the_user_says_or_with_the_source(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("a\n1\n")
    assert audio_root(request(tmp_path)) == tmp_path
    assert audio_root(request(table)) == tmp_path
    assert audio_root(request(table, tmp_path / "audio")) == tmp_path / "audio"


def test_a_table_without_a_column_is_refused() -> None:
    table = Table(["a", "b"], [])
    require_columns(Path("l.csv"), table, ("b", "a"))
    with pytest.raises(ManifestError, match=r"l\.csv: no column 'c', columns found: a, b; expected a, c"):
        require_columns(Path("l.csv"), table, ("a", "c"))


def test_only_the_second_row_of_an_item_is_repeated() -> None:
    first: dict[str, str] = {}
    assert repeated(first, "x", "line 2") is None
    assert repeated(first, "y", "line 3") is None
    assert repeated(first, "x", "line 4") == (
        "line 4 lists it again, first on line 2, expected one row for a clip; drop one of them"
    )


def test_recordings_in_several_folds_are_named() -> None:
    clips = [Clip(str(n), "a.wav", source=source, fold=fold) for n, (source, fold) in enumerate([("x", 1), ("x", 1), ("y", 2)])]
    assert warn_of_torn_sources(clips) == []
    torn = [*clips, Clip("3", "a.wav", source="x", fold=3), Clip("4", "a.wav", fold=1)]
    assert warn_of_torn_sources(torn) == ["Recordings that lie in several folds: 1, first: x; expected one fold each."]


def test_lines_keep_their_numbers_and_lose_blanks(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xef\xbb\xbf a.wav \r\n\r\nb.wav\r\n")
    assert read_lines(path) == [(1, "a.wav"), (3, "b.wav")]
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ManifestError, match=r"cannot be read \(it is no UTF-8 text\)"):
        read_lines(path)
    with pytest.raises(ManifestError, match=r"cannot be read \(No such file"):
        read_lines(tmp_path / "gone.txt")


def test_json_must_hold_one_object(tmp_path: Path) -> None:
    path = tmp_path / "info.json"
    path.write_text('{"a": 1}')
    assert read_json_object(path) == {"a": 1}
    path.write_text("[1]")
    with pytest.raises(ManifestError, match="holds a list, expected one object"):
        read_json_object(path)
    path.write_text("{")
    with pytest.raises(ManifestError, match="cannot be read as JSON"):
        read_json_object(path)


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("x")


def test_lists_are_found_in_the_folder_and_one_below_and_no_deeper(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv", "lists/b.csv", "deep/er/c.csv", ".hidden/d.csv")
    found = find_lists(tmp_path, {"a": ["a.csv"], "b": ["x.csv", "b.csv"], "c": ["c.csv"], "d": ["d.csv"]})
    assert found == {"a": tmp_path / "a.csv", "b": tmp_path / "lists/b.csv"}


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.csv")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(tmp_path / "real")
    assert find_lists(tmp_path / "root", {"a": ["a.csv"]}) == {}


def test_two_lists_of_one_thing_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "v1/a.csv", "v2/a.csv")
    with pytest.raises(ManifestError, match="holds two lists of test, v1/a.csv and v2/a.csv, expected one; name the file"):
        find_lists(tmp_path, {"test": ["a.csv"]})


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"gone: cannot be read \(No such file"):
        find_lists(tmp_path / "gone", {"test": ["a.csv"]})
