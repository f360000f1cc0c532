import json

import numpy as np
import pytest
import soundfile

from clapkit.config import EvalConfig
from clapkit.errors import ConfigError, ManifestError
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation import sound_changes as changes_module
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.tasks import robustness
from clapkit.types import SilentReporter

FAMILIES = ("noise", "gain", "shift", "codec", "resampling", "speed")
HOW = {"reporter": SilentReporter(), "batch_size": 8, "precision": "fp32", "device": "cpu", "workers": 1}


@pytest.fixture
def run(model, reporter):
    def run(manifest, **options):
        config = EvalConfig(**({"bootstrap": 50} | options))
        audio = embed_clips(model, manifest, **HOW).vectors
        return robustness.build().run(Evaluated("toy", model, "cpu", manifest, manifest, audio, config, reporter))

    return run


@pytest.fixture
def few_changes(monkeypatch):
    """A softer sound and noise only."""
    every = changes_module.sound_changes

    def chosen(sample_rate):
        wanted = {("white_noise", 20.0), ("white_noise", 0.0), ("gain", -6.0)}
        return tuple(change for change in every(sample_rate) if (change.name, change.severity) in wanted)

    monkeypatch.setattr(robustness, "sound_changes", chosen)


def test_every_change_has_its_numbers_and_what_it_costs(run, corpus):
    result = run(corpus)
    assert set(result.metrics) == {f"robustness_{name}_t2a_R@1" for name in (*FAMILIES, "mean")} | {
        f"robustness_mean_{name}" for name in ("a2t_R@1", "accuracy", "cosine")
    }
    assert set(result.intervals) == set(result.tested) == set(result.metrics)
    assert result.counts == {"num_clips": 6, "num_changes": 22}
    assert len(result.details["robustness"]) == len(result.protocol["changes"]) == 22
    clean = result.details["clean"]
    assert clean["cosine"] == pytest.approx(1)
    for entry in result.details["robustness"]:
        assert set(entry["metrics"]) == set(entry["drop"]) == set(entry["drop_intervals"]) == set(clean)
        for name, value in entry["metrics"].items():
            assert entry["drop"][name] == pytest.approx(clean[name] - value)
            low, high = entry["drop_intervals"][name]
            assert low - 1e-9 <= entry["drop"][name] <= high + 1e-9
    json.dumps(result.document(), allow_nan=False)


def test_headline_numbers_are_means_over_severities_then_families(run, corpus, few_changes):
    result = run(corpus)
    values = [entry["metrics"]["t2a_R@1"] for entry in result.details["robustness"]]  # two of noise, one of gain
    assert result.metrics["robustness_noise_t2a_R@1"] == pytest.approx((values[0] + values[1]) / 2)
    assert result.metrics["robustness_gain_t2a_R@1"] == pytest.approx(values[2])
    assert result.metrics["robustness_mean_t2a_R@1"] == pytest.approx(((values[0] + values[1]) / 2 + values[2]) / 2)
    for metric, (table, column) in result.tested.items():
        assert np.mean(result.per_query[table][column]) == pytest.approx(result.metrics[metric])


def test_a_changed_sound_is_embedded_as_a_file_of_it_would_be(run, corpus, model, few_changes, tmp_path):
    softer = []
    for clip in corpus:
        samples, rate = soundfile.read(corpus.audio_path(clip), dtype="float32")
        soundfile.write(tmp_path / clip.audio, samples * 10 ** (-6 / 20), rate, subtype="FLOAT")
        softer.append(clip)
    files = type(corpus)(tuple(softer), root=tmp_path, name="softer", fingerprint="")
    vectors = [embed_clips(model, m, **HOW).vectors for m in (corpus, files)]
    expected = (vectors[0] * vectors[1]).sum(axis=1)
    assert run(corpus).per_query["robustness_cosine"]["gain"] == pytest.approx(expected, abs=1e-5)


def test_batch_size_and_order_of_the_clips_change_nothing(run, corpus, few_changes):
    first = run(corpus, batch_size=2)
    backwards = type(corpus)(corpus.clips[::-1], root=corpus.root, name="x", fingerprint="")
    second = run(backwards, batch_size=32)
    assert second.metrics == pytest.approx(first.metrics, abs=1e-5)
    cosines = dict(zip(first.per_query["robustness_cosine"]["id"], first.per_query["robustness_cosine"]["noise"], strict=True))
    for name, value in zip(*(second.per_query["robustness_cosine"][c] for c in ("id", "noise")), strict=True):
        assert value == pytest.approx(cosines[name], abs=1e-5)


def test_labels_alone_give_accuracy(run, retag, few_changes):
    result = run(retag(lambda clip: {"captions": ()}))
    assert set(result.metrics) == {f"robustness_{name}_accuracy" for name in ("noise", "gain", "mean")} | {
        "robustness_mean_cosine"
    }


def test_captions_alone_give_retrieval(run, retag, few_changes):
    assert set(run(retag(lambda clip: {"labels": ()})).details["clean"]) == {"t2a_R@1", "a2t_R@1", "cosine"}


def test_what_is_left_out_is_counted(run, retag, few_changes, monkeypatch):
    monkeypatch.setattr(robustness, "MAX_CLIPS", 3)
    several = ("a", "b")
    result = run(retag(lambda clip: {"captions": (), "labels": several} if "dog" in clip.id else {}))
    assert result.counts["num_clips"] == 3
    assert result.warnings[:2] == [
        "robustness: 1 clips without captions or a single label are left out",
        "robustness: 3 of 5 clips are used, chosen by the hash of their ids",
    ]
    assert all(name != "toy/dog" for name in result.per_query["robustness_cosine"]["id"])


def test_short_clips_are_said_to_be_shifted_less(run, corpus, few_changes):
    # Clips of 0.5, 1, 1.5 s are shorter than twice the largest shift.
    assert "robustness: 3 clips are shorter than 2 s and shifted by half at most" in run(corpus).warnings


def test_clips_with_nothing_to_compare_are_no_task(run, retag):
    bare = retag(lambda clip: {"captions": (), "labels": ("a", "b")})
    assert not robustness.build().possible(bare)
    with pytest.raises(ManifestError, match="no clip that could be embedded has a caption or a single label"):
        run(bare)


def test_vectors_alone_cannot_be_changed(corpus, reporter):
    evaluated = Evaluated("x", None, "cpu", corpus, corpus, np.eye(6, dtype=np.float32), EvalConfig(), reporter)
    with pytest.raises(ConfigError, match="--tasks robustness: needs a model that can embed"):
        robustness.build().run(evaluated)
