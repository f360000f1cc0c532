import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from clapkit.data import audio, decoded
from clapkit.data.decoded import DecodedClips, DecodedFile, decode_threads, spare_threads
from clapkit.data.manifest import Manifest
from clapkit.errors import AudioError, ConfigError, RunDirError
from clapkit.types import Clip

RATE = 16000


def corpus(folder: Path) -> Manifest:
    """Clips of several formats and rates, some of them spans, longer than a block of the resampler."""
    draw = np.random.default_rng(0)
    clips = []
    for number, (suffix, rate, seconds) in enumerate(
        [("wav", 22050, 5.3), ("flac", 44100, 3.0), ("mp3", 44100, 4.1), ("ogg", 16000, 2.7)]
    ):
        samples = draw.uniform(-0.4, 0.4, (int(rate * seconds), 2))
        soundfile.write(folder / f"{number}.{suffix}", samples, rate)
        clips.append(Clip(f"{number}", f"{number}.{suffix}", audio.check(folder / f"{number}.{suffix}").duration_s, rate))
        clips.append(Clip(f"{number} span", f"{number}.{suffix}", 1.5, rate, start_s=0.75, end_s=2.25))
    return Manifest.write(folder / "manifest.jsonl", clips, root=folder, name="several")


def window(source: DecodedClips, row: int, offset: int, num_samples: int) -> np.ndarray:
    out = np.full(num_samples, 7, dtype=np.float32)
    count = source.read(row, out, offset=offset)
    assert (out[count:] == 7).all()
    return out[:count]


WINDOWS = [(0, 200_000), (1, 100), (4801, 16000), (20_000, 16000), (40_000, 8000), (999_999, 10)]


def test_all_caches_give_the_same_samples(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    sources = {
        name: DecodedClips(manifest, sample_rate=RATE, cache=name, cache_dir=tmp_path) for name in ("none", "memory", "disk")
    }
    for _ in range(2):  # decoded, then kept
        for row in range(len(manifest)):
            for offset, num_samples in WINDOWS:
                expected = window(sources["none"], row, offset, num_samples)
                assert np.array_equal(window(sources["memory"], row, offset, num_samples), expected)
                assert np.array_equal(window(sources["disk"], row, offset, num_samples), expected)
    again = DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=tmp_path)
    for offset, num_samples in WINDOWS:
        assert np.array_equal(window(again, 0, offset, num_samples), window(sources["none"], 0, offset, num_samples))


def test_a_window_is_a_slice_of_the_clip_as_it_is_embedded(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    for row, clip in enumerate(manifest):
        whole = audio.load(manifest.audio_path(clip), sample_rate=RATE, start_s=clip.start_s, end_s=clip.end_s)
        found = window(DecodedClips(manifest, sample_rate=RATE, cache="none"), row, 8000, 20_000)
        np.testing.assert_allclose(found, whole[8000:28_000], atol=2e-6)


def count_decoding(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    decoding: list[str] = []
    load = audio.load_window
    monkeypatch.setattr(audio, "load_window", lambda path, **where: decoding.append(path.name) or load(path, **where))
    return decoding


@pytest.mark.parametrize(("cache", "expected"), [("none", 3), ("memory", 1), ("disk", 1)])
def test_clips_that_are_kept_are_decoded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: decoded.AudioCache, expected: int
) -> None:
    source = DecodedClips(corpus(tmp_path), sample_rate=RATE, cache=cache, cache_dir=tmp_path)
    decoding = count_decoding(monkeypatch)
    for offset in (0, 100, 5000):
        window(source, 0, offset, 1000)
    assert len(decoding) == expected


def test_auto_keeps_what_fits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = corpus(tmp_path)
    # 21.1 s of clips in all (15.1 s and 4 spans of 1.5 s), a little more where MP3 is padded: 1,350,400 bytes at 16 kHz.
    for memory_bytes, expected in ((1_300_000, 2), (1_500_000, 1)):
        source = DecodedClips(manifest, sample_rate=RATE, memory_bytes=memory_bytes)
        decoding = count_decoding(monkeypatch)
        window(source, 0, 0, 10), window(source, 0, 0, 10)
        assert len(decoding) == expected
        monkeypatch.undo()


def test_a_clip_of_unknown_length_is_not_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = corpus(tmp_path)
    manifest = Manifest((replace(known.clips[0], duration_s=None), known.clips[2]), known.root, "unknown", "f")
    source = DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=tmp_path)
    decoding = count_decoding(monkeypatch)
    for row in (0, 0, 1, 1):
        window(source, row, 0, 1000)
    assert decoding == ["0.wav", "0.wav", "1.flac"]


