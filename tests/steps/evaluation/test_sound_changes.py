import numpy as np
import pytest
import soundfile

from clapkit.steps.evaluation import sound_changes as module
from clapkit.steps.evaluation.sound_changes import can_encode, change_sounds, chosen_rows, codecs, generator_of, sound_changes

RATE = 8000


def sound(num_samples=RATE, *, seed=0, level=0.1):
    return np.random.default_rng(seed).normal(0, level, num_samples).astype(np.float32)


def tone(frequency, *, sample_rate=RATE, num_samples=RATE):
    return np.sin(2 * np.pi * frequency * np.arange(num_samples) / sample_rate).astype(np.float32) / 2


def find(name, severity, *, sample_rate=RATE):
    return next(change for change in sound_changes(sample_rate) if (change.name, change.severity) == (name, severity))


def apply(change, waveform, clip_id="clip", *, seed=0):
    return change.apply(waveform, generator_of(change, clip_id, seed=seed))


def rms(waveform):
    return np.sqrt(np.square(waveform, dtype=np.float64).mean())


@pytest.mark.parametrize("sample_rate", [8000, 16000, 32000, 44100])
def test_every_change_gives_finite_samples_twice_the_same(sample_rate):
    waveform = sound(sample_rate // 2 + 17)
    for change in sound_changes(sample_rate):
        changed = apply(change, waveform)
        assert changed.dtype == np.float32
        assert np.isfinite(changed).all()
        assert change.name == "speed" or len(changed) == len(waveform)
        assert not np.array_equal(changed, waveform)
        assert np.array_equal(changed, apply(change, waveform))


@pytest.mark.parametrize("num_samples", [1, 2, 37])
def test_clips_of_a_few_samples_survive(num_samples):
    for change in sound_changes(16000):
        changed = apply(change, sound(num_samples))
        assert len(changed) >= 1
        assert np.isfinite(changed).all()


def test_only_lower_rates_are_resampled_to():
    found = {rate: [c.severity for c in sound_changes(rate) if c.name == "resampling"] for rate in (4000, 8000, 48000)}
    assert found == {4000: [], 8000: [4000], 48000: [16000, 8000, 4000]}


@pytest.mark.parametrize("name", ["white_noise", "pink_noise"])
@pytest.mark.parametrize("snr_db", [20, 10, 0])
def test_noise_is_as_far_below_the_clip_as_said(name, snr_db):
    waveform = sound(level=0.03)
    noise = apply(find(name, snr_db), waveform).astype(np.float64) - waveform
    assert 20 * np.log10(rms(waveform) / rms(noise)) == pytest.approx(snr_db, abs=1e-3)


def test_severities_share_their_noise_and_clips_do_not():
    waveform = sound()
    noises = {snr: apply(find("white_noise", snr), waveform).astype(np.float64) - waveform for snr in (20, 0)}
    assert noises[0] == pytest.approx(10 * noises[20], abs=1e-5)
    assert not np.allclose(apply(find("white_noise", 0), waveform, "other") - waveform, noises[0])
    assert not np.allclose(apply(find("white_noise", 0), waveform, seed=1) - waveform, noises[0])


def test_the_power_of_pink_noise_falls_as_one_over_f_and_of_white_not():
    octave = {}
    for name in ("white_noise", "pink_noise"):
        waveform = sound(1 << 16)
        power = np.square(np.abs(np.fft.rfft(apply(find(name, 0), waveform) - waveform)))
        octave[name] = power[2048:4096].sum() / power[8192:16384].sum()
    # Four times lower is four times fewer frequencies: with power 1 / f both octaves hold the same.
    assert octave["pink_noise"] == pytest.approx(1, rel=0.1)
    assert octave["white_noise"] == pytest.approx(0.25, rel=0.1)


def test_noise_of_a_silent_clip_is_silent():
    assert not apply(find("pink_noise", 0), np.zeros(100, np.float32)).any()


def test_gain_is_in_decibels_and_clips_what_is_too_loud():
    waveform = np.array([0.1, -0.4, 0.9], np.float32)
    assert apply(find("gain", -20), waveform) == pytest.approx([0.01, -0.04, 0.09])
    # 6 dB are 10 ** (6 / 20) = 1.99526 times.
    assert apply(find("gain", 6), waveform) == pytest.approx([0.199526, -0.798105, 1.0], abs=1e-6)


def test_a_shift_puts_silence_in_front_and_cuts_the_end():
    waveform = sound(4 * RATE)
    changed = apply(find("shift", 0.5), waveform)
    assert not changed[: RATE // 2].any()
    assert np.array_equal(changed[RATE // 2 :], waveform[: -RATE // 2])


def test_a_shift_leaves_half_of_a_short_clip():
    assert apply(find("shift", 1.0), np.array([1, 2, 3, 4, 5], np.float32)).tolist() == [0, 0, 1, 2, 3]


def test_resampling_keeps_what_is_low_and_drops_what_is_high():
    change = find("resampling", 4000)
    middle = slice(1000, 7000)
    assert apply(change, tone(500))[middle] == pytest.approx(tone(500)[middle], abs=1e-3)
    assert rms(apply(change, tone(3000))[middle]) < 1e-3


@pytest.mark.parametrize("speed", [0.9, 1.1, 1.25])
def test_speed_changes_length_and_pitch_together(speed):
    changed = apply(find("speed", speed), tone(800))
    assert len(changed) == pytest.approx(RATE / speed, abs=1)
    frequency = np.abs(np.fft.rfft(changed, 8 * RATE)).argmax() / 8
    assert frequency == pytest.approx(800 * speed, abs=1)


@pytest.mark.parametrize("sample_rate", [8000, 16000, 44100])
@pytest.mark.parametrize("name", codecs())
def test_codecs_take_their_delay_out(name, sample_rate):
    waveform = np.convolve(sound(sample_rate), np.ones(16) / 4, "same").astype(np.float32)  # noise that codecs keep
    mildest = min(change.severity for change in sound_changes(sample_rate) if change.name == name)
    changed = apply(find(name, mildest, sample_rate=sample_rate), waveform)
    spectrum = np.fft.rfft(changed, 2 * len(waveform)) * np.conj(np.fft.rfft(waveform, 2 * len(waveform)))
    correlation = np.fft.irfft(spectrum)
    assert correlation.argmax() in (0, 1, len(correlation) - 1)


@pytest.mark.parametrize("name", codecs())
def test_a_smaller_file_sounds_worse(name):
    waveform = sound()
    severities = sorted(change.severity for change in sound_changes(RATE) if change.name == name)
    errors = [rms(apply(find(name, severity), waveform) - waveform) for severity in severities]
    assert errors[0] < errors[1]


def test_codecs_that_libsndfile_lacks_are_left_out(monkeypatch):
    check = soundfile.check_format
    monkeypatch.setattr(
        module.soundfile, "check_format", lambda container, subtype: subtype != "OPUS" and check(container, subtype)
    )
    assert not can_encode("opus")
    names = {change.name for change in sound_changes(RATE)}
    assert names.isdisjoint({"opus"})
    assert names >= {"mp3", "vorbis"}


@pytest.mark.parametrize("threads", [1, 3])
def test_sounds_come_out_in_order_whatever_the_threads(threads):
    changes = [change for change in sound_changes(RATE) if change.family in ("noise", "gain")]
    sounds = [(f"clip{number}", sound(500, seed=number)) for number in range(5)]
    expected = [apply(change, waveform, clip_id) for clip_id, waveform in sounds for change in changes]
    found = list(change_sounds(iter(sounds), changes, seed=0, threads=threads))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_clips_of_a_sample_do_not_depend_on_the_order():
    ids = [f"clip{number}" for number in range(50)]
    chosen = {ids[row] for row in chosen_rows(ids, limit=10)}
    assert len(chosen) == 10
    backwards = ids[::-1]
    rows = chosen_rows(backwards, limit=10)
    assert rows == sorted(rows)
    assert {backwards[row] for row in rows} == chosen
    assert chosen_rows(ids, limit=50) == list(range(50))
