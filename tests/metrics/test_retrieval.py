import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.errors import MetricError
from clapkit.metrics.retrieval import clip_means, evaluate_embeddings, evaluate_retrieval, retrieval_intervals

NAMES = ("R@1", "R@5", "R@10", "MedR", "MeanR", "MRR", "mAP@10")


def random_case(seed, *, num_clips=6, num_captions=11):
    generator = np.random.default_rng(seed)
    owners = generator.integers(0, num_clips, num_captions)
    return generator.integers(-4, 5, (num_clips, num_captions)).astype(float), owners


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_permuting_clips_and_captions_together_changes_nothing(seed):
    similarity, owners = random_case(seed)
    generator = np.random.default_rng(seed + 1)
    rows, columns = generator.permutation(len(similarity)), generator.permutation(len(owners))
    place = np.argsort(rows)  # where each clip went
    shuffled = evaluate_retrieval(similarity[rows][:, columns], place[owners[columns]])
    expected = evaluate_retrieval(similarity, owners)
    for part in ("metrics", "macro", "ties", "expected", "counts"):
        assert shuffled[part] == pytest.approx(expected[part])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_recall_grows_with_k_and_map_stays_below_mrr(seed):
    metrics = evaluate_retrieval(*random_case(seed, num_clips=14, num_captions=30))["metrics"]
    for direction in ("t2a", "a2t"):
        assert metrics[f"{direction}_R@1"] <= metrics[f"{direction}_R@5"] <= metrics[f"{direction}_R@10"]
    assert metrics["t2a_mAP@10"] <= metrics["t2a_MRR"] + 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.integers(-9, 9))
def test_shifted_and_strictly_increasing_similarities_change_nothing(seed, shift):
    similarity, owners = random_case(seed)
    expected = evaluate_retrieval(similarity, owners)["metrics"]
    assert evaluate_retrieval(similarity + shift, owners)["metrics"] == expected
    assert evaluate_retrieval(np.exp(similarity), owners)["metrics"] == expected


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_distractor_never_improves_a_rank(seed):
    similarity, owners = random_case(seed)
    clip = np.random.default_rng(seed).integers(-4, 5, (1, len(owners))).astype(float)  # a clip without captions
    before, after = (evaluate_retrieval(s, owners)["per_query"]["t2a"] for s in (similarity, np.vstack((similarity, clip))))
    assert (after["rank"] >= before["rank"]).all()
    assert (after["mAP@10"] <= before["mAP@10"]).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_embeddings_give_what_their_matrix_gives(seed):
    generator = np.random.default_rng(seed)
    audio, text = (generator.integers(-2, 3, size=(size, 4)).astype(np.float32) for size in (9, 17))
    owners = generator.integers(0, 8, 17)  # clip 8 is a distractor
    found, expected = evaluate_embeddings(audio, text, owners), evaluate_retrieval(audio @ text.T, owners)
    for direction in ("t2a", "a2t"):
        for name, values in expected["per_query"].pop(direction).items():
            np.testing.assert_array_equal(found["per_query"][direction][name], values)
    del found["per_query"], expected["per_query"]
    assert found == expected


def test_a_perfect_system_has_fractions_of_one_and_ranks_of_one():
    # Percent would be 100, ranks from 0 would be 0.
    metrics = evaluate_retrieval(np.eye(12), np.arange(12))["metrics"]
    assert set(metrics.values()) == {1.0}


def test_chance_is_given_for_every_metric():
    result = evaluate_retrieval(*random_case(0))
    assert result["chance"].keys() == result["metrics"].keys()
    assert result["chance"]["t2a_R@1"] == pytest.approx(1 / 6)
    assert result["chance"]["t2a_MeanR"] == pytest.approx(3.5)


def test_captions_of_missing_embeddings_are_refused():
    with pytest.raises(MetricError, match="caption 1: belongs to clip 2, expected 0 to 1"):
        evaluate_embeddings(np.eye(2), np.eye(2), [0, 2])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_with_one_caption_per_clip_the_directions_are_those_of_the_transpose(seed):
    similarity = np.random.default_rng(seed).integers(0, 9, (7, 7)).astype(float)
    metrics = evaluate_retrieval(similarity, np.arange(7))["metrics"]
    swapped = evaluate_retrieval(similarity.T, np.arange(7))["metrics"]
    for name in NAMES:
        assert metrics[f"t2a_{name}"] == pytest.approx(swapped[f"a2t_{name}"])


