"""A tiny untrained model, six sounds, and the runs that prepare and train would leave."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from clapkit.config import PrepareConfig, resolve
from clapkit.data.manifest import Manifest
from clapkit.encoders.dual import DualEncoder
from clapkit.encoders.fingerprint import model_fingerprint
from clapkit.index.table import EmbeddingTable, TableInfo, save_tables
from clapkit.run_dir import RunDir
from clapkit.steps import prepare
from clapkit.types import Caption, Clip

SAMPLE_RATE = 8000
NAMES = ("dog", "rain", "bell", "car", "bird", "wind")


class RecordingReporter:
    """Keeps what is said."""

    def __init__(self):
        self.said, self.warned = [], []

    def say(self, message):
        self.said.append(message)

    def warn(self, message):
        self.warned.append(message)

    def track(self, description, total, unit=""):
        from clapkit.types import SilentReporter

        return SilentReporter().track(description, total, unit)


def unit_vectors(num_rows, *, width=16, seed=0):
    """Random directions, float32 [N, D]."""
    vectors = np.random.default_rng(seed).normal(size=(num_rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_table(vectors, *, modality="audio", **columns):
    """A table of unit vectors in memory; items are ``0``, ``1``, ... in files ``/sounds/0.wav``, ... of a second."""
    numbers = range(len(vectors))
    given = {
        "ids": [str(number) for number in numbers],
        "paths": [f"/sounds/{number}.wav" for number in numbers],
        "spans": [(0.0, 1.0)] * len(vectors),
        "captions": [()] * len(vectors),
        "labels": [()] * len(vectors),
        "splits": [None] * len(vectors),
    }
    return EmbeddingTable.build(modality, np.asarray(vectors, dtype=np.float32), **(given | columns))


@pytest.fixture
def reporter():
    return RecordingReporter()


@pytest.fixture(autouse=True)
def query_cache_dir(monkeypatch, tmp_path):
    """No test may read or fill the user's cache."""
    monkeypatch.setenv("CLAPKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    sentences = [f"a {name} is heard" for name in NAMES]
    DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": sentences}).save(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_folder):
    return DualEncoder.load(model_folder)


@pytest.fixture
def attentive(model):
    """The model with an attention over windows that has learned to prefer some."""
    model = copy.deepcopy(model)
    model.add_window_attention()
    with torch.no_grad():
        model.window_attention.hidden.weight.normal_(0, 3, generator=torch.Generator().manual_seed(1))
        model.window_attention.score.weight.normal_(0, 9, generator=torch.Generator().manual_seed(2))
    return model


class Polyglot(nn.Module):
    """A text tower that asks for languages: what is not English comes out turned around."""

    takes_languages = True

    def __init__(self, tower):
        super().__init__()
        self.tower, self.embedding_dim = tower, tower.embedding_dim
        self.seen = []

    def forward(self, captions, languages=None):
        self.seen += zip(captions, languages, strict=True)
        features = self.tower(captions)
        english = torch.tensor([language == "en" for language in languages])[:, None]
        return torch.where(english, features, features.flip(1))


@pytest.fixture
def polyglot(model):
    """The model with a text tower that asks for languages; keeps in ``text_tower.seen`` what it was asked."""
    asking = copy.deepcopy(model)
    asking.text_tower = Polyglot(asking.text_tower)
    return asking.eval()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Clips of 0.5 to 3 s; two captions each, one label, the last two in train."""
    folder = tmp_path_factory.mktemp("corpus")
    clips = []
    for number, name in enumerate(NAMES):
        length = round(SAMPLE_RATE * 0.5 * (number + 1))
        time = np.arange(length) / SAMPLE_RATE
        noise = np.random.default_rng(number).normal(0, 0.1, length)
        tone = 0.5 * np.sin(2 * np.pi * 200 * (number + 1) * time)
        soundfile.write(folder / f"{name}.wav", (tone + noise).clip(-1, 1), SAMPLE_RATE, subtype="PCM_16")
        clips.append(
            Clip(
                id=f"toy/{name}",
                audio=f"{name}.wav",
                duration_s=length / SAMPLE_RATE,
                captions=(Caption(f"a {name} is heard"), Caption(f"the sound of a {name}")),
                labels=(f"{name}_sound",),
                split="test" if number < 4 else "train",
            )
        )
    return Manifest.write(folder / "manifest.jsonl", clips, root=folder, name="toy")


@pytest.fixture
def make_run(tmp_path):
    """Start a run under ``tmp_path / "runs"``; its lock is given up after the test."""
    made = []

    def make(step, name, *, config=None, inputs=()):
        run = RunDir.create(tmp_path / "runs" / step / name, step=step, config=config or {})
        for path, fingerprint in inputs:
            run.add_input(Path(path), fingerprint)
        made.append(run)
        return run

    yield make
    for run in made:
        run.release()


@pytest.fixture
def runs_root(tmp_path, make_run, corpus, model_folder):
    """Runs that prepare and train would leave: ``toy`` and ``first``."""
    prepare = make_run("prepare", "toy")
    manifest = Manifest.write(prepare.manifest_path, corpus.clips, root=corpus.root, name="toy")
    prepare.finish({})
    train = make_run("train", "first", inputs=[(prepare.manifest_path, manifest.fingerprint)])
    shutil.copytree(model_folder, train.model_dir, dirs_exist_ok=True)
    train.finish({})
    return tmp_path / "runs"


@pytest.fixture
def write_table(tmp_path):
    """Writes tables of given vectors, by default of no known model, into a folder that retrieve can search."""

    def write(folder="library", *, model=None, **by_modality):
        tables = [
            given if isinstance(given, EmbeddingTable) else make_table(given, modality=modality)
            for modality, given in by_modality.items()
        ]
        counts = {table.modality: len(table) for table in tables}
        made_by = ("", "") if model is None else (str(model), model_fingerprint(model))
        save_tables(tmp_path / folder, tables, TableInfo(tables[0].width, "float32", counts, *made_by))
        return tmp_path / folder

    return write


@pytest.fixture
def retag(corpus):
    """The corpus with other clips: ``retag(lambda clip: {"labels": ()})``."""

    def change(changes):
        clips = tuple(dataclasses.replace(clip, **changes(clip)) for clip in corpus.clips)
        return dataclasses.replace(corpus, clips=clips)

    return change


class PrepareCall:
    """One call of the step ``prepare`` and what it left behind."""

    def __init__(self, runs_root, name, *, resume, **given):
        config = resolve(PrepareConfig, {"runs_root": runs_root} | given)
        self.path = runs_root / "prepare" / name
        self.reporter = RecordingReporter()
        run_dir = RunDir.create(
            self.path, step="prepare", config=config.resolved(), seed=config.seed, overwrite=not resume, resume=resume
        )
        try:
            self.result = prepare.run(config, run_dir, self.reporter)
            run_dir.finish(self.result)
        finally:
            run_dir.release()

    @property
    def manifest(self):
        return Manifest.load(self.path / "manifest.jsonl")

    @property
    def report(self):
        return json.loads((self.path / "report.json").read_text())

    @property
    def inputs(self):
        return json.loads((self.path / "run.json").read_text())["inputs"]

    @property
    def rejected(self):
        return read_lines(self.path / "rejected.jsonl")

    @property
    def ids(self):
        return [clip.id for clip in self.manifest]


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def call_prepare(tmp_path):
    """Calls the step under ``tmp_path / "runs"``: ``call_prepare(recipe=..., name="a")``."""

    def call(*, name="run", resume=False, **given):
        return PrepareCall(tmp_path / "runs", name, resume=resume, **given)

    return call


@pytest.fixture
def write_melody():
    """Writes four seconds of random notes: what the comparison of sounds can tell apart."""

    def write(path, key, *, gain=0.5, num_channels=1, sample_rate=SAMPLE_RATE):
        path.parent.mkdir(parents=True, exist_ok=True)
        time = np.arange(sample_rate * 4) / sample_rate
        notes = np.random.default_rng(key).uniform((200, 1), (3000, 7), (12, 2))
        tones = [np.sin(2 * np.pi * pitch * time) * (np.sin(2 * np.pi * beat * time) > 0) for pitch, beat in notes]
        samples = gain * sum(tones) / len(tones)
        soundfile.write(path, np.stack([samples] * num_channels, axis=1), sample_rate, subtype="PCM_16")
        return path

    return write
