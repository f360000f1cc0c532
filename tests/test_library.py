"""``clapkit.load`` gives what the command line computes."""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import clapkit
from clapkit.config import EmbedConfig, RetrieveConfig
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import AudioError, ConfigError, EmbeddingError, NumericalError, ShapeError
from clapkit.index.table import open_table
from clapkit.run_dir import RunDir
from clapkit.steps import embed, retrieve
from clapkit.types import SilentReporter

RATE = 8000


@pytest.fixture(scope="module")
def place(tmp_path_factory, make_tones):
    """A model, six sounds of three seconds, and the embed runs ``clips`` and ``windows`` of them."""
    place = tmp_path_factory.mktemp("library")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLAPKIT_CACHE", str(place / "cache"))
        torch.manual_seed(0)
        DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": ["a tone of 200 hertz"]}).save(place / "model")
        data = make_tones(place / "tones", train=2, val=2, test=2, duration_s=3.0)
        for name, options in (("windows", {"pool": "none", "window_s": 0.5, "hop_s": 0.25}), ("clips", {"pool": "mean"})):
            config = EmbedConfig(
                **{"inputs": (str(data),), "model": str(place / "model"), "runs_root": place / "runs", "device": "cpu"},
                **({"store": "fp32"} | options),
            )
            run_dir = RunDir.create(place / "runs/embed" / name, step="embed", config=config.resolved())
            run_dir.finish(embed.run(config, run_dir, SilentReporter()))
            run_dir.release()
    return place


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("CLAPKIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(place):
    return clapkit.load(place / "model", device="cpu", runs_root=place / "runs")


def table_of(place, name, modality="audio"):
    return open_table(place / "runs/embed" / name, modality)[1]


def test_a_model_says_what_it_is(model, place):
    assert (model.name, model.embedding_dim, model.sample_rate) == (str(place / "model"), 16, 8000)
    assert model.window_s == 1.0
    assert len(model.fingerprint) == 64


# Sounds -----------------------------------------------------------------------------------------------------------------


def test_files_are_embedded_as_by_the_command_line(model, place):
    table = table_of(place, "clips")
    vectors = model.embed_audio([Path(path) for path in table.columns(["path"])["path"]])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, table.vectors, atol=1e-6)


def test_waveforms_are_embedded_as_their_files(model, place):
    files = table_of(place, "clips").columns(["path"])["path"][:3]
    waveforms = [soundfile.read(file)[0] for file in files]
    stereo = np.stack([waveforms[0]] * 2, axis=1).astype(np.float32)
    vectors = model.embed_audio([*waveforms, stereo, files[1]], sample_rate=RATE, batch_size=2)
    np.testing.assert_allclose(vectors, model.embed_audio(files)[[0, 1, 2, 0, 1]], atol=1e-6)


def test_one_file_may_come_alone_and_twice(model, place):
    file = table_of(place, "clips").columns(["path"])["path"][0]
    alone, twice = model.embed_audio(file), model.embed_audio([file, Path(file)])
    assert (alone.shape, twice.shape) == ((1, 16), (2, 16))
    np.testing.assert_allclose(twice, alone[[0, 0]], atol=1e-6)


def test_nothing_is_embedded_as_nothing(model):
    assert model.embed_audio([]).shape == (0, 16)
    assert model.embed_text([]).shape == (0, 16)


def test_windows_are_those_of_the_command_line(model, place):
    table = table_of(place, "windows")
    columns = table.columns(["path", "start_s", "end_s"])
    rows = [row for row, path in enumerate(columns["path"]) if path == columns["path"][0]]
    vectors, spans = model.embed_windows(columns["path"][0], window_s=0.5, hop_s=0.25)
    assert spans == [(columns["start_s"][row], columns["end_s"][row]) for row in rows]
    np.testing.assert_allclose(vectors, table.vectors[rows], atol=1e-6)
    assert spans[:2] == [(0.0, 0.5), (0.25, 0.75)]


def test_windows_are_the_models_if_nothing_is_said(model):
    waveform = np.random.default_rng(0).normal(0, 0.1, 2 * RATE)
    assert model.embed_windows(waveform, sample_rate=RATE)[1] == [(0.0, 1.0), (1.0, 2.0)]


@pytest.mark.parametrize(
    ("sound", "rate", "message"),
    [
        (
            np.zeros(100, dtype=np.int16),
            RATE,
            r"waveform: int16 \[100\], expected floats \[T\] or \[T, channels\] in \[-1, 1\]",
        ),
        (np.zeros((2, 2, 2)), RATE, r"waveform: float64 \[2, 2, 2\], expected floats"),
        (np.zeros(0), RATE, r"waveform: float64 \[0\], expected floats"),
        (np.zeros(100), None, "waveform: its sample rate is not known; pass sample_rate= in Hz"),
        (np.zeros((2, 8000)), RATE, r"waveform: \[2, 8000\] at 8000 Hz cannot be used .*; pass \[T\] or \[T, channels\]"),
        (np.zeros(100), -1, r"waveform: \[100\] at -1 Hz cannot be used"),
        (np.full(8000, np.nan), RATE, "^sound 0: a sample that is NaN or infinite at frame 0"),
        ("nowhere.wav", None, "^nowhere.wav: cannot be opened"),
    ],
)
def test_sounds_that_cannot_be_used_are_one_line(model, sound, rate, message):
    with pytest.raises(AudioError, match=message) as error:
        model.embed_audio([sound], sample_rate=rate)
    assert "\n" not in str(error.value)


