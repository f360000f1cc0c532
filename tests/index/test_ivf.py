import numpy as np
import pytest

from clapkit import registry
from clapkit.errors import ConfigError
from clapkit.index import _faiss
from clapkit.index._codes import coded, codes
from clapkit.index.ivf import default_num_lists


def unit(rows, width=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def index_of(vectors, **options):
    index = registry.build("index", "ivf", options)
    index.add(vectors)
    return index


def flat(rows, seed=0):
    """Unit vectors of 64 numbers near a subspace of 8, the same for every seed."""
    axes = np.random.default_rng(99).normal(size=(8, 64)) / 8
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(rows, 8)) @ axes + 0.02 * generator.normal(size=(rows, 64))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def stored(index):
    """Row number -> bytes, and which list it is in."""
    rows, lists = {}, {}
    for number, (labels, parts) in enumerate(index.method.stored_rows(index.inner)):
        for label, code in zip(labels.tolist(), parts, strict=True):
            assert label not in rows
            rows[label], lists[label] = code.tobytes(), number
    return rows, lists


@pytest.mark.parametrize(
    ("rows", "lists"),
    [
        (1, 1),
        (77, 1),  # 77 / 39 = 1.97
        (78, 2),
        (10_000, 256),  # 10,000 / 39 = 256.4; four times the square root is 400
        (100_000, 1265),  # 4 x 316.2 = 1264.9; 100,000 / 39 = 2564
        (1_000_000, 4000),
    ],
)
def test_the_number_of_lists_follows_the_rows(rows, lists):
    assert default_num_lists(rows) == lists


def test_every_row_is_in_one_list_as_bytes():
    vectors = unit(500)
    rows, _ = stored(index_of(vectors, nlist=7))
    assert sorted(rows) == list(range(500))
    assert all(rows[number] == codes(vectors[number : number + 1]).tobytes() for number in rows)


def test_equal_seeds_give_equal_lists_with_any_number_of_threads():
    import faiss

    vectors, threads = unit(3000, 16), faiss.omp_get_max_threads()
    try:
        found = []
        for count in (1, 3):
            faiss.omp_set_num_threads(count)
            found.append(stored(index_of(vectors, nlist=20))[1])
    finally:
        faiss.omp_set_num_threads(threads)
    assert found[0] == found[1]
    assert found[0] != stored(index_of(vectors, nlist=20, seed=1))[1]


def test_more_lists_than_rows_are_refused():
    with pytest.raises(ConfigError, match="option nlist=11: there are 10 rows"):
        index_of(unit(10), nlist=11)


def test_an_update_takes_rows_out_adds_rows_and_renumbers_the_others():
    old, new = unit(400), unit(30, seed=1)
    index = index_of(old, nlist=5)
    _, lists_before = stored(index)
    order = np.random.default_rng(2).permutation(400)[:370]  # 30 rows are gone, the others anywhere
    kept = np.concatenate([order[:200], np.full(30, -1), order[200:]])
    vectors = np.where(kept[:, None] >= 0, old[kept], 0)
    vectors[200:230] = new
    assert index.method.update(index.inner, kept, vectors)
    rows, lists = stored(index)
    assert sorted(rows) == list(range(400))
    assert all(rows[number] == codes(vectors[number : number + 1]).tobytes() for number in rows)
    assert all(lists[number] == lists_before[kept[number]] for number in range(400) if kept[number] >= 0)
    nearest = index.inner.quantizer.search(coded(new), 1)[1][:, 0]  # a new row goes where a build would put it
    assert [lists[number] for number in range(200, 230)] == nearest.tolist()


def test_an_update_may_take_out_or_add_every_row():
    index = index_of(unit(100), nlist=3)
    assert index.method.update(index.inner, np.empty(0, dtype=np.int64), unit(0))
    assert index.inner.ntotal == 0
    assert index.method.update(index.inner, np.full(5, -1), unit(5))
    assert sorted(stored(index)[0]) == [0, 1, 2, 3, 4]


def test_rows_near_a_subspace_are_stored_by_their_components():
    vectors = flat(900)
    index = index_of(vectors, nlist=7)
    assert index.method.facts(index.inner) == {"nlist": 7, "components": 32}
    coder = index.method.coder(index.inner)
    rows, _ = stored(index)
    assert sorted(rows) == list(range(900))
    assert all(rows[number] == codes(vectors[number : number + 1], coder).tobytes() for number in rows)
    assert all(len(code) == 32 for code in rows.values())


@pytest.mark.parametrize(("options", "kept"), [({"components": 64}, 64), ({"components": 5}, 5), ({}, 32)])
def test_the_number_of_components_can_be_chosen(options, kept):
    index = index_of(flat(900), nlist=7, **options)
    assert index.method.facts(index.inner)["components"] == kept


def test_more_components_than_numbers_are_refused():
    with pytest.raises(ConfigError, match="option components=9: vectors have 8 numbers; expected at most that"):
        index_of(unit(100), components=9)
    with pytest.raises(ConfigError, match="option components=0: expected at least 1"):
        index_of(unit(100), components=0)


def test_equal_seeds_give_equal_components_with_any_number_of_threads():
    import faiss

    vectors, threads = flat(3000), faiss.omp_get_max_threads()
    try:
        found = []
        for count in (1, 3):
            faiss.omp_set_num_threads(count)
            found.append(stored(index_of(vectors, nlist=20)))
    finally:
        faiss.omp_set_num_threads(threads)
    assert found[0] == found[1]


def test_an_update_of_components_adds_and_takes_out_rows(monkeypatch):
    monkeypatch.setattr(_faiss, "_EXACT_ROWS", 0)
    old, new = flat(900), flat(30, seed=1)
    index = index_of(old, nlist=5, nprobe=5)
    kept = np.concatenate([np.arange(50, 900), np.full(30, -1)])
    vectors = np.concatenate([old[50:], new])
    assert index.method.update(index.inner, kept, vectors)
    assert index.inner.ntotal == 880
    coder = index.method.coder(index.inner)
    rows, _ = stored(index)
    assert all(rows[number] == codes(vectors[number : number + 1], coder).tobytes() for number in range(880))
    index.attach(index.inner, vectors, effort=5)
    assert index.search(new, 1)[1][:, 0].tolist() == list(range(850, 880))


def test_few_components_are_made_up_for_by_more_candidates(monkeypatch):
    monkeypatch.setattr(_faiss, "_EXACT_ROWS", 0)
    vectors, queries = flat(3000), flat(100, seed=1)
    chosen = {}
    for components in (64, 8, 5):
        index = index_of(vectors, nlist=20, components=components)
        recall = index.tune(queries)
        assert recall.mean - recall.standard_error >= 0.95
        chosen[components] = index.candidates
    assert chosen[64] == 40
    assert chosen[8] <= chosen[5] > 40
    assert index._num_candidates(10) == index.candidates
    assert index._num_candidates(30) == 2 * index.candidates
