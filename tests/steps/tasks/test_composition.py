import dataclasses

import numpy as np
import pytest
import soundfile

from clapkit import registry
from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.steps.embedding import embed_clips
from clapkit.steps.evaluation.context import Evaluated
from clapkit.types import Caption, Clip, RecipeRequest, SilentReporter

ORDER = """pair_caption,reversed_pair_caption,triplet_caption,pair_file,reversed_pair_file,triplet_file
A dog barks after a bell.,A bell rings after a dog.,A dog and a bell at once.,1.wav,1_rev.wav,1_trip.wav
"Rain, then thunder.","Thunder, then rain.",-,2.wav,2_rev.wav,-
A car before a bird.,A bird before a car.,-,3.wav,3_rev.wav,-
"""
TASK = registry.build("task", "composition")


def evaluate(model, manifest, **options):
    vectors = embed_clips(model, manifest, reporter=SilentReporter()).vectors
    config = EvalConfig(**({"bootstrap": 50} | options))
    return TASK.run(Evaluated("model", model, "cpu", manifest, manifest, vectors, config, SilentReporter()))


def evaluate_vectors(manifest, audio, text, **options):
    """The task with vectors only."""
    config = EvalConfig(**({"bootstrap": 50} | options))
    return TASK.run(
        Evaluated("vectors", None, "cpu", manifest, manifest, np.array(audio), config, SilentReporter(), np.array(text))
    )


@pytest.fixture
def compa(tmp_path):
    """A miniature of CompA-order, read by its recipe: two pairs and an item with a third clip."""
    folder = tmp_path / "CompA_order"
    folder.mkdir()
    (folder / "CompA_order_benchmark.csv").write_text(ORDER)
    for number, name in enumerate(["1", "1_rev", "1_trip", "2", "2_rev", "3", "3_rev"]):
        noise = np.random.default_rng(number).normal(0, 0.1, 4000)
        soundfile.write(folder / f"{name}.wav", noise, 8000, subtype="PCM_16")
    request = RecipeRequest(source=tmp_path, audio_dir=None, output_dir=tmp_path, seed=0, workers=1, reporter=SilentReporter())
    clips = list(registry.build("recipe", "compa").clips(request))
    assert all(isinstance(clip, Clip) for clip in clips)
    clips = [dataclasses.replace(clip, duration_s=0.5) for clip in clips]
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="compa")


def without(manifest, *ids):
    """The embedded clips, and the whole manifest that they come from."""
    clips = tuple(clip for clip in manifest.clips if clip.id not in ids)
    return dataclasses.replace(manifest, clips=clips)


# The first item is solved both ways and as a triple; in the second every clip prefers the second caption; in the third all
# is the other way round.
AUDIO = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0.8, 0.6, 0], [1, 0, 0], [0, 1, 0]]
TEXT = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.96, 0.28, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0]]


def test_pairs_and_triples_are_scored_apart(compa):
    result = evaluate_vectors(compa, AUDIO, TEXT)
    # Item 2: clip (1, 0): 0.96 and 1, wrong. Clip (0.8, 0.6): 0.936 and 0.8, wrong. Caption (0.96, 0.28): 0.96 and 0.936,
    # right; caption (1, 0): 1 and 0.8, wrong. So text and audio scores are those of item 1.
    assert result.metrics == {
        "composition_order_text": pytest.approx(1 / 3),
        "composition_order_audio": pytest.approx(1 / 3),
        "composition_order_group": pytest.approx(1 / 3),
        "composition_order_triples_group": 1,
    }
    assert set(result.intervals) == set(result.metrics) == set(result.tested)
    assert result.chance == {
        "composition_order_text": 1 / 4,
        "composition_order_audio": 1 / 4,
        "composition_order_group": pytest.approx(1 / 6),
        "composition_order_triples_group": pytest.approx(1 / 60),
    }
    assert result.counts["num_order_pairs"] == 3
    assert result.counts["num_order_triples"] == 1
    assert result.details["scores"]["order_triples"]["text"] == {"value": 1, "chance": pytest.approx(1 / 27)}


def test_the_items_are_in_the_table_of_queries(compa):
    table = evaluate_vectors(compa, AUDIO, TEXT).per_query["composition_order"]
    assert list(table["item"]) == ["1", "2", "3"]
    assert list(table["id"]) == ["compa/order/1/pair", "compa/order/2/pair", "compa/order/3/pair"]
    assert [compa.clips[row].id for row in table["clip"]] == list(table["id"])
    assert table["group"].tolist() == [1, 0, 0]


def test_without_a_model_shuffled_words_are_left_out_and_said(compa):
    result = evaluate_vectors(compa, AUDIO, TEXT)
    assert any("word order: left out, because shuffled captions need a model" in warning for warning in result.warnings)
    assert "word_order" not in result.details


def test_without_draws_there_are_no_intervals(compa, model):
    assert evaluate_vectors(compa, AUDIO, TEXT, bootstrap=0).intervals == {}
    assert evaluate(model, compa, bootstrap=0).intervals == {}


