import dataclasses
import json

import numpy as np
import pytest

from clapkit import registry
from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ManifestError
from clapkit.metrics.retrieval import evaluate_retrieval
from clapkit.steps.embedding import cosine_similarity
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.tasks import retrieval
from clapkit.types import Caption, Clip, SilentReporter

TASK = registry.build("task", "retrieval")


@pytest.fixture
def evaluate(tmp_path):
    """Evaluate given scores: the rows of the matrix are the clips, every caption is an axis of its own."""

    def run(scores, captions, **options):
        audio = np.array(scores, dtype=np.float32)
        clips = [
            Clip(id=f"c{number}", audio=f"{number}.wav", duration_s=1.0, captions=tuple(map(Caption, texts)))
            for number, texts in enumerate(captions)
        ]
        manifest = Manifest.write(tmp_path / "manifest.jsonl", clips, root=tmp_path, name="toy")
        config = EvalConfig(**({"bootstrap": 0} | options))
        vectors = np.eye(audio.shape[1], dtype=np.float32)
        return TASK.run(Evaluated("x", None, "cpu", manifest, manifest, audio, config, SilentReporter(), vectors))

    return run


def random_scores(num_clips=6, per_clip=2):
    return np.random.default_rng(0).random((num_clips, num_clips * per_clip))


def texts(num_clips=6, per_clip=2):
    return [[f"caption {number} of {clip}" for number in range(per_clip)] for clip in range(num_clips)]


def test_headline_numbers_are_those_of_the_whole_matrix(evaluate):
    scores = random_scores()
    result = evaluate(scores, texts(), bootstrap=20)
    expected = evaluate_retrieval(scores.astype(np.float32), np.repeat(np.arange(6), 2))
    assert result.metrics == expected["metrics"]
    assert result.details == {"t2a_R@1_ceiling": 1.0, **{name: expected[name] for name in ("macro", "ties", "expected")}}
    assert result.chance.keys() == result.metrics.keys() == result.intervals.keys()
    assert result.chance["t2a_R@1"] == pytest.approx(1 / 6)
    assert result.counts["num_duplicate_captions"] == 0
    assert result.variants == {}
    assert result.protocol == {}
    json.dumps(result.document())


def test_every_tested_metric_is_the_mean_of_its_column(evaluate):
    result = evaluate(random_scores(), texts())
    assert set(result.tested) == {name for name in result.metrics if not name.endswith("MedR")}
    for metric, (table, column) in result.tested.items():
        assert np.mean(result.per_query[table][column]) == pytest.approx(result.metrics[metric])
    assert result.per_query["t2a"]["caption"] == [text for said in texts() for text in said]
    assert result.per_query["a2t"]["id"] == [f"c{row}" for row in range(6)]


