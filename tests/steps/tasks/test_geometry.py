import json

import numpy as np
import pytest

from clapkit.config import EvalConfig
from clapkit.metrics import geometry as measures
from clapkit.metrics.hubness import hubness, k_occurrence
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.tasks import geometry
from clapkit.types import Caption


def unit(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def run(reporter):
    """Runs the task on vectors; two captions a clip."""

    def run(manifest, *, audio=None, captions=None, model=None, **options):
        num_captions = sum(len(clip.captions) for clip in manifest)
        audio = unit((len(manifest), 8)) if audio is None else audio
        captions = unit((num_captions, 8), seed=1) if captions is None else captions
        config = EvalConfig(**({"bootstrap": 50} | options))
        return geometry.build().run(
            Evaluated("toy", model, "cpu", manifest, manifest, audio, config, reporter, given_captions=captions)
        )

    return run


def test_numbers_are_those_of_clips_and_the_means_of_their_captions(run, corpus):
    audio, captions = unit((6, 8)), unit((12, 8), seed=1)
    result = run(corpus, audio=audio, captions=captions)
    text = captions.reshape(6, 2, 8).astype(float).sum(axis=1)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    cosines = audio @ text.T
    assert result.metrics["alignment"] == pytest.approx(2 - 2 * cosines.diagonal().mean())
    assert result.metrics["positive_cosine"] == pytest.approx(cosines.diagonal().mean())
    assert result.metrics["negative_cosine"] == pytest.approx(cosines[~np.eye(6, dtype=bool)].mean())
    assert result.metrics["modality_gap"] == pytest.approx(np.linalg.norm(audio.mean(0) - text.mean(0)), rel=1e-5)
    assert result.metrics["uniformity_text"] == pytest.approx(measures.uniformity(text))
    assert result.metrics["effective_rank_audio"] == pytest.approx(measures.effective_rank(audio))
    hardest = np.where(np.eye(6, dtype=bool), -2, cosines).max(axis=1)
    assert result.metrics["margin_a2t"] == pytest.approx((cosines.diagonal() - hardest).mean(), abs=1e-6)
    for direction, queries, items in (("t2a", captions, audio), ("a2t", audio, captions)):
        counts = k_occurrence(queries, items, 1)  # a tenth of a gallery of 6 or 12
        assert result.metrics[f"hubness_{direction}"] == pytest.approx(hubness(counts, num_queries=len(queries)).skewness)
    assert result.counts == {"num_clips": 6, "num_captions": 12, "num_captioned_clips": 6, "embedding_dim": 8}


def test_intervals_hold_means_over_clips_and_nothing_else(run, corpus):
    result = run(corpus)
    assert set(result.intervals) == set(result.tested) == {"alignment", "positive_cosine", "margin_t2a", "margin_a2t"}
    for metric, (table, column) in result.tested.items():
        assert np.mean(result.per_query[table][column]) == pytest.approx(result.metrics[metric], abs=1e-6)
        low, high = result.intervals[metric]
        assert low <= result.metrics[metric] <= high
    assert run(corpus, bootstrap=0).intervals == {}


def test_without_captions_audio_alone_is_measured(run, retag):
    result = run(retag(lambda clip: {"captions": (), "labels": ("sound",)}))
    assert set(result.metrics) == {"uniformity_audio", "effective_rank_audio", "participation_ratio_audio", "tolerance"}
    assert result.warnings == ["geometry: fewer than two clips have captions, so only audio is measured"]
    assert result.per_query == {}


def test_clips_without_captions_count_for_audio_and_as_items(run, retag):
    manifest = retag(lambda clip: {"captions": clip.captions if "dog" in clip.id or "rain" in clip.id else ()})
    audio = unit((6, 8))
    result = run(manifest, audio=audio)
    assert result.counts["num_captioned_clips"] == 2
    assert result.per_query["geometry"]["id"] == ["toy/dog", "toy/rain"]
    assert result.metrics["uniformity_audio"] == pytest.approx(measures.uniformity(audio))
    assert result.details["hubness"]["t2a"]["num_items"] == 6


def test_a_collapsed_model_gets_numbers_and_a_warning(run, corpus):
    same = np.tile(unit((1, 8)), (12, 1))
    result = run(corpus, audio=same[:6], captions=same)
    assert result.metrics["uniformity_audio"] == pytest.approx(0, abs=1e-6)
    assert result.metrics["hubness_t2a"] == 0
    assert result.metrics["modality_separability"] <= 0.5
    assert [text.split(":")[1] for text in result.warnings] == [
        " participation_ratio_audio is left out",
        " participation_ratio_text is left out",
    ]


def test_one_clip_is_left_out_with_a_warning(run, corpus):
    manifest = type(corpus)(corpus.clips[:1], root=corpus.root, name="one", fingerprint="")
    result = run(manifest)
    assert result.metrics == {}
    assert result.warnings == ["geometry: left out, as it needs two clips and there is 1"]
    assert not geometry.build().possible(manifest)
    assert geometry.build().possible(corpus)


def test_large_sets_are_sampled_and_it_is_said(run, corpus, monkeypatch):
    monkeypatch.setattr(geometry, "MAX_ROWS", 4)
    result = run(corpus)
    assert result.warnings == [
        "geometry: uniformity and hubness are of at most 4 clips, hubness of 4 queries, and margins of 4 clips (seed 0)"
    ]
    assert len(result.per_query["geometry"]["id"]) == 4
    assert set(result.tested) == {"margin_t2a", "margin_a2t"}
    found = result.details["hubness"]
    assert (found["t2a"]["num_queries"], found["t2a"]["num_items"]) == (4, 4)
    assert (found["a2t"]["num_queries"], found["a2t"]["num_items"]) == (4, 8)  # all captions of the four clips
    assert result.metrics == run(corpus).metrics


def test_margins_against_many_pairs_are_of_fewer_clips(run, corpus, monkeypatch):
    monkeypatch.setattr(geometry, "_MAX_COMPARISONS", 18)  # three times six
    result = run(corpus)
    assert len(result.per_query["geometry"]["id"]) == 3
    assert set(result.tested) == {"margin_t2a", "margin_a2t"}


def test_sampled_hubness_keeps_captions_however_many_clips_have_none(run, retag, monkeypatch):
    monkeypatch.setattr(geometry, "MAX_ROWS", 2)
    result = run(retag(lambda clip: {"captions": clip.captions if "dog" in clip.id or "rain" in clip.id else ()}))
    found = result.details["hubness"]
    assert (found["t2a"]["num_queries"], found["t2a"]["num_items"]) == (2, 4)  # two clips with captions, two of the others
    assert (found["a2t"]["num_queries"], found["a2t"]["num_items"]) == (2, 4)
    assert {hub["id"] for hub in found["a2t"]["largest"]} == {"toy/dog", "toy/rain"}


def test_hubs_are_named(run, corpus):
    audio, captions = unit((6, 8)), np.repeat(unit((1, 8)), 12, axis=0)  # every caption is the first clip's vector
    result = run(corpus, audio=audio, captions=captions)
    largest = result.details["hubness"]["t2a"]["largest"]
    assert largest[0] == {"id": "toy/dog", "count": 12.0}
    assert result.details["hubness"]["t2a"]["largest_share"] == 1
    assert result.details["hubness"]["a2t"]["largest"][0]["caption"] == "a dog is heard"


def test_the_temperature_is_that_of_the_model(run, corpus, model, monkeypatch):
    assert "temperature" not in run(corpus, model=model).details
    monkeypatch.setitem(model.config, "logit_scale", 20.0)
    assert run(corpus, model=model).details["temperature"] == {"logit_scale": 20.0, "tau": 0.05}


def test_the_order_of_the_clips_changes_nothing(run, corpus):
    audio, captions, order = unit((6, 8)), unit((6, 8), seed=1), [3, 0, 5, 1, 4, 2]
    single = [clip.__class__(id=clip.id, audio=clip.audio, captions=(Caption(clip.id),)) for clip in corpus]
    manifests = [
        type(corpus)(tuple(single[row] for row in rows), root=corpus.root, name="x", fingerprint="")
        for rows in (range(6), order)
    ]
    first = run(manifests[0], audio=audio, captions=captions).metrics
    second = run(manifests[1], audio=audio[order], captions=captions[order]).metrics
    del first["modality_separability"], second["modality_separability"]  # its folds go by place
    assert first == pytest.approx(second, abs=1e-6)


def test_the_document_is_json(run, corpus, model):
    json.dumps(run(corpus, model=model).document(), allow_nan=False)
