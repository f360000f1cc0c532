"""What a search costs beside a bare matrix product and faiss: time of one query and of a thousand, opening, memory.

    python tests/bench/bench_search.py --items 1000000

Items are unit vectors in clusters with a low-dimensional core, as embeddings are; audio queries come from the same
distribution, text queries from one whose mean is shifted, which is what the gap between modalities does. The table is
written as float16 into a temporary folder and memory-mapped; the float32 rows that the others need are held in memory.
All take turns within one run, with the default threads. ``exact`` also compares the hits with those of float32 scores.
``memory`` searches in a fresh process and reads its high-water mark (Linux only); pages of the mapped file, which the
system gives back when it needs them, are told apart from memory of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clapkit.index import _sketch, exact

STATUS = Path("/proc/self/status")
BLOCK = 50_000
K = 10
CLUSTERS = 1000
CORE = 64


class Source:
    """Where items and queries come from."""

    def __init__(self, width: int, *, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self._core = draw.standard_normal((CORE, width), dtype=np.float32) / np.float32(CORE) ** 0.5
        self._centres = draw.standard_normal((CLUSTERS, CORE), dtype=np.float32)
        self._gap = draw.standard_normal(width, dtype=np.float32) * 0.7
        self._mean = draw.standard_normal(width, dtype=np.float32) * 0.5
        self._width = width

    def draw(self, count: int, generator: np.random.Generator, *, kind: str = "audio") -> np.ndarray[Any, Any]:
        """Unit vectors float32 [count, width]."""
        centres = self._centres[generator.integers(0, CLUSTERS, count)]
        inner = centres + 0.6 * generator.standard_normal((count, CORE), dtype=np.float32)
        noise = 0.4 * generator.standard_normal((count, self._width), dtype=np.float32)
        vectors = inner @ self._core + self._mean + noise
        if kind == "text":
            vectors += self._gap
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def write_items(path: Path, source: Source, *, count: int, width: int, seed: int) -> None:
    """Write the table block by block."""
    generator = np.random.default_rng(seed + 1)
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(count, width))
    for start in range(0, count, BLOCK):
        table[start : start + BLOCK] = source.draw(min(BLOCK, count - start), generator)
    table.flush()


def in_float32(table: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    whole = np.empty(table.shape, dtype=np.float32)
    for start in range(0, len(table), BLOCK):
        whole[start : start + BLOCK] = table[start : start + BLOCK]
    return whole


def take_turns(tasks: Mapping[str, Callable[[], Any]], *, rounds: int, pause_s: float) -> dict[str, list[float]]:
    """Seconds of each task in each round; a round before them is for warming up.

    A pause before each turn lets threads that wait busily for more work, as those of BLAS do, go to sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            time.sleep(pause_s)
            started = time.perf_counter()
            task()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def print_turns(seconds: Mapping[str, list[float]], *, beside: str) -> None:
    """Medians, and the median, least and largest ratio of the same round to one of them."""
    for name, measured in seconds.items():
        ratios = [ours / other for ours, other in zip(measured, seconds[beside], strict=True)]
        print(
            f"  {name:38} {1000 * statistics.median(measured):9.1f} ms"
            f"   {statistics.median(ratios):5.2f} of {beside} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def exact_part(arguments: argparse.Namespace, place: Path, source: Source) -> None:
    import faiss

    table = np.load(place / "items.npy", mmap_mode="r")
    generator = np.random.default_rng(arguments.seed + 2)
    queries = {kind: source.draw(arguments.queries, generator, kind=kind) for kind in ("audio", "text")}
    many = queries["text"]
    whole = in_float32(table)
    index = exact.build()
    index.add(table)
    started = time.perf_counter()
    sketched = exact.build()
    sketched.add(table, _sketch.make(table))
    print(f"sketch: made in {time.perf_counter() - started:.1f} s")
    flat = faiss.IndexFlatIP(table.shape[1])
    turn = iter(range(10**9))

    def one(kind: str = "text") -> np.ndarray[Any, Any]:
        return queries[kind][next(turn) % arguments.queries][None]

    def with_partition() -> None:
        scores = whole @ one()[0]
        best = np.argpartition(-scores, K)[:K]
        best[np.argsort(-scores[best])]

    half = np.flatnonzero(np.random.default_rng(arguments.seed).random(len(table)) < 0.5)
    print(f"exact: {len(table)} x {table.shape[1]}, top {K}, one query, median of {arguments.rounds} rounds")
    seconds = take_turns(
        {
            "float32 matrix-vector": lambda: whole @ one()[0],
            "float32 matrix-vector + argpartition": with_partition,
            "ours, float16 mapped, text query": lambda: index.search(one(), K),
            "ours, float16 mapped, audio query": lambda: index.search(one("audio"), K),
            "ours, with sketch, one query": lambda: sketched.search(one(), K),
            "ours, with sketch, audio query": lambda: sketched.search(one("audio"), K),
            "ours, half of the rows wanted": lambda: index.search(one(), K, rows=half),
        },
        rounds=arguments.rounds,
        pause_s=0.1,
    )
    print_turns(seconds, beside="float32 matrix-vector")
    flat.add(whole)
    whole = np.empty((0, 0), dtype=np.float32)  # 2 GB for a million
    print(f"exact: {len(many)} text queries, median of {arguments.rounds_of_many} rounds")
    hits: dict[str, np.ndarray[Any, Any]] = {}

    def keep(name: str, search: Callable[[Any, int], tuple[Any, Any]]) -> None:
        hits[name] = search(many, K)[1]

    seconds = take_turns(
        {"faiss flat, float32": lambda: keep("flat", flat.search), "ours, float16 mapped": lambda: keep("ours", index.search)},
        rounds=arguments.rounds_of_many,
        pause_s=0.1,
    )
    print_turns(seconds, beside="faiss flat, float32")
    print(f"  same hits as faiss flat on float32: {np.mean(hits['flat'] == hits['ours']):.5f}")


def opening(arguments: argparse.Namespace, place: Path, source: Source) -> None:
    from clapkit.index import table, writer

    folder = place / "table"
    vectors = np.load(place / "items.npy", mmap_mode="r")
    written = writer.TableWriter(folder, "audio", width=vectors.shape[1], dtype="float16")
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        names = [f"clip_{number}" for number in range(start, start + len(block))]
        nothing = [None] * len(block)
        metadata = writer.metadata_rows(
            ids=names,
            paths=[f"{name}.wav" for name in names],
            spans=[(0.0, 10.0)] * len(block),
            captions=[[]] * len(block),
            labels=[[]] * len(block),
            splits=nothing,
            contents=nothing,
        )
        written.append(block, metadata)
    info = table.TableInfo(vectors.shape[1], "float16", {"audio": len(vectors)}, os.fspath(place), "bench")
    writer.publish(folder, [written.finish()], info)
    seconds = take_turns({"open_table": lambda: table.open_table(folder, "audio")}, rounds=arguments.rounds, pause_s=0.0)
    print(f"opening: a table of {len(vectors)} rows, median of {arguments.rounds} rounds")
    print(f"  open_table {1000 * statistics.median(seconds['open_table']):.1f} ms")


def memory(arguments: argparse.Namespace, place: Path, source: Source) -> None:
    print(f"memory: high-water mark of a fresh process that searches {arguments.items} x {arguments.width}, MiB")
    for count in (1, arguments.queries):
        command = [sys.executable, __file__, "--one-search", str(place / "items.npy"), str(count)]
        before, own, mapped = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        print(f"  {count:5} queries: {own:>5} of its own, {before} of them before the search; {mapped:>5} of the mapped file")


def one_search(path: Path, count: int) -> None:
    """Print memory of this process before a search, the most of its own during it, and mapped pages after it, MiB."""
    index = exact.build()
    table = np.load(path, mmap_mode="r")
    index.add(table)
    queries = np.random.default_rng(0).standard_normal((count, table.shape[1])).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    if count <= 8:
        import faiss  # noqa: F401  is counted as what was there before
    before, mapped_before = resident("RssAnon"), resident("RssFile")
    index.search(queries, K)
    mapped = resident("RssFile") - mapped_before
    # The mark counts both kinds of pages; those of the file only grow until the end of the search.
    print(before // 1024, (resident("VmHWM") - mapped - mapped_before) // 1024, mapped // 1024)


def resident(field: str) -> int:
    """A line of the kernel's record of this process, KiB."""
    lines = STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


PARTS = {"exact": exact_part, "opening": opening, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rounds-of-many", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one-search", nargs=2, metavar=("PATH", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one_search:
        one_search(Path(arguments.one_search[0]), int(arguments.one_search[1]))
        return
    source = Source(arguments.width, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        write_items(Path(place) / "items.npy", source, count=arguments.items, width=arguments.width, seed=arguments.seed)
        for part in arguments.parts:
            PARTS[part](arguments, Path(place), source)


if __name__ == "__main__":
    main()
