"""What every objective costs beside InfoNCE: a training step with real towers, and the loss alone at a large batch.

    python tests/bench/bench_objectives.py --threads 2

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

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "infonce": ("infonce", {}),
    "infonce mmts": ("infonce", {"schedule": "mmts"}),
    "infonce cosine": ("infonce", {"schedule": "cosine"}),
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
}
STATUS = Path("/proc/self/status")


def make_objective(variant: str, *, batch_size: int) -> nn.Module:
    name, given = VARIANTS[variant]
    options = dict(given)
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
    if name == "sogclr":
        options["num_rows"] = batch_size
    if name == "cwcl":
        options |= {"features": normalize(torch.randn(batch_size, 256), dim=1), "side": "text"}
    return with_terms(registry.build("loss", name, options), added)


def loss_step(objective: nn.Module, audio: Tensor, text: Tensor) -> None:
    """Forward and backward of the loss alone."""
    batch_size = len(audio)
    audio.grad = text.grad = None
    output = objective(audio, text, torch.eye(batch_size, dtype=torch.bool), torch.arange(batch_size), 0.0)
    output.total.backward()


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
    audio, text = embeddings(batch_size, width), embeddings(batch_size, width)
    steps = {}
    for variant in variants:
        objective = make_objective(variant, batch_size=batch_size)
        steps[variant] = lambda objective=objective: loss_step(objective, audio, text)
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
    loss_step(make_objective(variant, batch_size=64), embeddings(64, width), embeddings(64, width))
    audio, text = embeddings(batch_size, width), embeddings(batch_size, width)
    objective = make_objective(variant, batch_size=batch_size)
    before = memory_mb("VmRSS")
    loss_step(objective, audio, text)
    print(memory_mb("VmHWM") - before)


def memory_mb(field: str) -> float:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def bench_step(variants: list[str], *, tower: str, batch_size: int, width: int, rounds: int) -> None:
    """A whole training step: towers, projection, loss, backward, optimiser."""
    audio_tower = registry.build("audio encoder", tower, {})
    text_tower = registry.build("text encoder", tower, {})
    audio_head = nn.Linear(audio_tower.embedding_dim, width)
    text_head = nn.Linear(text_tower.embedding_dim, width)
    spec = audio_tower.audio_spec
    waveform = torch.randn(batch_size, spec.window_samples)
    num_samples = torch.full((batch_size,), spec.window_samples)
    captions = [f"sound number {row} of a long list of different sounds" for row in range(batch_size)]
    positives, index = torch.eye(batch_size, dtype=torch.bool), torch.arange(batch_size)
    encoder = nn.ModuleList([audio_tower, text_tower, audio_head, text_head])

    def make_step(variant: str) -> Callable[[], None]:
        objective = make_objective(variant, batch_size=batch_size)
        # A learning rate of 0: all variants time the same weights.
        groups = [{"params": list(encoder.parameters()), "lr": 0.0}, *objective.param_groups(0.0, 0.0)]
        optimizer = torch.optim.AdamW(groups)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            audio = normalize(audio_head(audio_tower(waveform, num_samples)), dim=1)
            text = normalize(text_head(text_tower(captions)), dim=1)
            objective(audio, text, positives, index, 0.0).total.backward()
            optimizer.step()
            objective.after_step()

        return step

    timings = alternate({variant: make_step(variant) for variant in variants}, rounds=rounds)
    report(f"training step, {tower} towers, B = {batch_size}", timings)


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
