import io
import struct

import numpy as np
import pytest
import soundfile

from clapkit.data.wav import WAV_DTYPES, to_wav, wav_header
from clapkit.errors import AudioError


@pytest.mark.parametrize("dtype", WAV_DTYPES)
@pytest.mark.parametrize("num_channels", [1, 2, 9])
def test_samples_come_back_to_the_bit(dtype: str, num_channels: int) -> None:
    samples = (np.random.default_rng(0).uniform(-1, 1, (50, num_channels)) * (1 if "float" in dtype else 30000)).astype(dtype)
    content = to_wav(samples, 44100)
    with soundfile.SoundFile(io.BytesIO(content)) as file:
        assert (file.samplerate, file.frames, file.channels) == (44100, 50, num_channels)
        assert np.array_equal(file.read(dtype=dtype, always_2d=True), samples)


def test_the_header_says_what_follows() -> None:
    header = wav_header(num_frames=3, num_channels=2, sample_rate=8000, dtype="int16")
    # 3 frames of 2 channels of 2 bytes: 12 bytes; WAVE + fmt chunk (8 + 16) + data chunk (8 + 12): 48 bytes after RIFF's size.
    assert header[:4] + header[8:16] == b"RIFFWAVEfmt "
    assert struct.unpack("<I", header[4:8]) == (48,)
    assert struct.unpack("<HHIIHH", header[20:36]) == (1, 2, 8000, 32000, 4, 16)
    assert header[36:] == b"data" + struct.pack("<I", 12)


def test_equal_samples_give_equal_bytes_without_a_time() -> None:
    samples = np.zeros((4, 1), np.float32)
    assert to_wav(samples, 8000) == to_wav(samples, 8000)
    assert b"PEAK" not in to_wav(samples, 8000)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(AudioError, match="expected a WAV file below 4 GiB"):
        wav_header(num_frames=1 << 31, num_channels=1, sample_rate=8000, dtype="float32")
    with pytest.raises(AudioError, match="0 Hz"):
        wav_header(num_frames=1, num_channels=1, sample_rate=0, dtype="int16")