def test_a_clip_longer_than_its_duration_is_not_kept_on_disk(tmp_path: Path) -> None:
    known = corpus(tmp_path)
    manifest = Manifest((replace(known.clips[0], duration_s=1.0), known.clips[2]), known.root, "wrong", "f")
    source = DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=tmp_path)
    expected = window(DecodedClips(known, sample_rate=RATE, cache="none"), 0, 0, 80_000)
    for _ in range(2):
        assert np.array_equal(window(source, 0, 0, 80_000), expected)
    assert len(window(source, 1, 0, 1000)) == 1000


def cache_file(folder: Path) -> Path:
    (path,) = folder.glob("*.decoded")
    return path


def fill(manifest: Manifest, folder: Path) -> Path:
    source = DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=folder)
    for row in range(len(manifest)):
        window(source, row, 0, 1)
    return cache_file(folder)


@pytest.mark.parametrize("damage", ["samples", "record", "cut", "zeros"])
def test_rows_that_are_damaged_are_decoded_again(tmp_path: Path, damage: str) -> None:
    manifest = corpus(tmp_path)
    expected = [window(DecodedClips(manifest, sample_rate=RATE, cache="none"), row, 0, 99_999) for row in range(len(manifest))]
    path = fill(manifest, tmp_path / "cache")
    with path.open("r+b") as file:
        if damage == "samples":
            file.seek(-6000, os.SEEK_END)  # in the last row
            file.write(b"\1" * 8)
        elif damage == "record":
            file.seek(128)
            file.write(b"\xff" * 16)
        elif damage == "cut":
            file.truncate(path.stat().st_size - 30_000)
        else:
            file.truncate(0)
    for _ in range(2):
        source = DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=tmp_path / "cache")
        for row in range(len(manifest)):
            assert np.array_equal(window(source, row, 0, 99_999), expected[row])


def test_a_row_counts_only_with_its_record(tmp_path: Path) -> None:
    # What is on disk when a process is killed between the two writes: samples, and no record.
    manifest = corpus(tmp_path)
    file = DecodedFile(tmp_path / "cache", manifest, sample_rate=RATE)
    samples = np.arange(1000, dtype=np.float32)
    decoded._write_at(file._descriptor, samples, int(file._start[0]))
    assert not file.holds(0)
    file.write(0, samples)
    other = DecodedFile(tmp_path / "cache", manifest, sample_rate=RATE)
    assert other.holds(0)
    # The record of another row, and samples that never reached the disk.
    decoded._write_at(file._descriptor, np.array([1000, 12345], dtype=np.uint64), file._record(1))
    assert not other.holds(1)


