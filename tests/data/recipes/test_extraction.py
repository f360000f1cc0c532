import io
from pathlib import Path

import pytest

from clapkit.data.recipes._extraction import Extraction, ExtractionError


def test_chosen_paths_are_unique_and_the_same_in_every_run(tmp_path: Path) -> None:
    def choose() -> list[str]:
        extraction = Extraction(tmp_path)
        return [extraction.choose("s/0", name, ".wav") for name in ("a", "A", "a", "x/../y", "..")]

    paths = choose()
    assert paths == choose()
    assert paths[0] == "s/0/a.wav"
    assert len({path.lower() for path in paths}) == 5
    assert not any(".." in path for path in paths)


def test_a_stream_that_ends_early_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExtractionError, match="2 bytes found, 3 expected"):
        Extraction(tmp_path).write("a.wav", io.BytesIO(b"12"), 3)
    assert not list(tmp_path.iterdir())


def test_a_path_is_written_once_and_only_equal_content_may_share_it(tmp_path: Path) -> None:
    extraction = Extraction(tmp_path)
    extraction.write_bytes("x/a.wav", b"123")
    extraction.write_bytes("x/a.wav", b"123")
    with pytest.raises(ExtractionError, match=r"another audio file is already called x/a.wav"):
        extraction.write_bytes("x/a.wav", b"321")
    assert (tmp_path / "x" / "a.wav").read_bytes() == b"123"


def test_a_name_cannot_be_file_and_folder(tmp_path: Path) -> None:
    extraction = Extraction(tmp_path)
    extraction.write_bytes("a.wav", b"1")
    with pytest.raises(ExtractionError, match="both a file and a folder"):
        extraction.write_bytes("a.wav/b.wav", b"2")
    extraction.write_bytes("c/d.wav", b"3")
    with pytest.raises(ExtractionError, match="both a file and a folder"):
        extraction.write_bytes("c", b"4")


def test_files_are_moved_and_dropped(tmp_path: Path) -> None:
    extraction = Extraction(tmp_path)
    extraction.write_bytes("a.wav", b"1")
    extraction.move("a.wav", "b/c.wav")
    assert [path.name for path in tmp_path.rglob("*.wav")] == ["c.wav"]
    extraction.drop("b/c.wav")
    extraction.write_bytes("b/c.wav", b"2")
    assert (tmp_path / "b" / "c.wav").read_bytes() == b"2"
