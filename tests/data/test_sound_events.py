import numpy as np
import pytest

from clapkit.data.sound_events import active_part, active_rms, faded, loudest_window


def test_the_loudest_window_is_that_of_a_naive_search():
    waveform = np.random.default_rng(0).normal(size=200).astype(np.float32) * np.linspace(0.1, 2, 200, dtype=np.float32) ** 2
    waveform[150:] = 0
    starts = [float(np.sum(waveform[start : start + 40].astype(np.float64) ** 2)) for start in range(161)]
    expected = waveform[int(np.argmax(starts)) :][:40]
    np.testing.assert_array_equal(loudest_window(waveform, 40), expected)


def test_a_waveform_no_longer_than_the_window_stays_whole():
    waveform = np.arange(40, dtype=np.float32)
    np.testing.assert_array_equal(loudest_window(waveform, 40), waveform)
    np.testing.assert_array_equal(loudest_window(waveform, 41), waveform)


def test_silence_around_the_sound_goes_and_silence_within_stays():
    waveform = np.zeros(100, dtype=np.float32)
    waveform[20:30] = waveform[60:70] = 1
    np.testing.assert_array_equal(active_part(waveform, 10), waveform[20:70])
    # A frame 40 dB below the loudest one is silence: 0.009 squared is less than a ten-thousandth, 0.011 squared more.
    waveform[80:90] = 0.009
    assert len(active_part(waveform, 10)) == 50
    waveform[80:90] = 0.011
    assert len(active_part(waveform, 10)) == 70


def test_the_level_is_that_of_the_active_frames():
    waveform = np.zeros(95)
    waveform[20:30], waveform[90:95] = 1, 3
    # Two active frames, the last one only half as long: the root of (1 + 9) / 2.
    assert active_rms(waveform, 10) == pytest.approx(5**0.5)


def test_a_fade_starts_and_ends_near_zero_and_leaves_the_middle():
    found = faded(np.ones(50), 10)
    np.testing.assert_array_equal(found[10:40], np.ones(30))
    assert 0 < found[0] < 0.01
    assert (np.diff(found[:10]) > 0).all()
    np.testing.assert_allclose(found, found[::-1])


def test_a_waveform_shorter_than_its_fades_is_faded_over_its_halves():
    assert len(faded(np.ones(5), 10)) == 5
    np.testing.assert_array_equal(faded(np.ones(1), 10), np.ones(1))
