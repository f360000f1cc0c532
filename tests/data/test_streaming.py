import os
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import xxhash

from clapkit.data import audio
from clapkit.data.streaming import expect_unchanged, read_content, stream_samples, stream_windows
from clapkit.errors import AudioError

RATE = 8000


def noise(num_frames: int, num_channels: int = 1) -> np.ndarray:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (num_frames, num_channels))
    return samples.astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **options: str) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def whole(path: Path, **options: float) -> np.ndarray:
    return np.concatenate(list(stream_samples(path, **options)))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_BLOCK_VALUES", 3001)


# Samples ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample_rate", [8000, 16000, 11025, 6000])
@pytest.mark.parametrize("seconds", [0.3, 5.0, 10.0, 10.01, 17.3])
@pytest.mark.usefixtures("small_blocks")
def test_a_stream_gives_the_samples_of_the_whole_file_bit_for_bit(tmp_path: Path, sample_rate: int, seconds: float) -> None:
    path = write(tmp_path / "a.wav", noise(round(seconds * RATE), 2))
    expected = audio.load_window(path, sample_rate=sample_rate, offset=0, num_samples=None)
    np.testing.assert_array_equal(whole(path, sample_rate=sample_rate), expected)


@pytest.mark.parametrize(("start_s", "end_s"), [(None, 2.5), (0.7, None), (0.7, 2.5), (6.1, 12.9)])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.usefixtures("small_blocks")
def test_a_span_is_streamed_as_it_is_loaded(tmp_path: Path, suffix: str, start_s: float | None, end_s: float | None) -> None:
    path = write(tmp_path / f"a.{suffix}", noise(13 * RATE, 2))
    span = {"start_s": start_s, "end_s": end_s}
    expected = audio.load_window(path, sample_rate=11025, offset=0, num_samples=None, **span)
    np.testing.assert_array_equal(whole(path, sample_rate=11025, **span), expected)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "IMA_ADPCM"])
def test_every_coding_is_streamed_as_it_is_loaded(tmp_path: Path, subtype: str) -> None:
    path = write(tmp_path / "a.wav", noise(9 * RATE), subtype=subtype)
    expected = audio.load(path, sample_rate=RATE, start_s=0.5)
    np.testing.assert_array_equal(whole(path, sample_rate=RATE, start_s=0.5), expected)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_are_arrays_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(4 * RATE))
    blocks = list(stream_samples(path, sample_rate=RATE))
    assert len(blocks) == 11  # 32,000 frames in blocks of 3,001
    np.testing.assert_array_equal(np.concatenate(blocks), audio.load(path, sample_rate=RATE))


def test_an_mpeg_file_that_comes_short_of_its_header_is_as_long_as_what_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.mp3", noise(3 * RATE))
    blocks = audio._blocks

    def short(*arguments: object, **options: object) -> object:
        path, file, num_frames = arguments
        return blocks(path, file, num_frames - 1000, **options)  # type: ignore[arg-type,operator]

    monkeypatch.setattr(audio, "_blocks", short)
    assert len(whole(path, sample_rate=RATE)) == 3 * RATE - 1000
    np.testing.assert_array_equal(whole(path, sample_rate=RATE), audio.load(path, sample_rate=RATE))


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_a_truncated_file_is_refused_as_load_refuses_it(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", noise(4 * RATE))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    with pytest.raises(AudioError) as expected:
        audio.load(path, sample_rate=RATE)
    with pytest.raises(AudioError, match=r"truncated|damaged") as found:
        whole(path, sample_rate=RATE)
    assert (str(found.value), found.value.check) == (str(expected.value), expected.value.check)


@pytest.mark.usefixtures("small_blocks")
def test_a_bad_sample_is_found_where_it_is_and_what_lies_before_it_was_given(tmp_path: Path) -> None:
    samples = noise(3 * RATE)
    samples[20_000] = np.nan
    path = write(tmp_path / "a.wav", samples, subtype="FLOAT")
    given = []
    with pytest.raises(AudioError, match="NaN or infinite at frame 20000") as found:
        given.extend(stream_samples(path, sample_rate=RATE, start_s=0.5))
    assert found.value.check == "not_finite"
    assert sum(map(len, given)) == 4 * 3001 + 3001  # from frame 4,000 to 19,005; the next block holds frame 20,000


def test_a_span_that_ends_behind_the_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(RATE))
    with pytest.raises(AudioError, match=r"span from 0.5 s to 2.0 s, expected a span inside its 1 s"):
        whole(path, sample_rate=RATE, start_s=0.5, end_s=2.0)


