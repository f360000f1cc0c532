"""What embedding sound costs around the model: its speed beside the bare forward pass, and its memory.

    python tests/bench/bench_embed.py --threads 1
    python tests/bench/bench_embed.py --threads 1 --parts throughput --tower ced-small --clips 64

``throughput`` embeds wav and flac files that it makes (10 s, stereo, 44.1 kHz), end to end, runs the same model on the same
windows, decoded and batched beforehand, and decodes alone; all take turns within one run. ``cache`` does it once more with all
files known to a cache of vectors. ``memory`` embeds in fresh processes and reads their high-water marks (Linux only):
1,000 and 20,000 short files, and one file of 10 minutes and one of 3 hours, with the towers ``tiny``.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch

from clapkit.data.audio import load, span_windows
from clapkit.data.decoded import decode_threads, spare_threads
from clapkit.data.manifest import Manifest
from clapkit.data.processes import num_cores
from clapkit.data.streaming import read_content, stream_samples
from clapkit.encoders.dual import DualEncoder
from clapkit.steps.embedding import EmbeddedClip, stream_clips
from clapkit.steps.vector_cache import VectorCache
from clapkit.types import Clip, SilentReporter

STATUS = Path("/proc/self/status")
QUIET = SilentReporter()
BATCH = 32
BARE = "bare forward"


def make_model(name: str) -> DualEncoder:
    torch.manual_seed(0)
    name, _, size = name.partition("-")
    options = {"size": size} if size else {}
    return DualEncoder(
        name, "tiny", embedding_dim=512, audio_options=options, text_options={"captions": ["a dog barks"]}
    ).eval()


def make_files(folder: Path, suffix: str, *, count: int, seconds: float, sample_rate: int, channels: int) -> Manifest:
    """Coloured noise, as files of one format."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(count):
        noise = np.cumsum(draw.standard_normal((round(seconds * sample_rate), channels)), axis=0)
        samples = (0.3 * noise / np.abs(noise).max()).astype(np.float32)
        soundfile.write(folder / f"{number:05}.{suffix}", samples, sample_rate, subtype="PCM_16")
    return manifest_of(folder)


def manifest_of(folder: Path) -> Manifest:
    clips = tuple(Clip(name, name) for name in sorted(os.listdir(folder)))
    return Manifest(clips, root=folder, name=folder.name, fingerprint=folder.name)


def prepared_batches(model: DualEncoder, manifest: Manifest) -> list[tuple[torch.Tensor, torch.Tensor]]:
    spec = model.audio_spec
    windows = []
    for clip in manifest:
        waveform = load(manifest.audio_path(clip), sample_rate=spec.sample_rate)
        spans = span_windows(len(waveform), window=spec.window_samples, hop=spec.window_samples)
        windows += [waveform[start:end] for start, end in spans]
    batches = []
    for first in range(0, len(windows), BATCH):
        batch = torch.zeros(len(windows[first : first + BATCH]), spec.window_samples)
        for row, window in enumerate(windows[first : first + BATCH]):
            batch[row, : len(window)] = torch.from_numpy(window)
        batches.append((batch, torch.tensor([len(window) for window in windows[first : first + BATCH]])))
    return batches


def seconds_of(work: Callable[[], None]) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def throughput(arguments: argparse.Namespace, place: Path) -> None:
    model = make_model(arguments.tower)
    spec = model.audio_spec
    always, spare = decode_threads(None, is_model_on_cpu=True), spare_threads(None, is_model_on_cpu=True)
    print(
        f"throughput: tower {arguments.tower} ({spec.sample_rate} Hz, windows of {spec.window_s:g} s), batch {BATCH}, "
        f"{arguments.clips} clips of {arguments.seconds:g} s, stereo 44.1 kHz, {num_cores()} cores; threads: "
        f"{arguments.threads} run the model, {always} decode, {spare} more while it waits; medians of {arguments.rounds} rounds"
    )
    kinds = {
        suffix: make_files(
            place / suffix, suffix, count=arguments.clips, seconds=arguments.seconds, sample_rate=44100, channels=2
        )
        for suffix in ("wav", "flac")
    }
    batches = prepared_batches(model, kinds["wav"])
    num_windows = sum(len(lengths) for _, lengths in batches)
    works = {BARE: partial(forward, model, batches)}
    for suffix, manifest in kinds.items():
        for name, with_content in ((suffix, False), (f"{suffix}, hashed", True)):
            works[f"{name}, decode alone"] = partial(decode, manifest, sample_rate=spec.sample_rate, with_content=with_content)
            works[name] = partial(embed, model, manifest, with_content=with_content)
    found = take_turns(works, rounds=arguments.rounds)
    for name, times in found.items():
        print(f"  {name:26} {num_windows / statistics.median(times):7.1f} windows/s", end="")
        decoding = found.get(f"{name}, decode alone")
        print("" if decoding is None else share(times, found[BARE], decoding, threads=arguments.threads))


