"""Fixtures that several tests share: small prepared corpora and tiny models, made on the spot."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, settings
from torch.distributed import TCPStore
from typer.testing import CliRunner, Result

from clapkit import run_dir
from clapkit.cli import app
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.pretrained import quiet_libraries
from clapkit.report.curves import plot_curves
from clapkit.steps import train_log
from clapkit.types import Caption, Clip

SAMPLE_RATE = 8000
# Tests run side by side (-n), and so do the processes that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples in every run, however busy the machine is; --hypothesis-profile default draws others.
settings.register_profile("fixed", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What a test draws from the generators that all share must not depend on the tests that ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting() -> Iterator[None]:
    """What thousands of runs in this process would spend most of their time on, and no test looks at.

    Nobody pulls the plug: files need not have reached the disk. Versions of libraries and of the source do not change between
    tests. Figures of a training take longer than the training: most are empty files, see ``drawn_curves``.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # refuses what is no open file, too
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
        patch.setattr(run_dir, "_git_revision", functools.cache(run_dir._git_revision))
        patch.setattr(train_log, "plot_curves", _leave_blank)
        yield


def _leave_blank(path: Path, *_: Any) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def drawn_curves() -> Iterator[None]:
    """For modules that look at the figures of training: there they are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_log, "plot_curves", plot_curves)
        yield


@pytest.fixture
def tone_corpus(tmp_path: Path, make_tones: Callable[..., Path]) -> Callable[..., Path]:
    """Makes a prepared corpus of pure tones, unless told otherwise in ``tmp_path / "tones"``."""

    def make(folder: Path | None = None, **numbers: float) -> Path:
        return make_tones(folder or tmp_path / "tones", **numbers)

    return make


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory, make_tones: Callable[..., Path]) -> Path:
    """The manifest of a corpus of tones that many tests read and none changes."""
    return make_tones(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def make_tones() -> Callable[..., Path]:
    """Makes a prepared corpus of pure tones whose captions name their pitch; gives the path of the manifest."""

    def make(folder: Path, *, train: int = 16, val: int = 6, test: int = 6, duration_s: float = 1.0) -> Path:
        (folder / "audio").mkdir(parents=True)
        clips = []
        for split, count in (("train", train), ("val", val), ("test", test)):
            for number in range(count):
                pitch = 200 + 150 * number
                time = np.arange(round(SAMPLE_RATE * duration_s)) / SAMPLE_RATE
                path = folder / "audio" / f"{split}-{number}.wav"
                soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * time), SAMPLE_RATE, subtype="PCM_16")
                clips.append(
                    Clip(
                        id=f"{split}-{number}",
                        audio=f"audio/{path.name}",
                        duration_s=duration_s,
                        sample_rate=SAMPLE_RATE,
                        num_channels=1,
                        captions=(Caption(f"a tone of {pitch} hertz"), Caption(f"tone number {number}")),
                        labels=(f"tone {number % 3}",),
                        split=split,
                    )
                )
        Manifest.write(folder / "manifest.jsonl", clips, root=folder, name="tones")
        return folder / "manifest.jsonl"

    return make


@pytest.fixture
def tiny_encoder() -> DualEncoder:
    """A tiny dual encoder with random weights, in evaluation mode."""
    torch.manual_seed(0)
    captions = [f"a tone of {200 + 150 * number} hertz" for number in range(16)]
    return DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": captions}).eval()


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ``ClapModel`` of transformers with random weights, on disk as a Hub model is; copy it before changing it.

    48 kHz, one second, 16 mel bins, 12 wide; a byte-level tokenizer like that of RoBERTa, 38 tokens at most.
    """
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel

    folder = tmp_path_factory.mktemp("clap")
    tokenizer = _roberta_like_tokenizer()
    config = ClapConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 40,
        },
        audio_config={
            "spec_size": 64,
            "num_mel_bins": 16,
            "window_size": 4,
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
        },
        projection_dim=12,
    )
    model = ClapModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        # Weights as the library draws them are so small that all clips and all captions embed almost alike.
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.3, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.normal_(-20.0, 5.0, generator=generator)  # decibels
        norm.running_var.uniform_(100.0, 400.0, generator=generator)
    with quiet_libraries():
        model.save_pretrained(folder)
    extractor = ClapFeatureExtractor(feature_size=16, max_length_s=1, frequency_min=50, truncation="rand_trunc")
    extractor.save_pretrained(folder)
    _save_tokenizer(tokenizer, folder)
    return folder


