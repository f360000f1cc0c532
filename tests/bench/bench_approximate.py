"""What approximate indexes find and what they cost: recall, milliseconds, build, bytes, opening, memory.

    python tests/bench/bench_approximate.py --items 100000

Items are unit vectors in clusters with a low-dimensional core. Audio queries are of the same distribution, text queries of one
whose mean is shifted and whose noise is larger, as models have it. Indexes are tuned with some text queries; recall is measured
with others, against exact search. Milliseconds are medians of single queries; the index and exact search with its sketch
take turns. Opening and memory are those of a fresh process. Seed 0. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from clapkit.index import exact
from clapkit.index._sketch import load_sketch
from clapkit.index.stored import build_stored, open_stored
from clapkit.index.table import EmbeddingTable, TableInfo, open_table
from clapkit.index.writer import TableWriter, metadata_rows, publish

QUERIES, K, ROUNDS = 500, 10, 60
RECALLS = ["text recall@10", "audio recall@10", "of tuning queries"]
NUM_CLUSTERS, CORE, SPREAD, ITEM_NOISE, TEXT_NOISE = 2000, 64, 1.2, 0.8, 1.6
BLOCK_ROWS = 50_000
OPENING = """
import resource, sys, time
from pathlib import Path
import faiss, numpy as np
from clapkit.index.stored import open_stored
from clapkit.index.table import open_table

def resident():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))

info, table = open_table(Path(sys.argv[1]), "audio")
queries, before, started = np.load(sys.argv[3]), resident(), time.perf_counter()
index = open_stored(sys.argv[2], Path(sys.argv[1]), "audio", info=info, table=table)
opened, after = time.perf_counter() - started, resident()
for query in queries[:100]:
    index.search(query[None], 10)
print(1e3 * opened, after - before, resident() - before)
"""


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class Space:
    """Where items and queries are drawn from."""

    def __init__(self, width: int, generator: np.random.Generator) -> None:
        self.width, self.generator = width, generator
        self.audio_mean, shift = unit(generator.normal(size=(2, width)))
        self.text_mean = 0.2 * self.audio_mean + 0.8 * shift
        self.core = generator.standard_normal((CORE, width), dtype=np.float32) / np.float32(np.sqrt(CORE * width))
        self.centres = generator.standard_normal((NUM_CLUSTERS, CORE), dtype=np.float32)
        self.shares = generator.dirichlet(np.full(NUM_CLUSTERS, 0.5))

    def draw(self, count: int, mean: np.ndarray, noise: float) -> np.ndarray:
        clusters = self.generator.choice(NUM_CLUSTERS, size=count, p=self.shares)
        inner = self.centres[clusters] + SPREAD * self.generator.standard_normal((count, CORE), dtype=np.float32)
        outer = noise / np.sqrt(self.width) * self.generator.standard_normal((count, self.width), dtype=np.float32)
        return unit(0.7 * mean + inner @ self.core + outer)

    def audio(self, count: int) -> np.ndarray:
        return self.draw(count, self.audio_mean, ITEM_NOISE)

    def text(self, count: int) -> np.ndarray:
        return self.draw(count, self.text_mean, TEXT_NOISE)


def write_table(folder: Path, space: Space, items: int) -> None:
    with TableWriter(folder, "audio", width=space.width, dtype="float16") as writer:
        for start in range(0, items, BLOCK_ROWS):
            names = [str(row) for row in range(start, min(start + BLOCK_ROWS, items))]
            empty = [()] * len(names)
            spans = [(None, None)] * len(names)
            columns = {"captions": empty, "labels": empty, "splits": [None] * len(names), "contents": None}
            writer.append(space.audio(len(names)), metadata_rows(ids=names, paths=names, spans=spans, **columns))
        written = writer.finish()
    publish(folder, [written], TableInfo(space.width, "float16", {"audio": items}, "model", "none"))


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), expected.tolist(), strict=True)]))


def single_query_ms(exact_index, index, queries: np.ndarray) -> tuple[float, float]:
    """Medians of both, which take turns."""
    times = {"exact": [], "index": []}
    turns = itertools.cycle(queries)
    for _ in range(ROUNDS + 1):
        for name, searched, count in (("exact", exact_index, 1), ("index", index, 5)):
            for _ in range(count):
                query = next(turns)[None]
                started = time.perf_counter()
                searched.search(query, K)
                times[name].append(time.perf_counter() - started)
    return 1e3 * float(np.median(times["exact"][1:])), 1e3 * float(np.median(times["index"][5:]))


def row(
    name: str,
    options: dict[str, str],
    folder: Path,
    table: EmbeddingTable,
    info: TableInfo,
    queries: dict[str, np.ndarray],
    truth,
) -> str:
    report = build_stored(name, folder, table, info=info, options=options, queries=queries["tuning"], seed=0)
    effort = ", ".join(f"{key} {report[key]}" for key in ("components", "candidates", "nprobe", "ef_search") if key in report)
    index = open_stored(name, folder, "audio", info=info, table=table)
    recalls = [recall(index.search(queries[kind], K)[1], truth[kind]) for kind in ("text", "audio")]
    exact_index = exact.build()
    exact_index.add(table.vectors, load_sketch(folder, "audio", info))
    exact_ms, ms = single_query_ms(exact_index, index, queries["text"])
    np.save(folder / "queries.npy", queries["text"])
    command = [sys.executable, "-c", OPENING, str(folder), name, str(folder / "queries.npy")]
    opening_ms, opened_mb, searched_mb = map(
        float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )
    cells = [
        f"{name}, {effort}",
        f"{report['build_s']:.0f} + {report['tune_s']:.0f}",
        f"{report['bytes'] / 1e6:.0f}",
        f"{ms:.2f}",
        f"{exact_ms / ms:.0f}x ({exact_ms:.1f} ms)",
        *(f"{value:.3f}" for value in recalls),
        f"{report['recall@10']:.3f}",
        f"{opening_ms:.1f}",
        f"{opened_mb:.0f} / {searched_mb:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--indexes", nargs="+", default=["ivf", "hnsw"])
    parser.add_argument("--folder", type=Path, help="where the table is kept between runs")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="of the indexes")
    arguments = parser.parse_args()
    options = dict(option.split("=") for option in arguments.options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        space = Space(arguments.width, np.random.default_rng(0))
        queries = {"tuning": space.text(QUERIES), "text": space.text(QUERIES), "audio": space.audio(QUERIES)}
        if not (folder / "table.json").exists():
            write_table(folder, space, arguments.items)
        info, table = open_table(folder, "audio")
        exact_index = exact.build()
        exact_index.add(table.vectors)
        truth = {kind: exact_index.search(queries[kind], K)[1] for kind in ("text", "audio")}
        print(f"{len(table):,} items of {table.width}, {table.vectors.nbytes / 1e6:.0f} MB\n")
        titles = ["index", "build + tune, s", "MB", "ms per query", "faster than exact", *RECALLS, "opening, ms", "resident MB"]
        print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
        for name in arguments.indexes:
            print(row(name, options, folder, table, info, queries, truth), flush=True)


if __name__ == "__main__":
    main()
