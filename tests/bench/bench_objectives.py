"""What every objective costs beside InfoNCE: a training step with real towers, and the loss alone at a large batch.

    python tests/bench/bench_objectives.py --threads 2

What a loss needs beside the pairs is part of its step: the forward pass of a teacher, and the text tower on three false
variants of each caption. "2 captions" has half the clips in a batch of as many pairs; that is the base of ``alip``.

Variants take turns within one run and are compared round by round, so that a slow spell of the machine hits all alike; on
a busy machine, trust the processor time. Peak memory is measured in a fresh process per variant: the high-water mark of
the process over what it held before the call (Linux only; elsewhere the column is left out).
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from clapkit import registry
from clapkit.objectives.added import with_terms
from clapkit.objectives.contract import needs_of, score
from clapkit.training.grad_cache import Precision
from clapkit.training.teacher import Teacher
from clapkit.types import AudioSpec, Batch, Context

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "infonce": ("infonce", {}),
    "infonce mmts": ("infonce", {"schedule": "mmts"}),
    "infonce cosine": ("infonce", {"schedule": "cosine"}),
    "infonce ot": ("infonce", {"targets": "ot"}),
    "infonce 2 captions": ("infonce", {}),
    "infonce + all terms": ("infonce", {"add": [f"{name}=0.1" for name in registry.names("term")]}),
    "siglip": ("siglip", {}),
    "triplet sum": ("triplet", {}),
    "triplet max": ("triplet", {"reduction": "max"}),
    "triplet weighted": ("triplet", {"reduction": "weighted"}),
    "triplet mean mmts": ("triplet", {"reduction": "mean", "schedule": "mmts"}),
    "dcl": ("dcl", {}),
    "dcl weighted": ("dcl", {"weighted": True}),
    "decoupled": ("decoupled", {}),
    "cwcl affine": ("cwcl", {}),
    "cwcl exp": ("cwcl", {"kernel": "exp"}),
    "mochi": ("mochi", {"start": 0.0}),
    "m3col mixed": ("m3col", {}),
    "m3col soft": ("m3col", {"mix_until": 0.0}),
    "cacr": ("cacr", {}),
    "sogclr": ("sogclr", {}),
    "sogclr individual": ("sogclr", {"individual": True}),
    "reweighted": ("reweighted", {}),
    "svr fixed 0": ("svr", {"radius": "fixed", "radius_init": 0.0}),
    "svr ratio bi": ("svr", {"radius": "ratio"}),
    "svr static bi": ("svr", {"radius": "static"}),
    "svr adaptive uni": ("svr", {"radius": "adaptive", "sides": "uni"}),
    "svr adaptive bi": ("svr", {"radius": "adaptive"}),
    "svr adaptive mmts": ("svr", {"radius": "adaptive", "schedule": "mmts"}),
    "svr adaptive siglip": ("svr", {"radius": "adaptive", "base": "siglip"}),
    "dbpm": ("dbpm", {"warmup": 0.0}),
    "alip": ("alip", {}),
    "compa": ("compa", {}),
    "compa svr": ("compa", {"wrapped": "svr adaptive bi"}),
    "hycd": ("hycd", {}),
    "hycd svr": ("hycd", {"wrapped": "svr adaptive bi"}),
    "albef queue": ("albef", {"queue": 1024}),
}
TWO_CAPTIONS = ("infonce 2 captions", "alip")
NUM_VARIANTS = 3
STATUS = Path("/proc/self/status")


def make_objective(variant: str, *, batch_size: int, width: int) -> nn.Module:
    name, given = VARIANTS[variant]
    options = dict(given)
    if "wrapped" in options:
        options["wrapped"] = make_objective(str(options["wrapped"]), batch_size=batch_size, width=width)
    added = options.pop("add", [])
    if "schedule" in options:
        about_run = {
            "cluster_sizes": torch.arange(1, batch_size + 1),
            "quantity": "margin" if name == "triplet" else "temperature",
        }
        known = registry.defaults("schedule", str(options["schedule"]))
        supplied = {key: value for key, value in about_run.items() if key in known}
        options["schedule"] = registry.build("schedule", str(options["schedule"]), supplied)
    if name == "svr":
        options["batch_size"] = batch_size
    if name in ("sogclr", "dbpm"):
        options["num_rows"] = batch_size
    if name == "albef":
        options["embedding_dim"] = width
    if name == "cwcl":
        options |= {"features": normalize(torch.randn(batch_size, 256), dim=1), "side": "text"}
    return with_terms(registry.build("loss", name, options), added)


def clips_of(variant: str, batch_size: int) -> Tensor:
    """The training row of each pair."""
    return torch.arange(batch_size) // (2 if variant in TWO_CAPTIONS else 1)


def make_loss_step(variant: str, *, batch_size: int, width: int) -> Callable[[], None]:
    """Forward and backward of the loss alone, and what it remembers of the batch."""
    objective = make_objective(variant, batch_size=batch_size, width=width)
    needs, index = needs_of(objective), clips_of(variant, batch_size)
    positives = index[:, None] == index
    leaves = [embeddings(batch_size, width), embeddings(batch_size, width)]
    context = Context()
    if "variants" in needs:
        leaves.append(embeddings(batch_size * NUM_VARIANTS, width))
        truth = torch.full((batch_size, NUM_VARIANTS), -1, dtype=torch.int8)
        context = Context(variants=leaves[2].view(batch_size, NUM_VARIANTS, width), variant_truth=truth)
    if "teacher" in needs:
        teacher = [embeddings(batch_size, width).detach() for _ in range(2)]
        context = Context(teacher_audio=teacher[0], teacher_text=teacher[1])

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        score(objective, leaves[0], leaves[1], positives, index, 0.0, context).total.backward()
        objective.after_step()

    return step


def embeddings(batch_size: int, width: int) -> Tensor:
    return normalize(torch.randn(batch_size, width), dim=1).requires_grad_()


@dataclass
class Timing:
    """Seconds of every counted round: on the clock, and of processor time over all threads."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def alternate(steps: dict[str, Callable[[], None]], *, rounds: int) -> dict[str, Timing]:
    """Time the steps in turns, every other round backwards; one round to warm up is not counted."""
    timings = {name: Timing() for name in steps}
    for number in range(rounds + 1):
        for name, step in list(steps.items())[:: 1 if number % 2 else -1]:
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            if number > 0:
                timings[name].wall_s.append(time.perf_counter() - wall)
                timings[name].cpu_s.append(time.process_time() - cpu)
    return timings


