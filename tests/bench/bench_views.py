"""What several captions or several windows of a clip cost a training, beside one of each.

    python tests/bench/bench_views.py --threads 1

Whole steps of the training loop with the towers ``--tower`` on sounds of four windows that it makes: drawing, waiting for
audio (which is decoded once and then kept), towers, loss, backward pass, optimiser. Kinds take turns within one run, each turn
a whole epoch, and are compared round by round with one window and any caption (for ``split``: with the same captions, cut).
Memory is what two steps take on top of a process that holds model and sounds, each kind in a fresh process (Linux only).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from bench_training import STATUS, WORDS, make_trainer, resident, train
from torch import nn

from clapkit import registry
from clapkit.data.caption_languages import LanguageDraw
from clapkit.data.dataset import TrainingBatches
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import RandomBatches
from clapkit.encoders.dual import DualEncoder
from clapkit.objectives.languages import Anchored, PerLanguage
from clapkit.objectives.window_fusion import FusedSimilarity
from clapkit.training.loop import Trainer
from clapkit.training.whole_batch import language_code
from clapkit.types import Caption, Clip

LANGUAGES = ("de", "en", "es", "fr")
WINDOWS = 4
LONG = 300
"""Words of a long caption."""


@dataclass(frozen=True)
class Kind:
    """One way to train, and what it is compared with."""

    base: str
    strategy: Any = None
    windows: int = 1
    fusion: str | None = None
    long: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


KINDS = {
    "one window, any caption": Kind("one window, any caption"),
    "languages, sample": Kind("one window, any caption", strategy="sample"),
    "languages, anchor": Kind("one window, any caption", strategy="anchor"),
    "languages, all": Kind("one window, any caption", strategy="all"),
    "windows, mean": Kind("one window, any caption", windows=WINDOWS),
    "windows, attention": Kind("one window, any caption", windows=WINDOWS, fusion="attention"),
    "windows, softmax": Kind("one window, any caption", windows=WINDOWS, fusion="softmax"),
    "windows, chunks of 4": Kind("one window, any caption", windows=WINDOWS, options={"grad_cache_chunk": 4}),
    "long captions, cut": Kind("long captions, cut", long="cut"),
    "long captions, split": Kind("long captions, cut", long="split"),
}


def make_corpus(folder: Path, *, num_clips: int, seconds: float, sample_rate: int, is_long: bool) -> Manifest:
    """Noise with a caption in each language; the captions are ``LONG`` words if they are long."""
    draw = np.random.default_rng(0)
    clips = []
    for number in range(num_clips):
        path = folder / f"{number}.wav"
        if not path.exists():
            samples = 0.1 * draw.standard_normal(round(seconds * sample_rate))
            soundfile.write(path, samples.astype(np.float32), sample_rate, subtype="PCM_16")
        words = f"{WORDS[number % len(WORDS)]} {number} times in the distance"
        text = " ".join((words.split() * LONG)[:LONG]) if is_long else words
        captions = tuple(Caption(f"{language} {text}", lang=language) for language in LANGUAGES)
        clips.append(Clip(f"bench/{number}", path.name, seconds, sample_rate, num_channels=1, captions=captions, split="train"))
    return Manifest(tuple(clips), root=folder, name="views", fingerprint="views")


def make_kind(name: str, place: Path, options: argparse.Namespace) -> Trainer:
    kind = KINDS[name]
    torch.manual_seed(0)
    encoder = DualEncoder(
        options.tower,
        options.tower,
        embedding_dim=512,
        text_options={"captions": [f"{language} {word} in the distance" for word in WORDS for language in LANGUAGES]},
        long_captions="split" if kind.long == "split" else "cut",
        fusion="attention" if kind.fusion == "attention" else None,
    )
    spec = encoder.audio_spec
    manifest = make_corpus(
        place,
        num_clips=options.clips,
        seconds=WINDOWS * spec.window_s,
        sample_rate=spec.sample_rate,
        is_long=kind.long is not None,
    )
    draw = None if kind.strategy is None else LanguageDraw(manifest.clips, kind.strategy)
    batches = TrainingBatches(
        manifest,
        spec,
        sampler=RandomBatches(len(manifest), options.batch_size, seed=0),
        positives="clip",
        seed=0,
        workers=1,
        windows=kind.windows,
        caption_draw=draw,
    )
    return make_trainer(encoder, batches, make_objective(kind), place / name, **kind.options)


def make_objective(kind: Kind) -> nn.Module:
    objective = registry.build("loss", "infonce")
    if kind.strategy == "all":
        return PerLanguage(objective)
    if kind.strategy == "anchor":
        return Anchored(objective, language_code("en"))
    return FusedSimilarity(objective) if kind.fusion == "softmax" else objective


def memory_mib(name: str, place: Path, options: argparse.Namespace) -> None:
    """Print what two steps take on top of a process that has taken the like on a single window each."""
    trainer = make_kind(name, place, options)
    encoder = trainer.encoder
    for _ in range(2):  # of torch's own start-up
        encoder(
            torch.zeros(2, encoder.audio_spec.window_samples), torch.full((2,), encoder.audio_spec.window_samples), ["a", "b"]
        )
    held = resident("VmRSS")
    train(trainer, steps=2)
    print((resident("VmHWM") - held) // 1024)


def memory_in_new_process(name: str, options: argparse.Namespace) -> int:
    command = [sys.executable, __file__, "--memory-of", name, "--threads", str(options.threads), "--tower", options.tower]
    command += ["--clips", str(options.clips), "--batch-size", str(options.batch_size)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the model")
    parser.add_argument("--tower", default="small")
    parser.add_argument("--clips", type=int, default=64, help="in an epoch, of four windows each")
    parser.add_argument("--batch-size", type=int, default=16, help="clips")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.memory_of:
            memory_mib(options.memory_of, Path(folder), options)
            return
        report(options, Path(folder))


def report(options: argparse.Namespace, place: Path) -> None:
    trainers = {name: make_kind(name, place, options) for name in KINDS}
    steps = options.clips // options.batch_size
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    for number in range(options.rounds + 1):  # the first round is warm-up
        for name in list(KINDS)[:: 1 if number % 2 else -1]:
            clips_per_s, _ = train(trainers[name], steps=steps)
            if number:
                seconds[name].append(options.batch_size / clips_per_s)
    peaks = {name: memory_in_new_process(name, options) for name in KINDS} if STATUS.exists() else {}
    print(
        f"steps of {options.batch_size} clips of {WINDOWS} windows, towers {options.tower}, infonce, "
        f"{options.threads} threads, median of {options.rounds} rounds of {steps} steps"
    )
    for name, kind in KINDS.items():
        ratios = [one / other for one, other in zip(seconds[name], seconds[kind.base], strict=True)]
        line = f"  {name:24} {1000 * statistics.median(seconds[name]):8.1f} ms  {statistics.median(ratios):5.2f}"
        line += f" ({min(ratios):.2f} to {max(ratios):.2f})"
        if peaks:
            line += f"  {peaks[name]:6d} MiB  {peaks[name] / peaks[kind.base]:5.2f}"
        print(line)


if __name__ == "__main__":
    main()
