import numpy as np
import pytest

from clapkit.errors import MetricError
from clapkit.metrics import nearest
from clapkit.metrics.nearest import nearest_pairs, top_items


def unit(shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def exact(queries, items):
    return (queries.astype(np.float64) @ items.astype(np.float64).T).astype(np.float32)


def listed(pairs):
    """Query, item and score of all pairs."""
    blocks = list(pairs)
    query = np.concatenate([block.first + block.query for block in blocks])
    return list(
        zip(
            query.tolist(),
            np.concatenate([block.item for block in blocks]).tolist(),
            np.concatenate([block.score for block in blocks]).tolist(),
            strict=True,
        )
    )


def expected_pairs(scores, k):
    least = np.sort(scores, axis=1)[:, -k]
    return [(q, n, float(scores[q, n])) for q, n in zip(*np.nonzero(scores >= least[:, None]), strict=True)]


@pytest.mark.parametrize("k", [1, 4, 40])
@pytest.mark.parametrize("chunk", [1 << 22, 120])  # all queries, or three at a time
def test_pairs_equal_a_search_of_the_whole_matrix(monkeypatch, k, chunk):
    monkeypatch.setattr(nearest, "_CHUNK_SCORES", chunk)
    queries, items = unit((17, 6)), unit((40, 6), seed=1)
    assert listed(nearest_pairs(queries, items, k)) == expected_pairs(exact(queries, items), k)


@pytest.mark.parametrize("share", [0.0, 1.0])  # in question: the block is summed in float64, or pair by pair
def test_items_that_tie_with_the_last_are_kept_wherever_they_stand(monkeypatch, share):
    monkeypatch.setattr(nearest, "_MANY_IN_QUESTION", share)
    queries, some = unit((30, 512)), unit((20, 512), seed=1)
    items = np.concatenate((some, some, some))
    found = listed(nearest_pairs(queries, items, 2))
    assert found == expected_pairs(exact(queries, items), 2)
    assert len(found) == 90


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_scores_closer_together_than_float32_sums_are_told_apart(monkeypatch, share):
    monkeypatch.setattr(nearest, "_MANY_IN_QUESTION", share)
    rng = np.random.default_rng(0)
    base = unit((1, 256))
    items = base + rng.normal(size=(400, 256)).astype(np.float32) * 1e-7
    queries = base + rng.normal(size=(50, 256)).astype(np.float32) * 1e-7
    assert listed(nearest_pairs(queries, items, 3)) == expected_pairs(exact(queries, items), 3)


def test_an_excluded_item_is_not_looked_at():
    queries, items = unit((9, 4)), unit((5, 4), seed=1)
    own = np.arange(9) % 5
    scores = exact(queries, items)
    scores[np.arange(9), own] = -np.inf
    assert listed(nearest_pairs(queries, items, 2, excluded=own)) == expected_pairs(scores, 2)
    assert len(listed(nearest_pairs(queries, items, 4, excluded=own))) == 36


@pytest.mark.parametrize("k", [1, 3, 9])
def test_top_items_are_those_of_a_stable_sort(k):
    scores = np.random.default_rng(2).integers(0, 5, (40, 9)).astype(float)
    found = top_items(np.eye(40), scores.T, k)  # products with unit vectors are the scores
    assert found.tolist() == np.argsort(-scores, axis=1, kind="stable")[:, :k].tolist()


def test_a_large_norm_widens_what_is_summed_again():
    queries, items = 1000 * unit((20, 64)), 1000 * unit((50, 64), seed=1)
    assert listed(nearest_pairs(queries, items, 5)) == expected_pairs(exact(queries, items), 5)


def test_wrong_input_is_refused():
    with pytest.raises(MetricError, match="k = 4: the gallery has 3 items, expected at most that many"):
        nearest_pairs(unit((2, 3)), unit((3, 3)), 4)
    with pytest.raises(MetricError, match="k = 3: the gallery has 2 items"):
        nearest_pairs(unit((2, 3)), unit((3, 3)), 3, excluded=[0, 1])
    with pytest.raises(MetricError, match="k = 0: expected at least 1"):
        top_items(unit((2, 3)), unit((3, 3)), 0)
    with pytest.raises(MetricError, match="excluded: 1 items, expected 2, one per query"):
        nearest_pairs(unit((2, 3)), unit((3, 3)), 1, excluded=[0])
    with pytest.raises(MetricError, match="queries: 3 wide, items: 4 wide; expected the same width"):
        nearest_pairs(unit((2, 3)), unit((3, 4)), 1)
    with pytest.raises(MetricError, match="items: row 1 holds a value that is not finite"):
        nearest_pairs(unit((2, 2)), np.array([[0, 1.0], [np.nan, 0]]), 1)