def report(title: str, timings: dict[str, Timing], peak_mb: dict[str, float] | None = None) -> None:
    """Print medians, and the medians of the ratios to the first variant, round by round."""
    first = next(iter(timings))
    print(f"\n{title}\n  {'medians':<22} {'wall':>20} {'processor':>20}" + (f"{'peak':>20}" if peak_mb else ""))
    for name, timing in timings.items():
        line = f"  {name:<22}"
        for values, reference in ((timing.wall_s, timings[first].wall_s), (timing.cpu_s, timings[first].cpu_s)):
            median = statistics.median(values)
            ratio = statistics.median(value / other for value, other in zip(values, reference, strict=True))
            line += f" {median * 1e3:9.1f} ms x {ratio:5.3f}"
        if peak_mb:
            line += f" {peak_mb[name]:9.0f} MB x {peak_mb[name] / peak_mb[first]:5.2f}"
        print(line)


def bench_loss(variants: list[str], *, batch_size: int, width: int, rounds: int, threads: int) -> None:
    """The loss alone at a large batch."""
    steps = {variant: make_loss_step(variant, batch_size=batch_size, width=width) for variant in variants}
    timings = alternate(steps, rounds=rounds)
    peak_mb = None
    if STATUS.exists():
        peak_mb = {variant: peak_in_new_process(variant, batch_size, width, threads) for variant in variants}
    report(f"loss alone, forward and backward, B = {batch_size}, D = {width}", timings, peak_mb)


