"""Start-up of the command line, measured against what it cannot be faster than.

Run it from the root of the repository: ``python tests/bench/bench_cli.py``. Ratios of wall times are printed, medians of runs
that take turns, so that a busy machine slows both sides alike:

* ``clapkit --help`` over ``python -c "import typer"``, target at most 3;
* ``clapkit retrieve`` of words that were never asked, with an empty cache, over 100,000 items of a model with a built-in text
  tower, over ``python -c "import torch"``, target at most 0.6; the same of words asked before;
* the same with a text tower of the size of RoBERTa-base (124 million random weights, made on the spot): new words over a script
  that does nothing but load that tower with transformers, target at most 1.3; words asked before over ``import torch``, target
  at most 0.6; and, for information, new words with an empty cache, which reads the model once more for its fingerprint.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.encoders.pretrained import quiet_libraries
from clapkit.index.table import EmbeddingTable, TableInfo, save_tables

NUM_ITEMS = 100_000
WIDTH = 512
CAPTIONS = ["a dog barks", "rain falls on a roof", "dog barking"]
# Of RoBERTa-base.
ROBERTA = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, "bos_token_id": 0, "eos_token_id": 2}
LOAD_ROBERTA = "import sys; from transformers import RobertaModel; RobertaModel.from_pretrained(sys.argv[1])"
# A file that changed within the last two seconds is not trusted to be the same the next time.
SETTLED_S = 2.5
Command = Callable[[], list[str]]


def build_roberta(folder: Path) -> Path:
    """Write an encoder of the size of RoBERTa-base with random weights, and a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import RobertaConfig, RobertaModel

    with quiet_libraries():
        RobertaModel(RobertaConfig(pad_token_id=1, **ROBERTA), add_pooling_layer=False).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def build_table(folder: Path, model: DualEncoder) -> Path:
    """Write a model and a table of random vectors that it could have made."""
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


def compare(
    name: str, command: Command, reference: list[str], *, target: float | None, rounds: int, environment: dict[str, str]
) -> None:
    """Print the ratio of the medians of two commands that take turns."""
    for warm_up in (command(), reference):
        wall_s(warm_up, environment)
    times = [(wall_s(command(), environment), wall_s(reference, environment)) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    verdict = "" if target is None else ": ok" if ours <= target * theirs else ": TOO SLOW"
    wanted = "no target" if target is None else f"target <= {target:g}"
    print(f"{name}: {ours:.3f} s / {theirs:.3f} s = {ours / theirs:.2f} ({wanted}, {rounds} rounds){verdict}", flush=True)


class Queries:
    """``clapkit retrieve`` over a table, with a cache that knows more or less.

    Args:
        table: that is searched.
        cache: folder of the cache.
    """

    def __init__(self, table: Path, cache: Path) -> None:
        self._table, self._cache, self._number = table, cache, itertools.count()

    def _command(self, words: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "clapkit",
            "retrieve",
            words,
            "--embeddings",
            str(self._table),
            "--device",
            "cpu",
            "--json",
        ]

    def first(self) -> list[str]:
        """With an empty cache."""
        shutil.rmtree(self._cache, ignore_errors=True)
        return self._command("dog barking")

    def new(self) -> list[str]:
        """Words that were never asked."""
        return self._command(f"dog barking {next(self._number)} times")

    def again(self) -> list[str]:
        """Words that were asked before."""
        return self._command("dog barking")


def main() -> None:
    """Measure all ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["help", "small", "roberta"], help="measure a part")
    arguments = parser.parse_args()
    parts = [arguments.only] if arguments.only else ["help", "small", "roberta"]
    python = [sys.executable, "-c"]
    import_torch = [*python, "import torch"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Bytecode is kept here, so that modules are compiled once, as they are where clapkit is installed.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"CLAPKIT_CACHE": os.fspath(folder / "cache"), "PYTHONPYCACHEPREFIX": os.fspath(folder / "pycache")}
        measure = {"rounds": arguments.rounds, "environment": environment}
        if "help" in parts:
            clapkit_help = [sys.executable, "-m", "clapkit", "--help"]
            compare("clapkit --help / import typer", lambda: clapkit_help, [*python, "import typer"], target=3, **measure)
        if "small" in parts:
            model = DualEncoder("small", "small", embedding_dim=WIDTH, text_options={"captions": CAPTIONS})
            queries = Queries(build_table(folder / "small", model), folder / "cache")
            time.sleep(SETTLED_S)
            compare("built-in tower, first query / import torch", queries.first, import_torch, target=0.6, **measure)
            compare("built-in tower, new words / import torch", queries.new, import_torch, target=0.6, **measure)
            compare("built-in tower, same words / import torch", queries.again, import_torch, target=0.6, **measure)
        if "roberta" in parts:
            weights = build_roberta(folder / "roberta")
            model = DualEncoder("small", "hf", embedding_dim=WIDTH, text_options={"weights": os.fspath(weights)})
            queries = Queries(build_table(folder / "hub", model), folder / "cache")
            del model
            load = [*python, LOAD_ROBERTA, os.fspath(weights)]
            time.sleep(SETTLED_S)
            compare("Hub tower, new words / loading the tower", queries.new, load, target=1.3, **measure)
            compare("Hub tower, same words / import torch", queries.again, import_torch, target=0.6, **measure)
            compare("Hub tower, first query / loading the tower", queries.first, load, target=None, **measure)


if __name__ == "__main__":
    main()
