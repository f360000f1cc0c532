import math

import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import windowed
from clapkit.metrics.retrieval import evaluate_counted, evaluate_embeddings, evaluate_retrieval
from clapkit.metrics.windowed import count_windowed_pairs


def unit(rows, width=6, *, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


COUNTS = np.array([2, 5, 1, 3, 2, 4, 2])
WINDOWS, TEXT = unit(19), unit(12, seed=1)
CAPTION_CLIP = np.array([0, 0, 1, 2, 3, 3, 3, 4, 5, 6, 1, 0])


def loop(tau):
    """Scores [N, M] of clips and captions, one by one."""
    ends = np.cumsum(COUNTS)
    scores = np.empty((len(COUNTS), len(TEXT)), dtype=np.float32)
    for clip, (end, count) in enumerate(zip(ends, COUNTS, strict=True)):
        for caption, vector in enumerate(TEXT):
            cosines = [math.fsum(np.float64(w) * np.float64(vector)) for w in WINDOWS[end - count : end]]
            weights = [math.exp(c / tau) if tau else float(c == max(cosines)) for c in cosines]
            scores[clip, caption] = sum(w * c for w, c in zip(weights, cosines, strict=True)) / sum(weights)
    return scores


def test_scores_by_hand():
    windows = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=np.float32)
    text = np.array([[1.0, 0.0], [0.6, 0.8]], dtype=np.float32)
    best = count_windowed_pairs(windows, [2, 1], text, [0, 1], tau=0.0)
    np.testing.assert_allclose(best.score, [1.0, 1.0], atol=1e-7)
    # Cosines 1 and 0 with weights 3 / 4 and 1 / 4.
    soft = count_windowed_pairs(windows, [2, 1], text, [0, 1], tau=1 / math.log(3))
    np.testing.assert_allclose(soft.score, [0.75, 1.0], atol=1e-7)
    # The first caption has 0.75 with its clip and 0.6 with the other one; the second 1 and at most 0.8.
    assert soft.clips_higher.tolist() == [0, 0]
    assert soft.clips_equal.tolist() == [1, 1]


@pytest.mark.parametrize("tau", [0.0, 0.05, 0.1, 10.0])
@pytest.mark.parametrize("blocks", [(256, 8192), (5, 4), (1, 1), (12, 19)])
def test_ranks_are_those_of_a_loop_whatever_the_blocks(monkeypatch, tau, blocks):
    monkeypatch.setattr(windowed, "_BLOCK_CAPTIONS", blocks[0])
    monkeypatch.setattr(windowed, "_BLOCK_WINDOWS", blocks[1])
    counted = count_windowed_pairs(WINDOWS, COUNTS, TEXT, CAPTION_CLIP, tau=tau)
    scores = loop(tau)
    np.testing.assert_allclose(counted.score, scores[CAPTION_CLIP, np.arange(12)], atol=1e-6)
    found = evaluate_counted(counted, np.ones(12, dtype=bool), CAPTION_CLIP, num_clips=7)
    expected = evaluate_retrieval(scores, CAPTION_CLIP)
    assert found["metrics"] == pytest.approx(expected["metrics"])
    for direction in ("t2a", "a2t"):
        np.testing.assert_array_equal(found["per_query"][direction]["rank"], expected["per_query"][direction]["rank"])


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_one_window_of_each_clip_is_plain_retrieval(tau):
    windows = unit(7, seed=4)
    counted = count_windowed_pairs(windows, [1] * 7, TEXT, CAPTION_CLIP, tau=tau)
    found = evaluate_counted(counted, np.ones(12, dtype=bool), CAPTION_CLIP, num_clips=7)
    assert found["metrics"] == evaluate_embeddings(windows, TEXT, CAPTION_CLIP)["metrics"]


def test_a_high_temperature_is_the_mean_of_cosines_and_a_low_one_the_best():
    mean = count_windowed_pairs(WINDOWS, COUNTS, TEXT, CAPTION_CLIP, tau=1e9).score
    ends = np.cumsum(COUNTS)
    parts = [WINDOWS[end - count : end] for end, count in zip(ends, COUNTS, strict=True)]
    expected = [(parts[clip] @ text).mean() for clip, text in zip(CAPTION_CLIP, TEXT, strict=True)]
    np.testing.assert_allclose(mean, expected, atol=1e-6)
    low = count_windowed_pairs(WINDOWS, COUNTS, TEXT, CAPTION_CLIP, tau=1e-9).score
    np.testing.assert_array_equal(low, count_windowed_pairs(WINDOWS, COUNTS, TEXT, CAPTION_CLIP, tau=0.0).score)


def test_the_order_of_windows_does_not_matter():
    order = np.concatenate([np.arange(end - count, end)[::-1] for end, count in zip(np.cumsum(COUNTS), COUNTS, strict=True)])
    for tau in (0.0, 0.1):
        found = count_windowed_pairs(WINDOWS[order], COUNTS, TEXT, CAPTION_CLIP, tau=tau)
        expected = count_windowed_pairs(WINDOWS, COUNTS, TEXT, CAPTION_CLIP, tau=tau)
        np.testing.assert_allclose(found.score, expected.score, atol=1e-7)
        np.testing.assert_array_equal(found.clips_higher, expected.clips_higher)


@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_equal_clips_are_tied_wherever_they_stand(monkeypatch, tau):
    monkeypatch.setattr(windowed, "_BLOCK_WINDOWS", 6)
    windows = np.concatenate([unit(3, seed=2)] * 4)
    counted = count_windowed_pairs(windows, [3] * 4, unit(4, seed=3), [0, 1, 2, 3], tau=tau)
    assert counted.clips_equal.tolist() == [4] * 4
    assert counted.clips_higher.tolist() == [0] * 4


def test_what_does_not_fit_is_refused():
    good = {"windows": WINDOWS, "num_windows": COUNTS, "text": TEXT, "caption_clip": CAPTION_CLIP, "tau": 0.1}
    for wrong, message in (
        ({"windows": WINDOWS[:-1]}, "18 rows of width 6 for 7 clips and text of width 6; expected"),
        ({"num_windows": [0, *COUNTS[1:-1], 4]}, "19 rows of width 6 for 7 clips"),
        ({"text": TEXT[:, :5]}, "text of width 5"),
        ({"windows": WINDOWS * np.nan}, r"windows: float32 \[19, 6\], expected finite vectors"),
        ({"text": TEXT[:0]}, r"text: float32 \[0, 6\], expected finite"),
        ({"caption_clip": CAPTION_CLIP + 1}, "belongs to clip 7, expected 0 to 6"),
        ({"tau": -1.0}, "tau = -1.0: expected a finite number of at least 0"),
        ({"tau": math.nan}, "tau = nan"),
    ):
        with pytest.raises(MetricError, match=message):
            count_windowed_pairs(**(good | wrong))
