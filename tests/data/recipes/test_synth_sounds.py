import numpy as np
import pytest

from clapkit.data.recipes import _synth_animals as animals
from clapkit.data.recipes._synth_signal import loudness
from clapkit.data.recipes._synth_sounds import SOUNDS, event

RATE = 16000
PITCHED = [name for name, sound in SOUNDS.items() if "pitch" in sound.axes]
RATED = [name for name, sound in SOUNDS.items() if "rate" in sound.axes and name != "siren wailing"]
DISTANT = [name for name, sound in SOUNDS.items() if "distance" in sound.axes]


def render(name, attributes=None, *, seed=0, duration_s=2.0, is_accompanied=False):
    return event(
        name,
        attributes or {},
        voice=np.random.default_rng(seed + 100),
        rng=np.random.default_rng(seed),
        duration_s=duration_s,
        sample_rate=RATE,
        is_accompanied=is_accompanied,
    )


def frames(waveform, length):
    return waveform[: len(waveform) // length * length].reshape(-1, length)  # [F, length]


def centre_hz(waveform):
    """Geometric mean of the frequency, weighted by power."""
    power = np.abs(np.fft.rfft(waveform))[1:] ** 2
    frequency_hz = np.fft.rfftfreq(len(waveform), 1 / RATE)[1:]
    return np.exp((power * np.log(frequency_hz)).sum() / power.sum())


def num_strokes(waveform):
    """How often the envelope jumps by a fifth within 10 ms, at most once in 60 ms."""
    level = np.abs(frames(waveform, 160)).max(axis=1)
    recent = np.maximum.reduce([level[:-3], level[1:-2], level[2:-1]])
    jumps = np.flatnonzero((level[3:] > 1.2 * recent) & (level[3:] > 0.3 * level.max()))
    return 1 + (np.diff(jumps) > 6).sum()


LEVELS = ({"loudness": "loud"}, {}, {"loudness": "quiet"})


@pytest.mark.parametrize("name", SOUNDS)
def test_every_sound_is_finite_silent_at_its_ends_and_does_not_clip(name):
    waveform = render(name, {"loudness": "loud"})
    assert len(waveform) == 2 * RATE
    assert np.isfinite(waveform).all()
    assert waveform[0] == waveform[-1] == 0
    # 0.85 full scale and one decibel (a factor of 1.122) of spread: 0.954.
    assert 0.2 < np.abs(waveform).max() < 0.96
    assert abs(waveform.mean()) < 0.005


@pytest.mark.parametrize("name", SOUNDS)
def test_the_same_generators_give_the_same_sound(name):
    assert np.array_equal(render(name, duration_s=1.0), render(name, duration_s=1.0))
    assert not np.array_equal(render(name, duration_s=1.0), render(name, duration_s=1.0, seed=1))


@pytest.mark.parametrize("name", SOUNDS)
def test_loud_exceeds_ordinary_exceeds_quiet_by_eight_decibels(name):
    loud, ordinary, quiet = (loudness(render(name, a, duration_s=1.5), RATE) for a in LEVELS)
    assert loud > 2.5 * ordinary > 6.25 * quiet


@pytest.mark.parametrize("name", PITCHED)
def test_high_lies_above_ordinary_and_ordinary_above_low(name):
    high, ordinary, low = (
        np.mean([centre_hz(render(name, attributes, seed=seed)) for seed in range(3)])
        for attributes in ({"pitch": "high"}, {}, {"pitch": "low"})
    )
    assert high > 1.12 * ordinary
    assert ordinary > 1.12 * low


def test_a_high_alarm_sounds_half_an_octave_to_an_octave_above_an_ordinary_one():
    strongest_hz = [np.abs(np.fft.rfft(render("alarm beeping", a))).argmax() / 2 for a in ({"pitch": "high"}, {})]
    # The same voice: high is 0.62 to 0.82 octaves up, ordinary at most 0.08 off; a comb of beeps adds a few Hz.
    assert 2**0.5 < strongest_hz[0] / strongest_hz[1] < 2**1.0


@pytest.mark.parametrize("name", RATED)
def test_fast_sounds_come_more_than_twice_as_often_as_slow_ones(name):
    fast, slow = (num_strokes(render(name, {"rate": rate}, duration_s=4.5)) for rate in ("fast", "slow"))
    assert fast > 2 * slow


def test_a_fast_siren_turns_more_often_than_a_slow_one():
    turns = []
    for rate in ("fast", "slow"):
        centres = [centre_hz(frame) for frame in frames(render("siren wailing", {"rate": rate}, duration_s=4.0), 800)]
        turns.append(np.count_nonzero(np.diff(np.array(centres) > np.median(centres))))
    assert turns[0] > 2 * turns[1]


@pytest.mark.parametrize("name", DISTANT)
def test_far_sounds_are_softer_and_have_fewer_highs(name):
    far, near = render(name, {"distance": "far"}), render(name)
    assert loudness(far, RATE) < 0.7 * loudness(near, RATE)
    highs = [(np.abs(np.fft.rfft(w))[3000:] ** 2).sum() / (np.abs(np.fft.rfft(w)) ** 2).sum() for w in (far, near)]
    assert highs[0] < 0.6 * highs[1]


def test_a_continuous_sound_steps_back_behind_another():
    assert loudness(render("rain falling", is_accompanied=True), RATE) < 0.7 * loudness(render("rain falling"), RATE)
    assert np.array_equal(render("dog barking", is_accompanied=True), render("dog barking"))


def test_a_bark_is_short_and_arches_in_pitch():
    bark = animals._bark(np.random.default_rng(0), 600.0, 0.16, 0.0, RATE)
    assert len(bark) == 0.16 * RATE
    start_hz, top_hz, end_hz = (period_hz(bark[position : position + 400]) for position in (80, 1100, 2060))
    assert 500 < top_hz < 700
    assert start_hz < 0.9 * top_hz
    assert end_hz < 0.9 * top_hz


def period_hz(waveform):
    """Fundamental by the first peak of the autocorrelation between 200 and 900 Hz."""
    correlation = np.correlate(waveform, waveform, "full")[len(waveform) - 1 :]
    shortest, longest = RATE // 900, RATE // 200
    return RATE / (shortest + correlation[shortest:longest].argmax())


def test_barks_come_in_bouts_of_two_to_four():
    for seed in range(5):
        gaps_s = np.diff(animals._bouts(np.random.default_rng(seed), 20.0, period_s=0.4))
        # Within a bout 0.4 s and 8 %, between bouts at least 1.7 * 0.4 * 0.92 = 0.63 s.
        ends = np.flatnonzero(gaps_s > 0.6)
        assert set(np.diff(ends)) <= {2, 3, 4}
        assert len(ends) > 5


def nearest_class(features, known):
    return min(known, key=lambda name: min(np.square(features - one).sum() for one in known[name]))


def describe(waveform):
    """Mean and spread over time of log power in 24 bands, without the level."""
    edges = np.geomspace(2, 256, 25).astype(int)
    power = np.abs(np.fft.rfft(frames(waveform, 512) * np.hanning(512))) ** 2  # [F, 257]
    bands = np.log(np.stack([power[:, a : max(b, a + 1)].mean(axis=1) for a, b in zip(edges, edges[1:], strict=False)]) + 1e-5)
    return np.concatenate([bands.mean(axis=1) - bands.mean(), bands.std(axis=1)])


def test_classes_can_be_told_apart_from_a_few_examples_of_other_voices():
    known = {name: [describe(render(name, seed=seed, duration_s=1.2)) for seed in range(1, 4)] for name in SOUNDS}
    right = sum(nearest_class(describe(render(name, seed=50, duration_s=1.2)), known) == name for name in SOUNDS)
    assert right >= 18  # of 20
