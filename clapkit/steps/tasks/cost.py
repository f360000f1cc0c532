"""Cost: how large a model is, and how fast it embeds on this machine.

Sizes are exact. Speeds and memory are measurements: they differ from run to run and between machines, so that they belong in
no comparison of runs that were not made on one idle machine.
"""

from __future__ import annotations

import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ManifestError
from clapkit.steps.encoding import autocast
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.prompts import spell
from clapkit.steps.evaluation.result import Task, TaskResult

NUM_REPEATS = 5
"""Batches that are timed, after one that is not."""

_MIB = 2**20


def build() -> Task:
    """Cost."""
    return Cost()


class Cost:
    """Size of the model, and the time that a batch of windows and of sentences takes once it is in memory."""

    needs = "clips"
    by_default = False
    needs_model = True

    def possible(self, split: Manifest) -> bool:
        """Whether there is a clip."""
        return len(split) > 0

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Count and measure; speeds are medians over ``NUM_REPEATS`` batches."""
        if not evaluated.clips:
            raise ManifestError("no clip could be embedded, so there is nothing to measure; see rejected.jsonl")
        model, config = evaluated.needs_model("cost"), evaluated.config
        windows = _windows(evaluated, model)  # [B, T]
        sentences, languages = _sentences(evaluated)
        is_cuda = evaluated.device.startswith("cuda")
        if is_cuda:
            torch.cuda.reset_peak_memory_stats(evaluated.device)
        audio_s = _seconds(lambda: _embed_audio(evaluated, model, windows), is_cuda=is_cuda)
        text_s = _seconds(lambda: _embed_texts(evaluated, model, sentences, languages), is_cuda=is_cuda)
        metrics = _sizes(model)
        metrics["cost_audio_windows_per_s"] = len(windows) / audio_s
        metrics["cost_audio_s_per_s"] = len(windows) * model.audio_spec.window_s / audio_s
        metrics["cost_sentences_per_s"] = len(sentences) / text_s
        metrics["cost_peak_memory_mib"] = _peak_memory_mib(evaluated.device)
        flops = _flops(evaluated, model, windows[:1])
        if flops:
            metrics["cost_audio_gflops_per_window"] = flops / 1e9
        return TaskResult(
            metrics=metrics,
            counts={"num_windows": len(windows), "num_sentences": len(sentences), "num_repeats": NUM_REPEATS},
            protocol={
                "deterministic": False,
                "device": torch.cuda.get_device_name(evaluated.device)
                if is_cuda
                else platform.processor() or platform.machine(),
                "threads": torch.get_num_threads(),
                "batch_size": config.batch_size,
                "precision": config.precision,
                "torch": torch.__version__,
                "speed": f"median of {NUM_REPEATS} batches in memory; tokenising is counted, decoding is not",
                "peak_memory": "allocated on the device while measuring" if is_cuda else "of the whole process so far",
                "flops": "2 for a multiplication with its addition; matrix products, convolutions and attention only",
            },
            details={"batch_s": {"audio": audio_s, "text": text_s}},
        )


def _windows(evaluated: Evaluated, model: DualEncoder) -> npt.NDArray[np.float32]:
    """A full batch of first windows [B, T]; clips come again where there are fewer than a batch."""
    size, length = evaluated.config.batch_size, model.audio_spec.window_samples
    rows = range(min(size, len(evaluated.clips)))
    windows = np.zeros((len(rows), length), dtype=np.float32)
    for window, waveform in zip(windows, evaluated.waveforms(rows), strict=True):
        window[: len(waveform[:length])] = waveform[:length]
    return windows[np.arange(size) % len(windows)]


def _sentences(evaluated: Evaluated) -> tuple[list[str], list[str]]:
    """A full batch of captions and their languages; of labels, or of the ids of clips, where there are no captions."""
    clips, size = evaluated.clips, evaluated.config.batch_size
    found = [(caption.text, caption.lang) for clip in clips for caption in clip.captions]
    found = found or [(spell(label), "en") for clip in clips for label in clip.labels] or [(clip.id, "en") for clip in clips]
    chosen = [found[number % len(found)] for number in range(size)]
    return [text for text, _ in chosen], [language for _, language in chosen]


def _embed_audio(evaluated: Evaluated, model: DualEncoder, windows: npt.NDArray[np.float32]) -> None:
    waveform = torch.from_numpy(windows).to(evaluated.device)
    num_samples = torch.full((len(windows),), windows.shape[1], device=evaluated.device)
    with torch.inference_mode(), autocast(evaluated.config.precision, evaluated.device):
        model.encode_audio(waveform, num_samples)


def _embed_texts(evaluated: Evaluated, model: DualEncoder, sentences: list[str], languages: list[str]) -> None:
    with torch.inference_mode(), autocast(evaluated.config.precision, evaluated.device):
        model.encode_text(sentences, languages if model.takes_languages else None)


def _seconds(work: Callable[[], None], *, is_cuda: bool) -> float:
    """Median time of ``NUM_REPEATS`` runs, after one that fills caches."""
    times = []
    for _ in range(NUM_REPEATS + 1):
        start = time.perf_counter()
        work()
        if is_cuda:  # kernels run on after the call has returned
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def _sizes(model: DualEncoder) -> dict[str, float]:
    """Parameters by part, and the bytes that all weights take in memory and in ``model.safetensors``."""
    parts = {
        "audio_tower": _num_parameters(model.audio_tower),
        "text_tower": _num_parameters(model.text_tower),
        "heads": _num_parameters(model.audio_head) + _num_parameters(model.text_head),
    }
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {
        "cost_parameters_millions": _num_parameters(model) / 1e6,
        **{f"cost_{name}_parameters_millions": number / 1e6 for name, number in parts.items()},
        "cost_weights_mib": num_bytes / _MIB,
        "cost_embedding_width": float(model.embedding_dim),
    }


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _peak_memory_mib(device: str) -> float:
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / _MIB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024  # bytes there, KiB elsewhere


def _flops(evaluated: Evaluated, model: DualEncoder, window: npt.NDArray[np.float32]) -> int:
    """Operations of one window [1, T]; 0 where the tower does nothing that torch counts."""
    counter: Any = FlopCounterMode(display=False)
    with counter:
        _embed_audio(evaluated, model, window)
    return int(counter.get_total_flops())