def _roberta_like_tokenizer() -> Any:
    """A byte-level tokenizer of the package ``tokenizers`` with the special tokens of RoBERTa."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a dog barks in the rain", "rain falls on a tin roof", "a tone of 440 hertz"], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` as transformers does."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        mask_token="<mask>",
        model_max_length=38,
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def clapkit_call() -> Callable[..., Result]:
    """Calls ``clapkit`` in this process; gives exit code, stdout, stderr and the exception that came through, if any."""

    def call(*arguments: str | Path, stdin: str | None = None) -> Result:
        words = [str(argument) for argument in arguments]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["clapkit", *words])
            return CliRunner().invoke(app, words, input=stdin)

    return call


# Importing takes longer than the work: processes are forked from one that has done it.
SERVER = """
import json, os, runpy, signal, sys, warnings
import clapkit.report.curves, clapkit.steps.embed, clapkit.steps.train
from clapkit.cli import main
for line in sys.stdin:
    wanted = json.loads(line)
    if "child" in wanted:
        print(os.waitstatus_to_exitcode(os.waitpid(wanted["child"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if not child:
        for number, path in enumerate(wanted["said"], start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.environ.update(wanted["environment"])
        os.chdir(wanted["folder"])
        # As at a terminal: what a shell starts in the background, these tests perhaps, ignores interrupts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = wanted["arguments"]
        exec(wanted["first"], {})
        if sys.argv[0] == "clapkit":
            main()
        warnings.simplefilter("error")
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit(0)
    print(child, flush=True)
"""


class Processes:
    """Runs ``clapkit``, or scripts in which every warning is an error, in processes of their own."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", SERVER]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def start(
        self,
        *arguments: str | Path,
        program: str | Path = "clapkit",
        folder: Path,
        stdout: str | Path,
        stderr: str | Path,
        first: str = "",
        **environment: str,
    ) -> int:
        """The number of a process that runs, which stays its own until it is waited for; ``first`` is executed in it before."""
        words = [str(argument) for argument in (program, *arguments)]
        said = [str(stdout), str(stderr)]
        self._tell(arguments=words, folder=str(folder), said=said, first=first, environment=environment)
        return self._answer()

    def wait(self, child: int, *, patience_s: float = 300) -> int:
        """The exit code, or the negative number of the signal; a process that hangs is killed."""
        self._tell(child=child)
        assert self._server.stdout is not None
        if not select.select([self._server.stdout], [], [], patience_s)[0]:
            os.kill(child, signal.SIGKILL)
        return self._answer()

    def _tell(self, **wanted: Any) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(wanted) + "\n")
        self._server.stdin.flush()

    def _answer(self) -> int:
        assert self._server.stdout is not None
        return int(self._server.stdout.readline())

    def close(self) -> None:
        """End the process that the others are forked from."""
        with self._server:  # closes its pipes, at which it ends
            pass


@pytest.fixture(scope="session")
def processes() -> Iterator[Processes]:
    """Starts processes without the imports."""
    forked = Processes()
    yield forked
    forked.close()


@pytest.fixture(scope="session")
def group_of() -> Callable[[int], AbstractContextManager[list[dict[str, str]]]]:
    """Makes the variables that torchrun sets in each of several processes, while the context lasts."""

    @contextmanager
    def members(size: int) -> Iterator[list[dict[str, str]]]:
        # As torchrun does: they meet at a store of ours, which has a port already when they hear of it.
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        group = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
        yield [group | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]

    return members


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a cache of its own."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLAPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLAPKIT_RUNS", raising=False)
    return folder
