from pathlib import Path

import pandas as pd
import pytest

from clapkit.data import file_table
from clapkit.data.audio import AudioInfo
from clapkit.data.file_table import FileRecord
from clapkit.data.inspection import Inspection
from clapkit.errors import ManifestError


def test_what_is_written_is_read(tmp_path: Path) -> None:
    info = AudioInfo(8000, 80, 1, "WAV", "PCM_16")
    found = {
        "a\n.wav": Inspection(info=info, content="c0ffee", num_bytes=44, landmarks=b"\x00\xff"),
        "b.wav": Inspection(info=info, num_bytes=50),
    }
    path = tmp_path / "files.parquet"
    file_table.write(path, found.items(), sizes={"b.wav": 60})
    assert file_table.read(path) == {
        "a\n.wav": FileRecord("a\n.wav", 44, "c0ffee", b"\x00\xff"),
        "b.wav": FileRecord("b.wav", 60, None, None),
    }
    assert file_table.read_sizes(path) == {"a\n.wav": 44, "b.wav": 60}
    assert pd.read_parquet(path)["format"].tolist() == ["WAV", "WAV"]


def test_the_same_findings_give_the_same_bytes(tmp_path: Path) -> None:
    found = {"a.wav": Inspection(info=AudioInfo(8000, 80, 1), num_bytes=44)}
    file_table.write(tmp_path / "1", found.items(), sizes={})
    file_table.write(tmp_path / "2", found.items(), sizes={})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"bad.parquet: cannot be read .*; run prepare again"):
        file_table.read(tmp_path / "bad.parquet")
    with pytest.raises(ManifestError, match="cannot be read"):
        file_table.read_sizes(tmp_path / "none.parquet")
    pd.DataFrame({"audio": ["a"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(ManifestError, match="no column 'num_bytes', expected what prepare writes"):
        file_table.read_sizes(tmp_path / "other.parquet")
