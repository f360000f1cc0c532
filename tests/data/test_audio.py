import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data import audio
from clapkit.errors import AudioError

RATE = 8000


def ramp(num_frames: int, num_channels: int = 1) -> np.ndarray:
    """Every sample another value, channel c shifted by c/4: exact in 16-bit PCM."""
    steps = np.arange(num_frames) % 4096 / 8192
    return np.stack([steps + channel / 4 for channel in range(num_channels)], axis=1).astype(np.float32)


def noise(num_frames: int, rate: int = RATE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, num_frames).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str | None = None) -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def truncate(path: Path, share: float = 0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


# Reading ----------------------------------------------------------------------------------------------------------------


def test_probe_and_check_agree_on_a_sound_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", ramp(4000, 2))
    assert audio.probe(path) == audio.check(path) == audio.AudioInfo(RATE, 4000, 2)
    assert audio.probe(path).duration_s == 0.5


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff", ".au", ".caf", ".w64", ".rf64"])
def test_lossless_formats_load_exactly(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", ramp(4000), subtype="PCM_16")
    assert audio.check(path).num_frames == 4000
    np.testing.assert_array_equal(audio.load(path, sample_rate=RATE), ramp(4000)[:, 0])


@pytest.mark.parametrize(("suffix", "subtype"), [(".ogg", "VORBIS"), (".opus", "OPUS"), (".mp3", None)])
def test_lossy_formats_pass_the_check(tmp_path: Path, suffix: str, subtype: str | None) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, noise(24000), 24000, format="OGG" if suffix == ".opus" else None, subtype=subtype)
    assert audio.check(path) == audio.AudioInfo(24000, 24000, 1)


def test_padding_of_adpcm_blocks_passes_the_check(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(5000), subtype="IMA_ADPCM")
    assert audio.check(path).num_frames >= 5000


def test_every_suffix_is_taken_for_audio_in_lower_case() -> None:
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in audio.AUDIO_SUFFIXES)


@pytest.mark.parametrize("num_channels", [1, 2, 3])
def test_channels_are_averaged(tmp_path: Path, num_channels: int) -> None:
    path = write(tmp_path / "a.wav", ramp(1000, num_channels), subtype="FLOAT")
    # Channel c is the ramp plus c/4, so the mean is the ramp plus (C - 1)/8.
    expected = ramp(1000)[:, 0] + (num_channels - 1) / 8
    waveform = audio.load(path, sample_rate=RATE)
    assert waveform.dtype == np.float32
    np.testing.assert_allclose(waveform, expected, atol=1e-7)


@pytest.mark.parametrize(("suffix", "num_channels"), [("wav", 1), ("wav", 2), ("wav", 600), ("flac", 3), ("aiff", 8)])
def test_16_bit_samples_are_bit_for_bit_what_libsndfile_makes_of_them(tmp_path: Path, suffix: str, num_channels: int) -> None:
    samples = np.random.default_rng(0).integers(-(2**15), 2**15, (700, num_channels)).astype(np.int16)
    samples[0], samples[1] = -(2**15), 2**15 - 1  # 600 of them add up to more than a float32 counts in ones
    path = write(tmp_path / f"a.{suffix}", samples, subtype="PCM_16")
    floats = soundfile.read(path, dtype="float32", always_2d=True)[0]
    total = floats[:, 0].copy()
    for channel in range(1, num_channels):
        total += floats[:, channel]
    np.testing.assert_array_equal(audio.load(path, sample_rate=RATE), total * np.float32(1 / num_channels))


def test_a_file_longer_than_a_block_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 600)
    path = write(tmp_path / "a.wav", ramp(1000, 2))
    np.testing.assert_allclose(audio.load(path, sample_rate=RATE), ramp(1000)[:, 0] + 0.125, atol=1e-4)
    assert audio.check(path).num_frames == 1000


