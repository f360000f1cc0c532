"""Runs that are killed again and again end as if nothing had happened, to the last bit."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

KILLS = 20
COMMON = [
    *("--audio-encoder", "tiny", "--text-encoder", "small", "--embedding-dim", "16", "--batch-size", "8", "--workers", "2"),
    *("--eval-every", "20", "--save-every", "5", "--log-every", "1", "--seed", "3"),
]
# Between them everything that has a state: radius and scale, clusters, mined batches, dropout, accumulated and cached
# gradients, adapters, recomputed layers, measurements of drift, decoded audio on disk, half precision.
RUNS = {
    "mined": [
        *("--loss", "svr", "--radius", "adaptive", "--temperature", "mmts", "--add", "cyclip=0.1", "--max-steps", "50"),
        *("--sampler", "mined", "--mine-every", "3", "--captions-per-clip", "2", "--audio-cache", "disk"),
        *("--grad-cache-chunk", "3", "--grad-checkpointing", "--accum-steps", "2", "--lora", "text", "--precision", "bf16"),
    ],
    "measured": [
        *("--loss", "svr", "--radius", "static", "--base", "siglip", "--max-steps", "250", "--audio-cache", "none"),
        *("--diagnostics", "40", "--freeze", "text", "--unfreeze-last", "2", "--layer-decay", "0.8"),
    ],
}
TIMES = ("clips_per_s", "data_wait_share", "drift_seconds")
STOPPED = {-signal.SIGKILL, -signal.SIGTERM, 130}
# Importing takes longer than the rest of a start: each call is forked from a process that has done it, or else most of the
# signals would come before there is anything to lose.
SERVER = """
import json, os, sys
import matplotlib.pyplot, peft, torch._dynamo, transformers
import clapkit.report.curves, clapkit.steps.train
from clapkit.cli import main
for line in sys.stdin:
    arguments, log = json.loads(line)
    child = os.fork()
    if not child:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = ["clapkit", *arguments]
        main()
    print(child, flush=True)
    sys.stdin.readline()  # until it is waited for, its number becomes nobody else's
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Calls:
    """Calls ``clapkit`` in processes of their own, one after the other.

    Args:
        log: file for what they say.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def __call__(self, *arguments: str | Path, stop: tuple[float, int] | None = None) -> tuple[int, str]:
        """Exit code, and what was said; ``stop`` is a delay in seconds and the signal that is sent then."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps([[str(argument) for argument in arguments], str(self._log)]) + "\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        if stop is not None:
            time.sleep(stop[0])
            os.kill(child, stop[1])
        self._server.stdin.write("\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline()), self._log.read_text()

    def close(self) -> None:
        """End the process that the calls are forked from."""
        with self._server:  # closes its pipes, at which it ends
            pass


@pytest.fixture
def call(tmp_path):
    calls = Calls(tmp_path / "said.txt")
    yield calls
    calls.close()


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    places = ("model/model.safetensors", "checkpoints/last/model.safetensors", "checkpoints/last/objective.safetensors")
    return {
        f"{place} {name}": tensor for place in places for name, tensor in safetensors.torch.load_file(folder / place).items()
    }


def logged(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_is_stopped_at_twenty_random_moments_ends_bit_identical(tone_corpus, tmp_path, call, name):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["train", "--data", tone_corpus(train=24), *COMMON, *RUNS[name], "--run-dir"]
    code, said = call(*arguments, whole)
    assert code == 0, said
    # The delays sum up to less than the run takes, on any machine; some end before the first step.
    longest_s = json.loads((whole / "result.json").read_text())["train_s"] / (0.6 * KILLS)
    draw = random.Random(0)
    reached = set()
    for _ in range(KILLS):
        resumed = ["--resume"] if (stopped / "run.json").exists() else []
        stop = draw.uniform(0.1, longest_s), draw.choice([signal.SIGKILL, signal.SIGTERM])
        code, said = call(*arguments, stopped, *resumed, stop=stop)
        assert code in STOPPED, said  # also shows that it was not over before
        assert "Traceback" not in said, said
        reached |= set(re.findall(r"resuming at step (\d+)", said))
    code, said = call(*arguments, stopped, "--resume")
    assert code == 0, said
    assert len(reached) >= KILLS // 4, reached  # it did get on in between
    assert logged(whole) == logged(stopped)
    expected, found = tensors(whole), tensors(stopped)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
