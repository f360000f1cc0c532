"""What training costs around the model: waiting for audio, cached gradients, and, on a GPU, precision and objective.

    python tests/bench/bench_training.py --threads 1
    python tests/bench/bench_training.py --parts throughput memory

``throughput`` trains the towers ``small`` from wav and from flac files that it makes, without a cache and with the default one,
which holds a corpus of this size in memory, and beside them from the same batches decoded beforehand; all take turns within one
run, each turn a whole epoch. ``memory`` takes two steps of each kind in a fresh process and reads its high-water mark (Linux
only). It says what the step takes on top of the process, with and without the waveforms of the batch, which no chunk makes
smaller. ``loss`` does the same for the loss alone, in blocks of rows and whole. ``gpu`` needs a
CUDA device and says so where there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clapkit import registry
from clapkit.data.dataset import TrainingBatches
from clapkit.data.decoded import AudioCache, decode_threads
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import RandomBatches
from clapkit.encoders.adaptation import compile_towers
from clapkit.encoders.dual import DualEncoder
from clapkit.objectives import row_blocks
from clapkit.objectives.contract import needs_of
from clapkit.training.loop import Plan, Trainer
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.types import Batch, Caption, Clip, SilentReporter

STATUS = Path("/proc/self/status")
WORDS = ("a dog barks", "rain falls on a roof", "a bell rings twice", "someone speaks", "an engine starts", "waves break")
PLAN = Plan(
    total_steps=1,
    warmup_steps=0,
    schedule="constant",
    clip_grad=1.0,
    precision="fp32",
    eval_every=10**9,
    save_every=None,
    log_every=10**9,
    keep_best="metric",
    lower_is_better=False,
    patience=None,
)


class DecodedBefore:
    """The batches of a training run, decoded beforehand: what remains is the model."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches_per_epoch = batches.batches_per_epoch
        self._kept = list(batches.epoch(0))

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The same batches in every epoch."""
        return iter(self._kept[first:])

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: object) -> None:
        """Nothing to take up."""

    def close(self) -> None:
        """Nothing to stop."""


def make_corpus(folder: Path, suffix: str, *, num_clips: int, seconds: float, sample_rate: int) -> Manifest:
    """Coloured noise with a tone, as files of one format."""
    draw = np.random.default_rng(0)
    clips = []
    for number in range(num_clips):
        noise = np.cumsum(draw.standard_normal((round(seconds * sample_rate), 2)), axis=0)
        samples = 0.3 * noise / np.abs(noise).max()
        soundfile.write(folder / f"{number}.{suffix}", samples.astype(np.float32), sample_rate, subtype="PCM_16")
        captions = (Caption(f"{WORDS[number % len(WORDS)]} {number}"),)
        clips.append(
            Clip(
                f"bench/{number}", f"{number}.{suffix}", seconds, sample_rate, num_channels=2, captions=captions, split="train"
            )
        )
    return Manifest(tuple(clips), root=folder, name=suffix, fingerprint=suffix)


def make_encoder() -> DualEncoder:
    torch.manual_seed(0)
    return DualEncoder(
        "small", "small", embedding_dim=512, text_options={"captions": [f"{word} {n}" for word in WORDS for n in range(9)]}
    )


def make_trainer(
    encoder: nn.Module, batches: Any, objective: nn.Module, folder: Path, *, device: str = "cpu", **plan: Any
) -> Trainer:
    encoder.train()
    groups = parameter_groups(encoder, lr=1e-4, weight_decay=0.01) + objective.param_groups(1e-4, 0.0)  # type: ignore[operator]
    return Trainer(
        encoder.to(device),
        objective.to(device),
        optimizer=build_optimizer(groups),
        batches=batches,
        plan=dataclasses.replace(PLAN, **plan),
        device=torch.device(device),
        checkpoint_dir=folder,
        needs=needs_of(objective),
    )


def train(trainer: Trainer, *, steps: int) -> tuple[float, float]:
    """Train for some steps more; gives clips per second and the share of the time that the loop waited for audio."""
    records: list[dict[str, Any]] = []
    until = trainer.progress.step + steps
    trainer.plan = dataclasses.replace(trainer.plan, total_steps=until)
    with SilentReporter().track("bench", None) as tracker:
        trainer.fit(
            validate=lambda: {"metric": 0.0}, log=lambda r: records.append(dict(r)), tracker=tracker, on_best=lambda: None
        )
    speed = next(record for record in reversed(records) if "clips_per_s" in record)
    return speed["clips_per_s"], speed["data_wait_share"]


def throughput(arguments: argparse.Namespace, place: Path) -> None:
    workers = decode_threads(None, is_model_on_cpu=True)
    trainers = {}
    caches: dict[str, AudioCache] = {"wav": "none", "wav, default": "auto", "flac": "none", "flac, default": "auto"}
    for name, cache in caches.items():
        suffix = name.partition(",")[0]
        folder = place / suffix
        if not folder.exists():
            folder.mkdir()
            manifest = make_corpus(folder, suffix, num_clips=arguments.clips, seconds=arguments.seconds, sample_rate=44100)
        encoder = make_encoder()
        sampler = RandomBatches(len(manifest), 32, seed=0)
        batches = TrainingBatches(
            manifest, encoder.audio_spec, sampler=sampler, positives="caption", seed=0, workers=workers, audio_cache=cache
        )
        trainers[name] = make_trainer(encoder, batches, registry.build("loss", "infonce"), place / "x")
    trainers["decoded before"] = make_trainer(
        make_encoder(), DecodedBefore(batches), registry.build("loss", "infonce"), place / "x"
    )
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in trainers}
    for number in range(arguments.rounds + 1):  # the first round is warm-up
        for name, trainer in trainers.items():
            measured = train(trainer, steps=arguments.clips // 32)
            if number:
                speeds[name].append(measured)
    print(
        f"throughput: towers small, batch 32, {arguments.seconds} s clips, stereo 44.1 kHz, epochs of {arguments.clips} clips, "
        f"{arguments.threads} threads train, {workers} decode, median of {arguments.rounds} rounds"
    )
    for name, measured in speeds.items():
        ratios = [ours[0] / other[0] for ours, other in zip(measured, speeds["decoded before"], strict=True)]
        print(
            f"  {name:15} {statistics.median(m[0] for m in measured):7.1f} clips/s"
            f"   waits {100 * statistics.median(m[1] for m in measured):5.1f} %"
            f"   {statistics.median(ratios):5.2f} of decoded before ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def memory(arguments: argparse.Namespace, place: Path) -> None:
    peaks = {}
    for batch_size, chunk in ((32, None), (512, 32), (512, 16), (512, 8), (512, None)):
        command = [sys.executable, __file__, "--step", str(batch_size), str(chunk or 0), "--threads", str(arguments.threads)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        peaks[batch_size, chunk] = [int(number) for number in output.split()]
    plain = peaks[32, None]
    print("memory of a step, towers small, infonce, MiB (share of the first line): of the step with its batch, without the")
    print("waveforms of the batch, and of the whole process with its libraries")
    for (batch_size, chunk), found in peaks.items():
        kind = "plain" if chunk is None else f"chunks of {chunk}"
        numbers = "".join(f"{one:8} ({one / other:5.2f})" for one, other in zip(found, plain, strict=True))
        print(f"  batch {batch_size:4} {kind:13}{numbers}")


def loss(arguments: argparse.Namespace, place: Path) -> None:
    """The high-water mark of the loss alone, forward and backward, each in a fresh process."""
    size = arguments.loss_batch
    print(f"memory of the loss, B = {size}, D = 512, MiB above the embeddings, and seconds of processor time")
    for name in ("infonce", "svr"):
        for form in ("blocks", "whole"):
            command = [sys.executable, __file__, "--one-loss", name, form, "--threads", str(arguments.threads)]
            command += ["--loss-batch", str(size)]
            above, seconds = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            print(f"  {name:8} {form:7} {above:>6}   {seconds:>6} s")


def one_loss(name: str, form: str, size: int) -> None:
    """Print what a loss takes on top of its arguments, MiB, and its processor time."""
    if form == "whole":
        row_blocks.MOST_ROWS = size
    for batch_size in (64, size):  # the first is torch's own start-up
        torch.manual_seed(0)
        objective = registry.build("loss", name, {"batch_size": batch_size} if name == "svr" else {})
        audio, text = (nn.functional.normalize(torch.randn(batch_size, 512), dim=1).requires_grad_() for _ in range(2))
        positives, index = torch.eye(batch_size, dtype=torch.bool), torch.arange(batch_size)
        held, started = resident("VmRSS"), time.process_time()
        objective(audio, text, positives, index, 0.0).total.backward()
    print((resident("VmHWM") - held) // 1024, f"{time.process_time() - started:.1f}")


def one_step(batch_size: int, chunk: int) -> None:
    """Take two steps and print the high-water mark of this process: of the step, without its waveforms, and whole, in MiB."""
    encoder = make_encoder()
    spec = encoder.audio_spec
    for _ in range(2):  # of torch's own start-up
        encoder(torch.zeros(2, spec.window_samples), torch.full((2,), spec.window_samples), ["a", "b"])
    held = resident("VmRSS")
    keys = torch.arange(1, batch_size + 1)[:, None]
    batch = Batch(
        waveform=torch.randn(batch_size, spec.window_samples),
        num_samples=torch.full((batch_size,), spec.window_samples),
        captions=[f"{WORDS[n % len(WORDS)]} {n}" for n in range(batch_size)],
        index=torch.arange(batch_size),
        text_keys=keys,
        clip_keys=keys,
        audio_row=torch.arange(batch_size),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(
            encoder, _Repeated(batch), registry.build("loss", "infonce"), Path(folder), grad_cache_chunk=chunk or None
        )
        train(trainer, steps=2)
    peak, waveforms = resident("VmHWM"), batch.waveform.nbytes // 1024
    print((peak - held) // 1024, (peak - held - waveforms) // 1024, peak // 1024)


class _Repeated(DecodedBefore):
    """One batch, for ever."""

    def __init__(self, batch: Batch) -> None:
        self.batches_per_epoch = 1
        self._kept = [batch]


def resident(field: str) -> int:
    """A line of the kernel's record of this process, KiB."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def gpu(arguments: argparse.Namespace, place: Path) -> None:
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, not measured")
        return
    for batch_size in (24, 1024):
        spec = make_encoder().audio_spec
        keys = torch.arange(1, batch_size + 1)[:, None]
        samples = torch.full((batch_size,), spec.window_samples)
        captions = [f"{WORDS[n % len(WORDS)]} {n}" for n in range(batch_size)]
        rows = torch.arange(batch_size)
        batch = Batch(torch.randn(batch_size, spec.window_samples), samples, captions, rows, keys, keys, rows)
        variants = {
            "fp32 eager infonce": ("fp32", False, "infonce", {}),
            "bf16 eager infonce": ("bf16", False, "infonce", {}),
            "bf16 compiled infonce": ("bf16", True, "infonce", {}),
            "bf16 compiled svr": ("bf16", True, "svr", {"batch_size": batch_size}),
        }
        trainers, flops = {}, 0
        for name, (precision, compiled, loss_name, options) in variants.items():
            encoder = make_encoder().cuda()
            if compiled:
                compile_towers(encoder)
            objective = registry.build("loss", loss_name, options)
            trainers[name] = make_trainer(
                encoder, _Repeated(batch), objective, place / name, device="cuda", precision=precision
            )
        with FlopCounterMode(display=False) as counter:
            train(trainers["fp32 eager infonce"], steps=1)
        flops = counter.get_total_flops()  # of matrix products and convolutions, forward and backward
        seconds: dict[str, list[float]] = {name: [] for name in trainers}
        for number in range(arguments.rounds + 1):
            for name, trainer in trainers.items():
                # As the loop counts, which reads the gradient norm of every step: without the checkpoint at the end.
                clips_per_s, _ = train(trainer, steps=arguments.steps)
                if number:
                    seconds[name].append(batch_size / clips_per_s)
        print(f"gpu: {torch.cuda.get_device_name()}, towers small, batch {batch_size}, {flops / 1e9:.1f} GFLOP a step")
        print(f"  {'waveforms to the GPU':22} {1000 * seconds_to_copy(batch.waveform):8.1f} ms, in every one of these")
        first = statistics.median(seconds["fp32 eager infonce"])
        for name, measured in seconds.items():
            median = statistics.median(measured)
            speed = flops / median / 1e12
            share = f", {speed / arguments.peak_tflops:.1%} of {arguments.peak_tflops:g}" if arguments.peak_tflops else ""
            print(f"  {name:22} {1000 * median:8.1f} ms   {median / first:5.2f} of fp32 eager   {speed:7.2f} TFLOP/s{share}")


def seconds_to_copy(waveform: Tensor) -> float:
    """Median of five copies from ordinary memory to the GPU."""
    taken = []
    for _ in range(6):
        torch.cuda.synchronize()
        started = time.perf_counter()
        waveform.to("cuda")
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[1:])


PARTS = {"throughput": throughput, "memory": memory, "loss": loss, "gpu": gpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1, help="torch threads of the model")
    parser.add_argument("--clips", type=int, default=384, help="in an epoch")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a clip")
    parser.add_argument("--steps", type=int, default=8, help="in each turn on a GPU")
    parser.add_argument("--loss-batch", type=int, default=8192)
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bf16, to say what share of it is reached")
    parser.add_argument("--one-loss", nargs=2, metavar=("NAME", "FORM"), help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--step", nargs=2, type=int, metavar=("BATCH", "CHUNK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.step:
        one_step(*arguments.step)
        return
    if arguments.one_loss:
        one_loss(*arguments.one_loss, arguments.loss_batch)
        return
    with tempfile.TemporaryDirectory() as place:
        for part in arguments.parts:
            PARTS[part](arguments, Path(place))


if __name__ == "__main__":
    main()