@pytest.mark.parametrize("target", [16000, 4000, 11025])
def test_resampling_keeps_a_tone_below_both_limits(tmp_path: Path, target: int) -> None:
    path = write(tmp_path / "a.wav", np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE), subtype="FLOAT")
    waveform = audio.load(path, sample_rate=target)
    assert len(waveform) == target
    expected = np.sin(2 * np.pi * 500 * np.arange(target) / target)
    middle = slice(target // 4, -target // 4)
    np.testing.assert_allclose(waveform[middle], expected[middle], atol=1e-3)


def test_resampling_removes_a_tone_above_the_new_limit(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.sin(2 * np.pi * 3000 * np.arange(RATE) / RATE), subtype="FLOAT")
    waveform = audio.load(path, sample_rate=4000)  # would alias to 1000 Hz
    assert np.abs(waveform[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg"])
def test_a_span_is_the_slice_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", noise(4000))
    whole = audio.load(path, sample_rate=RATE)
    np.testing.assert_array_equal(audio.load(path, sample_rate=RATE, start_s=0.1, end_s=0.25), whole[800:2000])
    np.testing.assert_array_equal(audio.load(path, sample_rate=RATE, start_s=0.1), whole[800:])
    np.testing.assert_array_equal(audio.load(path, sample_rate=RATE, end_s=0.5), whole)


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mp3", {"bitrate_mode": "VARIABLE"}), (".mp3", {}), (".ogg", {}), (".flac", {})]
)
def test_a_span_of_a_long_coded_file_is_the_slice_of_the_whole(tmp_path: Path, suffix: str, options: dict[str, str]) -> None:
    # The decoders of MP3 (variable bit rate) and Ogg land elsewhere when they are asked to seek.
    path = tmp_path / f"a{suffix}"
    loud = np.repeat(np.random.default_rng(0).uniform(0, 1, 30), 22050)
    with soundfile.SoundFile(path, "w", 22050, 1, **options) as file:
        for start in range(0, len(loud), 22050):
            file.write(loud[start : start + 22050] * noise(22050))
    whole = audio.load(path, sample_rate=22050)
    for start in np.random.default_rng(1).integers(0, len(whole) - 5000, 12).tolist():
        span = audio.load(path, sample_rate=22050, start_s=start / 22050, end_s=(start + 5000) / 22050)
        np.testing.assert_array_equal(span, whole[start : start + 5000])


@pytest.mark.parametrize("num_channels", [1, 2])
@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_a_window_of_a_span_is_the_slice_of_all_its_windows(tmp_path: Path, suffix: str, num_channels: int) -> None:
    samples = np.stack([noise(RATE * 6)] * num_channels, axis=1)
    path = write(tmp_path / f"a{suffix}", samples)
    span = {"sample_rate": 6000, "start_s": 0.5, "end_s": 5.75}
    whole = audio.load_window(path, offset=0, num_samples=None, **span)
    assert len(whole) == 31500  # 5.25 s
    np.testing.assert_allclose(whole, audio.load(path, **span), atol=1e-6)
    for offset, num_samples in ((0, 10), (11_999, 12_002), (20_000, 99_999), (31_499, 1)):
        window = audio.load_window(path, offset=offset, num_samples=num_samples, **span)
        np.testing.assert_array_equal(window, whole[offset : offset + num_samples])
    assert len(audio.load_window(path, offset=31_500, num_samples=10, **span)) == 0


def test_a_window_outside_of_its_file_or_of_nothing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", ramp(4000))
    with pytest.raises(AudioError, match="expected a span inside its 0.5 s"):
        audio.load_window(path, sample_rate=RATE, offset=0, num_samples=10, start_s=0.4, end_s=0.6)
    with pytest.raises(AudioError, match="1 samples at 8000 Hz are 0 at 1000 Hz"):
        audio.load_window(path, sample_rate=1000, offset=0, num_samples=10, start_s=0.0, end_s=1 / 8000)


@pytest.mark.parametrize(("start_s", "end_s"), [(None, 0.6), (0.5, None), (-0.1, 0.2), (0.3, 0.3), (0.4, 0.2)])
def test_a_span_that_leaves_the_file_is_refused(tmp_path: Path, start_s: float | None, end_s: float | None) -> None:
    path = write(tmp_path / "a.wav", ramp(4000))
    with pytest.raises(AudioError, match=r"a\.wav: span from .*, expected a span inside its 0.5 s"):
        audio.load(path, sample_rate=RATE, start_s=start_s, end_s=end_s)


def test_names_that_look_like_options_or_hold_odd_characters_are_read(tmp_path: Path) -> None:
    for name in ["-x.wav", " lead.wav", "a&amp;b#;'[%20].wav", "日本.wav"]:
        assert audio.probe(write(tmp_path / name, ramp(10))).num_frames == 10


# Statistics -------------------------------------------------------------------------------------------------------------


def test_statistics_of_a_small_file(tmp_path: Path) -> None:
    # Samples 0.5, -1, 0.5, 1: mean 1/4; mean square 2.5/4; variance 0.625 - 0.0625 = 0.5625 = 0.75^2; 2 of 4 clipped.
    path = write(tmp_path / "a.wav", np.array([0.5, -1.0, 0.5, 1.0]), subtype="FLOAT")
    _, found = audio.examine(path)
    assert found == audio.AudioStatistics(1.0, 0.75, 0.25, 0.5, channel_rms=(0.75,), channel_dc_offsets=(0.25,))


def test_the_ceiling_of_16_bit_audio_counts_as_clipped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.array([0.0, 1.5, -1.5, 0.99]), subtype="PCM_16")
    assert audio.examine(path)[1].clipped_share == 0.5


def test_a_header_check_names_format_and_coding(tmp_path: Path) -> None:
    info = audio.probe(write(tmp_path / "a.wav", ramp(100), subtype="PCM_24"))
    assert (info.format, info.subtype, info.length_problem) == ("WAV", "PCM_24", "")


@pytest.mark.parametrize("num_channels", [1, 2, 3])
def test_a_listener_hears_the_mean_of_the_channels_once_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_channels: int
) -> None:
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 600)
    path = write(tmp_path / "a.wav", ramp(1000, num_channels), subtype="FLOAT")
    heard: list[np.ndarray] = []
    infos = []

    def listen(info: audio.AudioInfo, mono: np.ndarray) -> None:
        infos.append(info)
        heard.append(mono)

    audio.examine(path, listen=listen)
    assert len(heard) == -(-1000 * num_channels // 600)
    assert {block.dtype for block in heard} == {np.dtype(np.float32)}
    assert set(infos) == {audio.AudioInfo(RATE, 1000, num_channels)}
    np.testing.assert_array_equal(np.concatenate(heard), audio.load(path, sample_rate=RATE))


def test_a_file_of_a_thousand_channels_is_read_in_blocks_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 1 << 14)
    samples = np.zeros((100, 1024), dtype=np.float32)
    samples[:, 7] = ramp(100)[:, 0]
    sizes: list[int] = []
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    info, found = audio.examine(path, listen=lambda info, mono: sizes.append(len(mono)))
    assert info == audio.AudioInfo(RATE, 100, 1024)
    assert sizes == [16] * 6 + [4]  # 16 * 1024 = 1 << 14
    assert [channel for channel, rms in enumerate(found.channel_rms) if rms] == [7]


