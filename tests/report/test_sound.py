import base64
import io

import numpy as np
import pytest
import soundfile

from clapkit.errors import AudioError
from clapkit.report.sound import SAMPLE_RATE, encode_sound, sound_source


def tone(*, amplitude: float = 0.5, duration_s: float = 1.0) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 440 * np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


def test_a_sound_can_be_heard_again() -> None:
    heard, rate = soundfile.read(io.BytesIO(encode_sound(tone())))
    assert rate == SAMPLE_RATE
    assert len(heard) == pytest.approx(SAMPLE_RATE, abs=3000)  # MP3 comes in frames
    spectrum = np.abs(np.fft.rfft(heard[2000:22000]))
    assert spectrum.argmax() * rate / 20000 == pytest.approx(440, abs=2)


def test_equal_sounds_are_equal_bytes() -> None:
    assert encode_sound(tone()) == encode_sound(tone())


def test_ten_seconds_of_noise_stay_below_100_kb() -> None:
    assert len(encode_sound(np.random.default_rng(0).normal(0, 0.2, 10 * SAMPLE_RATE).astype(np.float32))) < 100_000


@pytest.mark.parametrize("waveform", [np.zeros(0, np.float32), np.zeros(1, np.float32), 5 * tone(duration_s=0.1)])
def test_short_and_loud_sounds_are_no_error(waveform: np.ndarray) -> None:
    assert isinstance(encode_sound(waveform), bytes)


def test_a_library_that_cannot_write_mp3_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise soundfile.SoundFileRuntimeError("no MP3")

    monkeypatch.setattr(soundfile, "write", refuse)
    with pytest.raises(AudioError, match="--report: sounds cannot be written as MP3 .*libsndfile 1.1 or later"):
        encode_sound(tone())


def test_a_sound_lies_in_its_address() -> None:
    assert base64.b64decode(sound_source(b"\xff\xfb").removeprefix("data:audio/mpeg;base64,")) == b"\xff\xfb"
