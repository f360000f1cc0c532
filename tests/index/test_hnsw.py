import numpy as np

from clapkit import registry
from clapkit.index._codes import codes


def unit(rows, width=8, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def index_of(vectors, **options):
    index = registry.build("index", "hnsw", options)
    index.add(vectors)
    return index


def stored(index):
    ((labels, codes),) = index.method.stored_rows(index.inner)
    return {label: code.tobytes() for label, code in zip(labels.tolist(), codes, strict=True)}


def test_every_row_is_in_the_graph_as_bytes():
    vectors = unit(300)
    assert stored(index_of(vectors)) == {row: code.tobytes() for row, code in enumerate(codes(vectors))}


def test_one_thread_builds_the_same_graph_every_time():
    import faiss

    graphs = [faiss.serialize_index(index_of(unit(500), threads=1).inner) for _ in range(2)]
    np.testing.assert_array_equal(*graphs)


def test_a_build_leaves_the_threads_of_others_alone():
    import faiss

    before = faiss.omp_get_max_threads()
    index_of(unit(50), threads=before + 1)
    assert faiss.omp_get_max_threads() == before


def test_more_neighbors_and_construction_effort_reach_the_graph():
    import faiss

    index = index_of(unit(50), neighbors=5, ef_construction=77)
    graph = faiss.downcast_index(index.inner.index).hnsw
    assert graph.nb_neighbors(0) == 10
    assert graph.efConstruction == 77


def test_an_update_adds_rows_and_renumbers_the_others():
    old, new = unit(200), unit(20, seed=1)
    index = index_of(old)
    order = np.random.default_rng(2).permutation(200)
    kept = np.concatenate([order[:50], np.full(20, -1), order[50:]])
    vectors = np.concatenate([old[order[:50]], new, old[order[50:]]])
    assert index.method.update(index.inner, kept, vectors)
    assert stored(index) == {row: code.tobytes() for row, code in enumerate(codes(vectors))}


def test_an_update_that_takes_a_row_out_is_refused_and_changes_nothing():
    index = index_of(unit(50))
    before = stored(index)
    assert not index.method.update(index.inner, np.arange(1, 50), unit(50)[1:])
    assert stored(index) == before