def peak_in_new_process(variant: str, batch_size: int, width: int, threads: int) -> float:
    command = [sys.executable, __file__, "--peak-of", variant, "--threads", str(threads)]
    command += ["--batch-size", str(batch_size), "--width", str(width)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(variant: str, *, batch_size: int, width: int) -> None:
    """Print the peak of one call over what the process held before, in MB."""
    make_loss_step(variant, batch_size=64, width=width)()
    step = make_loss_step(variant, batch_size=batch_size, width=width)
    before = memory_mb("VmRSS")
    step()
    print(memory_mb("VmHWM") - before)


def memory_mb(field: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


class Encoder(nn.Module):
    """Two towers, each with one linear layer on top."""

    def __init__(self, tower: str, width: int) -> None:
        super().__init__()
        self.audio_tower = registry.build("audio encoder", tower, {})
        self.text_tower = registry.build("text encoder", tower, {})
        self.audio_head = nn.Linear(self.audio_tower.embedding_dim, width)
        self.text_head = nn.Linear(self.text_tower.embedding_dim, width)

    def forward(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        audio = normalize(self.audio_head(self.audio_tower(waveform, num_samples)), dim=1)
        return audio, normalize(self.text_head(self.text_tower(captions)), dim=1)


def make_batch(variant: str, spec: AudioSpec, *, batch_size: int, has_variants: bool) -> Batch:
    """Noise of a window each, with captions that are as long as captions are."""
    index = clips_of(variant, batch_size)
    num_clips = int(index.max()) + 1
    captions = [f"sound number {row} of a long list of different sounds" for row in range(batch_size)]
    false = [
        f"sound number {row} of a short list of {n} equal sounds" for row in range(batch_size) for n in range(NUM_VARIANTS)
    ]
    keys = index[:, None] + 1
    return Batch(
        waveform=torch.randn(num_clips, spec.window_samples),
        num_samples=torch.full((num_clips,), spec.window_samples),
        captions=captions,
        index=index,
        text_keys=keys,
        clip_keys=keys,
        audio_row=index,
        variants=false if has_variants else [],
        variant_truth=torch.full((batch_size, NUM_VARIANTS), -1, dtype=torch.int8) if has_variants else None,
    )


def make_training_step(variant: str, encoder: Encoder, *, batch_size: int, width: int) -> Callable[[], None]:
    """What one step of a training does, in the order of the training loop."""
    objective = make_objective(variant, batch_size=batch_size, width=width)
    needs = needs_of(objective)
    batch = make_batch(variant, encoder.audio_tower.audio_spec, batch_size=batch_size, has_variants="variants" in needs)
    positives = batch.positives()
    # A learning rate of 0: all variants time the same weights.
    groups = [{"params": list(encoder.parameters()), "lr": 0.0}, *objective.param_groups(0.0, 0.0)]
    optimizer = torch.optim.AdamW(groups)
    teacher = Teacher(encoder, momentum=objective.teacher_momentum) if "teacher" in needs else None
    precision = Precision(torch.device("cpu"), None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        audio, sentences = encoder(batch.waveform, batch.num_samples, batch.captions + batch.variants)
        audio, text = audio[batch.audio_row], sentences[:batch_size]
        context = Context()
        if batch.variants:
            variants = sentences[batch_size:].view(batch_size, NUM_VARIANTS, width)
            context = Context(variants=variants, variant_truth=batch.variant_truth)
        if teacher is not None:
            known_audio, known_text = teacher.embed(batch, precision=precision)
            context = Context(teacher_audio=known_audio[batch.audio_row], teacher_text=known_text)
        score(objective, audio, text, positives, batch.index, 0.0, context).total.backward()
        optimizer.step()
        objective.after_step()
        if teacher is not None:
            teacher.follow(encoder)

    return step


def bench_step(variants: list[str], *, tower: str, batch_size: int, width: int, rounds: int) -> None:
    """A whole training step: towers, projection, teacher, loss, backward, optimiser."""
    encoder = Encoder(tower, width)
    steps = {variant: make_training_step(variant, encoder, batch_size=batch_size, width=width) for variant in variants}
    report(f"training step, {tower} towers, B = {batch_size}", alternate(steps, rounds=rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["all", "loss", "step"], default="all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=4096, help="of the loss alone")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds of the loss alone")
    parser.add_argument("--tower", default="small")
    parser.add_argument("--step-batch-size", type=int, default=32)
    parser.add_argument("--step-rounds", type=int, default=40)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="the first is the base")
    parser.add_argument("--peak-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    if options.peak_of:
        print_peak(options.peak_of, batch_size=options.batch_size, width=options.width)
        return
    if options.part in ("all", "loss"):
        bench_loss(
            options.variants, batch_size=options.batch_size, width=options.width, rounds=options.rounds, threads=options.threads
        )
    if options.part in ("all", "step"):
        bench_step(
            options.variants,
            tower=options.tower,
            batch_size=options.step_batch_size,
            width=options.width,
            rounds=options.step_rounds,
        )


if __name__ == "__main__":
    main()
