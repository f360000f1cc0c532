"""Data and tables of the studies of ``docs/studies/family.md``; ``family.sh`` calls it.

One of these, where RUN is a run of ``clapkit prepare`` and RUNS the folder of all runs::

    python docs/studies/family.py plant RUN OUT.jsonl --percent 20   # captions of a fifth of the training clips change places
    python docs/studies/family.py half RUN OUT.jsonl --which a       # the clips of every second class
    python docs/studies/family.py long RUN OUT-FOLDER --train 600    # each clip somewhere in five minutes of noise
    python docs/studies/family.py choose RUNS NAME NAME              # which of two orders they take captions to say
    python docs/studies/family.py nearest RUNS NAME NAME             # whose captions are nearest to a sound
    python docs/studies/family.py table RUNS noise                   # what the runs have measured, as Markdown
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile

import clapkit
from clapkit.data.audio import load
from clapkit.data.manifest import Manifest
from clapkit.metrics.statistics import bootstrap_intervals, weighted_mean
from clapkit.types import Clip

GALLERIES = ("test", "test-2", "test-3", "test-4")
SAMPLE_RATE, NOISE_DBFS = 16000, -45
LONG = ("short", "long-one", "long-mean", "long-attention", "long-softmax")
NEAREST = ("right", "part", "alike", "composite")
TEMPORAL = ("order_accuracy", "sentence_accuracy", "first_event_accuracy", "both_events")


def plant(source: Manifest, out: Path, *, percent: int, seed: int = 0) -> None:
    """Let the captions of some training clips change places, so that none of these keeps its own."""
    rows = np.flatnonzero([clip.split == "train" for clip in source.clips])
    rng = np.random.default_rng([seed, percent])
    chosen = rng.permutation(rows)[: round(len(rows) * percent / 100)]
    clips = list(source.clips)
    for row, giver in zip(chosen, np.roll(chosen, 1), strict=True):
        extra = {**source.clips[row].extra, "planted": True}
        clips[row] = dataclasses.replace(source.clips[row], captions=source.clips[giver].captions, extra=extra)
    Manifest.write(out, clips, root=source.root.resolve(), name=f"{source.name}-noisy-{percent}")


def half(source: Manifest, out: Path, *, which: str) -> None:
    """The clips whose only label is one of every second class, in the order of the alphabet."""
    labels = sorted({label for clip in source.clips for label in clip.labels})["ab".index(which) :: 2]
    clips = [clip for clip in source.clips if len(clip.labels) == 1 and clip.labels[0] in labels]
    Manifest.write(out, clips, root=source.root.resolve(), name=f"{source.name}-{which}")


def long(source: Manifest, folder: Path, *, train: int, seconds: int, jobs: int) -> None:
    """Files of minutes of quiet noise, each with one clip at a random place; galleries as they are, train cut short."""
    taken = [clip for clip in source.clips if clip.split == "train"][:train]
    taken += [clip for clip in source.clips if clip.split in ("val", "test")]
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    write = partial(_write_long, source, folder, seconds)
    with ProcessPoolExecutor(jobs) as pool:
        clips = list(pool.map(write, taken, range(len(taken)), chunksize=8))
    Manifest.write(folder / "manifest.jsonl", clips, root=folder.resolve(), name=f"{source.name}-long")


def _write_long(source: Manifest, folder: Path, seconds: int, clip: Clip, number: int) -> Clip:
    sound = load(source.audio_path(clip), sample_rate=SAMPLE_RATE)
    rng = np.random.default_rng(number)
    waveform = rng.standard_normal(seconds * SAMPLE_RATE, dtype=np.float32) * np.float32(10 ** (NOISE_DBFS / 20))
    start = int(rng.integers(len(waveform) - len(sound)))
    waveform[start : start + len(sound)] += sound
    name = f"audio/{number:05d}.wav"
    soundfile.write(folder / name, waveform, SAMPLE_RATE, subtype="PCM_16")
    events = [{"class": label, "start_s": start / SAMPLE_RATE} for label in clip.labels]
    return Clip(
        id=clip.id.replace("mix/", "long/"),
        audio=name,
        duration_s=float(seconds),
        sample_rate=SAMPLE_RATE,
        num_channels=1,
        captions=clip.captions,
        labels=clip.labels,
        split=clip.split,
        source=clip.source,
        extra={"events": events},
    )


def choose(root: Path, names: Sequence[str], *, device: str) -> None:
    """Whether runs tell "x, then y" from "y, then x" on held-out mixtures; writes ``choices.parquet``.

    Of every mixture of two sounds one after the other the gallery holds the one in the other order, whose captions are built
    alike. Text: is the own caption nearer to the sound than that of the other? Audio: is the own sound nearer to the caption?
    """
    manifest = Manifest.load(root / "prepare" / "mix" / "manifest.jsonl")
    clips = [clip for clip in manifest.clips if clip.split in GALLERIES and clip.extra["composition"] == "then"]
    place = {(clip.split, clip.labels): row for row, clip in enumerate(clips)}
    other = [place[clip.split, clip.labels[::-1]] for clip in clips]
    sentences = [caption.text for clip in clips for caption in clip.captions]
    tables = []
    for name in names:
        model = clapkit.load(root / "train" / name, device=device)
        audio = model.embed_audio([manifest.audio_path(clip) for clip in clips], batch_size=128)  # [N, D]
        text = model.embed_text(sentences, batch_size=256).reshape(len(clips), -1, audio.shape[1])  # [N, K, D]
        own = np.einsum("nd,nkd->nk", audio, text)
        by_text = own > np.einsum("nd,nkd->nk", audio, text[other])
        by_audio = own > np.einsum("nd,nkd->nk", audio[other], text)
        method, seed = name.rsplit("-", 1)
        columns = {"method": method, "seed": seed, "id": [clip.id for clip in clips]}
        tables.append(pd.DataFrame(columns | {"text": by_text.mean(axis=1), "audio": by_audio.mean(axis=1)}))
    pd.concat(tables).to_parquet(root / "choices.parquet")


def nearest(root: Path, names: Sequence[str], *, device: str) -> None:
    """What the nearest caption of a gallery says of a held-out mixture; writes ``nearest.parquet``.

    It can be one of its own (``right``), that of one of its sounds alone (``part``), or that of a mixture of the same sounds
    (``alike``). ``composite`` is how often it is its own where captions of single sounds are left out; of mixtures only.
    """
    manifest = Manifest.load(root / "prepare" / "mix" / "manifest.jsonl")
    tables = []
    for name in names:
        model = clapkit.load(root / "train" / name, device=device)
        method, seed = name.rsplit("-", 1)
        for split in GALLERIES:
            clips = [clip for clip in manifest.clips if clip.split == split]
            audio = model.embed_audio([manifest.audio_path(clip) for clip in clips], batch_size=128)  # [N, D]
            text = model.embed_text([caption.text for clip in clips for caption in clip.captions], batch_size=256)
            owner = np.repeat(np.arange(len(clips)), [len(clip.captions) for clip in clips])
            scores = audio @ text.T  # [N, M]
            is_single = np.array([len(clip.labels) == 1 for clip in clips])
            top = owner[scores.argmax(axis=1)]
            top_of_mixtures = owner[np.where(is_single[owner], -np.inf, scores).argmax(axis=1)]
            rows = np.arange(len(clips))
            sounds = [set(clip.labels) for clip in clips]
            columns = {
                "id": [clip.id for clip in clips],
                "right": top == rows,
                "part": [sounds[other] < own for other, own in zip(top, sounds, strict=True)],
                "alike": (top != rows) & [sounds[other] == own for other, own in zip(top, sounds, strict=True)],
                "composite": np.where(is_single, np.nan, top_of_mixtures == rows),
            }
            tables.append(pd.DataFrame({"method": method, "seed": seed} | columns))
    pd.concat(tables).to_parquet(root / "nearest.parquet")


def retrieval(root: Path, prefix: str, splits: Sequence[str] = GALLERIES) -> pd.DataFrame:
    """One row per method, seed and clip of the galleries: R@1 both ways, a clip with several captions counting once."""
    table = pd.concat([pd.read_parquet(root / "eval" / f"{prefix}-{split}" / "per_query.parquet") for split in splits])
    table = table[table["task"] == "retrieval"]
    table[["method", "seed"]] = table["run"].str.rsplit("-", n=1, expand=True)
    means = table.groupby(["method", "seed", "direction", "id"], sort=False)["R@1"].mean().unstack("direction").reset_index()
    return means.rename(columns={"t2a": "t2a R@1", "a2t": "a2t R@1"})


def by_method(clips: pd.DataFrame, columns: Sequence[str], *, strip: str = "") -> Iterable[str]:
    """A Markdown table: means over seeds of means over clips, intervals over clips, and the value of every seed."""
    yield "| method | " + " | ".join(columns) + f" | {columns[0]} by seed |"
    yield "|---" * (len(columns) + 2) + "|"
    for method, rows in clips.groupby("method", sort=False):
        cells = []
        for column in columns:
            values = rows.groupby("id")[column].mean().dropna().to_numpy()
            low, high = interval(values)
            cells.append(f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        seeds = rows.groupby("seed")[columns[0]].mean()
        yield f"| {str(method).removeprefix(strip)} | {' | '.join(cells)} | {', '.join(f'{100 * v:.1f}' for v in seeds)} |"


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over clips [N]."""
    mean = weighted_mean(values, np.arange(len(values)), num_clips=len(values))
    return bootstrap_intervals({"mean": mean}, num_clips=len(values))["mean"]


