import numpy as np
import pytest
import soxr

from clapkit.data.resampling import BLOCK_S, frames_of_window, num_resampled, resample_window

RATES = [
    (44100, 32000),
    (48000, 16000),
    (16000, 48000),
    (22050, 32000),
    (8000, 44100),
    (22255, 16000),
    (44101, 32000),
    (16000, 16000),
]


def noise(num_frames: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, num_frames).astype(np.float32)


def window(clip: np.ndarray, start: int, end: int, *, file_rate: int, sample_rate: int) -> np.ndarray:
    """A window, made from no more frames than it needs."""
    rates = {"file_rate": file_rate, "sample_rate": sample_rate}
    first, last = frames_of_window(start, end, num_frames=len(clip), **rates)
    return resample_window(clip[first:last], start, end, first_frame=first, **rates)


@pytest.mark.parametrize(("file_rate", "sample_rate"), RATES)
def test_a_window_is_the_slice_of_the_whole_clip(file_rate: int, sample_rate: int) -> None:
    clip = noise(int(12.3 * file_rate))
    rates = {"file_rate": file_rate, "sample_rate": sample_rate}
    whole = window(clip, 0, num_resampled(len(clip), **rates), **rates)
    assert len(whole) == num_resampled(len(clip), **rates)
    draw = np.random.default_rng(1)
    edge = BLOCK_S * sample_rate
    for start in (0, edge - 1, edge, 2 * edge - 7, *draw.integers(0, len(whole) - 1, 4).tolist()):
        for length in (1, sample_rate // 3, 3 * sample_rate, 20 * sample_rate):
            part = window(clip, start, start + length, **rates)
            assert np.array_equal(part, whole[start : start + length])


@pytest.mark.parametrize(("file_rate", "sample_rate"), RATES)
def test_blocks_cannot_be_heard(file_rate: int, sample_rate: int) -> None:
    clip = noise(int(11.1 * file_rate))
    expected = soxr.resample(clip, file_rate, sample_rate, quality="HQ")
    found = window(clip, 0, len(expected), file_rate=file_rate, sample_rate=sample_rate)
    assert found.shape == expected.shape
    # Rounding of float32; the filter of rates without a common divisor is itself an approximation.
    assert np.abs(found - expected).max() < 2e-5


def test_a_clip_of_one_block_is_resampled_at_once() -> None:
    clip = noise(BLOCK_S * 44100)
    expected = soxr.resample(clip, 44100, 32000, quality="HQ")
    assert np.array_equal(window(clip, 0, len(expected), file_rate=44100, sample_rate=32000), expected)


@pytest.mark.parametrize(("file_rate", "sample_rate"), RATES)
def test_lengths_are_those_of_the_resampler(file_rate: int, sample_rate: int) -> None:
    for num_frames in np.random.default_rng(2).integers(1, file_rate, 20).tolist():
        expected = len(soxr.resample(noise(num_frames), file_rate, sample_rate, quality="HQ"))
        assert num_resampled(num_frames, file_rate=file_rate, sample_rate=sample_rate) == expected


def test_a_window_needs_little_more_than_itself() -> None:
    # 1 s from 61 s on lies in the block from 60 to 65 s; 441 frames are 320 samples, and the context of 512 samples at
    # 32 kHz is 705.6 frames, so two periods: 882 frames.
    rates = {"file_rate": 44100, "sample_rate": 32000}
    found = frames_of_window(61 * 32000, 62 * 32000, num_frames=100 * 44100, **rates)
    assert found == (60 * 44100 - 882, 65 * 44100 + 882)
    assert frames_of_window(61 * 32000, 62 * 32000, num_frames=61 * 44100 + 5, **rates)[1] == 61 * 44100 + 5


def test_a_window_behind_the_end_is_empty() -> None:
    assert len(window(noise(8000), 9000, 9500, file_rate=8000, sample_rate=8000)) == 0
    assert len(window(noise(8000), 40000, 41000, file_rate=8000, sample_rate=16000)) == 0