def test_a_killed_process_leaves_a_cache_that_can_be_used(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    script = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        import numpy as np
        from clapkit.data.decoded import DecodedClips
        from clapkit.data.manifest import Manifest
        manifest = Manifest.load(Path({str(tmp_path / "manifest.jsonl")!r}))
        source = DecodedClips(manifest, sample_rate={RATE}, cache="disk", cache_dir=Path({str(tmp_path / "cache")!r}))
        for row in range(3):
            source.read(row, np.zeros(10, np.float32))
        print("ready", flush=True)
        while True:
            source._file.write(3, np.ones(100, np.float32)) if row % 2 else source._file.write(3, np.zeros(200, np.float32))
            row += 1
    """)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    file = DecodedFile(tmp_path / "cache", manifest, sample_rate=RATE)
    assert [file.holds(row) for row in (0, 1, 2, 4)] == [True, True, True, False]
    if file.holds(3):  # one of the two, whole
        out = np.full(200, 7, dtype=np.float32)
        assert out[: file.read(3, out, offset=0)].tolist() in ([1.0] * 100, [0.0] * 200)
    source = DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=tmp_path / "cache")
    afresh = DecodedClips(manifest, sample_rate=RATE, cache="none")
    for row in (0, 1, 2, 4):
        assert np.array_equal(window(source, row, 0, 99_999), window(afresh, row, 0, 99_999))


def test_several_writers_share_one_file(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    afresh = DecodedClips(manifest, sample_rate=RATE, cache="none")
    expected = [window(afresh, row, 500, 30_000) for row in range(len(manifest))]
    sources = [DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=tmp_path / "cache") for _ in range(4)]
    jobs = [(source, row) for row in range(len(manifest)) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: window(*job, 500, 30_000), jobs))
    for (_, row), samples in zip(jobs, found, strict=True):
        assert np.array_equal(samples, expected[row])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_file_of_something_else_is_made_anew(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    path = fill(manifest, tmp_path / "cache")
    for content in (b"something else" * 100, path.read_bytes() + b"more"):
        path.write_bytes(content)
        source = DecodedClips(manifest, sample_rate=RATE, cache="disk", cache_dir=tmp_path / "cache")
        assert source._file is not None
        assert not source._file.holds(0)
        window(source, 0, 0, 10)
        assert source._file.holds(0)


def test_other_data_have_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = corpus(tmp_path)
    fewer = Manifest.write(tmp_path / "fewer.jsonl", manifest.clips[:3], root=tmp_path, name="fewer")
    (tmp_path / "copy").mkdir()
    elsewhere = Manifest(manifest.clips, tmp_path / "copy", manifest.name, manifest.fingerprint)
    keys = {
        decoded._key(manifest, RATE),
        decoded._key(manifest, 8000),
        decoded._key(fewer, RATE),
        decoded._key(elsewhere, RATE),
    }
    monkeypatch.setattr("soxr.__libsoxr_version__", "another")
    assert len(keys | {decoded._key(manifest, RATE)}) == 5


def test_the_file_takes_only_the_room_of_what_was_written(tmp_path: Path) -> None:
    clip = replace(corpus(tmp_path).clips[0], duration_s=100_000.0)
    manifest = Manifest((clip,), tmp_path, "long", "f")
    file = DecodedFile(tmp_path / "cache", manifest, sample_rate=RATE)
    assert file.path.stat().st_size > 6_400_000_000
    assert file.path.stat().st_blocks * 512 < 1_000_000


def test_a_disk_without_room_is_said_before_anything_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = corpus(tmp_path)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ConfigError, match=r"--audio-cache disk: 0.0 GB more are needed in .*, 0.0 GB are free; make room"):
        DecodedFile(tmp_path / "cache", manifest, sample_rate=RATE)


def test_a_full_disk_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DecodedFile(tmp_path / "cache", corpus(tmp_path), sample_rate=RATE)

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(RunDirError, match="decoded audio cannot be written \\(No space left on device\\); make room or pass"):
        file.write(0, np.ones(10, np.float32))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    manifest = corpus(tmp_path)
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(RunDirError, match="cannot be kept there"):
        DecodedFile(tmp_path / "cache", manifest, sample_rate=RATE)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, cache: decoded.AudioCache) -> None:
    source = DecodedClips(corpus(tmp_path), sample_rate=RATE, cache=cache, cache_dir=tmp_path)
    (tmp_path / "0.wav").unlink()
    with pytest.raises(AudioError, match="0.wav: cannot be opened"):
        window(source, 0, 0, 10)


@pytest.mark.parametrize(
    ("cores", "files", "processes", "expected"),
    [
        (8, {}, 1, 8),
        (8, {}, 4, 2),
        (2, {}, 8, 1),
        (96, {}, 1, 16),
        (96, {}, 8, 12),
        (8, {"cpu.max": "max 100000\n"}, 1, 8),
        (8, {"cpu.max": "350000 100000\n"}, 1, 3),
        (8, {"cpu.max": "50000 100000\n"}, 1, 1),
        (8, {"cpu/cpu.cfs_quota_us": "200000\n"}, 1, 2),
        (8, {"cpu/cpu.cfs_quota_us": "-1\n"}, 1, 8),
    ],
)
def test_threads_are_the_cores_left_to_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: int, files: dict[str, str], processes: int, expected: int
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(decoded, "_CGROUPS", tmp_path)
    monkeypatch.setattr(decoded, "num_cores", lambda: cores)
    assert decode_threads(None, processes_here=processes) == expected
    assert decode_threads(5, processes_here=processes) == 5


def test_a_model_on_the_processor_keeps_a_core_where_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clapkit.data.decoded._container_cores", lambda cgroups: 100.0)
    for cores, expected in ((1, 1), (2, 1), (4, 3), (64, 16)):
        monkeypatch.setattr("clapkit.data.decoded.num_cores", lambda cores=cores: cores)
        assert decode_threads(None, is_model_on_cpu=True) == expected
        assert decode_threads(5, is_model_on_cpu=True) == 5


def test_one_thread_is_spare_where_a_model_has_a_core_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clapkit.data.decoded._container_cores", lambda cgroups: 100.0)
    for cores, expected in ((1, 0), (2, 1), (16, 1), (17, 0)):  # 16 threads decode at most
        monkeypatch.setattr("clapkit.data.decoded.num_cores", lambda cores=cores: cores)
        assert spare_threads(None, is_model_on_cpu=True) == expected
        assert spare_threads(None) == 0
        assert spare_threads(3, is_model_on_cpu=True) == 0


def test_no_thread_is_too_few() -> None:
    with pytest.raises(ConfigError, match="--workers 0: expected at least 1 thread"):
        decode_threads(0)
