"""Speed of ``clapkit prepare``, side by side with the least that the same work can be.

Run it from the root of the repository: ``python tests/bench/bench_prepare.py``. It makes its own corpora in a temporary
folder and prints three tables in Markdown, medians of repeats that take turns, so that a busy machine slows both sides alike:

* what ``--check decode`` does to every file (decode, check, measure, listen, hash), and a bare loop that reads each file as
  float32, averages its channels and resamples them to 16 kHz, by format;
* the same with ``--cache-audio flac --cache-rate 16000``, and a bare loop that also writes FLAC of 16 kHz;
* files per second of the whole command with ``--check header``, over tiny files.

Both sides of the first two tables use the same number of worker processes, which are up and warm before the clock starts.
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr

from clapkit.data.copies import CopyPolicy
from clapkit.data.inspection import Job, inspect
from clapkit.data.processes import num_cores

SAMPLE_RATE = 44_100
TARGET_RATE = 16_000
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}
CHUNK_SIZE = 16


def make_corpus(folder: Path, suffix: str, *, num_files: int, seconds: float) -> list[Path]:
    """Write noise with a slow envelope, stereo; every file is another piece of the same sound, which is made once."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    length = round(SAMPLE_RATE * seconds)
    noise = generator.normal(0, 0.1, (length * 2, 2)).astype(np.float32)
    noise *= 0.6 + 0.4 * np.sin(np.arange(len(noise), dtype=np.float32) / SAMPLE_RATE * 9)[:, None]
    paths = []
    for start in generator.integers(0, length, num_files):
        paths.append(folder / f"{len(paths):05d}.{suffix}")
        piece = noise[start : start + length]
        # In pieces, because the Vorbis encoder of libsndfile overflows its stack on long blocks.
        with soundfile.SoundFile(paths[-1], "w", SAMPLE_RATE, 2, FORMATS[suffix]) as file:
            for begin in range(0, length, SAMPLE_RATE):
                file.write(piece[begin : begin + SAMPLE_RATE])
    return paths


