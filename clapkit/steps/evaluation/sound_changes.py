"""Changes of a sound whose content stays the same for a listener: what a robust model should not mind.

Every change takes a waveform float32 [T] at the model's sample rate and gives one at the same rate. What is random is drawn
from a generator of the clip and the change, so that the severities of a change share their noise, and neither the order of
the clips nor the batch size matters.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

FloatArray = npt.NDArray[np.float32]
Apply = Callable[[FloatArray, np.random.Generator], FloatArray]

NOISE_SNR_DB = (20.0, 10.0, 0.0)
GAIN_DB = (-6.0, -20.0, 6.0)
SHIFT_S = (0.25, 0.5, 1.0)
SAMPLE_RATES = (16_000, 8_000, 4_000)
SPEEDS = (0.9, 1.1, 1.25)
# Name -> format and subtype of libsndfile, and its compression levels: 0 is the best sound, 1 the smallest file. It refuses
# level 1 of MP3, and level 1 of Opus leaves 6 kbit/s.
_CODECS = {
    "mp3": ("MP3", "MPEG_LAYER_III", (0.5, 0.9)),
    "vorbis": ("OGG", "VORBIS", (0.5, 1.0)),
    "opus": ("OGG", "OPUS", (0.9, 1.0)),
}
# What every encoder takes; sounds of other rates go through the last one and back.
_CODEC_RATES = (8_000, 16_000, 24_000, 48_000)


@dataclass(frozen=True, slots=True)
class SoundChange:
    """One change with one severity.

    Attributes:
        name: what is done.
        family: changes that are averaged under one headline number.
        severity: how much, in ``unit``.
        unit: of the severity.
        apply: waveform float32 [T] and a generator to the changed waveform.
    """

    name: str
    family: str
    severity: float
    unit: str
    apply: Apply


def sound_changes(sample_rate: int) -> tuple[SoundChange, ...]:
    """All changes that make sense at a sample rate, and that this libsndfile can do.

    Args:
        sample_rate: of the waveforms, Hz.
    """
    found = [
        SoundChange("white_noise", "noise", snr, "dB SNR", partial(_noise, snr_db=snr, pink=False)) for snr in NOISE_SNR_DB
    ]
    found += [SoundChange("pink_noise", "noise", snr, "dB SNR", partial(_noise, snr_db=snr, pink=True)) for snr in NOISE_SNR_DB]
    found += [SoundChange("gain", "gain", gain, "dB", partial(_gain, gain_db=gain)) for gain in GAIN_DB]
    found += [SoundChange("shift", "shift", s, "s", partial(_shift, num_samples=round(s * sample_rate))) for s in SHIFT_S]
    for name, (container, subtype, levels) in _CODECS.items():
        if can_encode(name):
            code = partial(_encode, sample_rate=sample_rate, container=container, subtype=subtype)
            found += [SoundChange(name, "codec", level, "compression level", partial(code, level=level)) for level in levels]
    found += [
        SoundChange("resampling", "resampling", rate, "Hz", partial(_resample, sample_rate=sample_rate, lower_rate=rate))
        for rate in SAMPLE_RATES
        if rate < sample_rate
    ]
    found += [SoundChange("speed", "speed", s, "times", partial(_speed, sample_rate=sample_rate, speed=s)) for s in SPEEDS]
    return tuple(found)


def can_encode(codec: str) -> bool:
    """Whether libsndfile has a codec: ``mp3``, ``vorbis`` or ``opus``."""
    container, subtype, _ = _CODECS[codec]
    return container in soundfile.available_formats() and soundfile.check_format(container, subtype)


def codecs() -> tuple[str, ...]:
    """Names of the codecs, whether libsndfile has them or not."""
    return tuple(_CODECS)


def generator_of(change: SoundChange, clip_id: str, *, seed: int) -> np.random.Generator:
    """The generator of a clip and a change, whatever the severity."""
    digest = hashlib.sha256(f"{change.name}\0{clip_id}".encode()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "big")])


def change_sounds(
    sounds: Iterable[tuple[str, FloatArray]], changes: Sequence[SoundChange], *, seed: int, threads: int
) -> Iterator[FloatArray]:
    """All changes of the first sound, then all of the second, and so on; threads work a few ahead.

    Args:
        sounds: id and waveform float32 [T] of each.
        changes: to be made of every one.
        seed: of the generators.
        threads: that make them.
    """
    waiting: deque[Future[FloatArray]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="change") as pool:
        for clip_id, waveform in sounds:
            for change in changes:
                waiting.append(pool.submit(change.apply, waveform, generator_of(change, clip_id, seed=seed)))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def chosen_rows(ids: Iterable[str], *, limit: int) -> list[int]:
    """Rows of the ``limit`` ids with the smallest hash, ascending: the same clips whatever their order."""
    ranked = sorted((hashlib.sha256(given.encode()).digest(), row) for row, given in enumerate(ids))
    return sorted(row for _, row in ranked[:limit])


def _noise(waveform: FloatArray, generator: np.random.Generator, *, snr_db: float, pink: bool) -> FloatArray:
    """Noise so much below the RMS of the clip; a silent clip stays silent."""
    noise = _pink(len(waveform), generator) if pink else generator.standard_normal(len(waveform))
    level = _rms(noise)
    if not level:
        return waveform
    return (waveform + noise * (_rms(waveform) / level * 10 ** (-snr_db / 20))).astype(np.float32)


def _pink(size: int, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Noise whose power falls as 1 / f, without a mean."""
    length = 1 << max(size - 1, 1).bit_length()  # a power of two, which is fast
    spectrum = np.fft.rfft(generator.standard_normal(length))
    spectrum[0] = 0
    spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
    return np.fft.irfft(spectrum, length)[:size]


