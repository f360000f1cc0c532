import numpy as np
import pytest

from clapkit.steps.evaluation.sound_pairs import RMS, SOUNDS, Mixer, draw_pairs, pair_sounds

RATE = 1000
MIXER = Mixer(RATE, window=1000)  # fades of 20 samples, events of at most 510
CLASSES = {name: [f"{name}{number}" for number in range(20)] for name in ("dog", "rain", "bell", "car")}


def tone(duration_s, *, pitch=100.0, gain=0.5):
    return (gain * np.sin(2 * np.pi * pitch * np.arange(round(RATE * duration_s)) / RATE)).astype(np.float32)


def padded(waveform, *, before=0.3, after=0.4):
    return np.concatenate([np.zeros(round(RATE * before)), waveform, np.zeros(round(RATE * after))]).astype(np.float32)


def rms(waveform):
    return float(np.sqrt(np.mean(np.square(waveform, dtype=np.float64))))


def share_at(waveform, pitch):
    """Share of the energy within 5 Hz of a pitch."""
    spectrum = np.abs(np.fft.rfft(waveform)) ** 2
    frequency = np.fft.rfftfreq(len(waveform), 1 / RATE)
    return float(spectrum[np.abs(frequency - pitch) < 5].sum() / spectrum.sum())


def test_pairs_are_of_different_classes_and_never_twice():
    pairs = draw_pairs(CLASSES, num_pairs=300, seed=0)
    assert len(pairs) == 300
    assert len({frozenset(pair) for pair in pairs}) == 300
    assert all(x.rstrip("0123456789") != y.rstrip("0123456789") for x, y in pairs)


def test_every_pair_is_taken_where_there_are_few():
    few = {"dog": ["d1", "d2"], "rain": ["r1"], "car": ["c1", "c2"]}
    # 2 * 1 + 2 * 2 + 1 * 2 pairs.
    assert len(draw_pairs(few, num_pairs=8, seed=0)) == len({frozenset(pair) for pair in draw_pairs(few, num_pairs=8, seed=0)})
    assert len(draw_pairs(few, num_pairs=200, seed=0)) == 8
    assert len(draw_pairs(few, num_pairs=5, seed=0)) == 5


@pytest.mark.parametrize("num_pairs", [50, 5000])
def test_the_order_of_classes_and_clips_has_no_influence_and_the_seed_has(num_pairs):
    shuffled = {name: CLASSES[name][::-1] for name in reversed(CLASSES)}
    assert draw_pairs(shuffled, num_pairs=num_pairs, seed=3) == draw_pairs(CLASSES, num_pairs=num_pairs, seed=3)
    assert draw_pairs(CLASSES, num_pairs=num_pairs, seed=4) != draw_pairs(CLASSES, num_pairs=num_pairs, seed=3)


def test_either_class_comes_first_about_as_often():
    first = [x.startswith("dog") for x, y in draw_pairs({"dog": CLASSES["dog"], "car": CLASSES["car"]}, num_pairs=400, seed=0)]
    assert 160 < sum(first) < 240  # 400 fair coins: 200, four standard deviations are 40


def test_an_event_is_the_loud_part_without_the_silence_around_it():
    event = MIXER.event(padded(tone(0.2)))
    assert len(event) == pytest.approx(200, abs=10)  # frames of 10 samples
    assert event[0] == pytest.approx(0, abs=1e-3)  # faded in


def test_a_long_event_is_cut_to_its_loudest_stretch():
    waveform = np.concatenate([tone(1.0, gain=0.1), tone(0.5, pitch=200.0), tone(1.0, gain=0.1)])
    event = MIXER.event(waveform)
    assert len(event) == MIXER.max_event == 510
    assert share_at(event, 200.0) > 0.9


def test_events_are_equally_loud():
    quiet, loud = MIXER.event(padded(tone(0.4, gain=0.01))), MIXER.event(padded(tone(0.4, gain=0.9)))
    assert rms(quiet) == pytest.approx(rms(loud), rel=1e-3)
    assert rms(loud) == pytest.approx(RMS, rel=0.06)  # the fades take a little


def test_a_silent_recording_has_no_event():
    assert MIXER.event(np.zeros(500, np.float32)) is None
    assert MIXER.event(np.full(500, 5e-5, np.float32)) is None


def test_a_sequence_is_one_event_and_then_the_other_and_fits_the_window():
    x, y = MIXER.event(tone(2.0, pitch=100.0)), MIXER.event(tone(2.0, pitch=300.0))
    sound = MIXER.sequence(x, y)
    assert len(sound) == MIXER.window == 510 + 510 - 20
    assert share_at(sound[:480], 100.0) > 0.95
    assert share_at(sound[520:], 300.0) > 0.95
    # The second event starts 20 samples before the first one ends, at 490; where nothing fades, the turned sound has the same.
    assert MIXER.sequence(y, x)[20:490] == pytest.approx(sound[510:980], abs=1e-3)


def test_the_crossfade_keeps_the_loudness():
    steady = MIXER.event(np.full(2000, 0.5, np.float32))
    # Both ramps of a constant add up to it.
    assert np.ptp(MIXER.sequence(steady, steady)[30:970]) == pytest.approx(0, abs=1e-6)


def test_an_overlay_is_both_events_from_the_start():
    x, y = MIXER.event(tone(0.4, pitch=100.0)), MIXER.event(tone(0.2, pitch=300.0))
    sound = MIXER.overlay(x, y)
    assert len(sound) == len(x)
    both = np.concatenate([y, np.zeros(len(x) - len(y))]) + x
    assert sound == pytest.approx(both * sound.std() / both.std(), abs=1e-3)


def test_all_sounds_are_equally_loud_and_none_clips():
    x, y = tone(0.5, pitch=100.0), padded(tone(0.3, pitch=300.0, gain=0.05))
    click = np.zeros(500, np.float32)
    click[250] = 0.9
    sounds = list(pair_sounds([x, y, x, click], MIXER, kept=[]))
    assert len(sounds) == 2 * len(SOUNDS)
    assert all(sound.dtype == np.float32 and len(sound) <= MIXER.window for sound in sounds)
    assert [rms(sound) for sound in sounds[:5]] == pytest.approx([RMS] * 5, rel=1e-3)
    assert max(np.abs(sound).max() for sound in sounds) <= 0.99 + 1e-6


def test_a_pair_with_silence_is_left_out():
    kept = []
    silence = np.zeros(400, np.float32)
    sounds = list(pair_sounds([tone(0.4), silence, tone(0.4), tone(0.3), silence, silence], MIXER, kept=kept))
    assert kept == [1]
    assert len(sounds) == 5


def test_recordings_are_read_pair_by_pair():
    read = []

    def recordings():
        for number in range(20):
            read.append(number)
            yield tone(0.2)

    sounds = pair_sounds(recordings(), MIXER, kept=[])
    for _ in range(6):  # one sound of the second pair
        next(sounds)
    assert read == [0, 1, 2, 3]


def test_very_short_windows_and_events_still_make_sounds():
    tiny = Mixer(RATE, window=8)
    event = tiny.event(tone(0.4))
    assert 1 <= len(event) <= tiny.max_event == 5
    assert 0 < len(tiny.sequence(event, event)) <= 8
