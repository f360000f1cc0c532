import numpy as np
import pytest

from clapkit.data.recipes import _synth_signal as signal

RATE = 16000


def rng():
    return np.random.default_rng(0)


def test_buzz_is_the_sum_of_its_harmonics():
    frequency_hz = np.linspace(900.0, 1000.0, 400)
    phase = np.cumsum(2 * np.pi * frequency_hz / RATE)
    # 45 % of 16 kHz is 7.2 kHz: seven harmonics of at most 1000 Hz; the closed form is twice their sum over 2 sqrt(7).
    naive = sum(np.cos(k * phase) for k in range(1, 8)) * 2 / (2 * np.sqrt(7))
    assert np.allclose(signal.buzz(frequency_hz, RATE), naive, atol=1e-9)


def test_buzz_is_finite_where_a_pulse_falls_on_a_sample():
    # 16000 / 100 = 160 samples a period: every 160th sample is the top of a pulse, where the closed form is 0 / 0.
    assert np.isfinite(signal.buzz(np.full(1600, 100.0), RATE)).all()


def test_glide_passes_through_its_values():
    curve = signal.glide([1.0, 3.0, 2.0], 101)
    assert curve[[0, 25, 50, 100]] == pytest.approx([1.0, 2.0, 3.0, 2.0])


def test_shape_with_gain_one_changes_nothing():
    waveform = rng().standard_normal(1234)
    assert np.allclose(signal.shape(waveform, np.ones_like, RATE), waveform, atol=1e-5)


def test_shape_removes_what_the_gain_forbids():
    low, high = (np.sin(2 * np.pi * hz * np.arange(RATE) / RATE) for hz in (500, 5000))
    kept = signal.shape(low + high, lambda f: (f < 2000).astype(float), RATE)
    assert np.abs(kept - low)[2000:-2000].max() < 0.01


def test_shaped_noise_with_gain_one_has_unit_variance():
    # The variance of 160000 unit normal samples deviates by sqrt(2 / 160000) = 0.0035 (one standard deviation).
    assert signal.shaped_noise(rng(), 160000, np.ones_like, RATE).var() == pytest.approx(1.0, abs=0.02)


def test_convolve_agrees_with_the_direct_sum():
    waveform, kernel = rng().standard_normal(300), rng().standard_normal(40)
    assert np.allclose(signal.convolve(waveform, kernel), np.convolve(waveform, kernel)[:300], atol=1e-4)


def test_band_halves_the_power_at_both_corners():
    gain = signal.band(10.0, 4000.0, order=2)(np.array([10.0, 200.0, 4000.0]))
    assert gain == pytest.approx([np.sqrt(0.5), 1.0, np.sqrt(0.5)], abs=1e-3)


def test_partials_above_the_limit_are_left_out():
    ones = np.ones(2)
    both = signal.partials(np.array([1000.0, 7300.0]), ones, ones, 500, RATE)
    alone = signal.partials(np.array([1000.0]), ones[:1], ones[:1], 500, RATE)
    assert np.array_equal(both, alone)


def test_fade_edges_brings_both_ends_to_zero_and_spares_the_middle():
    faded = signal.fade_edges(np.ones(1000), RATE)
    assert faded[0] == faded[-1] == 0
    assert (faded[100:500] == 1).all()


def test_onsets_without_jitter_are_regular():
    assert signal.onsets(rng(), 1.0, 0.3, jitter=0.0, first_s=0.1) == pytest.approx([0.1, 0.4, 0.7])


def test_scatter_places_one_kernel_at_every_position():
    kernel = np.array([1.0, -0.5])
    scattered = signal.scatter(np.array([2, 5]), np.array([1.0, 2.0]), kernel, 8)
    assert scattered == pytest.approx([0, 0, 1, -0.5, 0, 2, -1, 0], abs=1e-6)


def test_place_cuts_what_hangs_over_the_end():
    placed = signal.place([np.ones(4), np.ones(4)], np.array([0.0, 6 / RATE]), 8, RATE)
    assert placed == pytest.approx([1, 1, 1, 1, 0, 0, 1, 1])


def test_to_level_sets_the_root_mean_square_of_a_steady_tone():
    tone = np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    levelled = signal.to_level(tone, RATE, level_rms=0.1, level_peak=0.5)
    # The peak is 0.1 * sqrt(2) = 0.14, below the knee at 0.25: only scaled.
    assert np.sqrt(np.mean(levelled**2)) == pytest.approx(0.1, rel=0.01)


def test_to_level_never_exceeds_the_peak():
    click = np.zeros(RATE)
    click[::4000] = 1.0
    assert np.abs(signal.to_level(click, RATE, level_rms=0.2, level_peak=0.8)).max() <= 0.8


def test_far_away_swallows_highs():
    waveform = signal.noise(rng(), RATE)
    far = signal.far_away(waveform, rng(), RATE)
    power = np.abs(np.fft.rfft(far)) ** 2
    assert power[4000:].sum() < 0.02 * power.sum()