def metrics_of(run: dict[str, Any]) -> dict[str, float]:
    """Metrics of all tasks of a run of ``results.json``, and of each language."""
    metrics = {name: value for task in run["tasks"].values() for name, value in task["metrics"].items()}
    for name, variant in run["tasks"].get("multilingual", {}).get("variants", {}).items():
        if name.startswith("language_"):
            metrics[f"{name.removeprefix('language_')}_t2a_R@1"] = variant["metrics"]["t2a_R@1"]
    return metrics


def by_seed(root: Path, names: Sequence[str], endings: tuple[str, ...]) -> Iterable[str]:
    """A Markdown table of metrics of eval runs by the ends of their names: mean over seeds, the lowest and the highest."""
    runs = [run for name in names for run in json.loads((root / "eval" / name / "results.json").read_text())["runs"]]
    found = pd.DataFrame([{"run": run["run"], **metrics_of(run)} for run in runs])
    found["method"] = found["run"].str.rsplit("-", n=1).str[0]
    metrics = [metric for metric in found if metric.endswith(endings)]
    yield "| method | " + " | ".join(metrics) + " |"
    yield "|---" * (len(metrics) + 1) + "|"
    for method, rows in found.groupby("method", sort=False):
        scale = [100 if "R@" in metric or metric.endswith(TEMPORAL) else 1 for metric in metrics]
        cells = [
            f"{s * rows[m].mean():.1f} ({s * rows[m].min():.1f} to {s * rows[m].max():.1f})" if rows[m].notna().all() else ""
            for m, s in zip(metrics, scale, strict=True)
        ]
        yield f"| {method} | {' | '.join(cells)} |"


