import io
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data.audio import AudioInfo, probe
from clapkit.data.wav_header import WavHeader, read_wav_header


def written(**how: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.linspace(-0.5, 0.5, 60).reshape(20, 3), 11025, format="WAV", **how)
    return file.getvalue()


def read(content: bytes) -> WavHeader | None:
    return read_wav_header(io.BytesIO(content), len(content))


def test_a_plain_header_says_what_the_decoder_says(tmp_path: Path) -> None:
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32"):
        content = written(subtype=subtype)
        assert read(content) == WavHeader(11025, 20, 3, subtype)
        (tmp_path / "a.wav").write_bytes(content)
        info = soundfile.info(tmp_path / "a.wav")
        found = probe(tmp_path / "a.wav")
        assert found == AudioInfo(info.samplerate, info.frames, info.channels)
        assert (found.format, found.subtype) == (info.format, info.subtype)


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "ULAW", "IMA_ADPCM"])
def test_headers_with_more_in_them_are_left_to_the_decoder(tmp_path: Path, subtype: str) -> None:
    content = io.BytesIO()
    soundfile.write(content, np.linspace(-0.5, 0.5, 60), 11025, format="WAV", subtype=subtype)
    assert read(content.getvalue()) is None  # libsndfile writes a fact or peak chunk for these
    (tmp_path / "a.wav").write_bytes(content.getvalue())
    assert probe(tmp_path / "a.wav").subtype == subtype


def test_floats_without_further_chunks_are_plain() -> None:
    content = bytearray(written(subtype="PCM_32"))
    content[20:22] = (3).to_bytes(2, "little")
    assert read(bytes(content)) == WavHeader(11025, 20, 3, "FLOAT")


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content[:-1],  # cut
        lambda content: content + b"\0\0",  # goes on behind its end
        lambda content: content[:30],
        lambda content: b"",
        lambda content: b"RIFX" + content[4:],
        lambda content: content[:22] + bytes(2) + content[24:],  # no channels
        lambda content: content[:22] + (2).to_bytes(2, "little") + content[24:],  # channels that do not fit the block
        lambda content: content[:34] + (12).to_bytes(2, "little") + content[36:],  # 12 bits
        lambda content: content[:36] + b"LIST" + content[40:],
    ],
)
def test_whatever_is_not_as_usual_is_left_to_the_decoder(change) -> None:
    assert read(change(written(subtype="PCM_16"))) is None
