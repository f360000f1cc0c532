import dataclasses

import numpy as np
import pytest

from clapkit import registry
from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.steps.evaluation.context import Captions, Evaluated
from clapkit.steps.tasks.multilingual import parallel_captions
from clapkit.types import Caption, Clip, SilentReporter

TASK = registry.build("task", "multilingual")
THINGS = ("dog", "rain", "bell", "car", "bird", "wind", "door", "bee", "train", "frog", "clock", "baby")
TEMPLATES = {
    "en": ("a {} is heard", "the sound of a {}"),
    "de": ("man hört {}", "der Klang von {}"),
    "fr": ("on entend {}", "le son de {}"),
}


@pytest.fixture
def corpus_of_three_languages(tmp_path):
    clips = [
        Clip(
            f"toy/{thing}",
            f"{thing}.wav",
            duration_s=1.0,
            captions=tuple(
                Caption(template.format(thing), lang) for lang, templates in TEMPLATES.items() for template in templates
            ),
        )
        for thing in THINGS
    ]
    return Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="toy")


def vectors(rows, *, seed, near=None, spread=0.6):
    """Random directions, around given ones if there are any."""
    noise = np.random.default_rng(seed).normal(size=(rows, 8))
    found = noise if near is None else near + spread * noise
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def evaluate(manifest, audio, text, **options):
    config = EvalConfig(**({"bootstrap": 50} | options))
    return TASK.run(Evaluated("x", None, "cpu", manifest, manifest, audio, config, SilentReporter(), text))


def evaluate_toy(manifest, **options):
    audio = vectors(len(manifest), seed=0)
    owner = [row for row, clip in enumerate(manifest) for _ in clip.captions]
    return evaluate(manifest, audio, vectors(len(owner), seed=1, near=audio[owner]), **options), audio, owner


def columns_of(manifest, language):
    spoken = [caption.lang for clip in manifest for caption in clip.captions]
    return [row for row, name in enumerate(spoken) if name == language]


def test_each_language_is_retrieval_with_its_captions_only(corpus_of_three_languages):
    manifest = corpus_of_three_languages
    result, audio, owner = evaluate_toy(manifest)
    text = vectors(len(owner), seed=1, near=audio[owner])
    assert list(result.variants) == ["language_de", "language_en", "language_fr"]
    for language in TEMPLATES:
        rows = columns_of(manifest, language)
        expected = evaluate_retrieval(audio @ text[rows].T, np.array(owner)[rows])["metrics"]
        found = result.variants[f"language_{language}"]
        assert set(found["metrics"]) == set(found["intervals"])
        for name, value in found["metrics"].items():
            assert value == pytest.approx(expected[name]), name
        assert result.details["per_language"][language]["num_captions"] == 24
        assert result.details["per_language"][language]["metrics"] == found["metrics"]


def test_languages_count_alike_and_the_worst_is_named(corpus_of_three_languages):
    result, _, _ = evaluate_toy(corpus_of_three_languages)
    languages = {name.removeprefix("language_"): variant for name, variant in result.variants.items()}
    for metric in ("t2a_R@1", "t2a_R@5", "t2a_R@10", "t2a_mAP@10", "a2t_R@1", "a2t_R@5", "a2t_R@10", "a2t_mAP@10"):
        values = [variant["metrics"][metric] for variant in languages.values()]
        assert result.metrics[f"multilingual_{metric}"] == pytest.approx(np.mean(values))
        lower, upper = result.intervals[f"multilingual_{metric}"]
        assert lower <= result.metrics[f"multilingual_{metric}"] <= upper
    for metric in ("t2a_R@1", "a2t_R@1"):
        worst = result.details["worst_language"][metric]
        value = min(variant["metrics"][metric] for variant in languages.values())
        assert languages[worst]["metrics"][metric] == result.metrics[f"multilingual_worst_{metric}"] == value
        assert result.intervals[f"multilingual_worst_{metric}"] == languages[worst]["intervals"][metric]
    assert 0 < result.metrics["multilingual_worst_t2a_R@1"] < result.metrics["multilingual_t2a_R@1"] < 1


