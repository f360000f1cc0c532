"""Start-up of the command line, measured against what it cannot be faster than.

Run it from the root of the repository: ``python tests/bench/bench_cli.py``. Two ratios of wall times are printed, medians of
runs that take turns, so that a busy machine slows both sides alike:

* ``clapkit --help`` over ``python -c "import typer"``, target at most 3;
* a repeated ``clapkit retrieve "dog barking"`` over 10,000 items over ``python -c "import torch"``, target at most 2.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.index.table import EmbeddingTable, TableInfo, save_tables

NUM_ITEMS = 10_000
WIDTH = 512


def build_table(folder: Path) -> Path:
    """Write a tiny model and a table of random vectors that it could have made."""
    model = DualEncoder("small", "small", embedding_dim=WIDTH, text_options={"captions": ["a dog barks", "rain falls"]})
    model.save(folder / "model")
    vectors = np.random.default_rng(0).normal(size=(NUM_ITEMS, WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = EmbeddingTable.build(
        "audio",
        vectors,
        ids=[f"clip{number}" for number in range(NUM_ITEMS)],
        paths=[f"/sounds/{number}.wav" for number in range(NUM_ITEMS)],
        spans=[(0.0, 5.0)] * NUM_ITEMS,
        captions=[[f"sound number {number}", "a sound"] for number in range(NUM_ITEMS)],
        labels=[["sound"]] * NUM_ITEMS,
        splits=["test"] * NUM_ITEMS,
        dtype="float16",
    )
    info = TableInfo(
        width=WIDTH,
        dtype="float16",
        counts={"audio": NUM_ITEMS},
        model_path=os.fspath(folder / "model"),
        model_fingerprint=model_fingerprint(folder / "model"),
    )
    save_tables(folder / "embeddings", [table], info)
    return folder / "embeddings"


def wall_s(command: list[str], environment: dict[str, str]) -> float:
    """Run a command to its end; gives its wall time in seconds."""
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def compare(name: str, command: list[str], reference: list[str], *, target: float, rounds: int, environment: dict[str, str]):
    """Print the ratio of the medians of two commands that take turns."""
    for warm_up in (command, reference):
        wall_s(warm_up, environment)
    times = [(wall_s(command, environment), wall_s(reference, environment)) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    verdict = "ok" if ours <= target * theirs else "TOO SLOW"
    print(f"{name}: {ours:.3f} s / {theirs:.3f} s = {ours / theirs:.2f} (target <= {target:g}, {rounds} rounds): {verdict}")


def main() -> None:
    """Measure both ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    python, clapkit = [sys.executable, "-c"], [sys.executable, "-m", "clapkit"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Bytecode is kept here, so that modules are compiled once, as they are where clapkit is installed.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"CLAPKIT_CACHE": os.fspath(folder / "cache"), "PYTHONPYCACHEPREFIX": os.fspath(folder / "pycache")}
        table = build_table(folder)
        query = [*clapkit, "retrieve", "dog barking", "--embeddings", os.fspath(table), "--json", "--device", "cpu"]
        measure = {"rounds": rounds, "environment": environment}
        compare("clapkit --help / import typer", [*clapkit, "--help"], [*python, "import typer"], target=3, **measure)
        compare("clapkit retrieve / import torch", query, [*python, "import torch"], target=2, **measure)


if __name__ == "__main__":
    main()
