"""How well near duplicates are found: recall per transformation, false pairs, and the price.

    python tests/bench/bench_near_duplicates.py esc10 --workers 2

Every file of the folder is transformed in memory, and the landmarks of the transformed corpus are looked up among those of the
corpus itself. A false pair is a match of two files that are not of one source: ``--source`` is a regular expression whose first
group names the source within a file name. Seeds are fixed. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
import soxr

from clapkit.data.acoustic import Listener, unpack
from clapkit.data.audio import AUDIO_SUFFIXES
from clapkit.data.near_duplicates import Match, find_matches

Sound = tuple[np.ndarray, int]
STAGES = {"halve the rate": "__call__", "spectra": "_powers", "peaks": "_find_peaks", "landmarks": "_combine"}


def resampled(sound: Sound, rate: int) -> Sound:
    return soxr.resample(sound[0], sound[1], rate, quality="HQ"), rate


def coded(sound: Sound, fmt: str, subtype: str) -> Sound:
    waveform, rate = sound
    stream = io.BytesIO()
    with soundfile.SoundFile(stream, "w", rate, 1, format=fmt, subtype=subtype) as file:
        for start in range(0, len(waveform), rate):  # libsndfile fails on long blocks of Vorbis
            file.write(waveform[start : start + rate])
    stream.seek(0)
    return soundfile.read(stream, dtype="float32")


def noisy(sound: Sound, snr_db: float, seed: int) -> Sound:
    waveform, rate = sound
    noise = np.random.default_rng(seed).standard_normal(len(waveform)).astype(np.float32)
    return waveform + noise * np.float32(np.sqrt(np.mean(waveform**2)) * 10 ** (-snr_db / 20)), rate


def pcm(sound: Sound, gain_db: float) -> Sound:
    scaled = np.clip(sound[0] * np.float32(10 ** (gain_db / 20)), -1, 1)
    return np.round(scaled * 32767).astype(np.float32) / 32767, sound[1]


def cut(sound: Sound, start_s: float) -> Sound:
    return sound[0][round(start_s * sound[1]) :], sound[1]


def padded(sound: Sound, before_s: float, after_s: float = 0.0, level: float = 0.0, seed: int = 0) -> Sound:
    waveform, rate = sound
    draw = np.random.default_rng(seed)
    sides = [(level * draw.standard_normal(round(side_s * rate))).astype(np.float32) for side_s in (before_s, after_s)]
    return np.concatenate([sides[0], waveform, sides[1]]), rate


TRANSFORMATIONS: dict[str, Callable[[Sound, int], Sound]] = {
    "none": lambda sound, seed: sound,
    "8 kHz": lambda sound, seed: resampled(sound, 8000),
    "16 kHz": lambda sound, seed: resampled(sound, 16000),
    "22.05 kHz": lambda sound, seed: resampled(sound, 22050),
    "48 kHz": lambda sound, seed: resampled(sound, 48000),
    "47,999 Hz": lambda sound, seed: resampled(sound, 47999),
    "mp3": lambda sound, seed: coded(sound, "MP3", "MPEG_LAYER_III"),
    "ogg": lambda sound, seed: coded(sound, "OGG", "VORBIS"),
    "-20 dB, 16 bit": lambda sound, seed: pcm(sound, -20),
    "+6 dB, clipped": lambda sound, seed: pcm(sound, 6),
    "first 0.5 s cut off": lambda sound, seed: cut(sound, 0.5),
    "0.5 s of silence in front": lambda sound, seed: padded(sound, 0.5),
    "0.49 s of silence in front": lambda sound, seed: padded(sound, 0.49),
    "white noise, 20 dB SNR": lambda sound, seed: noisy(sound, 20, seed),
    "white noise, 10 dB SNR": lambda sound, seed: noisy(sound, 10, seed),
    "mp3 + noise 20 dB": lambda sound, seed: noisy(coded(sound, "MP3", "MPEG_LAYER_III"), 20, seed),
    "16 kHz + first 0.49 s cut off": lambda sound, seed: resampled(cut(sound, 0.49), 16000),
    "amid 30 s of noise, level 0.001": lambda sound, seed: padded(sound, 11.37, 13.63, 0.001, seed),
}


def read(path: Path) -> Sound:
    waveform, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return waveform.mean(axis=1), rate


def listen(sound: Sound) -> bytes:
    listener = Listener(sound[1])
    listener.hear(sound[0])
    return listener.landmarks()


def listen_to_all(job: tuple[int, Path, Path]) -> dict[str, bytes]:
    """Landmarks of every transformation of one file, and of its mixture with the next one."""
    seed, path, partner = job
    sound = read(path)
    found = {name: listen(transform(sound, seed)) for name, transform in TRANSFORMATIONS.items()}
    other = resampled(read(partner), sound[1])[0]
    count = min(len(sound[0]), len(other))
    levels = [np.sqrt(np.mean(part[:count] ** 2)) + 1e-9 for part in (sound[0], other)]
    found["mixed with another file, 0 dB"] = listen((sound[0][:count] + other[:count] * levels[0] / levels[1], sound[1]))
    return found


def stage_times(num_runs: int = 20) -> dict[str, float]:
    """Milliseconds of one thread for 10 s of 44.1 kHz noise; the profiler adds a little to the parts."""
    waveform = (0.1 * np.random.default_rng(0).standard_normal(441_000)).astype(np.float32)
    listen((waveform, 44100))
    times = []
    for _ in range(num_runs):
        start = time.perf_counter()
        listen((waveform, 44100))
        times.append(time.perf_counter() - start)
    profile = cProfile.Profile()
    profile.runcall(lambda: [listen((waveform, 44100)) for _ in range(num_runs)])
    parts = {key[2]: value[3] for key, value in pstats.Stats(profile).stats.items() if key[0].endswith("acoustic.py")}
    return {"all, fastest": 1e3 * min(times), "all, median": 1e3 * float(np.median(times))} | {
        name: 1e3 * parts[function] / num_runs for name, function in STAGES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default=r"^(\d+-\d+)-", help="regular expression on file names")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--within-only", action="store_true", help="only look for false pairs within the folder")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    named = [re.search(options.source, path.name) for path in paths]
    sources = [name.group(1) if name else str(path) for name, path in zip(named, paths, strict=True)]

    def false_pairs(matches: list[Match]) -> list[Match]:
        return [match for match in matches if sources[match.first] != sources[match.second]]

    with ProcessPoolExecutor(options.workers) as pool:
        if options.within_only:
            found = [{"none": packed} for packed in pool.map(listen, map(read, paths))]
        else:
            jobs = [(seed, path, paths[(seed + 1) % len(paths)]) for seed, path in enumerate(paths)]
            found = list(pool.map(listen_to_all, jobs))
    corpus = [landmarks["none"] for landmarks in found]
    sizes = np.array([len(unpack(landmarks)[0]) for landmarks in corpus])
    print(f"{len(paths)} files, {sizes.mean():.0f} landmarks each; {np.sum(sizes < 8)} files with fewer than 8\n")
    within = find_matches(corpus)
    print(f"{len(within)} pairs within the folder, of two sources: {len(false_pairs(within))}")
    for match in false_pairs(within):
        print(f"- {paths[match.first].name}, {paths[match.second].name}: {match}")
    if not options.within_only:
        print("\n| Transformation | recall | pairs of two sources |\n|---|---|---|")
        for name in found[0]:
            matches = find_matches(corpus, [landmarks[name] for landmarks in found])
            recall = sum(match.first == match.second for match in matches) / len(paths)
            print(f"| {name} | {100 * recall:.1f} % | {len(false_pairs(matches))} |")
    print("\n| Stage | ms per 10 s at 44.1 kHz |\n|---|---|")
    for name, milliseconds in stage_times().items():
        print(f"| {name} | {milliseconds:.2f} |")


if __name__ == "__main__":
    main()
