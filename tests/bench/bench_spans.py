"""Whether the top hit of a query in an hour of sound lies where the sound is.

    clapkit prepare --seed 1 --name unheard
    python tests/bench/bench_spans.py --model RUN --data runs/prepare/unheard --split all

Makes files of pink noise, places one clip of each of three classes in each at a random time, embeds them with
``clapkit embed --pool none`` and a hop of half a window, and asks for each class in each file. A top hit is right if its span
overlaps the place of the clip. Only queries that the model answers on clean clips count: among the three clips of the file,
alone and as they were recorded, that of the class must be the first. Beside the result stands how many hits would be right by
chance, given the lengths of spans, clips and files.

Levels are RMS in dB below full scale. Noise of several levels and hops of several lengths can be given; files are the same
but for the level of their noise. ``--event-db`` brings every clip to one level, otherwise they stay as they were recorded.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from clapkit.config import RetrieveConfig, resolve
from clapkit.data.audio import load
from clapkit.data.manifest import Manifest
from clapkit.steps import inputs, retrieve
from clapkit.types import Clip, SilentReporter

QUIET = SilentReporter()
BLOCK_S = 60
GROUPINGS = ("none", "file")


@dataclass(frozen=True)
class Event:
    """A clip that was placed in a file."""

    file: Path
    sound: str
    clean: Path
    start_s: float
    end_s: float
    level_db: float


def decibels(samples: np.ndarray) -> float:
    return 10 * float(np.log10(np.mean(np.square(samples, dtype=np.float64)) + 1e-12))


class PinkNoise:
    """Noise whose power falls with the frequency."""

    def __init__(self, generator: np.random.Generator, *, level_db: float, sample_rate: int) -> None:
        self._generator, self._size = generator, BLOCK_S * sample_rate
        frequencies = np.fft.rfftfreq(self._size, 1 / sample_rate)
        shape = 1 / np.sqrt(np.maximum(frequencies, 20))
        self._shape = shape / np.sqrt(np.mean(shape**2)) * 10 ** (level_db / 20)
        self._fade = np.sin(np.linspace(0, np.pi / 2, sample_rate))
        self._tail = self._draw()[-sample_rate:]

    def _draw(self) -> np.ndarray:
        white = self._generator.standard_normal(self._size)
        return np.fft.irfft(np.fft.rfft(white) * self._shape, self._size)

    def block(self) -> np.ndarray:
        """The next minute; it fades into the one before, at equal power."""
        drawn = self._draw()
        fade = len(self._fade)
        drawn[:fade] = drawn[:fade] * self._fade + self._tail * self._fade[::-1]
        self._tail = drawn[-fade:].copy()
        return drawn


def read_clips(data: Manifest, classes: list[str], split: str) -> dict[str, list[Clip]]:
    """Clips of one class alone, by class."""
    wanted = data if split == "all" else data.split(split)
    found = {sound: [clip for clip in wanted if clip.labels == (sound,)] for sound in classes}
    for sound, clips in found.items():
        if not clips:
            known = sorted({label for clip in wanted for label in clip.labels})
            sys.exit(f"{data.name}: no clip of {sound!r} alone in split {split!r}; classes: {', '.join(known)}")
    return found


def clean_clip(place: Path, clip: Clip, data: Manifest, *, level_db: float | None, sample_rate: int) -> tuple[Path, np.ndarray]:
    """A clip at the rate of the model, as a file of its own."""
    path = place / "clean" / (clip.id.replace("/", "-") + ".wav")
    samples = load(data.audio_path(clip), sample_rate=sample_rate, start_s=clip.start_s, end_s=clip.end_s)
    if level_db is not None:
        samples = samples * np.float32(10 ** ((level_db - decibels(samples)) / 20))
        samples /= max(1.0, float(np.abs(samples).max()))
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, samples, sample_rate, subtype="FLOAT")
    return path, samples


def make_file(
    place: Path, number: int, clips: dict[str, list[Clip]], data: Manifest, arguments: argparse.Namespace, *, noise_db: float
) -> list[Event]:
    """An hour of noise with a clip of each class, no two of them within half a minute of each other."""
    generator = np.random.default_rng((arguments.seed, number))
    rate, length_s = arguments.sample_rate, round(60 * arguments.minutes)
    path = place / f"{noise_db:g}dB" / f"{number:03}.flac"
    path.parent.mkdir(exist_ok=True)
    slots = generator.permutation(np.arange(10, length_s - 40, 40))[: len(clips)]
    events, placed = [], []
    for slot, (sound, choices) in zip(slots, clips.items(), strict=True):
        clip = choices[generator.integers(len(choices))]
        clean, samples = clean_clip(place, clip, data, level_db=arguments.event_db, sample_rate=rate)
        start = round((slot + generator.uniform(0, 5)) * rate)
        placed.append((start, samples))
        events.append(Event(path, sound, clean, start / rate, (start + len(samples)) / rate, decibels(samples)))
    noise = PinkNoise(generator, level_db=noise_db, sample_rate=rate)
    with soundfile.SoundFile(path, "w", rate, 1, "PCM_16", format="FLAC") as file:
        for first in range(0, length_s * rate, BLOCK_S * rate):
            block = noise.block()[: length_s * rate - first]
            for start, samples in placed:
                begin, end = max(start, first), min(start + len(samples), first + len(block))
                if begin < end:
                    block[begin - first : end - first] += samples[begin - start : end - start]
            file.write(np.clip(block, -1, 1))
    return events


def embed(place: Path, folder: Path, model: Path, *options: str) -> Path:
    name = "-".join([folder.name, *options]).replace("--", "").replace(" ", "")
    command = [sys.executable, "-m", "clapkit", "embed", str(folder), "--model", str(model), "--modality", "audio"]
    command += ["--runs-root", str(place / "runs"), "--name", name, "--store", "fp32", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return place / "runs" / "embed" / name


def ask(embeddings: Path, sentence: str, **options: Any) -> list[dict[str, Any]]:
    """The hits of a sentence."""
    given = {"query": (sentence,), "embeddings": str(embeddings), **options}
    hits: list[dict[str, Any]] = retrieve.run(resolve(RetrieveConfig, given), None, QUIET)["results"][0]["hits"]
    return hits


def is_answered(event: Event, events: list[Event], clean: Path, sentence: str) -> bool:
    """Whether the clip of the event is the first among the clean clips of its file."""
    scores = {hit["path"]: hit["score"] for hit in ask(clean, sentence, k=len(list((clean.parents[2] / "clean").iterdir())))}
    best = max((other for other in events if other.file == event.file), key=lambda other: scores[str(other.clean)])
    return best is event


def overlaps(event: Event, hit: dict[str, Any]) -> bool:
    return bool(hit["start_s"] < event.end_s and event.start_s < hit["end_s"])


def report(found: dict[str, list[bool]], left_out: dict[str, int]) -> None:
    for sound, right in {**found, "all": sum(found.values(), [])}.items():
        out = left_out[sound] if sound != "all" else sum(left_out.values())
        share = f"{100 * sum(right) / len(right):5.1f} %" if right else "none"
        print(f"  {sound:20} {share:>8}   {sum(right)} of {len(right)}, left out {out}")


def measure(
    embeddings: Path, events: list[Event], answered: list[bool], arguments: argparse.Namespace, *, noise_db: float
) -> None:
    for grouping in GROUPINGS:
        found: dict[str, list[bool]] = {sound: [] for sound in arguments.classes}
        left_out: dict[str, int] = defaultdict(int)
        lengths, chances, wrong = [], [], []
        for event, counts in zip(events, answered, strict=True):
            if not counts:
                left_out[event.sound] += 1
                continue
            where = f"path == {str(event.file)!r}"
            hit = ask(embeddings, arguments.prompt.format(event.sound), where=where, group_by=grouping, k=1)[0]
            found[event.sound].append(overlaps(event, hit))
            lengths.append(hit["end_s"] - hit["start_s"])
            chances.append(min(1, (lengths[-1] + event.end_s - event.start_s) / (60 * arguments.minutes)))
            if not found[event.sound][-1]:
                wrong.append((event, hit))
        if not lengths:
            sys.exit("the model answers none of the queries on clean clips, so that there is nothing to measure")
        print(
            f" --group-by {grouping}: top hits that overlap the truth; spans of {np.median(lengths):.1f} s in the median, "
            f"{max(lengths):.1f} s at most, right by chance {100 * np.mean(chances):.1f} %"
        )
        report(found, left_out)
        for event, hit in wrong if arguments.show else []:
            print(
                f"    wrong: {event.sound} of {event.level_db:.1f} dB, {event.level_db - noise_db:+.1f} dB to the noise, at "
                f"{event.start_s:.1f} s in {event.file.name}; found {hit['start_s']:.1f} s with {hit['score']:.3f}"
            )


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="train run")
    parser.add_argument("--data", type=Path, required=True, help="prepare run that the clean clips are from")
    parser.add_argument("--split", default="test", help="of the clean clips, or all")
    parser.add_argument("--classes", nargs=3, default=["dog barking", "bell ringing", "siren wailing"])
    parser.add_argument("--prompt", default="This is a sound of {}.")
    parser.add_argument("--files", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--noise-db", type=float, nargs="+", default=[-40])
    parser.add_argument("--event-db", type=float, help="level of every clip [default: as recorded]")
    parser.add_argument("--hops", type=float, nargs="+", default=[0.5], help="in windows")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="an empty one for files and vectors [default: a temporary one]")
    parser.add_argument("--show", action="store_true", help="list the wrong hits")
    return parser.parse_args()


def run(arguments: argparse.Namespace, place: Path) -> None:
    model = inputs.resolve_model(str(arguments.model), runs_root=place)
    spec = inputs.load_model(model.path, device="cpu").audio_spec
    arguments.sample_rate = spec.sample_rate
    data = Manifest.load(arguments.data / "manifest.jsonl")
    clips = read_clips(data, arguments.classes, arguments.split)
    choices = ", ".join(f"{len(some)} of {sound}" for sound, some in clips.items())
    print(
        f"{arguments.files} files of {arguments.minutes:g} minutes, {spec.sample_rate} Hz, seed {arguments.seed}; "
        f"clips of {data.name}: {choices}"
    )
    for noise_db in arguments.noise_db:
        events = [
            event
            for number in range(arguments.files)
            for event in make_file(place, number, clips, data, arguments, noise_db=noise_db)
        ]
        levels = [event.level_db for event in events]
        clean = place / "runs" / "embed" / "clean"
        if not clean.exists():
            embed(place, place / "clean", model.path)
        answered = [is_answered(event, events, clean, arguments.prompt.format(event.sound)) for event in events]
        for hop in arguments.hops:
            started = time.perf_counter()
            embeddings = embed(
                place, place / f"{noise_db:g}dB", model.path, "--pool", "none", "--hop-s", f"{hop * spec.window_s:g}"
            )
            print(
                f"noise of {noise_db:g} dB, clips of {min(levels):.0f} to {max(levels):.0f} dB, "
                f"median {np.median(levels):.0f}, windows of {spec.window_s:g} s every {hop * spec.window_s:g} s, "
                f"embedded in {time.perf_counter() - started:.0f} s"
            )
            measure(embeddings, events, answered, arguments, noise_db=noise_db)


def main() -> None:
    arguments = read_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        place = (arguments.folder or Path(temporary)).absolute()
        place.mkdir(exist_ok=True)
        run(arguments, place)


if __name__ == "__main__":
    main()
