import numpy as np
import pytest

from clapkit.data.sample_statistics import AudioStatistics, RunningStatistics


def statistics(samples: np.ndarray, block: int | None = None) -> AudioStatistics:
    running = RunningStatistics(samples.shape[1])
    for start in range(0, len(samples), block or len(samples)):
        running.add(samples[start : start + (block or len(samples))])
    return running.result()


def oracle(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and levels of the channels, two passes in float64."""
    return samples.mean(axis=0, dtype=np.float64), samples.std(axis=0, dtype=np.float64)


def noise(num_frames: int, num_channels: int, level: float = 0.1) -> np.ndarray:
    return (np.random.default_rng(0).standard_normal((num_frames, num_channels)) * level).astype(np.float32)


@pytest.mark.parametrize("num_channels", [1, 2, 3, 6, 1024])
@pytest.mark.parametrize("num_frames", [1, 5, 300, 9000])
def test_channels_agree_with_two_passes_in_double_precision(num_channels: int, num_frames: int) -> None:
    samples = noise(num_frames, num_channels) if num_channels < 1024 else noise(num_frames // 30 + 1, num_channels)
    means, levels = oracle(samples)
    for block in (None, 77):
        found = statistics(samples, block)
        np.testing.assert_allclose(found.channel_dc_offsets, means, atol=1e-7)
        np.testing.assert_allclose(found.channel_rms, levels, rtol=1e-6, atol=1e-9)
        assert found.peak == np.abs(samples).max()


@pytest.mark.parametrize(("offset", "level"), [(0.25, 5e-5), (0.9, 1e-4), (-0.5, 0.01), (0.0, 0.3), (0.02, 0.1)])
def test_an_offset_takes_no_digits_from_the_level(offset: float, level: float) -> None:
    square = offset + level * np.where(np.arange(400_000) % 2, 1.0, -1.0)
    samples = square.astype(np.float32)[:, None]
    means, levels = oracle(samples)
    found = statistics(samples, 1 << 17)
    assert found.rms == pytest.approx(levels[0], rel=1e-6)
    assert found.dc_offset == pytest.approx(means[0], abs=1e-6 * max(level, abs(offset)))


def test_each_channel_is_measured_around_its_own_offset() -> None:
    samples = np.tile(np.array([[0.25, -0.25]], dtype=np.float32), (1000, 1))
    samples[::2, 1] += 0.5  # the second channel is 0.25, -0.25, ...: mean 0, level 0.25
    found = statistics(samples)
    assert found.channel_dc_offsets == (0.25, 0.0)
    assert found.channel_rms == (0.0, 0.25)
    assert found.rms == pytest.approx((0.25**2 / 2) ** 0.5)
    assert not found.is_constant


def test_a_file_is_constant_when_no_channel_moves() -> None:
    samples = np.tile(np.array([[0.3, -0.1]], dtype=np.float32), (5000, 1))
    found = statistics(samples, 999)
    assert found.is_constant
    assert found.channel_rms == (0.0, 0.0)
    assert found.dc_offset == pytest.approx(0.1)
    samples[3001, 1] = 0.0
    assert not statistics(samples, 999).is_constant


def test_blocks_that_are_constant_each_make_no_constant_file() -> None:
    samples = np.repeat(np.array([0.1, 0.2], dtype=np.float32), 100)[:, None]
    assert not statistics(samples, 100).is_constant


def test_samples_at_either_end_of_the_scale_are_clipped() -> None:
    samples = np.array([[1.0, 0.0], [-1.0, 0.5], [32767 / 32768, -0.999], [2.0, -3.0]], dtype=np.float32)
    found = statistics(samples)
    assert found.clipped_share == 5 / 8
    assert found.peak == 3.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_block_that_is_not_finite_shows_in_its_peak_and_is_not_counted(value: float) -> None:
    running = RunningStatistics(1)
    running.add(np.full((10, 1), 0.5, dtype=np.float32))
    assert not np.isfinite(running.add(np.full((10, 1), value, dtype=np.float32)))
    assert running.result().dc_offset == 0.5


def test_huge_values_do_not_overflow() -> None:
    samples = np.array([[1e30], [-1e30]] * 5000, dtype=np.float32)
    assert statistics(samples).rms == pytest.approx(1e30, rel=1e-6)
