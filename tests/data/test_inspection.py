import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import xxhash

from clapkit.data.audio import AudioInfo, load
from clapkit.data.copies import CopyPolicy
from clapkit.data.inspection import Inspection, Job, inspect, inspect_files

RATE = 8000


def write(path: Path, samples: np.ndarray) -> Job:
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return Job(str(path))


def test_a_good_file_is_described_and_hashed(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    found = inspect(write(path, np.arange(100) / 200))
    assert found.problem is None
    assert found.info == AudioInfo(RATE, 100, 1)
    assert found.num_bytes == path.stat().st_size
    assert found.content == xxhash.xxh3_128_hexdigest(path.read_bytes())


def test_a_bad_file_gives_its_problem_instead_of_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    found = inspect(Job(str(tmp_path / "a.wav")))
    assert found.info is None
    assert found.problem is not None
    assert "is empty (0 bytes)" in found.problem
    assert found.check == "empty"


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    found = inspect(Job(str(tmp_path / "a.wav")))
    assert found.problem is not None
    assert "is no regular file" in found.problem


def test_a_header_check_neither_decodes_nor_hashes(tmp_path: Path) -> None:
    found = inspect(write(tmp_path / "a.wav", np.full(10, np.nan)), decode=False)
    assert found == Inspection(info=AudioInfo(RATE, 10, 1), num_bytes=(tmp_path / "a.wav").stat().st_size)
    assert not found.is_silent


@pytest.mark.parametrize(("level", "silent"), [(0.0, True), (5e-5, True), (2e-4, False)])
def test_sound_below_80_db_is_silent_whatever_its_offset(tmp_path: Path, level: float, silent: bool) -> None:
    square = level * np.where(np.arange(1000) % 2, 1.0, -1.0)  # its rms is its level
    assert inspect(write(tmp_path / "a.wav", square)).is_silent is silent
    assert inspect(write(tmp_path / "b.wav", square + 0.25)).is_silent is silent


def test_one_clipped_sample_in_a_thousand_is_allowed(tmp_path: Path) -> None:
    samples = np.tile(np.linspace(-0.5, 0.5, 1000), 2)
    samples[:2] = 1.0
    assert not inspect(write(tmp_path / "a.wav", samples)).is_clipped
    samples[:3] = 1.0
    assert inspect(write(tmp_path / "b.wav", samples)).is_clipped


def test_results_come_in_the_order_of_the_jobs(tmp_path: Path) -> None:
    jobs = [write(tmp_path / f"{n}.wav", np.zeros(n)) for n in (30, 10, 20)]
    frames = [found.info.num_frames for found in inspect_files(jobs, decode=True, workers=2) if found.info]
    assert frames == [30, 10, 20]


def test_worker_processes_find_the_same_in_the_same_order(tmp_path: Path) -> None:
    jobs = [write(tmp_path / f"{n}.wav", np.zeros(n + 1)) for n in range(70)]
    (tmp_path / "30.wav").write_bytes(b"")
    alone = list(inspect_files(jobs, decode=True, workers=1))
    assert list(inspect_files(jobs, decode=True, workers=2)) == alone


def test_a_copy_sounds_like_what_training_would_have_decoded(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.wav", generator.uniform(-0.5, 0.5, (RATE, 2)), RATE, subtype="PCM_16")
    job = Job(str(tmp_path / "a.wav"), str(tmp_path / "copies" / "a.wav.wav"))
    found = inspect(job, copies=CopyPolicy("wav", 16000))
    copied, rate = soundfile.read(job.copy, dtype="float32")
    expected = load(tmp_path / "a.wav", sample_rate=16000)
    assert (rate, copied.ndim, found.copy) == (16000, 1, AudioInfo(16000, len(copied), 1))
    assert abs(len(copied) - len(expected)) <= 1
    length = min(len(copied), len(expected))
    np.testing.assert_allclose(copied[:length], expected[:length], atol=2e-6)