def read_bare(path: str, copy: str | None = None) -> int:
    """The least that can be done: decode, average the channels, resample, and write the copy where one is asked for."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples[:, 0] + samples[:, 1]  # forty times as fast as mean(axis=1)
    mono *= np.float32(0.5)
    resampled = soxr.resample(mono, rate, TARGET_RATE, quality="HQ")
    if copy is not None:
        soundfile.write(copy, resampled, TARGET_RATE, format="FLAC", subtype="PCM_16")
    return len(resampled)


def _bare(job: Job) -> int:
    return read_bare(job.path, job.copy)


def _call_all(function: Callable[[Job], object], jobs: list[Job]) -> int:
    for job in jobs:
        function(job)
    return len(jobs)


def seconds_for(pool: ProcessPoolExecutor, function: Callable[[Job], object], jobs: list[Job]) -> float:
    """Wall time of calling a function for every job, in the processes of a pool."""
    chunks = [jobs[start : start + CHUNK_SIZE] for start in range(0, len(jobs), CHUNK_SIZE)]
    start = time.perf_counter()
    done = sum(pool.map(partial(_call_all, function), chunks))
    assert done == len(jobs)
    return time.perf_counter() - start


def jobs_of(paths: list[Path], copies: Path | None) -> list[Job]:
    return [Job(str(path), None if copies is None else str(copies / f"{path.name}.flac")) for path in paths]


def compare(
    corpora: dict[str, list[Path]], *, seconds: float, workers: int, rounds: int, copies: CopyPolicy | None, folder: Path
) -> None:
    """Print a table: hours of audio per minute of prepare and of the bare loop, by format."""
    print(f"| Format | prepare, h/min | bare loop, h/min | ratio | {rounds} rounds |\n|---|---|---|---|---|")
    ours_dir, bare_dir = (None, None) if copies is None else (folder / "ours", folder / "bare")
    ours = partial(inspect, decode=True, copies=copies)
    context = multiprocessing.get_context("spawn")  # as clapkit.data.processes
    with ProcessPoolExecutor(workers, context) as pool:
        for suffix, paths in corpora.items():
            sides = ((ours, jobs_of(paths, ours_dir), ours_dir), (_bare, jobs_of(paths, bare_dir), bare_dir))
            times = []
            for number in range(-1, rounds):
                turn = sides if number % 2 == 0 else sides[::-1]
                taken = {}
                for function, jobs, copies_dir in turn:
                    if copies_dir is not None:
                        # New, because a file system flushes at once what takes the name of an older file.
                        shutil.rmtree(copies_dir, ignore_errors=True)
                        copies_dir.mkdir()
                    taken[function] = seconds_for(pool, function, jobs)
                if number < 0:
                    continue  # now processes are up, libraries loaded, files in memory
                times.append((taken[ours], taken[_bare]))
            ours_s, bare_s = (statistics.median(column) for column in zip(*times, strict=True))
            ratios = sorted(bare / ours for ours, bare in times)
            per_minute = len(paths) * seconds / 3600 * 60
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            print(f"| {suffix} | {per_minute / ours_s:.2f} | {per_minute / bare_s:.2f} | {bare_s / ours_s:.2f} | {spread} |")


def make_tiny_files(folder: Path, num_files: int) -> None:
    """Write WAV files of 10 ms, a thousand to a folder; they differ in one sample."""
    samples = np.zeros(80, np.int16)
    first = folder / "first.wav"
    folder.mkdir()
    soundfile.write(first, samples, 8000)
    content = bytearray(first.read_bytes())
    first.unlink()
    for number in range(num_files):
        if number % 1000 == 0:
            class_folder = folder / f"class {number // 1000}"
            class_folder.mkdir()
        content[-4:] = number.to_bytes(4, "little")
        (class_folder / f"{number:07d}.wav").write_bytes(content)


def bench_headers(folder: Path, *, num_files: int, workers: int, rounds: int) -> None:
    """Print a table: files per second of the whole command, from its start to its end."""
    make_tiny_files(folder / "tiny", num_files)
    call = [sys.executable, "-m", "clapkit", "prepare", str(folder / "tiny"), "--check", "header", "--quiet"]
    call += ["--workers", str(workers), "--run-dir", str(folder / "run"), "--overwrite"]
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
        shutil.rmtree(folder / "run")
    median = statistics.median(times[1:])  # the first one fills the cache of the file system
    print("| Files | seconds | files per second |\n|---|---|---|")
    print(f"| {num_files:,} | {median:.2f} ({min(times[1:]):.2f} to {max(times[1:]):.2f}) | {num_files / median:,.0f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400, help="files of each format")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each of them")
    parser.add_argument("--formats", default=",".join(FORMATS), help="separated by commas")
    parser.add_argument("--files", type=int, default=100_000, help="tiny files for the header check; 0 leaves it out")
    parser.add_argument("--workers", type=int, default=num_cores(), help="processes of either side")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of every measurement")
    parser.add_argument("--folder", type=Path, help="where the corpora are made. [default: a temporary one]")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the temporary folder goes, too
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        made = {
            suffix: make_corpus(folder / suffix, suffix, num_files=given.clips, seconds=given.seconds)
            for suffix in given.formats.split(",")
            if given.clips
        }
        shape = f"{given.clips} files of {given.seconds:g} s, {SAMPLE_RATE} Hz stereo, {given.workers} processes"
        options = {"seconds": given.seconds, "workers": given.workers, "rounds": given.rounds, "folder": folder}
        if made:
            print(f"Decode and audit ({shape})\n")
            compare(made, copies=None, **options)
            print(f"\nDecode, audit and keep FLAC of {TARGET_RATE} Hz ({shape})\n")
            compare(made, copies=CopyPolicy("flac", TARGET_RATE), **options)
        if given.files:
            print(f"\nHeaders only, the whole command ({given.workers} processes)\n")
            bench_headers(folder, num_files=given.files, workers=given.workers, rounds=given.rounds)


if __name__ == "__main__":
    main()