def test_tested_metrics_are_means_of_their_columns(corpus_of_three_languages):
    result, _, _ = evaluate_toy(corpus_of_three_languages)
    assert len(result.tested) == 8 + 7
    for metric, (table, column) in result.tested.items():
        assert np.mean(result.per_query[table][column]) == pytest.approx(result.metrics[metric])
    assert len(result.per_query["multilingual_t2a"]["id"]) == 72
    assert len(result.per_query["multilingual_a2t"]["id"]) == 36
    assert result.per_query["multilingual_t2a"]["caption"][0] == "man hört dog"


def test_languages_that_share_their_vectors_agree(corpus_of_three_languages):
    manifest = corpus_of_three_languages
    audio = vectors(len(manifest), seed=0)
    # Two sentences a clip, the same vector for the j-th of every language.
    sentences = vectors(24, seed=1, near=np.repeat(audio, 2, axis=0)).reshape(12, 1, 2, 8)
    result = evaluate(manifest, audio, np.repeat(sentences, 3, axis=1).reshape(72, 8))
    metrics = {name.removeprefix("multilingual_"): value for name, value in result.metrics.items()}
    assert metrics["mean_rank_variance"] == 0
    assert metrics["mean_log_rank_variance"] == pytest.approx(0, abs=1e-12)
    assert metrics["top1_agreement"] == metrics["top10_jaccard"] == 1
    assert metrics["caption_distance"] == pytest.approx(0, abs=1e-6)
    assert metrics["right_in_every_language"] == metrics["right_in_any_language"] == metrics["t2a_R@1"]
    assert result.details["top1_agreement"] == {"de-en": 1, "de-fr": 1, "en-fr": 1}


def test_consistency_is_that_of_a_loop_over_parallel_captions(corpus_of_three_languages):
    manifest = corpus_of_three_languages
    result, audio, owner = evaluate_toy(manifest)
    text = vectors(len(owner), seed=1, near=audio[owner])
    scores = text @ audio.T
    ranks = [1 + int((scores[row] > scores[row, owner[row]]).sum()) for row in range(72)]
    first = scores.argmax(axis=1)
    variances, every, agreement = [], [], []
    for clip in range(12):
        for sentence in range(2):
            rows = [6 * clip + 2 * language + sentence for language in range(3)]
            variances.append(np.var([ranks[row] for row in rows]))
            every.append(all(ranks[row] == 1 for row in rows))
            agreement.append(np.mean([first[rows[i]] == first[rows[j]] for i, j in ((0, 1), (0, 2), (1, 2))]))
    assert result.metrics["multilingual_mean_rank_variance"] == pytest.approx(np.mean(variances))
    assert result.metrics["multilingual_right_in_every_language"] == pytest.approx(np.mean(every))
    assert result.metrics["multilingual_top1_agreement"] == pytest.approx(np.mean(agreement))
    assert np.mean(list(result.details["top1_agreement"].values())) == pytest.approx(np.mean(agreement))


def test_chance_is_that_of_random_orders(corpus_of_three_languages):
    result, _, _ = evaluate_toy(corpus_of_three_languages, bootstrap=0)
    # 12 clips, one right; 24 captions, two right: 2 / 24.
    assert result.chance["multilingual_t2a_R@1"] == pytest.approx(1 / 12)
    assert result.chance["multilingual_a2t_R@1"] == pytest.approx(1 / 12)
    assert result.chance["multilingual_t2a_R@5"] == pytest.approx(5 / 12)
    assert result.intervals == {}


