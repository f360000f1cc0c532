import dataclasses
import json

import numpy as np
import pytest

from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.tasks import probe
from clapkit.types import Clip

METHODS = ("probe", "knn1", "knn10")


@pytest.fixture
def run(reporter, monkeypatch):
    monkeypatch.setattr(probe, "STRENGTHS", (1e-2, 1.0))  # a short grid, for the sake of time

    def run(manifest, *, model=None, audio=None, split="all", **options):
        part = manifest if split == "all" else manifest.split(split)
        if audio is None:
            audio = embed_clips(model, part, reporter=reporter).vectors
        config = EvalConfig(split=split, **({"bootstrap": 20} | options))
        return probe.build().run(Evaluated("toy", model, "cpu", manifest, part, audio, config, reporter))

    return run


def labelled(*, classes=3, folds=3, recordings=4, noise=0.3, **changes):
    """Clips of which each class lies around a direction, and their vectors [N, 8]."""
    generator = np.random.default_rng(0)
    clips, vectors = [], []
    for label in range(classes):
        for fold in range(1, folds + 1):
            for recording in range(recordings):
                name = f"{label}-{fold}-{recording}"
                clip = Clip(id=name, audio="x.wav", labels=(f"c{label}",), fold=fold, source=f"s{name}")
                clips.append(dataclasses.replace(clip, **changes))
                vectors.append(np.eye(8)[label] + generator.normal(0, noise, 8))
    vectors = np.array(vectors)
    manifest = Manifest(clips=tuple(clips), root=None, name="toy", fingerprint="f")
    return manifest, (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def with_two_labels(clip):
    return {"labels": ("low",) if clip.id in ("toy/dog", "toy/bell", "toy/bird") else ("high",)}


def test_before_and_after_the_projection_are_judged_on_the_other_split(run, model, retag):
    found = run(retag(with_two_labels), model=model, split="test")
    names = [f"{method}_accuracy{ending}" for ending in ("", "_tower") for method in METHODS]
    assert list(found.metrics) == names
    assert set(found.intervals) == set(found.chance) == set(found.tested) == set(names)
    assert found.counts == {
        "num_clips": 4,
        "num_sources": 4,
        "num_training_clips": 2,
        "num_classes": 2,
        "num_rounds": 1,
    }
    assert found.protocol["trained_on"] == "2 clips of split train"
    assert found.details["probe"]["projection"]["width"] == 16
    assert found.details["probe"]["tower"]["width"] == model.audio_tower.embedding_dim
    # One recording a class: nothing is left to choose the penalty with, which is said once.
    assert found.warnings == ["probe: every class has one recording; the penalty is 0.01 and was not chosen"]


def test_the_nearest_neighbour_is_that_of_the_embeddings(run, model, retag, reporter):
    manifest = retag(with_two_labels)
    found = run(manifest, model=model, split="test")
    training, judged = (embed_clips(model, manifest.split(name), reporter=reporter).vectors for name in ("train", "test"))
    expected = [("low", "high")[row] for row in (judged @ training.T).argmax(axis=1)]  # bird is low, wind is high
    assert found.per_query["probe"]["knn1_predicted"] == expected


def test_every_fold_is_judged_by_the_others(run):
    manifest, audio = labelled()
    found = run(manifest, audio=audio)
    assert [fit["fold"] for fit in found.details["probe"]["projection"]["fits"]] == [1, 2, 3]
    assert all(fit["num_training"] == 24 and fit["num_judged"] == 12 for fit in found.details["probe"]["projection"]["fits"])
    assert found.metrics["probe_accuracy"] > 0.8
    assert found.metrics["probe_accuracy_folds"] == pytest.approx(found.metrics["probe_accuracy"])  # folds of equal size
    rows = found.per_query["probe"]
    assert rows["id"] == [clip.id for clip in manifest]
    assert rows["clip"].tolist() == list(range(36))
    assert np.mean(rows["probe_correct"]) == found.metrics["probe_accuracy"]
    # The penalty was chosen on one of the recordings of each class, of eight.
    assert all(fit["num_held_out"] == 3 and fit["has_converged"] for fit in found.details["probe"]["projection"]["fits"])
    assert found.warnings == [
        "probe: embeddings alone say nothing of the audio tower; only what is after the projection is given"
    ]
    assert json.loads(json.dumps(found.document()))["leakage"] == {"num_clips": 0, "num_sources": 0}


def test_noise_has_the_accuracy_of_chance(run):
    manifest, audio = labelled(classes=2, folds=5, recordings=20, noise=100.0)
    found = run(manifest, audio=audio)
    for method in METHODS:
        assert abs(found.metrics[f"{method}_accuracy"] - 0.5) < 0.13, method  # 200 clips: two standard errors are 0.07


def test_the_order_of_clips_changes_no_metric(run):
    manifest, audio = labelled(noise=0.6)
    order = np.random.default_rng(0).permutation(len(manifest))
    turned = dataclasses.replace(manifest, clips=tuple(manifest.clips[n] for n in order))
    assert run(turned, audio=audio[order]).metrics == pytest.approx(run(manifest, audio=audio).metrics)


def test_recordings_on_both_sides_are_counted_and_said_loudly(run):
    manifest, audio = labelled()
    clips = tuple(dataclasses.replace(c, source="same" if c.id.endswith("0") else c.source) for c in manifest)
    found = run(dataclasses.replace(manifest, clips=clips), audio=audio)
    assert found.details["leakage"] == {"num_clips": 9, "num_sources": 1}
    assert any("RESULTS ARE TOO GOOD: 9 of 36 evaluated clips" in warning for warning in found.warnings)


def test_several_labels_are_judged_by_map(run):
    manifest, audio = labelled(folds=2)
    clips = tuple(dataclasses.replace(c, labels=(*c.labels, "all")) if c.fold == 1 else c for c in manifest)
    found = run(dataclasses.replace(manifest, clips=clips), audio=audio)
    assert list(found.metrics) == [f"{method}_mAP" for method in METHODS]
    assert found.protocol["probe"].startswith("one-against-the-rest")
    assert found.per_query == {}
    assert found.tested == {}


def test_a_class_that_cannot_be_learned_is_said(run):
    manifest, audio = labelled()
    clips = tuple(dataclasses.replace(c, labels=("rare",)) if c.id in ("0-1-0", "0-1-1") else c for c in manifest)
    found = run(dataclasses.replace(manifest, clips=clips), audio=audio)
    assert any("1 classes have no clip to learn on, the first is 'rare'; 2 evaluated clips" in w for w in found.warnings)
    assert next(row for row in found.details["per_class"]["projection"] if row["class"] == "rare")["recall"] == 0


def test_clips_without_labels_or_folds_are_counted(run):
    manifest, audio = labelled()
    changes = {"0-1-0": {"labels": ()}, "0-1-1": {"fold": None}}
    clips = tuple(dataclasses.replace(c, **changes.get(c.id, {})) for c in manifest)
    found = run(dataclasses.replace(manifest, clips=clips), audio=audio)
    assert found.counts["num_clips"] == 34
    assert "probe: 1 clips without labels are left out" in found.warnings
    assert "probe: 1 clips without a fold are left out" in found.warnings


def test_training_clips_that_cannot_be_read_are_counted(run, model, retag):
    manifest = retag(lambda clip: with_two_labels(clip) | ({"split": "train"} if clip.id in ("toy/dog", "toy/rain") else {}))
    clips = tuple(dataclasses.replace(c, audio="gone.wav") if c.id == "toy/dog" else c for c in manifest)
    found = run(dataclasses.replace(manifest, clips=clips), model=model, split="test")
    assert found.counts["num_training_clips"] == 3
    assert "probe: 1 clips of split train that could not be embedded are left out" in found.warnings


def test_what_cannot_be_asked_is_refused(run, model, retag, corpus):
    manifest, audio = labelled()
    with pytest.raises(ConfigError, match="--probe-split test: is the split that is evaluated"):
        run(retag(with_two_labels), model=model, split="test", probe_split="test")
    with pytest.raises(ConfigError, match="needs vectors of split train to learn on, and --embeddings gives those of test"):
        run(corpus, audio=np.ones((4, 8)), split="test")
    with pytest.raises(ConfigError, match="labelled clips lie in 1 official folds, expected 2 or more"):
        run(*labelled(folds=1)[:1], audio=labelled(folds=1)[1])
    with pytest.raises(ManifestError, match=r"no clip in split 'dev', splits found: test \(4 clips\), train"):
        run(retag(with_two_labels), model=model, split="test", probe_split="dev")
    with pytest.raises(ManifestError, match="--probe-split train: none of 2 clips has a label"):
        run(retag(lambda clip: {"labels": ()} if clip.split == "train" else {}), model=model, split="test")
    assert probe.build().possible(manifest)
    assert not probe.build().possible(retag(lambda clip: {"labels": ()}))
    assert len(audio) == len(manifest)