def test_equal_captions_are_right_for_all_their_clips_in_a_variant_only(evaluate):
    # Captions: rain (c0), Rain. (c1), wind (c2). Both rains find the clip of the other first; wind finds its own.
    scores = [[1.0, 3.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    result = evaluate(scores, [["rain"], ["Rain."], ["wind"]], bootstrap=20)
    assert result.metrics["t2a_R@1"] == pytest.approx(1 / 3)
    merged = result.variants["text_merged"]
    assert merged["metrics"]["t2a_R@1"] == 1
    assert merged["metrics"]["a2t_R@1"] == 1
    assert merged["metrics"]["a2t_mAP@10"] == 1
    # Two of three queries have two relevant clips: (2/3 + 2/3 + 1/3) / 3.
    assert merged["chance"]["t2a_R@1"] == pytest.approx(5 / 9)
    assert merged["counts"]["t2a_num_queries"] == 3
    assert merged["intervals"]["t2a_R@1"] == (1, 1)


def test_duplicates_are_counted_with_the_best_that_is_possible(evaluate):
    result = evaluate(random_scores(3, 1), [["rain"], ["rain"], ["wind"]])
    assert result.counts["num_duplicate_captions"] == 2
    assert result.details["t2a_R@1_ceiling"] == pytest.approx(2 / 3)


def test_too_many_equal_captions_are_left_out_with_a_warning(evaluate, monkeypatch):
    monkeypatch.setattr(retrieval, "_MERGED_COMPARISONS", 10)  # 10 / (3 clips + 3 captions) is one pair
    result = evaluate(random_scores(3, 1), [["rain"], ["rain"], ["wind"]])
    assert "text_merged" not in result.variants
    assert any("equal captions make 2 further relevant pairs, too many" in warning for warning in result.warnings)


def test_a_table_of_relevance_replaces_the_pairs_of_the_data(evaluate, tmp_path):
    # For caption 0 the clips stand in the order 0, 1, 2, 3; clips 1 and 3 are relevant: (1/2 + 2/4) / 2. Not clip 0.
    path = tmp_path / "relevance.csv"
    path.write_text("query,clip,grade\nrain,c1,1\nrain,c3,1\nrain,c0,0\n")
    scores = [[4.0, 1.0, 0.0, 0.0], [3.0, 2.0, 0.0, 0.0], [2.0, 3.0, 1.0, 0.0], [1.0, 4.0, 0.0, 1.0]]
    result = evaluate(scores, [["rain"], ["wind"], ["bell"], ["car"]], relevance=path, bootstrap=20)
    judged = result.variants["relevance"]["metrics"]
    for name in ("mAP@10", "mAP@10_min", "mAP@16", "mAP@16_min"):
        assert judged[f"t2a_{name}"] == pytest.approx(0.5)
    assert judged["t2a_R@1"] == 0
    assert judged["t2a_R@5"] == 1
    assert not any(name.startswith("a2t") for name in judged)
    assert result.variants["relevance"]["counts"] == {"t2a_num_queries": 1, "t2a_num_items": 4}
    assert result.variants["relevance"]["intervals"].keys() == judged.keys()
    assert result.metrics["t2a_R@1"] == 0.75  # wind finds clip 3
    assert result.protocol["relevance"]["num_judgements"] == 3
    assert "relevance: 3 of 4 captions have no relevant clip and are no queries" in result.warnings


def test_the_denominators_differ_where_more_clips_are_relevant_than_are_looked_at(evaluate, tmp_path):
    path = tmp_path / "relevance.csv"
    path.write_text("query,clip\n" + "".join(f"rain,c{number}\n" for number in range(20)))
    scores = np.ones((20, 1)) + np.arange(20)[:, None]
    judged = evaluate(scores, [["rain"], *[[]] * 19], relevance=path).variants["relevance"]["metrics"]
    # The first 10 (16) are all relevant: 10 / 10 and 10 / 20, 16 / 16 and 16 / 20.
    assert judged["t2a_mAP@10_min"] == judged["t2a_mAP@16_min"] == pytest.approx(1)
    assert judged["t2a_mAP@10"] == pytest.approx(0.5)
    assert judged["t2a_mAP@16"] == pytest.approx(0.8)


def test_a_table_with_a_wrong_row_is_refused(evaluate, tmp_path):
    path = tmp_path / "relevance.csv"
    path.write_text("query,clip\ncaption 0 of 0,c9\n")
    with pytest.raises(ManifestError, match="line 2: clip 'c9' is not in the data"):
        evaluate(random_scores(), texts(), relevance=path)


def test_clips_without_captions_are_distractors(evaluate):
    result = evaluate([[1.0], [2.0]], [["rain"], []])
    assert result.metrics["t2a_R@1"] == 0
    assert result.counts["a2t_num_queries"] == 1


def test_a_model_is_evaluated_by_the_same_numbers(model, corpus):
    from clapkit.steps.embedding import embed_clips

    split = corpus.split("test")
    audio = embed_clips(model, split, reporter=SilentReporter()).vectors
    evaluated = Evaluated("x", model, "cpu", corpus, split, audio, EvalConfig(bootstrap=0), SilentReporter())
    captions = evaluated.captions
    expected = evaluate_retrieval(cosine_similarity(audio, captions.vectors), captions.clip)
    assert TASK.run(evaluated).metrics == expected["metrics"]
    assert TASK.possible(split)
    bare = dataclasses.replace(split, clips=tuple(dataclasses.replace(clip, captions=()) for clip in split))
    assert not TASK.possible(bare)
