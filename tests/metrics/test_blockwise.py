import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.errors import MetricError
from clapkit.metrics import blockwise
from clapkit.metrics.blockwise import count_pairs
from clapkit.metrics.ranking import rank_pairs


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def vectors_with_duplicates(seed, *, num_clips=40, num_captions=70, width=6, distinct=15):
    """Clips and captions, many of them several times, so that scores tie wherever they stand."""
    generator = np.random.default_rng(seed)
    pool = unit(generator.normal(size=(distinct, width)))
    owner = generator.integers(0, num_clips, num_captions)
    return pool[generator.integers(0, distinct, num_clips)], pool[generator.integers(0, distinct, num_captions)], owner


def similarity(audio, text):
    return (audio.astype(np.float64) @ text.astype(np.float64).T).astype(np.float32)


def loop(scores, clip, caption):
    """Higher and equal scores of each pair: in its column of clips, in its row of captions."""
    rows = []
    for n, m in zip(clip, caption, strict=True):
        own = scores[n, m]
        rows.append(
            [(scores[:, m] > own).sum(), (scores[:, m] == own).sum(), (scores[n] > own).sum(), (scores[n] == own).sum()]
        )
    return np.array(rows)


def counts(found):
    return np.stack((found.clips_higher, found.clips_equal, found.captions_higher, found.captions_equal), axis=1)


@pytest.fixture
def small_blocks(monkeypatch):
    for name, size in (
        ("_BLOCK_CAPTIONS", 13),
        ("_BLOCK_CLIPS", 17),
        ("_TILE_CAPTIONS", 5),
        ("_TILE_CLIPS", 7),
        ("_PAIRS_AT_ONCE", 3),
    ):
        monkeypatch.setattr(blockwise, name, size)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_loop_over_the_whole_matrix(monkeypatch, seed, share):
    monkeypatch.setattr(blockwise, "_MANY_UNDECIDED", share)  # tiles in float64, some of them, none
    audio, text, owner = vectors_with_duplicates(seed)
    found = count_pairs(audio, text, owner, np.arange(len(text)))
    np.testing.assert_array_equal(counts(found), loop(similarity(audio, text), owner, np.arange(len(text))))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0.01, 0.5))
def test_any_pairs_can_be_counted_and_not_only_those_of_the_data(seed, share):
    generator = np.random.default_rng(seed)
    audio, text, _ = vectors_with_duplicates(seed, num_clips=12, num_captions=20)
    clip, caption = np.nonzero(generator.random((12, 20)) < share)
    found = count_pairs(audio, text, clip, caption)
    assert counts(found).tolist() == loop(similarity(audio, text), clip, caption).tolist()


def test_scores_that_float32_sums_confuse_are_told_apart():
    # The clips differ in the last bit of one coordinate: sums in float32 round the difference away, rounded sums do not tie.
    width = 400
    audio = unit(np.random.default_rng(0).normal(size=(1, width))).repeat(60, axis=0)
    for row in range(1, 60):
        audio[row, row] = np.nextafter(audio[row, row], np.float32(2), dtype=np.float32) + np.float32(row * 1e-7)
    text = unit(audio[:1] + 0.01)
    found = count_pairs(audio, text, np.arange(60), np.zeros(60, dtype=int))
    np.testing.assert_array_equal(counts(found), loop(similarity(audio, text), np.arange(60), np.zeros(60, dtype=int)))
    assert len(np.unique(found.clips_higher)) >= 10


def test_wrong_sums_in_float32_within_the_bound_change_nothing(monkeypatch):
    """Whatever the order of the additions, the counts are right: the product is given the largest error that is possible."""
    audio, text, owner = vectors_with_duplicates(5)
    expected = counts(count_pairs(audio, text, owner, np.arange(len(text))))
    noise = np.random.default_rng(0)
    product = np.matmul

    def worst(a, b, out):
        product(a, b, out=out)
        out += np.float32(2.0**-24 * a.shape[1]) * noise.choice([-1, 1], out.shape).astype(np.float32)
        return out

    monkeypatch.setattr(blockwise.np, "matmul", worst)
    np.testing.assert_array_equal(counts(count_pairs(audio, text, owner, np.arange(len(text)))), expected)


def test_rankings_are_those_of_the_matrix_for_chosen_pairs():
    audio, text, owner = vectors_with_duplicates(1)
    found = count_pairs(audio, text, owner, np.arange(len(text)))
    chosen = owner % 3 > 0
    captions, t2a = found.text_to_audio(chosen)
    clips, a2t = found.audio_to_text(chosen)
    assert captions.tolist() == np.flatnonzero(chosen).tolist()
    assert clips.tolist() == np.unique(owner[chosen]).tolist()
    scores = similarity(audio, text)
    expected = rank_pairs(scores.T[captions], np.arange(len(captions)), owner[captions])
    swapped = rank_pairs(scores[clips], np.searchsorted(clips, owner[captions]), captions)
    for ranking, right in ((t2a, expected), (a2t, swapped)):
        for name in ("rank", "num_better", "num_tied_wrong", "num_tied_right", "is_tied"):
            np.testing.assert_array_equal(getattr(ranking, name), getattr(right, name))


def test_float64_embeddings_are_compared_as_they_are():
    generator = np.random.default_rng(2)
    audio, text = generator.normal(size=(20, 5)), generator.normal(size=(30, 5))
    owner = generator.integers(0, 20, 30)
    found = count_pairs(audio, text, owner, np.arange(30))
    np.testing.assert_array_equal(counts(found), loop((audio @ text.T).astype(np.float32), owner, np.arange(30)))


def test_a_collapsed_model_ties_everywhere():
    one = unit(np.ones((1, 8)))
    found = count_pairs(one.repeat(6, axis=0), one.repeat(9, axis=0), np.arange(9) % 6, np.arange(9))
    assert counts(found).tolist() == [[0, 6, 0, 9]] * 9


@pytest.mark.parametrize(
    ("audio", "text", "message"),
    [
        (np.ones((2, 3)), np.ones((2, 4)), "audio: 3 wide, text: 4 wide; expected the same width"),
        (np.ones((2, 3)), np.ones(3), r"text: shape \[3\], expected embeddings"),
        (np.ones((0, 3)), np.ones((2, 3)), r"audio: shape \[0, 3\]"),
        (np.ones((2, 3), np.float16), np.ones((2, 3)), "audio: type float16, expected float32 or float64"),
        (np.ones((2, 3)), np.array([[1.0] * 3, [np.nan] * 3]), "text: row 1 holds a value that is not finite"),
    ],
)
def test_embeddings_that_cannot_be_compared_are_refused(audio, text, message):
    with pytest.raises(MetricError, match=message):
        count_pairs(audio, text, [0], [0])


def test_pairs_of_different_length_or_out_of_range_are_refused():
    with pytest.raises(MetricError, match="caption: 1 entries, expected 2, one per clip of a pair"):
        count_pairs(np.eye(2), np.eye(2), [0, 1], [0])
    with pytest.raises(MetricError, match="clip: entry 0 is 2, expected 0 to 1"):
        count_pairs(np.eye(2), np.eye(2), [2], [0])