def test_values_are_those_of_a_loop_over_queries():
    generator = np.random.default_rng(3)
    similarity, owners = generator.random((9, 25)), generator.integers(0, 8, 25)  # clip 8 is a distractor
    metrics = evaluate_retrieval(similarity, owners)["metrics"]
    t2a = [1 + sum(similarity[:, m] > similarity[owners[m], m]) for m in range(25)]
    a2t = [1 + sum(similarity[n] > similarity[n][owners == n].max()) for n in np.unique(owners)]
    for direction, ranks in (("t2a", np.array(t2a)), ("a2t", np.array(a2t))):
        assert metrics[f"{direction}_R@5"] == np.mean(ranks <= 5)
        assert metrics[f"{direction}_MedR"] == np.median(ranks)
        assert metrics[f"{direction}_MeanR"] == np.mean(ranks)
        assert metrics[f"{direction}_MRR"] == pytest.approx(np.mean(1 / ranks))


def test_clips_without_captions_are_distractors_and_no_queries():
    # Clip 1 has no caption and beats clip 0 for the only caption.
    result = evaluate_retrieval([[1.0], [2.0]], [0])
    assert result["metrics"]["t2a_R@1"] == 0
    assert result["counts"] == {"t2a_num_queries": 1, "t2a_num_items": 2, "a2t_num_queries": 1, "a2t_num_items": 1}
    assert result["per_query"]["a2t"]["clip"].tolist() == [0]


def test_captions_with_the_same_text_stay_items_of_their_own():
    # Two equal columns: keyed by text, the gallery would shrink to two captions.
    result = evaluate_retrieval([[3.0, 3.0, 1.0], [0.0, 0.0, 2.0]], [0, 0, 1])
    assert result["counts"]["a2t_num_items"] == 3
    assert result["metrics"]["a2t_R@1"] == 1


def test_an_audio_query_is_counted_once_and_not_once_per_caption():
    result = evaluate_retrieval(np.array([[3.0, 2.0, 1.0], [0.0, 0.0, 2.0]]), [0, 0, 1])
    assert result["counts"]["a2t_num_queries"] == 2


def test_macro_is_the_mean_over_clips():
    # Clip 0: both captions right. Clip 1: its caption goes to clip 0. Micro 2/3, macro (1 + 0) / 2.
    result = evaluate_retrieval([[5.0, 5.0, 5.0], [1.0, 1.0, 1.0]], [0, 0, 1])
    assert result["metrics"]["t2a_R@1"] == pytest.approx(2 / 3)
    assert result["macro"]["t2a_R@1"] == pytest.approx(1 / 2)
    assert result["macro"]["t2a_MeanR"] == pytest.approx(1.5)


def test_cutoffs_beyond_the_gallery_are_warned_about():
    warnings = evaluate_retrieval(np.eye(5), np.arange(5))["warnings"]
    assert warnings[0] == "t2a: the gallery has 5 items, so values at k = 5, 10 say nothing"
    assert not evaluate_retrieval(np.eye(30), np.arange(30))["warnings"]


def test_untied_scores_need_no_expected_values():
    assert evaluate_retrieval(np.eye(3), np.arange(3))["expected"] == {}


@pytest.mark.parametrize("owners", [[0], [[0, 1]], [0.0, 1.0]])
def test_a_caption_map_of_another_shape_or_type_is_refused(owners):
    with pytest.raises(MetricError, match="expected 2 whole numbers, one per caption"):
        evaluate_retrieval(np.eye(2), owners)


def test_a_negative_clip_is_refused():
    with pytest.raises(MetricError, match="caption 1: belongs to clip -1"):
        evaluate_retrieval(np.eye(2), [0, -1])


def test_half_precision_is_refused():
    with pytest.raises(MetricError, match="similarity: type float16"):
        evaluate_retrieval(np.eye(2, dtype=np.float16), [0, 1])


def test_intervals_hold_the_metrics_and_are_reproducible():
    similarity, owners = random_case(0, num_clips=30, num_captions=60)
    similarity[owners, np.arange(60)] += 4
    result = evaluate_retrieval(similarity, owners)
    first = retrieval_intervals(result["per_query"], num_draws=200, seed=1)
    assert first == retrieval_intervals(result["per_query"], num_draws=200, seed=1)
    assert first != retrieval_intervals(result["per_query"], num_draws=200, seed=2)
    assert first.keys() == result["metrics"].keys()
    for name, (lower, upper) in first.items():
        assert lower <= result["metrics"][name] <= upper, name
    assert first["t2a_MeanR"][0] < first["t2a_MeanR"][1]


def test_both_directions_share_the_draws():
    # One caption per clip and a symmetric matrix: both directions are the same numbers, so equal draws give equal bounds.
    generator = np.random.default_rng(0)
    half = generator.random((20, 20))
    result = evaluate_retrieval(half + half.T, np.arange(20))
    intervals = retrieval_intervals(result["per_query"], num_draws=100)
    for name in NAMES:
        assert intervals[f"t2a_{name}"] == intervals[f"a2t_{name}"]


def test_clip_means_average_the_queries_of_a_clip():
    clips, means = clip_means([1.0, 0.0, 1.0], [7, 7, 3])
    assert clips.tolist() == [3, 7]
    assert means.tolist() == [1.0, 0.5]
