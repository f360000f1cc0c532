import dataclasses

import numpy as np
import pytest
import soundfile

from clapkit import registry
from clapkit.config import EvalConfig
from clapkit.errors import ManifestError
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.sound_pairs import draw_pairs
from clapkit.steps.tasks import temporal
from clapkit.types import SilentReporter

TASK = registry.build("task", "temporal")
METRICS = [f"temporal_{name}" for name in ("sentence_accuracy", "order_accuracy", "first_event_accuracy", "both_events")]


def evaluate(model, manifest, *, split=None, kind=Evaluated, **options):
    split = manifest if split is None else split
    config = EvalConfig(**({"bootstrap": 50} | options))
    audio = embed_clips(model, split, reporter=SilentReporter()).vectors
    return TASK.run(kind("x", model, "cpu", manifest, split, audio, config, SilentReporter()))


class Listener(Evaluated):
    """Knows what every sentence and every sound means, as one coordinate each; the sounds come in the order of the pairs."""

    hears_order = True

    def meanings(self):
        names = sorted({clip.labels[0].replace("_", " ") for clip in self.manifest})
        pairs = [(x, y) for x in names for y in names if x != y]
        keys = [*(("then", *pair) for pair in pairs), *(("both", *sorted(pair)) for pair in pairs), *((n,) for n in names)]
        return names, {key: number for number, key in enumerate(dict.fromkeys(keys))}

    def vector(self, *keys):
        _, place = self.meanings()
        vector = np.zeros(len(place), np.float32)
        vector[[place[key] for key in keys]] = 1
        return vector / np.linalg.norm(vector)

    def read(self, text):
        for separator, is_turned in ((", then ", 0), (" followed by ", 0), (" after ", 1), (" preceded by ", 1)):
            if separator in text:
                x, y = text.split(separator)[:: -1 if is_turned else 1]
                return self.vector(("then", x, y))
        if text.startswith("The first sound is "):
            first = text.removeprefix("The first sound is ").removesuffix(".")
            return self.vector(*(("then", first, other) for other in self.meanings()[0] if other != first))
        text = text.removesuffix(" at the same time")
        return self.vector(("both", *sorted(text.split(" and ")))) if " and " in text else self.vector((text,))

    def embed_texts(self, texts, languages=None):
        return np.stack([self.read(text) for text in texts])

    def embed_waveforms(self, waveforms, *, total, description):
        assert len(list(waveforms)) == total
        label = {clip.id: clip.labels[0].replace("_", " ") for clip in self.clips}
        by_class = {}
        for clip in self.clips:
            by_class.setdefault(clip.labels[0], []).append(clip.id)
        found = []
        for pair in draw_pairs(by_class, num_pairs=temporal.NUM_PAIRS, seed=self.config.seed):
            x, y = (label[id] for id in pair)
            heard = [("then", x, y), ("then", y, x)]
            found += [self.vector(*([key] if self.hears_order else heard)) for key in heard]
            found += [self.vector(("both", *sorted((x, y)))), self.vector((x,)), self.vector((y,))]
        return np.stack(found)


class BagListener(Listener):
    """Hears which two events a sequence has, and not in which order."""

    hears_order = False


def test_a_perfect_listener_is_always_right(corpus, model):
    result = evaluate(model, corpus, kind=Listener)
    assert result.metrics == dict.fromkeys(METRICS, 1.0)
    assert result.intervals == dict.fromkeys(METRICS, (1.0, 1.0))


def test_a_listener_without_order_has_exactly_chance_on_order_or_less(corpus, model):
    result = evaluate(model, corpus, kind=BagListener)
    # Both orders have the same score for it: ties count against it.
    assert result.metrics["temporal_order_accuracy"] == 0
    assert result.metrics["temporal_first_event_accuracy"] == 0
    assert result.metrics["temporal_both_events"] == 1
    assert result.details["sentence_accuracy_of"] == {"sequence": 0, "overlay": 1}


class Mentioner(Listener):
    """Takes the order of mention for the order in time."""

    def read(self, text):
        for separator in (" after ", " preceded by "):
            text = text.replace(separator, ", then ")
        return super().read(text)


def test_taking_the_order_of_mention_for_that_in_time_gets_half_of_the_orders_right(corpus, model):
    result = evaluate(model, corpus, kind=Mentioner)
    assert result.metrics["temporal_order_accuracy"] == 0.5
    orders = {template: values["order_accuracy"] for template, values in result.details["per_template"].items()}
    assert [orders[template] for template in temporal.SEQUENCE_TEMPLATES] == [1, 1, 0, 0]