def _rms(waveform: npt.NDArray[np.floating]) -> float:
    return math.sqrt(np.square(waveform, dtype=np.float64).mean())


def _gain(waveform: FloatArray, _: np.random.Generator, *, gain_db: float) -> FloatArray:
    """Louder or softer; what leaves -1 to 1 when made louder is clipped, as a converter would."""
    changed = waveform * np.float32(10 ** (gain_db / 20))
    return changed.clip(-1, 1) if gain_db > 0 else changed


def _shift(waveform: FloatArray, _: np.random.Generator, *, num_samples: int) -> FloatArray:
    """Silence in front, the end cut off; by at most half of the clip."""
    delay = min(num_samples, len(waveform) // 2)
    return np.concatenate((np.zeros(delay, np.float32), waveform[: len(waveform) - delay]))


def _encode(
    waveform: FloatArray, _: np.random.Generator, *, sample_rate: int, container: str, subtype: str, level: float
) -> FloatArray:
    """Through a lossy codec and back; libsndfile takes the encoder's delay out again."""
    rate = sample_rate if sample_rate in _CODEC_RATES else _CODEC_RATES[-1]
    sound = waveform if rate == sample_rate else soxr.resample(waveform, sample_rate, rate, quality="HQ")
    stream = io.BytesIO()
    with soundfile.SoundFile(
        stream, "w", samplerate=rate, channels=1, format=container, subtype=subtype, compression_level=level
    ) as file:
        for start in range(0, len(sound), rate):  # the Vorbis encoder keeps all of what it gets at once on its stack
            file.write(sound[start : start + rate])
    stream.seek(0)
    decoded, _rate = soundfile.read(stream, dtype="float32")
    if rate != sample_rate:
        decoded = soxr.resample(decoded, rate, sample_rate, quality="HQ")
    return _as_long(decoded, len(waveform))


def _resample(waveform: FloatArray, _: np.random.Generator, *, sample_rate: int, lower_rate: int) -> FloatArray:
    """Down to a lower rate and back: nothing above half of it is left."""
    low = soxr.resample(waveform, sample_rate, lower_rate, quality="HQ")
    return _as_long(soxr.resample(low, lower_rate, sample_rate, quality="HQ"), len(waveform))


def _speed(waveform: FloatArray, _: np.random.Generator, *, sample_rate: int, speed: float) -> FloatArray:
    """Faster and higher, or slower and lower, as a tape would be; the clip gets shorter or longer."""
    changed: FloatArray = soxr.resample(waveform, sample_rate * speed, sample_rate, quality="HQ")
    return changed if len(changed) else waveform


def _as_long(waveform: FloatArray, size: int) -> FloatArray:
    """Cut, or filled up with silence: resamplers round lengths."""
    return np.concatenate((waveform[:size], np.zeros(max(size - len(waveform), 0), np.float32)))
