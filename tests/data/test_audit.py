import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data import audit
from clapkit.data.audio import AudioInfo, AudioStatistics
from clapkit.data.audit import Inspection
from clapkit.types import Caption, Clip

RATE = 8000


def write(path: Path, samples: np.ndarray) -> Path:
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return path


def inspection(content: str = "", rms: float = 0.1, clipped_share: float = 0.0) -> Inspection:
    return Inspection(AudioInfo(RATE, RATE, 1), AudioStatistics(1.0, rms, 0.0, clipped_share), content)


def test_a_good_file_is_described_and_hashed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.arange(100) / 200)
    found = audit.inspect(path)
    assert found.problem is None
    assert found.info == AudioInfo(RATE, 100, 1)
    assert found.content == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bad_file_gives_its_problem_instead_of_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    found = audit.inspect(tmp_path / "a.wav")
    assert found.info is None
    assert found.problem is not None
    assert "is empty (0 bytes)" in found.problem


def test_a_header_check_neither_decodes_nor_hashes(tmp_path: Path) -> None:
    found = audit.inspect(write(tmp_path / "a.wav", np.full(10, np.nan)), decode=False)
    assert found == Inspection(info=AudioInfo(RATE, 10, 1))
    assert not found.is_silent


@pytest.mark.parametrize(("level", "silent"), [(0.0, True), (5e-5, True), (2e-4, False)])
def test_sound_below_80_db_is_silent_whatever_its_offset(tmp_path: Path, level: float, silent: bool) -> None:
    square = level * np.where(np.arange(1000) % 2, 1.0, -1.0)  # its rms is its level
    assert audit.inspect(write(tmp_path / "a.wav", square)).is_silent is silent
    assert audit.inspect(write(tmp_path / "b.wav", square + 0.25)).is_silent is silent


def test_one_clipped_sample_in_a_thousand_is_allowed(tmp_path: Path) -> None:
    samples = np.tile(np.linspace(-0.5, 0.5, 1000), 2)
    samples[:2] = 1.0
    assert not audit.inspect(write(tmp_path / "a.wav", samples)).is_clipped
    samples[:3] = 1.0
    assert audit.inspect(write(tmp_path / "b.wav", samples)).is_clipped


def test_results_come_in_the_order_of_the_paths(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.wav", np.zeros(n)) for n in (30, 10, 20)]
    frames = [found.info.num_frames for found in audit.inspect_files(paths, decode=True, workers=2) if found.info]
    assert frames == [30, 10, 20]


def test_worker_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.wav", np.zeros(n + 1)) for n in range(70)]
    (tmp_path / "30.wav").write_bytes(b"")
    alone = list(audit.inspect_files(paths, decode=True, workers=1))
    assert list(audit.inspect_files(paths, decode=True, workers=2)) == alone


def test_a_summary_counts_clips_captions_labels_and_hours() -> None:
    clips = [
        Clip("a", "a.wav", 1800.0, 8000, 1, (Caption("x"), Caption("y", "de")), ("dog",), "train"),
        Clip("b", "b.wav", 3600.0, 8000, 2, (Caption("z"),), ("dog", "cat"), "test"),
        Clip("c", "c.wav", 1800.0, 44100, 1, split="train"),
    ]
    found = {"a.wav": inspection("1"), "b.wav": inspection("2", rms=0.0), "c.wav": inspection("3", clipped_share=0.5)}
    assert audit.summarise(clips, found) == {
        "num_clips": 3,
        "num_captions": 3,
        "hours": 2.0,
        "sample_rates": {"44100": 1, "8000": 2},
        "channels": {"1": 2, "2": 1},
        "languages": {"de": 1, "en": 2},
        "labels": {"cat": 1, "dog": 2},
        "splits": {"test": {"num_clips": 1, "hours": 1.0}, "train": {"num_clips": 2, "hours": 1.0}},
        "duplicates": {"num_groups": 0, "num_groups_across_splits": 0, "groups": []},
        "silent": {"num_clips": 1, "ids": ["b"]},
        "clipped": {"num_clips": 1, "ids": ["c"]},
    }


def test_duplicates_have_the_same_bytes_and_the_same_span() -> None:
    clips = [
        Clip("a", "a.wav", 1.0, split="train"),
        Clip("copy", "b.wav", 1.0, split="test"),
        Clip("first half", "c.wav", 0.5, split="train", end_s=0.5),
        Clip("second half", "c.wav", 0.5, split="train", start_s=0.5),
        Clip("again", "d.wav", 0.5, split="train", end_s=0.5),
    ]
    found = {"a.wav": inspection("1"), "b.wav": inspection("1"), "c.wav": inspection("2"), "d.wav": inspection("2")}
    assert audit.summarise(clips, found)["duplicates"] == {
        "num_groups": 2,
        "num_groups_across_splits": 1,
        "groups": [["a", "copy"], ["first half", "again"]],
    }


def test_what_was_not_decoded_is_not_known() -> None:
    report = audit.summarise([Clip("a", "a.wav", 1.0)], {"a.wav": Inspection(info=AudioInfo(RATE, RATE, 1))})
    assert [report[key] for key in ("duplicates", "silent", "clipped")] == [None, None, None]