def test_incomplete_items_are_counted_and_left_out(compa):
    kept = without(compa, "compa/order/1/simultaneous", "compa/order/3/pair")
    rows = [0, 1, 3, 4, 6]
    config = EvalConfig(bootstrap=0)
    evaluated = Evaluated(
        "vectors", None, "cpu", compa, kept, np.array(AUDIO)[rows], config, SilentReporter(), np.array(TEXT)[rows]
    )
    result = TASK.run(evaluated)
    assert result.metrics["composition_order_group"] == 1 / 2
    assert "composition_order_triples_group" not in result.metrics
    assert (result.counts["num_order_incomplete"], result.counts["num_order_incomplete_triples"]) == (1, 1)
    assert any("1 of 3 items of order lack a clip or a caption and are left out" in text for text in result.warnings)
    assert any("1 of 1 triples of order lack a clip" in text for text in result.warnings)


def test_a_model_is_asked_both_questions(compa, model):
    result = evaluate(model, compa)
    assert {"composition_order_group", "word_order_t2a_R@1_shuffled", "word_order_a2t_R@1_drop"} <= set(result.metrics)
    assert set(result.intervals) == set(result.metrics) == set(result.tested)
    for metric, (table, column) in result.tested.items():
        assert np.mean(result.per_query[table][column]) == pytest.approx(result.metrics[metric])


def test_captions_alone_give_the_price_of_shuffled_words(corpus, model):
    result = evaluate(model, corpus)
    assert {name.split("_")[0] for name in result.metrics} == {"word"}
    assert result.counts["num_shuffled_captions"] == 12
    assert result.chance["word_order_t2a_R@1_shuffled"] == pytest.approx(1 / 6)
    for direction in ("t2a", "a2t"):
        original = result.details["word_order"][f"word_order_{direction}_R@1_original"]
        shuffled = result.metrics[f"word_order_{direction}_R@1_shuffled"]
        assert result.metrics[f"word_order_{direction}_R@1_drop"] == pytest.approx(original - shuffled)
    table = result.per_query["word_order_t2a"]
    assert table["caption"][0] == "a dog is heard"
    assert sorted(table["shuffled_caption"][0].split()) == ["a", "dog", "heard", "is"]


class WordHearer(Evaluated):
    """Knows which words a caption has, or also which comes first."""

    words = ("dog", "cat", "rain")
    hears_order = False

    def embed_texts(self, texts, languages=None):
        rows = []
        for text in texts:
            spoken = [self.words.index(word) for word in text.split()]
            vector = np.bincount(spoken, minlength=3).astype(np.float32)
            if self.hears_order:
                vector[spoken[0]] += 0.5
            rows.append(vector / np.linalg.norm(vector))
        return np.stack(rows)


class OrderHearer(WordHearer):
    hears_order = True


def test_a_model_that_hears_words_only_loses_nothing_and_one_that_hears_order_does(corpus, model):
    texts = ["dog cat", "cat dog", "dog rain", "rain dog", "cat rain", "rain cat"]
    clips = tuple(dataclasses.replace(clip, captions=(Caption(text),)) for clip, text in zip(corpus.clips, texts, strict=True))
    manifest = dataclasses.replace(corpus, clips=clips)
    drops = {}
    for kind in (WordHearer, OrderHearer):
        evaluated = kind("x", model, "cpu", manifest, manifest, np.empty((6, 3)), EvalConfig(bootstrap=0), SilentReporter())
        evaluated = dataclasses.replace(evaluated, audio=OrderHearer.embed_texts(OrderHearer, texts))
        drops[kind] = TASK.run(evaluated).metrics
    # With two words the shuffled caption is that of the clip with both sounds turned around: all are found, then none is.
    assert drops[OrderHearer]["word_order_t2a_R@1_drop"] == drops[OrderHearer]["word_order_a2t_R@1_drop"] == 1
    assert drops[WordHearer]["word_order_t2a_R@1_drop"] == drops[WordHearer]["word_order_a2t_R@1_drop"] == 0


def test_captions_that_cannot_be_shuffled_are_said(retag, model):
    manifest = retag(lambda clip: {"captions": (*clip.captions, Caption("rain"), Caption("雨 が 降る", lang="ja"))})
    result = evaluate(model, manifest)
    assert (result.counts["num_shuffled_captions"], result.counts["num_captions_without_blanks"]) == (12, 6)
    assert result.counts["num_captions_without_other_order"] == 6
    assert any("12 of 24 captions cannot be shuffled" in warning for warning in result.warnings)


def test_with_nothing_to_shuffle_there_is_no_number(retag, model):
    result = evaluate(model, retag(lambda clip: {"captions": (Caption("rain"),)}))
    assert result.metrics == {}
    assert result.counts["num_captions_without_other_order"] == 6


def test_the_task_needs_captions_and_is_not_run_by_default(corpus, retag, compa):
    assert TASK.possible(corpus)
    assert TASK.possible(compa)
    assert not TASK.possible(retag(lambda clip: {"captions": ()}))
    assert not TASK.by_default


def test_items_that_are_said_wrongly_are_refused(retag, model):
    with pytest.raises(ManifestError, match="extra.group is 7"):
        evaluate(model, retag(lambda clip: {"extra": {"group": 7}}))
