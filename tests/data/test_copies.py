from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data.audio import AudioInfo
from clapkit.data.copies import CopyPolicy, CopyWriter, copy_name
from clapkit.errors import AudioError


def test_the_suffix_is_added_so_that_names_stay_apart() -> None:
    assert copy_name("dog/a.wav", "flac") == "dog/a.wav.flac"
    assert copy_name("dog/a.mp3", "flac") == "dog/a.mp3.flac"


@pytest.mark.parametrize("audio", ["/elsewhere/a.wav", "../a.wav", "x" * 251 + ".wav", "ä" * 121 + ".wav"])
def test_names_that_cannot_lie_below_the_folder_become_a_hash(audio: str) -> None:
    name = copy_name(audio, "wav")
    assert len(name) == 32 + len(".wav")
    assert "/" not in name
    assert copy_name(audio, "wav") == name != copy_name(audio + "2", "wav")


def write(path: Path, samples: np.ndarray, *, policy: CopyPolicy, rate: int = 8000, block: int = 1000) -> AudioInfo:
    writer = CopyWriter(path, rate, policy=policy)
    try:
        for start in range(0, len(samples), block):
            writer.write(samples[start : start + block])
        return writer.finish()
    finally:
        writer.close()


def test_floats_are_kept_as_they_are(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-2, 2, 2500).astype(np.float32)
    info = write(tmp_path / "x" / "a.wav", samples, policy=CopyPolicy("wav", None))
    found, rate = soundfile.read(tmp_path / "x" / "a.wav", dtype="float32")
    assert (info, rate) == (AudioInfo(8000, 2500, 1), 8000)
    np.testing.assert_array_equal(found, samples)


def test_flac_holds_16_bits_and_clips_beyond_full_scale(tmp_path: Path) -> None:
    samples = np.array([0.0, 0.25, -0.5, 1.5, -1.5], np.float32)
    write(tmp_path / "a.flac", samples, policy=CopyPolicy("flac", None))
    found, _ = soundfile.read(tmp_path / "a.flac", dtype="int16")
    assert found.tolist() == [0, 8192, -16384, 32767, -32768]
    assert soundfile.info(tmp_path / "a.flac").subtype == "PCM_16"


def test_resampling_does_not_depend_on_the_blocks(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 5000).astype(np.float32)
    for block in (317, 5000):
        write(tmp_path / f"{block}.wav", samples, policy=CopyPolicy("wav", 11025), block=block)
    first, second = (soundfile.read(tmp_path / f"{block}.wav", dtype="float32")[0] for block in (317, 5000))
    np.testing.assert_array_equal(first, second)


def test_what_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    writer = CopyWriter(tmp_path / "a.flac", 8000, policy=CopyPolicy("flac", 16000))
    writer.write(np.zeros(100, np.float32))
    writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_copy_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"the copy at 10 Hz is empty, expected at least 1 sample"):
        write(tmp_path / "a.wav", np.zeros(3, np.float32), policy=CopyPolicy("wav", 10), rate=48000)
