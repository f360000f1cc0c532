"""Fixtures that several tests share: small prepared corpora and tiny models, made on the spot."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

from clapkit.cli import app
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.pretrained import quiet_libraries
from clapkit.types import Caption, Clip

SAMPLE_RATE = 8000
# Tests run side by side (-n), and so do the processes that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_waiting() -> Iterator[None]:
    """What thousands of runs in this process would spend most of their time on, and no test looks at.

    Nobody pulls the plug: files need not have reached the disk. Versions of libraries do not change between tests.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # refuses what is no open file, too
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
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


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a cache of its own."""
    folder = tmp_path / "workplace"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CLAPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLAPKIT_RUNS", raising=False)
    return folder