# Bad files --------------------------------------------------------------------------------------------------------------


def expect_error(path: Path, message: str) -> None:
    for read in (audio.check, lambda path: audio.load(path, sample_rate=RATE)):
        with pytest.raises(AudioError, match=message) as raised:
            read(path)
        assert "\n" not in str(raised.value)
        assert str(path) in str(raised.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    expect_error(tmp_path / "a.wav", r"is empty \(0 bytes\)")


def test_text_called_wav_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("this is no sound\n" * 20)
    expect_error(tmp_path / "a.wav", r"cannot be read as audio \(Format not recognised\)")


def test_audio_without_frames_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.zeros(0))
    expect_error(path, "holds 0 frames of audio, expected at least 1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused_with_their_place(tmp_path: Path, value: float) -> None:
    samples = ramp(100, 2)
    samples[42, 1] = value
    expect_error(write(tmp_path / "a.wav", samples, subtype="FLOAT"), "NaN or infinite at frame 42, expected finite")


def test_a_missing_file_a_folder_and_raw_samples_are_refused(tmp_path: Path) -> None:
    expect_error(tmp_path / "nope.wav", r"cannot be opened \(No such file or directory\)")
    (tmp_path / "folder.wav").mkdir()
    expect_error(tmp_path / "folder.wav", r"cannot be opened \(Is a directory\)")
    (tmp_path / "a.raw").write_bytes(b"\0" * 100)
    expect_error(tmp_path / "a.raw", "raw samples without a header")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", ramp(10))
    path.chmod(0)
    expect_error(path, r"cannot be opened \(Permission denied\)")


@pytest.mark.parametrize(
    ("suffix", "subtype"),
    [
        (".wav", "PCM_16"),
        (".wav", "FLOAT"),
        (".wav", "IMA_ADPCM"),
        (".rf64", "PCM_16"),
        (".w64", "PCM_16"),
        (".aiff", "PCM_16"),
        (".au", "PCM_16"),
        (".ogg", "VORBIS"),
        (".mp3", None),
    ],
)
def test_a_truncated_file_is_refused_with_both_numbers(tmp_path: Path, suffix: str, subtype: str | None) -> None:
    path = truncate(write(tmp_path / f"a{suffix}", noise(24000), rate=24000, subtype=subtype))
    expect_error(path, r"truncated, \d+ (bytes of audio found|frames decoded), \d+ expected from the header")


def test_the_numbers_of_a_truncated_wav_are_those_of_its_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", ramp(1000), subtype="PCM_16")  # 44 bytes of header, 2000 of data
    path.write_bytes(path.read_bytes()[: 44 + 1200])
    expect_error(path, "truncated, 1200 bytes of audio found, 2000 expected")
    with pytest.raises(AudioError, match="truncated"):
        audio.probe(path)


def test_a_truncated_flac_is_refused(tmp_path: Path) -> None:
    path = truncate(write(tmp_path / "a.flac", noise(24000)))
    expect_error(path, r"decoding failed near frame \d+ of 24000 \(flac decoder lost sync\)")


def test_a_flac_that_does_not_say_its_length_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise(1000))
    content = bytearray(path.read_bytes())
    # STREAMINFO starts at byte 8; its 36 bits of total samples end at byte 18 of it.
    content[8 + 13] &= 0xF0
    content[8 + 14 : 8 + 18] = bytes(4)
    path.write_bytes(content)
    expect_error(path, "does not say how long it is")


