import io

import matplotlib.image
import numpy as np
import pytest

from clapkit.report.spectrogram import RANGE_DB, encode_png, palette, row_frequencies, thumbnail

RATE = 48000
NOT_IN_FILE, BACKGROUND, WAVE, CLIPPED, BROKEN = range(RANGE_DB + 1, RANGE_DB + 6)


def tone(frequency: float, *, amplitude: float = 0.5, duration_s: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(duration_s * rate)) / rate)).astype(np.float32)


def indices(png: bytes) -> np.ndarray:
    """Places in the palette of every pixel, [height, width], read back by another reader of PNG."""
    pixels = np.round(matplotlib.image.imread(io.BytesIO(png))[..., :3] * 255).astype(int)
    place = {tuple(color): index for index, color in enumerate(palette().tolist())}
    return np.array([[place[tuple(pixel)] for pixel in row] for row in pixels.tolist()])  # no colour but ours


def spectrogram(waveform: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Rows of the upper part, low frequencies first."""
    return indices(thumbnail(waveform, rate))[:72][::-1]


def envelope(waveform: np.ndarray, rate: int = RATE) -> np.ndarray:
    return indices(thumbnail(waveform, rate))[72:]


def row_of(frequency: float) -> int:
    """Row of a frequency, from the formula of the mel scale: 72 rows are 2595 lg(1 + 24000 / 700) = 4015 mel."""
    return int(72 * np.log10(1 + frequency / 700) / np.log10(1 + 24000 / 700))


def test_a_png_that_others_read_comes_back_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, len(palette()), (5, 7), dtype=np.uint8)
    assert np.array_equal(indices(encode_png(pixels, palette())), pixels)


def test_no_two_colours_are_equal_and_louder_is_brighter() -> None:
    colors = palette().astype(float)
    assert len(np.unique(colors, axis=0)) == RANGE_DB + 6
    luminance = colors[: RANGE_DB + 1] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -1e-9).all()
    assert luminance[0] < 10
    assert luminance[-1] > 230


@pytest.mark.parametrize(("width", "height"), [(240, 96), (1, 8), (64, 30)])
def test_the_picture_has_the_size_that_was_asked_for(width: int, height: int) -> None:
    assert indices(thumbnail(tone(1000), RATE, width=width, height=height)).shape == (height, width)


@pytest.mark.parametrize("frequency", [200.0, 1000.0, 5000.0, 20000.0])
@pytest.mark.parametrize("rate", [44100, 48000, 96000])
def test_a_tone_lights_its_row_whatever_the_sample_rate(frequency: float, rate: int) -> None:
    levels = spectrogram(tone(frequency, rate=rate), rate)
    levels[levels == NOT_IN_FILE] = 0
    assert abs(int(levels[:, 120].argmax()) - row_of(frequency)) <= 1
    assert (levels[:, 10:-10].argmax(axis=0) == levels[:, 120].argmax()).all()


def test_the_edges_of_the_rows_are_equal_steps_in_mel() -> None:
    edges = row_frequencies(72)
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(24000)
    assert row_of(1000) == np.searchsorted(edges, 1000) - 1


@pytest.mark.parametrize(("amplitude", "level"), [(1.0, 80), (0.1, 60), (0.001, 20), (0.0001, 0), (1e-6, 0)])
def test_level_is_decibels_below_a_sine_at_full_scale(amplitude: float, level: int) -> None:
    # 0.1 is 20 lg 0.1 = -20 dB: 60 above silence. The window loses at most 1.4 dB between two bins.
    loudest = spectrogram(tone(1000, amplitude=amplitude))[:, 120].max()
    assert level - 2 <= loudest <= level


def test_frequencies_that_the_sample_rate_cannot_hold_are_grey() -> None:
    levels = spectrogram(tone(1000, rate=8000), 8000)
    assert (levels[row_of(4000) + 1 :] == NOT_IN_FILE).all()
    assert (levels[: row_of(4000) + 1] <= RANGE_DB).all()


def test_time_goes_from_left_to_right_in_both_parts() -> None:
    waveform = np.concatenate([np.zeros(RATE, np.float32), tone(1000)])
    levels, wave = spectrogram(waveform), envelope(waveform)
    assert levels[:, :110].max() == 0
    assert levels[:, 130:].max() > 60
    assert ((wave == WAVE).sum(axis=0)[:120] == 1).all()
    assert ((wave == WAVE).sum(axis=0)[121:] > 10).all()


def test_a_single_loud_sample_of_ten_minutes_is_seen() -> None:
    waveform = np.zeros(8000 * 600, np.float32)
    waveform[8000 * 300 + 12345] = -0.9  # in column 240 * 0.5026 = 120
    wave = envelope(waveform, 8000)
    assert (wave[:, 120] == WAVE).sum() > 8
    assert (np.delete(wave, 120, axis=1) == WAVE).sum() == 239


@pytest.mark.parametrize(("peak", "marked"), [(1.0, True), (-1.0, True), (32767 / 32768, True), (3.0, True), (0.99, False)])
def test_columns_that_reach_full_scale_are_marked(peak: float, marked: bool) -> None:
    waveform = np.zeros(2400, np.float32)
    waveform[505] = peak  # ten samples a column: column 50
    wave = envelope(waveform)
    assert (wave[:, 50] == CLIPPED).any() == marked
    assert not (np.delete(wave, 50, axis=1) == CLIPPED).any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_column_with_a_sample_that_is_no_number_is_red_and_the_others_are_not(value: float) -> None:
    waveform = tone(1000)
    waveform[RATE // 2 + 20] = value
    picture = indices(thumbnail(waveform, RATE))
    assert (picture[:, 120] == BROKEN).all()
    assert not (np.delete(picture, 120, axis=1) == BROKEN).any()
    assert abs(int(picture[:72][::-1][:, 121].argmax()) - row_of(1000)) <= 1  # its neighbour still shows the tone


def test_a_clip_of_nothing_but_nan_is_red() -> None:
    assert (indices(thumbnail(np.full(100, np.nan, np.float32), RATE)) == BROKEN).all()


def test_a_clip_without_samples_is_black_and_has_no_wave() -> None:
    picture = indices(thumbnail(np.zeros(0, np.float32), RATE))
    assert (picture[:72] == 0).all()
    assert (picture[72:] == BACKGROUND).all()


def test_a_single_sample_fills_the_picture() -> None:
    picture = indices(thumbnail(np.full(1, 0.5, np.float32), RATE))
    assert (picture == picture[:, :1]).all()
    # From 1 in row 0 to -1 in row 23: 0.5 is in row 0.25 * 23 = 5.75.
    assert np.flatnonzero(picture[72:, 0] == WAVE).tolist() == [6]


def test_a_constant_is_a_line_at_its_value_and_bright_at_the_bottom() -> None:
    waveform = np.full(RATE, -0.5, np.float32)
    assert (envelope(waveform)[17] == WAVE).all()  # 0.75 * 23 = 17.25
    levels = spectrogram(waveform)[:, 10:-10]
    assert levels[0].min() == 80  # a constant is not halved between two frequencies: +6 dB, cut at full scale
    assert levels[5:].max() == 0


@pytest.mark.parametrize("rate", [1, 50, 8000, 192000])
def test_any_sample_rate_gives_a_picture(rate: int) -> None:
    assert indices(thumbnail(tone(1000, duration_s=0.01), rate)).shape == (96, 240)


def test_equal_input_gives_equal_bytes_and_is_left_alone() -> None:
    waveform = tone(440)
    before = waveform.copy()
    assert thumbnail(waveform, RATE) == thumbnail(waveform, RATE)
    assert np.array_equal(waveform, before)
