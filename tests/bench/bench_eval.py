"""What an evaluation of retrieval costs: time and memory of the ranks, both ways, and of the bootstrap intervals.

    python tests/bench/bench_eval.py                                                    # the size of AudioCaps
    python tests/bench/bench_eval.py --clips 50000 --captions-per-clip 5 --parts ranks  # 50,000 x 250,000

Clips are unit vectors; a caption is that of its clip with noise, of which there is more or less with ``--noise``. The
time is that of one evaluation after the vectors were drawn, with the default threads; the memory is the largest of the
whole process, Python and the vectors included (Linux: high-water mark). ``matrix`` does the same from all similarities.
"""

from __future__ import annotations

import argparse
import resource
import time
from typing import Any

import numpy as np

from clapkit.metrics.retrieval import evaluate_embeddings, evaluate_retrieval, retrieval_intervals
from clapkit.steps.embedding import cosine_similarity

PARTS = ("ranks", "intervals", "matrix")


def unit(vectors: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def draw(num_clips: int, captions_per_clip: int, *, width: int, noise: float, seed: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Audio [N, D], text [M, D] and the clip of each caption [M]; the captions of a clip are not neighbours."""
    generator = np.random.default_rng(seed)
    audio = unit(generator.standard_normal((num_clips, width), dtype=np.float32))
    clip = np.tile(np.arange(num_clips), captions_per_clip)
    text = generator.standard_normal((len(clip), width), dtype=np.float32)
    text *= np.float32(noise / width**0.5)
    for start in range(0, len(clip), num_clips):
        text[start : start + num_clips] += audio
    return audio, unit(text), clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=957)
    parser.add_argument("--captions-per-clip", type=int, default=5)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--noise", type=float, default=4.0)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    audio, text, clip = draw(
        options.clips, options.captions_per_clip, width=options.width, noise=options.noise, seed=options.seed
    )
    print(f"{len(audio)} clips x {len(text)} captions, {options.width} wide")
    found: dict[str, Any] = {}
    if "matrix" in options.parts:
        start = time.perf_counter()
        found["matrix"] = evaluate_retrieval(cosine_similarity(audio, text), clip)
        print(f"matrix     {time.perf_counter() - start:8.2f} s")
    if "ranks" in options.parts or "intervals" in options.parts:
        start = time.perf_counter()
        found["ranks"] = evaluate_embeddings(audio, text, clip)
        print(f"ranks      {time.perf_counter() - start:8.2f} s   {found['ranks']['metrics']}")
    if len(found) == 2:
        print(f"same       {found['matrix']['metrics'] == found['ranks']['metrics']}")
    if "intervals" in options.parts:
        start = time.perf_counter()
        intervals = retrieval_intervals(found["ranks"]["per_query"], num_draws=options.draws)
        print(f"intervals  {time.perf_counter() - start:8.2f} s   {len(intervals)} metrics, {options.draws} draws")
    print(f"memory     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.2f} GiB")


if __name__ == "__main__":
    main()