def with_header(path: Path, position: int, value: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[position : position + len(value)] = value
    path.write_bytes(content)
    return path


def rejecting_check(path: Path) -> str:
    with pytest.raises(AudioError) as raised:
        audio.check(path)
    return raised.value.check


def test_every_refusal_names_its_check(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.mp3").write_text("<html>not found</html>" * 50)
    assert rejecting_check(tmp_path / "empty.wav") == "empty"
    assert rejecting_check(write(tmp_path / "no frames.wav", np.zeros(0))) == "empty"
    assert rejecting_check(tmp_path / "text.mp3") == "unreadable"
    assert rejecting_check(tmp_path / "missing.wav") == "unreadable"
    assert rejecting_check(write(tmp_path / "nan.wav", np.full(9, np.nan), subtype="FLOAT")) == "not_finite"


@pytest.mark.parametrize("suffix", [".wav", ".rf64", ".w64", ".aiff", ".au", ".caf", ".flac", ".ogg", ".mp3"])
def test_a_cut_file_of_any_format_is_called_truncated(tmp_path: Path, suffix: str) -> None:
    assert rejecting_check(truncate(write(tmp_path / f"a{suffix}", noise(24000), rate=24000))) == "truncated"


@pytest.mark.parametrize("sample_rate", [1, 99, 10_000_001, 2_000_000_000])
def test_a_header_with_an_absurd_sample_rate_is_refused(tmp_path: Path, sample_rate: int) -> None:
    path = with_header(write(tmp_path / "a.wav", ramp(100)), 24, sample_rate.to_bytes(4, "little"))
    expect_error(path, f"its header says {sample_rate} Hz, expected 100 to 10000000 Hz; encode it again")
    assert rejecting_check(path) == "unreadable"


def test_a_header_with_ten_thousand_channels_is_refused(tmp_path: Path) -> None:
    path = with_header(write(tmp_path / "a.wav", ramp(100)), 22, (10_000).to_bytes(2, "little"))
    expect_error(path, "cannot be read as audio")
    assert rejecting_check(path) == "unreadable"


def test_damage_in_the_middle_of_a_flac_is_not_called_truncated(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", noise(24000))
    path = with_header(path, path.stat().st_size // 2, bytes(50))
    expect_error(path, "decoding failed near frame 0 of 24000")
    assert rejecting_check(path) == "unreadable"


def test_a_waveform_too_short_for_the_sample_rate_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", ramp(1))
    with pytest.raises(AudioError, match="1 samples at 8000 Hz are 0 at 1000 Hz"):
        audio.load(path, sample_rate=1000)


# Windows ----------------------------------------------------------------------------------------------------------------


def test_windows_of_a_waveform_that_does_not_divide() -> None:
    assert audio.span_windows(10, window=4, hop=3) == [(0, 4), (3, 7), (6, 10)]
    assert audio.span_windows(11, window=4, hop=3) == [(0, 4), (3, 7), (6, 10), (7, 11)]


@pytest.mark.parametrize("num_samples", [1, 3, 4])
def test_a_short_waveform_is_one_window(num_samples: int) -> None:
    assert audio.span_windows(num_samples, window=4, hop=2) == [(0, num_samples)]


def test_windows_cover_every_sample_and_are_full_for_all_small_sizes() -> None:
    for window in range(1, 7):
        for hop in range(1, window + 1):
            for num_samples in range(window, 30):
                spans = audio.span_windows(num_samples, window=window, hop=hop)
                assert {end - start for start, end in spans} == {window}
                assert {i for start, end in spans for i in range(start, end)} == set(range(num_samples))
                assert spans == sorted(set(spans))


@pytest.mark.parametrize(("num_samples", "window", "hop"), [(0, 4, 2), (5, 0, 1), (5, 4, 0), (5, 4, 5)])
def test_window_sizes_out_of_range_are_refused(num_samples: int, window: int, hop: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= hop <= window"):
        audio.span_windows(num_samples, window=window, hop=hop)
