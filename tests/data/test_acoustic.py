import numpy as np
import pytest

from clapkit.data import acoustic
from clapkit.data.acoustic import NUM_FREQUENCIES, Listener, frequencies, unpack

SAMPLE_RATE = 16_000


def bursts(seed: int, *, duration_s: float = 4.0, num_bursts: int = 30) -> np.ndarray:
    """Short decaying tones at random times and frequencies, over a little noise."""
    draw = np.random.default_rng(seed)
    waveform = 0.002 * draw.standard_normal(round(duration_s * SAMPLE_RATE))
    time_s = np.arange(round(0.2 * SAMPLE_RATE)) / SAMPLE_RATE
    for _ in range(num_bursts):
        start = draw.integers(0, len(waveform) - len(time_s))
        tone = np.sin(2 * np.pi * draw.uniform(250, 1700) * time_s) * np.exp(-time_s / 0.05)
        waveform[start : start + len(time_s)] += 0.2 * tone
    return waveform.astype(np.float32)


def listen(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE, *, block: int | None = None) -> bytes:
    listener = Listener(sample_rate)
    step = block or max(len(waveform), 1)
    for start in range(0, len(waveform), step):
        listener.hear(waveform[start : start + step])
    return listener.landmarks()


@pytest.mark.parametrize("sample_rate", [8000, 44_100, 47_999])
@pytest.mark.parametrize("block", [997, 1 << 16, 1 << 18])
def test_landmarks_do_not_depend_on_how_the_sound_was_cut(sample_rate: int, block: int) -> None:
    waveform = np.tile(bursts(0), 8)  # more than one batch at every rate
    assert listen(waveform, sample_rate, block=block) == listen(waveform, sample_rate)


def test_the_same_sound_gives_the_same_bytes_and_asking_changes_nothing() -> None:
    listener = Listener(SAMPLE_RATE)
    waveform = bursts(0, duration_s=6)
    listener.hear(waveform[:50_000])
    listener.landmarks()
    listener.hear(waveform[50_000:])
    assert listener.landmarks() == listener.landmarks() == listen(waveform)


def test_landmarks_are_unique_sorted_and_within_the_sound() -> None:
    hashes, frames = unpack(listen(bursts(0, duration_s=4.0)))
    assert hashes.dtype == frames.dtype == np.uint32
    assert len(hashes) > 50
    assert (np.diff(hashes.astype(np.int64)) > 0).all()
    assert frames.max() < 4.0 / 0.02


@pytest.mark.parametrize("num_samples", [0, 1, 100])
def test_a_sound_that_is_too_short_gives_nothing(num_samples: int) -> None:
    assert listen(bursts(0)[:num_samples]) == b""


def test_silence_and_the_rounding_of_16_bit_files_give_nothing() -> None:
    assert listen(np.zeros(SAMPLE_RATE * 3, np.float32)) == b""
    dither = np.random.default_rng(0).integers(-1, 2, SAMPLE_RATE * 3) / 32768
    assert listen(dither.astype(np.float32)) == b""


def test_a_listener_that_heard_nothing_gives_nothing() -> None:
    assert Listener(SAMPLE_RATE).landmarks() == b""
    assert [len(part) for part in unpack(b"")] == [0, 0]


def test_a_steady_tone_says_nothing() -> None:
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE * 5) / SAMPLE_RATE)
    # Only where it is switched on and off is there anything to hear.
    assert len(unpack(listen(tone.astype(np.float32)))[0]) < 30


@pytest.mark.parametrize("gain", [0.1, 2.0])
def test_gain_changes_little(gain: float) -> None:
    plain, scaled = (set(unpack(listen(waveform))[0].tolist()) for waveform in (bursts(0), bursts(0) * np.float32(gain)))
    assert len(plain & scaled) > 0.8 * len(plain)


def test_frequencies_are_those_of_the_sound() -> None:
    # Bursts at 1000, 700 and 900 Hz, 12.5 Hz a bin from 200 Hz on: 800 / 12.5 = 64, 500 / 12.5 = 40, 700 / 12.5 = 56.
    time_s = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    waveform = np.zeros(SAMPLE_RATE)
    for start_s, frequency in [(0.2, 1000.0), (0.4, 700.0), (0.6, 900.0)]:
        waveform += np.sin(2 * np.pi * frequency * time_s) * np.exp(-(((time_s - start_s) / 0.03) ** 2))
    bins = frequencies(unpack(listen(waveform.astype(np.float32)))[0])
    assert [64, 40, 56] in bins.T.tolist()
    assert bins.min() >= 0
    assert bins.max() < NUM_FREQUENCIES


@pytest.mark.parametrize("sample_rate", [11, 800, 3000, 4000])
def test_low_rates_are_heard_as_far_as_they_go(sample_rate: int) -> None:
    hashes, _ = unpack(listen(bursts(0)[:8000], sample_rate))
    highest_bin = max(sample_rate / 2 / 12.5 - 16, -1)
    assert (frequencies(hashes) <= highest_bin).all()


def test_sound_after_the_limit_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acoustic, "MAX_LISTEN_S", 4.0)
    listener = Listener(SAMPLE_RATE)
    listener.hear(bursts(0, duration_s=3))
    listener.hear(bursts(1, duration_s=3))
    both = np.concatenate([bursts(0, duration_s=3), bursts(1, duration_s=3)])
    assert listener.landmarks() == listen(both[: 4 * SAMPLE_RATE])