def suspects(root: Path) -> Iterable[str]:
    """How many of the clips at the head of ``suspects.csv`` were planted: as many as there are, and the first hundred."""
    yield "| wrong captions | run | precision at the planted number | of the first 100 | marked as faulty | of these planted |"
    yield "|---" * 6 + "|"
    for file in sorted((root / "train").glob("noise-*/suspects.csv")):
        percent = int(file.parent.name.split("-")[1])
        clips = Manifest.load(root / f"noisy-{percent}.jsonl").clips
        planted = {clip.id for clip in clips if clip.extra.get("planted")}
        with file.open(encoding="utf-8", newline="") as lines:
            listed = list(csv.DictReader(lines))
        is_planted = np.array([row["id"] in planted for row in listed])
        faulty = np.array([row["kind"] == "faulty" for row in listed])
        share = f"{100 * is_planted[faulty].mean():.1f} %" if faulty.any() else ""
        first, hundred = 100 * is_planted[: len(planted)].mean(), 100 * is_planted[:100].mean()
        name = file.parent.name.removeprefix(f"noise-{percent}-")
        yield f"| {percent} % | {name} | {first:.1f} % | {hundred:.0f} % | {faulty.sum()} | {share} |"


def table(root: Path, part: str) -> Iterable[str]:
    """The tables of one part."""
    both = ("t2a R@1", "a2t R@1")
    if part == "noise":
        yield from suspects(root)
        for percent in (10, 20, 40):
            yield f"\n{percent} % wrong\n"
            yield from by_method(retrieval(root, f"noise-{percent}"), both, strip=f"noise-{percent}-")
    elif part == "cleaning":
        yield from by_method(retrieval(root, "cleaning"), both, strip="noise-20-")
    elif part == "order":
        yield from by_method(pd.read_parquet(root / "choices.parquet"), ("text", "audio"), strip="order-")
        yield ""
        yield from by_method(pd.read_parquet(root / "nearest.parquet"), NEAREST, strip="order-")
        yield ""
        yield from by_seed(root, ["order"], TEMPORAL)
        yield ""
        yield from by_method(retrieval(root, "order"), both, strip="order-")
    elif part == "forgetting":
        for letter, what in (("a", "what the model knew"), ("b", "what it was tuned on")):
            yield f"\nhalf {letter}, {what}\n"
            yield from by_method(retrieval(root, f"forgetting-{letter}"), both)
    elif part == "languages":
        yield from by_seed(root, ["languages"], ("_t2a_R@1", "multilingual_a2t_R@1", "mean_rank_variance"))
    else:
        yield from by_seed(root, LONG, ("t2a_R@1",))


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("plant", "half", "long", "choose", "nearest", "table"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", nargs="+")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--percent", type=int, default=20)
    parser.add_argument("--which", choices=("a", "b"), default="a")
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.what == "table":
        print("\n".join(table(arguments.source, arguments.out[0])))
        return
    if arguments.what == "choose":
        choose(arguments.source, arguments.out, device=arguments.device)
        return
    if arguments.what == "nearest":
        nearest(arguments.source, arguments.out, device=arguments.device)
        return
    out = Path(arguments.out[0])
    source = Manifest.load(arguments.source / "manifest.jsonl")
    if arguments.what == "plant":
        plant(source, out, percent=arguments.percent)
    elif arguments.what == "half":
        half(source, out, which=arguments.which)
    else:
        long(source, out, train=arguments.train, seconds=arguments.seconds, jobs=arguments.jobs)


if __name__ == "__main__":
    main()
