import json

import numpy as np
import pytest

from clapkit.config import EvalConfig
from clapkit.errors import ConfigError
from clapkit.scales import is_fraction
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.tasks import cost


@pytest.fixture
def run(model, reporter):
    def run(manifest, *, model=model, **options):
        audio = np.tile(np.eye(16, dtype=np.float32)[:1], (len(manifest), 1))
        return cost.build().run(Evaluated("toy", model, "cpu", manifest, manifest, audio, EvalConfig(**options), reporter))

    return run


def test_sizes_are_those_of_the_parts_and_of_the_file(run, corpus, model, model_folder):
    metrics = run(corpus, batch_size=2).metrics
    assert metrics["cost_parameters_millions"] == pytest.approx(sum(p.numel() for p in model.parameters()) / 1e6)
    parts = [metrics[f"cost_{name}_parameters_millions"] for name in ("audio_tower", "text_tower", "heads")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(metrics["cost_parameters_millions"])
    file_mib = (model_folder / "model.safetensors").stat().st_size / 2**20
    assert metrics["cost_weights_mib"] == pytest.approx(file_mib, abs=0.02)  # the header of the file
    assert metrics["cost_embedding_width"] == 16


def test_speeds_memory_and_operations_are_measured(run, corpus):
    result = run(corpus, batch_size=8)
    for name in ("audio_windows_per_s", "audio_s_per_s", "sentences_per_s", "peak_memory_mib", "audio_gflops_per_window"):
        assert result.metrics[f"cost_{name}"] > 0
    # Windows of the tiny tower last a second.
    assert result.metrics["cost_audio_s_per_s"] == pytest.approx(result.metrics["cost_audio_windows_per_s"])
    assert result.counts == {"num_windows": 8, "num_sentences": 8, "num_repeats": cost.NUM_REPEATS}


def test_costs_are_no_fractions_and_never_compared(run, corpus):
    result = run(corpus, batch_size=2)
    assert not any(map(is_fraction, result.metrics))
    assert result.protocol["deterministic"] is False
    assert (result.tested, result.intervals, result.per_query) == ({}, {}, {})
    json.dumps(result.document(), allow_nan=False)


def test_sentences_are_labels_or_ids_where_there_are_no_captions(run, retag, model, monkeypatch):
    seen = []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda texts, languages=None: seen.append(texts) or encode(texts, languages))
    run(retag(lambda clip: {"captions": ()}), batch_size=2)
    run(retag(lambda clip: {"captions": (), "labels": ()}), batch_size=7)
    assert seen[0] == ["dog sound", "rain sound"]
    assert seen[-1] == ["toy/dog", "toy/rain", "toy/bell", "toy/car", "toy/bird", "toy/wind", "toy/dog"]


def test_languages_are_given_to_models_that_ask(run, corpus, polyglot):
    run(corpus, model=polyglot, batch_size=2)
    assert set(polyglot.text_tower.seen) == {("a dog is heard", "en"), ("the sound of a dog", "en")}


def test_vectors_alone_cost_nothing_that_can_be_measured(run, corpus):
    with pytest.raises(ConfigError, match="--tasks cost: needs a model that can embed"):
        run(corpus, model=None)
