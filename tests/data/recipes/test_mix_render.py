from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data.recipes._mix_plan import MixPlan, Recording
from clapkit.data.recipes._mix_render import (
    Sound,
    find_problems,
    forget_recordings,
    mix,
    repeated,
)

SOUND = Sound(clip_s=1.0, sample_rate=8000)


@pytest.fixture(autouse=True)
def _forget():
    yield
    forget_recordings()


def recording(folder: Path, waveform: np.ndarray) -> Recording:
    path = folder / "recording.wav"
    soundfile.write(path, waveform, SOUND.sample_rate, subtype="FLOAT")
    return Recording("r", "r", "click", "train", path, None, None, ("a click sounds",))


def test_crossfades_of_a_constant_leave_it_constant():
    found = repeated(np.ones(30), 100, fade=10, pause=0)
    assert len(found) == 100
    # The ramps of neighbours add up to 1, sine squared and cosine squared.
    np.testing.assert_allclose(found[10:], np.ones(90))


def test_a_pause_is_kept_between_repetitions():
    found = repeated(np.ones(10), 50, fade=0, pause=10)
    np.testing.assert_array_equal(found, np.tile([1.0] * 10 + [0.0] * 10, 3)[:50])


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_waveforms_can_be_repeated(length):
    assert repeated(np.ones(length), 20, fade=10, pause=0).shape == (20,)


def test_a_click_as_high_as_can_be_is_scaled_down_instead_of_clipped(tmp_path):
    # Within each frame of 80 samples one is 1: RMS 0.11, so that -24 dB would make the peak about 0.56; with one in 4000
    # samples and a hiss that counts as active it is far above 1.
    waveform = np.random.default_rng(0).normal(scale=0.02, size=8000)
    waveform[100::4000] = 1
    plan = MixPlan("train", 0, "single", (recording(tmp_path, waveform),))
    peaks = [np.abs(mix(plan, seed=seed, sound=SOUND)[0]).max() / 32767 for seed in range(6)]
    assert 0.79 < min(peaks) < max(peaks) <= 0.95
    assert len(set(peaks)) == 6  # no two clips of one recording are copies


def test_levels_of_quiet_and_loud_recordings_are_the_same(tmp_path):
    noise = np.random.default_rng(0).normal(size=8000)
    levels = []
    for gain in (0.001, 0.1):
        forget_recordings()
        plan = MixPlan("train", 0, "single", (recording(tmp_path, gain * noise),))
        levels.append(np.std(mix(plan, seed=0, sound=SOUND)[0] / 32767))
    assert levels[0] == pytest.approx(levels[1], rel=1e-3)
    assert -27.5 < 20 * np.log10(levels[0]) < -20.5


def test_no_event_starts_or_ends_with_a_click(tmp_path):
    plan = MixPlan("train", 0, "then", (recording(tmp_path, np.ones(8000)),) * 2)
    samples, spans = mix(plan, seed=0, sound=SOUND)
    steps = np.abs(np.diff(samples.astype(np.float64)))
    # A raised cosine over 80 samples rises by pi / 160 of its height at most.
    assert steps.max() <= 1.01 * np.abs(samples).max() * np.pi / 160 + 1
    assert len(spans) == 2


def test_problems_are_found_and_good_recordings_have_none(tmp_path):
    good = recording(tmp_path, 0.1 * np.random.default_rng(0).normal(size=800))
    gone = replace(good, path=tmp_path / "gone.wav")
    outside = replace(good, start_s=0.05, end_s=9.0)
    found = find_problems([good, gone, outside], SOUND)
    assert found[0] is None
    assert "cannot be opened" in found[1]
    assert "expected a span inside" in found[2]


def test_a_recording_below_80_decibels_is_silent(tmp_path):
    noise = np.random.default_rng(0).normal(size=8000)
    noise /= np.sqrt(np.mean(noise**2))
    assert "is silent (RMS 9e-05), expected at least 0.0001" in find_problems([recording(tmp_path, 0.9e-4 * noise)], SOUND)[0]
    forget_recordings()
    assert find_problems([recording(tmp_path, 1.1e-4 * noise)], SOUND) == [None]