def test_a_clip_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(1), rate=48000)
    with pytest.raises(AudioError, match="1 samples at 48000 Hz are 0 at 8000 Hz"):
        whole(path, sample_rate=8000)


def test_the_file_is_closed_when_a_stream_is_given_up(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(30 * RATE))
    opened = Path("/proc/self/fd")

    def is_open() -> bool:
        return any(os.path.realpath(link) == os.path.realpath(path) for link in opened.iterdir())

    stream = stream_samples(path, sample_rate=6000)
    next(stream)
    assert not opened.exists() or is_open()
    stream.close()
    assert not opened.exists() or not is_open()
    path.unlink()


@pytest.mark.usefixtures("small_blocks")
def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path: Path) -> None:
    def peak(seconds: int) -> int:
        path = write(tmp_path / "a.wav", noise(seconds * RATE), subtype="PCM_16")
        tracemalloc.start()
        for _ in stream_windows(stream_samples(path, sample_rate=6000), window=6000, hop=3000):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1)  # whatever is imported on the way
    # Four minutes at 8 kHz would be 7.7 MB of float32, eight times what half a minute is.
    assert peak(240) < 1.1 * peak(30) < 2_000_000


# Windows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 3, 10, 11, 1000])
def test_windows_are_those_of_the_whole_waveform(block: int) -> None:
    for length in range(1, 45):
        waveform = np.arange(length, dtype=np.float32)
        for window, hop in ((10, 10), (10, 4), (10, 1), (7, 5), (1, 1)):
            parts = [waveform[at : at + block] for at in range(0, length, block)]
            found = list(stream_windows(parts, window=window, hop=hop))
            spans = audio.span_windows(length, window=window, hop=hop)
            assert [(start, start + len(samples)) for start, samples in found] == spans
            for start, samples in found:
                np.testing.assert_array_equal(samples, waveform[start : start + len(samples)])


def test_a_window_is_given_as_soon_as_its_last_sample_is_there() -> None:
    taken = []

    def blocks():
        for number in range(5):
            taken.append(number)
            yield np.full(4, number, np.float32)

    windows = stream_windows(blocks(), window=6, hop=6)
    next(windows)
    assert taken == [0, 1]


def test_windows_share_no_memory() -> None:
    first, second = (samples for _, samples in stream_windows([np.zeros(12, np.float32)], window=8, hop=4))
    assert not np.shares_memory(first, second)


def test_nothing_gives_no_window() -> None:
    assert list(stream_windows([], window=6, hop=6)) == []


def test_a_hop_that_leaves_samples_out_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        list(stream_windows([np.zeros(9, np.float32)], window=2, hop=3))


# Content ----------------------------------------------------------------------------------------------------------------


def test_content_is_the_hash_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 5000)
    content = read_content(tmp_path / "a.bin")
    assert content.hash == xxhash.xxh3_128_hexdigest(bytes(range(256)) * 5000)
    assert content.num_bytes == 1_280_000


def test_a_member_of_a_tar_file_is_hashed_as_its_own_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(500))
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        archive.add(path, "a.wav")
    member = read_content(tmp_path / "shard.tar" / "a.wav")
    assert member.hash == read_content(path).hash
    assert member.num_bytes == path.stat().st_size
    expect_unchanged(tmp_path / "shard.tar" / "a.wav", member)
    np.testing.assert_array_equal(whole(tmp_path / "shard.tar" / "a.wav", sample_rate=RATE), whole(path, sample_rate=RATE))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nowhere.wav: cannot be opened \(No such file or directory\)"):
        read_content(tmp_path / "nowhere.wav")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AudioError, match=r"a.wav: cannot be opened \(Not a directory\)"):
        read_content(tmp_path / "file" / "a.wav")


def test_a_file_that_was_written_since_is_found_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", noise(500))
    content = read_content(path)
    expect_unchanged(path, content)
    os.utime(path, ns=(1, 1))
    with pytest.raises(AudioError, match="was written while it was read"):
        expect_unchanged(path, content)
    path.unlink()
    with pytest.raises(AudioError, match="cannot be opened any more"):
        expect_unchanged(path, content)