def test_results_of_a_model_are_complete(corpus, model):
    result = evaluate(model, corpus)
    assert list(result.metrics) == METRICS
    assert set(result.intervals) == set(result.chance) == set(METRICS)
    assert result.chance["temporal_first_event_accuracy"] == pytest.approx(1 / 6)
    # Six clips of six classes: 6 * 5 / 2 pairs.
    assert result.counts == {"num_classes": 6, "num_pairs": 15, "num_silent_pairs": 0}
    assert any("15 pairs are all that the split allows" in warning for warning in result.warnings)
    for metric, (table, column) in result.tested.items():
        assert np.mean(result.per_query[table][column]) == pytest.approx(result.metrics[metric])
    assert result.protocol["max_event_s"] == pytest.approx((1 + 0.02) / 2)
    assert set(result.details["per_template"]) == set(temporal.SEQUENCE_TEMPLATES)
    assert "pairs" in result.protocol["intervals_over"]


def test_the_details_add_up_to_the_metrics(corpus, model):
    result = evaluate(model, corpus, bootstrap=0)
    details, metrics = result.details, result.metrics
    templates = list(details["per_template"].values())
    assert np.mean([values["sentence_accuracy"] for values in templates]) == pytest.approx(metrics[METRICS[0]])
    assert np.mean([values["order_accuracy"] for values in templates]) == pytest.approx(metrics[METRICS[1]])
    # Two sequences and one overlay; two questions about the overlay and two about single sounds.
    sentence, both = details["sentence_accuracy_of"], details["both_events_of"]
    assert (2 * sentence["sequence"] + sentence["overlay"]) / 3 == pytest.approx(metrics[METRICS[0]])
    assert (both["overlay"] + both["single"]) / 2 == pytest.approx(metrics[METRICS[3]])
    assert result.intervals == {}


def test_neither_the_order_of_the_clips_nor_the_batch_size_matters(corpus, model, monkeypatch):
    monkeypatch.setattr(temporal, "NUM_PAIRS", 4)
    turned = dataclasses.replace(corpus, clips=corpus.clips[::-1])
    expected = evaluate(model, corpus)
    for result in (evaluate(model, turned), evaluate(model, corpus, batch_size=3)):
        assert result.metrics == pytest.approx(expected.metrics)
        assert list(result.per_query["temporal"]["caption"]) == list(expected.per_query["temporal"]["caption"])


def test_more_pairs_than_wanted_are_drawn_by_the_seed(corpus, model, monkeypatch):
    monkeypatch.setattr(temporal, "NUM_PAIRS", 3)
    first, second, third = (evaluate(model, corpus, seed=seed).per_query["temporal"]["caption"] for seed in (0, 0, 1))
    assert len(first) == 3
    assert list(first) == list(second) != list(third)


def test_classes_of_the_whole_data_can_be_the_first_event(corpus, model):
    result = evaluate(model, corpus, split=corpus.split("test"))
    assert result.counts["num_classes"] == 6
    assert result.counts["num_pairs"] == 6  # of the four clips of the split


def test_pairs_with_a_silent_recording_are_left_out_and_said(corpus, model, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(8000), 8000, subtype="PCM_16")
    clips = tuple(
        dataclasses.replace(clip, audio=str(tmp_path / "silence.wav")) if clip.id == "toy/dog" else clip for clip in corpus
    )
    result = evaluate(model, dataclasses.replace(corpus, clips=clips))
    assert (result.counts["num_pairs"], result.counts["num_silent_pairs"]) == (10, 5)
    assert len(result.per_query["temporal"]["id"]) == 10
    assert any("5 of 15 pairs have a silent recording and are left out" in warning for warning in result.warnings)
    silent = tuple(dataclasses.replace(clip, audio=str(tmp_path / "silence.wav")) for clip in corpus)
    with pytest.raises(ManifestError, match="all of 15 pairs have a silent recording"):
        evaluate(model, dataclasses.replace(corpus, clips=silent))


def test_the_task_needs_two_classes_of_clips_with_one_label(corpus, retag):
    assert TASK.possible(corpus)
    assert not TASK.possible(retag(lambda clip: {"labels": ("dog",)}))
    assert not TASK.possible(retag(lambda clip: {"labels": (*clip.labels, "any")}))
    assert not TASK.by_default
    assert TASK.needs_model


def test_classes_that_were_lost_with_their_clips_are_said(corpus, model):
    one = dataclasses.replace(corpus, clips=corpus.clips[:1])
    with pytest.raises(ManifestError, match="temporal: 1 classes have clips with one label that could be embedded"):
        evaluate(model, corpus, split=one)
