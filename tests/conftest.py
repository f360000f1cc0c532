"""Fixtures that several tests share: small prepared corpora and tiny models, made on the spot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner, Result

from clapkit.cli import app
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.types import Caption, Clip

SAMPLE_RATE = 8000


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


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