def forward(model: DualEncoder, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    with torch.inference_mode():
        for waveform, lengths in batches:
            model.encode_audio(waveform, lengths)


def decode(manifest: Manifest, *, sample_rate: int, with_content: bool) -> None:
    """What the threads that decode do, in one thread with nothing beside it."""
    for clip in manifest:
        path = manifest.audio_path(clip)
        if with_content:
            read_content(path)
        for _ in stream_samples(path, sample_rate=sample_rate):
            pass


def embed(model: DualEncoder, manifest: Manifest, *, with_content: bool) -> None:
    for _ in stream_clips(model, manifest, reporter=QUIET, with_content=with_content):
        pass


def take_turns(works: Mapping[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each in every round; one more round, the first, is warm-up."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            seconds = seconds_of(work)
            if number:
                found[name].append(seconds)
    return found


def share(times: list[float], bare: list[float], decoding: list[float], *, threads: int) -> str:
    """The speed as a share of the bare forward pass, and the largest share that the cores allow.

    No schedule is faster than one where all cores do nothing but run the model and decode, each at the speed it has alone.
    """
    shares = [bare_s / seconds for bare_s, seconds in zip(bare, times, strict=True)]
    bounds = [
        min(1.0, num_cores() * bare_s / (threads * bare_s + decoding_s))
        for bare_s, decoding_s in zip(bare, decoding, strict=True)
    ]
    return (
        f"   {statistics.median(shares):5.3f} of {BARE} ({min(shares):.3f} to {max(shares):.3f}), "
        f"bound {statistics.median(bounds):5.3f} ({min(bounds):.3f} to {max(bounds):.3f})"
    )


def cache(arguments: argparse.Namespace, place: Path) -> None:
    """All files embedded once, and once more from the cache."""
    model = make_model("small")
    manifest = make_files(
        place / "cached", "wav", count=arguments.clips, seconds=arguments.seconds, sample_rate=44100, channels=2
    )
    with VectorCache(place / "cache.db", scope="bench") as kept:

        def known(clip: Clip, content: str) -> EmbeddedClip | None:
            entry = kept.get(content, clip.start_s, clip.end_s)
            return None if entry is None else EmbeddedClip(0, *entry)

        def embed_with_cache() -> None:
            for clip in stream_clips(model, manifest, reporter=QUIET, known=known):
                assert isinstance(clip, EmbeddedClip)
                assert clip.content is not None
                kept.put(clip.content, None, None, clip.vectors, clip.spans, clip.num_windows)
            kept.flush()

        first, second = seconds_of(embed_with_cache), seconds_of(embed_with_cache)
    print(
        f"cache: {arguments.clips} wav files of {arguments.seconds:g} s, {first:.2f} s without and {second:.2f} s with their "
        f"vectors in the cache, {first / second:.0f} times as fast, {place.joinpath('cache.db').stat().st_size / 2**20:.1f} MiB"
    )


def memory(arguments: argparse.Namespace, place: Path) -> None:
    make_short_files(place / "short")
    for count in (1_000, 20_000):
        folder = place / f"{count}"
        folder.mkdir()
        for number in range(count):
            os.link(place / "short" / f"{number % 10:05}.wav", folder / f"{number:05}.wav")
    for minutes in (10, 180):
        for suffix in ("wav", "flac"):
            make_long_file(place / f"{minutes} minutes {suffix}", suffix, minutes=minutes)
    print("memory: high-water mark of the process with its libraries, MiB, and above that before it embeds; tower tiny")
    for names in (("1000", "20000"), ("10 minutes wav", "180 minutes wav"), ("10 minutes flac", "180 minutes flac")):
        peaks = [peak_of(place / name, threads=arguments.threads) for name in names]
        for name, (peak, above) in zip(names, peaks, strict=True):
            print(f"  {name:16} {peak:7.1f} ({peak / peaks[0][0]:.3f})   {above:7.1f}")


def make_short_files(folder: Path) -> None:
    make_files(folder, "wav", count=10, seconds=0.5, sample_rate=8000, channels=1)


def make_long_file(folder: Path, suffix: str, *, minutes: int) -> None:
    folder.mkdir()
    block = np.random.default_rng(0).uniform(-0.1, 0.1, 60 * 16000).astype(np.float32)
    with soundfile.SoundFile(folder / f"long.{suffix}", "w", samplerate=16000, channels=1, subtype="PCM_16") as file:
        for _ in range(minutes):
            file.write(block)


def peak_of(folder: Path, *, threads: int) -> tuple[float, float]:
    command = [sys.executable, __file__, "--embed", str(folder), "--threads", str(threads)]
    peak, above = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(peak), float(above)


def high_water_mib() -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def embed_one(folder: Path) -> None:
    """What a fresh process does: embed a folder, and say how much memory it took."""
    model = make_model("tiny")
    spec = model.audio_spec
    with torch.inference_mode():
        model.encode_audio(torch.zeros(BATCH, spec.window_samples), torch.full((BATCH,), spec.window_samples))
    before = high_water_mib()
    manifest = manifest_of(folder)
    num_clips = sum(isinstance(clip, EmbeddedClip) for clip in stream_clips(model, manifest, reporter=QUIET, with_content=True))
    assert num_clips == len(manifest)
    after = high_water_mib()
    print(after, after - before)


def main() -> None:
    parts: dict[str, Callable[[argparse.Namespace, Path], None]] = {"throughput": throughput, "cache": cache, "memory": memory}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the model")
    parser.add_argument("--clips", type=int, default=384)
    parser.add_argument("--tower", default="small", help="of throughput: small, or ced-tiny, ced-mini, ced-small, ced-base")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--embed", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.embed is not None:
        embed_one(arguments.embed)
        return
    with tempfile.TemporaryDirectory() as place:
        for name in arguments.parts:
            parts[name](arguments, Path(place))


if __name__ == "__main__":
    main()
