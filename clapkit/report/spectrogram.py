"""A recording at a glance: a small picture of its spectrogram and its waveform, as PNG bytes.

All pictures have the same scales (frequency, level, amplitude), so that they can be compared with each other. numpy and zlib
alone make them: loading a plotting library would take longer than all pictures of a page.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np

RANGE_DB = 80
MAX_FREQUENCY = 24_000.0
# Long enough to tell low tones apart, short enough for the beats of a clock.
_WINDOW_S = 0.04
# From there on a sample counts as being at full scale: a 16-bit file ends at 32767 / 32768.
_FULL_SCALE = 0.9999

# Dark to bright through blue, violet and orange, so that equal steps in level look like equal steps in brightness.
_ANCHORS = ((4, 5, 14), (30, 22, 82), (98, 26, 126), (176, 45, 104), (232, 94, 62), (250, 164, 66), (253, 246, 196))
_NOT_IN_FILE, _BACKGROUND, _WAVE, _CLIPPED, _BROKEN = range(RANGE_DB + 1, RANGE_DB + 6)
_OTHER_COLORS = {
    _NOT_IN_FILE: (58, 64, 74),
    _BACKGROUND: (14, 17, 24),
    _WAVE: (120, 184, 232),
    _CLIPPED: (255, 140, 26),
    _BROKEN: (230, 20, 40),
}


def thumbnail(waveform: np.ndarray, sample_rate: int, *, width: int = 240, height: int = 96) -> bytes:
    """A picture with the spectrogram above and the waveform below, which has a quarter of the height.

    The spectrogram has a mel axis (O'Shaughnessy, Speech communication, 1987) from 0 to 24 kHz; a row shows its loudest bin,
    0 dB is a sine at full scale and 80 dB less is black. Each column is one window in the middle of its share of the clip, so
    that an hour costs as much as a second. The waveform shows the least and the greatest of all samples of a column, orange
    where they reach full scale. What the sample rate cannot hold is grey; a column with NaN or infinity is red.

    Args:
        waveform: float [T], T may be 0; full scale is 1.
        sample_rate: in Hz, > 0.
        width: of the picture in pixels, > 0.
        height: of the picture in pixels, at least 8.

    Returns:
        A PNG file; equal input gives equal bytes.
    """
    assert waveform.ndim == 1, waveform.shape
    height_wave = height // 4
    pixels = np.vstack(
        [
            _spectrogram(waveform, sample_rate, width=width, height=height - height_wave),
            _envelope(waveform, width=width, height=height_wave),
        ]
    )
    if waveform.size:
        lowest, highest = _extremes(waveform, width)
        pixels[:, ~(np.isfinite(lowest) & np.isfinite(highest))] = _BROKEN
    return encode_png(pixels, palette())


def row_frequencies(num_rows: int) -> np.ndarray:
    """Edges of the rows of a spectrogram from its lowest row up, in Hz, [num_rows + 1]."""
    highest_mel = 2595 * np.log10(1 + MAX_FREQUENCY / 700)
    frequencies: np.ndarray = 700 * (10 ** (np.linspace(0, highest_mel, num_rows + 1) / 2595) - 1)
    return frequencies


def palette() -> np.ndarray:
    """Colours of a picture: one per decibel from silence to full scale, then the marks; uint8 [colours, 3]."""
    place = np.linspace(0, len(_ANCHORS) - 1, RANGE_DB + 1)
    anchors = np.array(_ANCHORS, dtype=np.float64)
    levels = np.stack([np.interp(place, range(len(anchors)), channel) for channel in anchors.T], axis=1)  # [81, 3]
    others = [_OTHER_COLORS[index] for index in range(RANGE_DB + 1, RANGE_DB + 1 + len(_OTHER_COLORS))]
    return np.vstack([levels.round(), others]).astype(np.uint8)


def encode_png(pixels: np.ndarray, colors: np.ndarray) -> bytes:
    """Write an image with a palette.

    Reference: Portable Network Graphics Specification (Second Edition), W3C 2003, sections 5 and 11.

    Args:
        pixels: uint8 [height, width], places in the palette.
        colors: uint8 [at most 256, 3].
    """
    height, width = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)  # 8 bits a pixel, palette, no interlacing
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels])  # every row begins with its filter: none
    chunks = ((b"IHDR", header), (b"PLTE", colors.tobytes()), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _spectrogram(waveform: np.ndarray, sample_rate: int, *, width: int, height: int) -> np.ndarray:
    """Levels in dB above silence, uint8 [height, width], high frequencies first."""
    window_samples = 2 ** round(np.log2(max(_WINDOW_S * sample_rate, 16)))
    frames = _frames(waveform, width, window_samples)  # [width, window_samples]
    window = np.hanning(window_samples + 1)[:-1].astype(np.float32)
    # A sine at full scale peaks at half the sum of the window.
    amplitudes = np.abs(np.fft.rfft(frames * window)) / (window.sum() / 2)  # [width, bins]
    edges = row_frequencies(height)
    first_bins = np.round(edges[:-1] * window_samples / sample_rate).astype(int)
    in_file = (edges[:-1] < sample_rate / 2) & (first_bins < amplitudes.shape[1])
    loudest = np.maximum.reduceat(amplitudes, first_bins[in_file], axis=1)  # [width, rows in the file]
    levels_db = 20 * np.log10(np.maximum(loudest, 1e-10))
    rows = np.full((height, width), _NOT_IN_FILE, np.uint8)
    rows[in_file] = np.clip(np.round(levels_db + RANGE_DB), 0, RANGE_DB).T
    return rows[::-1]


def _frames(waveform: np.ndarray, width: int, window_samples: int) -> np.ndarray:
    """One frame in the middle of every column, [width, window_samples]; zeros beyond the ends and for NaN and infinity."""
    if not waveform.size:
        return np.zeros((width, window_samples), np.float32)
    centers = (2 * np.arange(width) + 1) * waveform.size // (2 * width)
    places = centers[:, None] + np.arange(window_samples) - window_samples // 2
    is_inside = (places >= 0) & (places < waveform.size)
    frames = waveform[np.clip(places, 0, waveform.size - 1)].astype(np.float32)
    return np.where(is_inside & np.isfinite(frames), frames, np.float32(0))


def _extremes(waveform: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Least and greatest sample of every column, each [width]; NaN where a column has one."""
    starts = np.arange(width) * waveform.size // width  # a clip with fewer samples than columns repeats them
    return np.minimum.reduceat(waveform, starts), np.maximum.reduceat(waveform, starts)


def _envelope(waveform: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """The waveform from full scale to full scale, uint8 [height, width]."""
    rows = np.full((height, width), _BACKGROUND, np.uint8)
    if not waveform.size:
        return rows
    lowest, highest = (np.nan_to_num(bound, posinf=0, neginf=0) for bound in _extremes(waveform, width))
    top, bottom = (np.round((1 - np.clip(bound, -1, 1)) / 2 * (height - 1)) for bound in (highest, lowest))
    row = np.arange(height)[:, None]
    color = np.where((lowest <= -_FULL_SCALE) | (highest >= _FULL_SCALE), _CLIPPED, _WAVE).astype(np.uint8)
    return np.where((row >= top) & (row <= bottom), color, rows)