def test_a_missing_translation_is_left_out_of_all_languages_and_counted(corpus_of_three_languages):
    def lacks(clip):
        if clip.id == "toy/dog":  # no French at all
            return tuple(caption for caption in clip.captions if caption.lang != "fr")
        return clip.captions[:-1] if clip.id == "toy/rain" else clip.captions  # the second French one

    manifest = corpus_of_three_languages
    manifest = dataclasses.replace(manifest, clips=tuple(dataclasses.replace(c, captions=lacks(c)) for c in manifest))
    result, _, _ = evaluate_toy(manifest)
    # 72 - 2 - 1 captions; of dog 4 and of rain 2 have no counterpart; 22 triples are left.
    assert result.counts["num_captions_without_translation"] == 6
    assert result.counts["num_parallel_captions"] == 21
    assert len(result.per_query["multilingual_parallel"]["id"]) == 21
    assert any("6 of 69 captions lack a translation" in warning for warning in result.warnings)
    # A language by itself keeps all its captions, and means that are no means over clips are not tested.
    assert result.details["per_language"]["en"]["num_captions"] == 24
    assert result.details["per_language"]["fr"] | {"metrics": 0} == {"num_captions": 21, "num_clips": 11, "metrics": 0}
    assert not [metric for metric in result.tested if "_R@" in metric]


def test_without_any_parallel_caption_nothing_is_said_of_agreement(corpus_of_three_languages):
    manifest = corpus_of_three_languages
    clips = tuple(
        dataclasses.replace(clip, captions=tuple(c for c in clip.captions if c.lang == ("en", "de", "fr")[row % 3]))
        for row, clip in enumerate(manifest)
    )
    result, _, _ = evaluate_toy(dataclasses.replace(manifest, clips=clips))
    assert "multilingual_t2a_R@1" in result.metrics
    assert "multilingual_top1_agreement" not in result.metrics
    assert any("no caption is there in every language" in warning for warning in result.warnings)


def test_a_gallery_that_the_best_ten_exhaust_is_said(corpus_of_three_languages):
    manifest = dataclasses.replace(corpus_of_three_languages, clips=corpus_of_three_languages.clips[:6])
    result, _, _ = evaluate_toy(manifest)
    assert result.metrics["multilingual_top10_jaccard"] == 1
    assert any("the gallery has 6 clips, so the overlap of the best 10 says nothing" in w for w in result.warnings)


def test_the_protocol_says_that_english_is_part_of_the_mean(corpus_of_three_languages):
    result, _, _ = evaluate_toy(corpus_of_three_languages)
    assert result.protocol["mean"] == "unweighted, over all languages, English among them"
    assert result.protocol["languages"] == ["de", "en", "fr"]
    clips = tuple(
        dataclasses.replace(clip, captions=tuple(c for c in clip.captions if c.lang != "en"))
        for clip in corpus_of_three_languages
    )
    other, _, _ = evaluate_toy(dataclasses.replace(corpus_of_three_languages, clips=clips))
    assert other.protocol["mean"] == "unweighted, over all languages; no caption is English"


def test_a_model_is_told_the_language_of_each_caption(retag, polyglot, reporter):
    manifest = retag(lambda clip: {"captions": (clip.captions[0], Caption(f"ein {clip.id}", "de"))})
    audio = vectors(len(manifest), seed=0).repeat(2, axis=1)
    TASK.run(Evaluated("x", polyglot, "cpu", manifest, manifest, audio, EvalConfig(bootstrap=0), reporter))
    assert {language for _, language in polyglot.text_tower.seen} == {"en", "de"}


def test_the_j_th_captions_of_a_clip_are_parallel_in_whatever_order_languages_come():
    captions = Captions(
        texts=list("abcdefg"),
        clip=np.array([0, 0, 0, 0, 1, 1, 1]),
        languages=["en", "de", "de", "en", "de", "en", "en"],
        vectors=np.empty((7, 2)),
    )
    # German first: (b, a), (c, d) of clip 0, (e, f) of clip 1; g has no translation.
    assert parallel_captions(captions).tolist() == [[1, 2, 4], [0, 3, 5]]


def test_the_task_needs_two_languages(corpus, corpus_of_three_languages):
    assert not TASK.possible(corpus)
    assert TASK.possible(corpus_of_three_languages)
    assert TASK.by_default


def test_languages_that_were_lost_with_their_clips_are_said(corpus):
    audio = vectors(len(corpus), seed=0)
    with pytest.raises(ManifestError, match="no clip that could be embedded has captions of a second language"):
        evaluate(corpus, audio, vectors(12, seed=1))