def test_one_bad_sound_among_good_ones_is_named(model, place):
    file = table_of(place, "clips").columns(["path"])["path"][0]
    with pytest.raises(AudioError, match="^nowhere.wav: "):
        model.embed_audio([file, "nowhere.wav"])


def test_windows_that_the_model_cannot_take_are_refused(model):
    with pytest.raises(ConfigError, match="--window-s 3"):
        model.embed_windows(np.ones(RATE), sample_rate=RATE, window_s=3.0)


# Words ------------------------------------------------------------------------------------------------------------------


def test_sentences_are_embedded_as_by_the_command_line(model, place):
    table = table_of(place, "clips", "text")
    sentences = [captions[0] for captions in table.columns(["captions"])["captions"]]
    np.testing.assert_allclose(model.embed_text(sentences, batch_size=3), table.vectors, atol=1e-6)
    np.testing.assert_allclose(model.embed_text(sentences[0]), table.vectors[:1], atol=1e-6)


# Search -----------------------------------------------------------------------------------------------------------------


def retrieved(place, query, **options):
    config = RetrieveConfig(query=(query,), runs_root=place / "runs", device="cpu", **options)
    return retrieve.run(config, None, SilentReporter())["results"][0]["hits"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"embeddings": "windows", "k": 3},
        {"embeddings": "windows", "group_by": "file"},
        {"target": "both", "k": 5, "where": "split == 'test'"},
        {"hybrid": True, "fold": True},
        {"target": "text", "min_score": 0.9},
    ],
)
def test_hits_are_those_of_the_command_line(model, place, options):
    hits = model.search("a tone of 350 hertz", **options)
    expected = retrieved(place, "a tone of 350 hertz", **options)
    assert isinstance(hits[0], clapkit.Hit)
    assert [(hit.rank, hit.id, hit.modality, hit.path) for hit in hits] == [
        (hit["rank"], hit["id"], hit["modality"], hit["path"]) for hit in expected
    ]
    np.testing.assert_allclose([hit.score for hit in hits], [hit["score"] for hit in expected], atol=2e-6)
    assert [len(hit.spans) for hit in hits] == [len(hit["spans"]) for hit in expected]


def test_less_other_words_is_as_by_the_command_line(model, place):
    hits = model.search("tone", minus=["number", "hertz"])
    expected = retrieved(place, "tone", minus=("number", "hertz"))
    np.testing.assert_allclose([hit.score for hit in hits], [hit["score"] for hit in expected], atol=2e-6)
    assert model.search("tone", minus="number") == model.search("tone", minus=["number"])
    assert model.search("tone", minus="number") != model.search("tone")


def test_a_vector_finds_its_sound_whatever_its_length(model, place):
    table = table_of(place, "clips")
    (best,) = model.search(3 * table.vectors[3], k=1)
    assert best.id == table.ids[1] == "train-1"  # the same tone as val-1, and before it
    assert best.score == pytest.approx(1, abs=1e-5)
    assert model.search(table.vectors[4].astype(np.float64), minus=["tone"])


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("", ConfigError, "query: is empty, expected words"),
        ("  ", ConfigError, "query: is empty"),
        (np.ones(8), ShapeError, r"query: vector \[8\], expected \[16\]; pass one row at a time"),
        (np.ones((2, 16)), ShapeError, r"query: vector \[2, 16\]"),
        (np.zeros(16), NumericalError, "query: row 0 has norm 0"),
        (np.full(16, np.nan), NumericalError, "query: row 0 has norm nan"),
    ],
)
def test_queries_that_say_nothing_are_refused(model, query, error, message):
    with pytest.raises(error, match=message):
        model.search(query)


def test_a_word_less_itself_leaves_what_weight_leaves(model):
    assert [hit.id for hit in model.search("tone", minus="tone")] == [hit.id for hit in model.search("tone")]


def test_a_table_of_another_model_is_refused(place, tmp_path):
    DualEncoder("tiny", "tiny", embedding_dim=16, text_options={"captions": ["something else"]}).save(tmp_path / "other")
    other = clapkit.load(tmp_path / "other", device="cpu", runs_root=place / "runs")
    with pytest.raises(EmbeddingError, match=r"clips: was made by model \w{12}, this one is \w{12}; embed again, or load that"):
        other.search("tone")


def test_vectors_in_a_file_are_searched_as_of_this_model(model, place, tmp_path):
    np.save(tmp_path / "mine.npy", model.embed_text(["tone", "number"]))
    assert [hit.id for hit in model.search("number", embeddings=tmp_path / "mine.npy", k=1)] == ["1"]
    os.mkdir(tmp_path / "img_emb")
    np.save(tmp_path / "img_emb/img_emb_0.npy", model.embed_text(["tone"]))
    with pytest.raises(EmbeddingError, match="was made by model unknown, this one is"):
        model.search("number", embeddings=tmp_path)


def test_a_table_is_opened_once_for_searches_of_one_kind(model, monkeypatch):
    model.search("tone", k=2)
    opened = []
    monkeypatch.setattr(retrieve, "open_table", lambda *where: opened.append(where[1]) or open_table(*where))
    model.search("hertz", k=2)
    model.search(np.ones(16), k=2, minus=["tone"])
    assert opened == []
    model.search("hertz", k=2, target="text")
    assert opened == ["text"]
