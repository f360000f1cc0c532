"""Sounds that lie in a page: short, mono, compressed."""

from __future__ import annotations

import base64
import io

import numpy as np
import soundfile

from clapkit.errors import AudioError

SAMPLE_RATE = 24_000
"""In Hz: enough for most of what tells sounds apart, and a rate that MPEG-2 layer 3 has."""

MAX_S = 10.0
"""Of a longer clip this much is heard."""

# From 0, the best, to 1, the smallest: about 5 kB for a second of noise.
_COMPRESSION = 0.8


def encode_sound(waveform: np.ndarray) -> bytes:
    """Compress a waveform to MP3, which every browser plays; equal input gives equal bytes.

    Args:
        waveform: float [T] at ``SAMPLE_RATE``, full scale is 1; beyond it is clipped.

    Raises:
        AudioError: if the sound library on this machine cannot write MP3.
    """
    assert waveform.ndim == 1, waveform.shape
    buffer = io.BytesIO()
    samples = np.clip(waveform, -1.0, 1.0)
    try:
        soundfile.write(
            buffer,
            samples,
            SAMPLE_RATE,
            format="MP3",
            subtype="MPEG_LAYER_III",
            compression_level=_COMPRESSION,
            bitrate_mode="VARIABLE",
        )
    except (soundfile.SoundFileError, ValueError) as error:
        message = f"--report: sounds cannot be written as MP3 ({error}); install soundfile with libsndfile 1.1 or later"
        raise AudioError(message) from error
    return buffer.getvalue()


def sound_source(mp3: bytes) -> str:
    """The ``src`` of a sound that lies in the page."""
    return f"data:audio/mpeg;base64,{base64.b64encode(mp3).decode('ascii')}"
