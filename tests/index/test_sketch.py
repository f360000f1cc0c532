import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.errors import EmbeddingError, ShapeError
from clapkit.index import _sketch, exact, writer
from clapkit.index.layout import TableInfo, read_info, sketch_files
from clapkit.index.table import open_table
from clapkit.steps import search


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rows_of(kind, count, width, generator):
    """Rows in float16 that are easy or hard to keep in 8 bits."""
    plain = generator.normal(size=(count, width))
    match kind:
        case "clustered":
            plain = generator.normal(size=(5, width))[generator.integers(0, 5, count)] + 0.05 * plain
        case "duplicates":
            plain = plain[generator.integers(0, max(1, count // 9), count)]
        case "huge component":
            plain[:, 0] += 1000 * generator.choice([-1, 1], count)
        case "constant dimensions":
            plain[:, ::2] = 0.25
        case "one outlier":
            plain = 1e-3 * plain + 1
            plain[0] = 0
            plain[0, -1] = 1
    return unit(plain).astype(np.float16)


KINDS = ["random", "clustered", "duplicates", "huge component", "constant dimensions", "one outlier"]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(exact, "_FEWEST_SCANNED_ROWS", 1)
    monkeypatch.setattr(exact, "_SCANNED_BLOCK_ROWS", 64)
    monkeypatch.setattr(exact, "_FIRST_BLOCK_ROWS", 16)
    monkeypatch.setattr(_sketch, "_BLOCK_ROWS", 50)


def both_ways(vectors, queries, k, *, rows=None):
    """Results without a sketch and with one, each twice."""
    without, sketched = exact.build(), exact.build()
    without.add(vectors)
    sketched.add(vectors, _sketch.make(vectors))
    return [index.search(queries, k, rows=rows) for index in (without, without, sketched, sketched)]


def assert_same(results):
    for scores, rows in results[1:]:
        np.testing.assert_array_equal(scores, results[0][0])
        np.testing.assert_array_equal(rows, results[0][1])


def decoded(sketch):
    integers = sketch.codes.astype(np.float64) - 128
    return sketch.offsets.astype(np.float64) + sketch.steps * integers, integers


def test_a_row_is_kept_in_steps_of_a_255th_of_the_range():
    # dimension 0 ranges over 0 to 1: step 1/255, offset 128/255; 0.5 is the integer round((0.5 - 128/255) * 255) = round(-0.5)
    sketch = _sketch.make(np.array([[0.0, 0.5], [1.0, 0.5], [0.5, 0.5]], dtype=np.float32))
    np.testing.assert_allclose(sketch.steps, [1 / 255, 0])
    np.testing.assert_allclose(sketch.offsets, [128 / 255, 0.5])
    assert sketch.codes[:2].tolist() == [[0, 128], [255, 128]]
    assert sketch.codes[2, 0] in (127, 128)
    assert 0.5 / 255 <= sketch.error <= 0.5 / 255 + 1e-4  # row 2 lies half a step beside
    assert 128 <= sketch.reach <= 128.1  # the integers of row 0 are -128 and 0


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(KINDS), count=st.integers(1, 90), width=st.integers(2, 70), seed=st.integers(0, 999))
def test_bounds_hold(kind, count, width, seed):
    generator = np.random.default_rng(seed)
    vectors = rows_of(kind, count, width, generator)
    sketch = _sketch.make(vectors)
    restored, integers = decoded(sketch)
    assert np.linalg.norm(vectors.astype(np.float64) - restored, axis=1).max() <= sketch.error
    assert np.linalg.norm(integers, axis=1).max() <= sketch.reach
    for query in unit(np.concatenate([generator.normal(size=(3, width)), vectors[:2]])).astype(np.float32):
        folded = sketch.fold(query)
        assert np.abs(folded.integers).max() <= 127
        np.testing.assert_array_equal(folded.integers, np.rint(folded.integers))
        products = integers @ folded.integers
        scores = folded.scores(products)
        assert np.abs(scores - vectors.astype(np.float64) @ query).max() <= folded.error
        for product, score in zip(products.tolist(), scores.tolist(), strict=True):
            assert product > np.float32(folded.product_below(score))


def test_the_bound_is_close_to_what_a_row_can_be_off_by():
    # one dimension: the worst of many rows is half a step beside, and a query of 1 sees all of it
    vectors = np.linspace(0.5, 1, 1000, dtype=np.float32)[:, None]
    sketch = _sketch.make(vectors)
    assert 0.9 * sketch.steps[0] / 2 <= sketch.error <= 1.1 * sketch.steps[0] / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 10, 200])
def test_results_are_those_without_a_sketch(small_blocks, kind, k):
    generator = np.random.default_rng(0)
    vectors = rows_of(kind, 1500, 24, generator)
    queries = unit(np.concatenate([generator.normal(size=(3, 24)), vectors[:2]])).astype(np.float32)
    assert_same(both_ways(vectors, queries, k))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    count=st.integers(1, 200),
    width=st.integers(2, 40),
    k=st.integers(1, 210),
    share=st.sampled_from([None, 0.0, 0.05, 0.5, 1.0]),
    most=st.sampled_from([0, 20, 4096]),
    seed=st.integers(0, 999),
)
def test_any_table_and_filter_gives_the_same_with_a_sketch(kind, count, width, k, share, most, seed):
    generator = np.random.default_rng(seed)
    vectors = rows_of(kind, count, width, generator)
    rows = None if share is None else np.flatnonzero(generator.random(count) < share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_FEWEST_SCANNED_ROWS", 1)
        patch.setattr(exact, "_SCANNED_BLOCK_ROWS", 13)
        patch.setattr(exact, "_FIRST_BLOCK_ROWS", 3)
        patch.setattr(exact, "_FEWEST_SKETCHED", most)
        assert_same(both_ways(vectors, unit(generator.normal(size=(2, width))).astype(np.float32), k, rows=rows))


def counted_fallbacks(monkeypatch):
    taken = []
    found = exact._best_by_sketch

    def best_by_sketch(*arguments, **options):
        taken.append(found(*arguments, **options))
        return taken[-1]

    monkeypatch.setattr(exact, "_best_by_sketch", best_by_sketch)
    return taken


def test_a_sketch_that_tells_rows_apart_is_enough(small_blocks, monkeypatch):
    taken = counted_fallbacks(monkeypatch)
    generator = np.random.default_rng(1)
    vectors = rows_of("random", 3000, 32, generator)
    assert_same(both_ways(vectors, vectors[:1].astype(np.float32), 1))
    assert len(taken) == 2
    assert None not in taken


@pytest.mark.parametrize("kind", ["all rows equal", "too many in all"])
def test_a_sketch_that_tells_too_few_rows_apart_leaves_the_query_to_the_table(small_blocks, monkeypatch, kind):
    monkeypatch.setattr(exact, "_FEWEST_SKETCHED", 10)
    taken = counted_fallbacks(monkeypatch)
    generator = np.random.default_rng(2)
    if kind == "all rows equal":
        vectors = np.repeat(rows_of("random", 1, 32, generator), 2000, axis=0)
    else:  # a step of the last dimension is larger than all that the rows differ by
        vectors = rows_of("one outlier", 2000, 32, generator)
    assert_same(both_ways(vectors, vectors[5:6].astype(np.float32), 3))
    assert taken == [None, None]


def test_rows_that_are_not_finite_are_still_found_where_the_table_is_read(small_blocks, monkeypatch):
    monkeypatch.setattr(exact, "_FEWEST_SKETCHED", 10)
    vectors = np.repeat(rows_of("random", 1, 32, np.random.default_rng(2)), 2000, axis=0)
    index = exact.build()
    index.add(vectors, _sketch.make(vectors))
    vectors[1234, 5] = np.nan
    with pytest.raises(EmbeddingError, match="row 1234 holds an infinity or a NaN"):
        index.search(vectors[:1].astype(np.float32), 3)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sketch_of_rows_that_are_not_finite_is_refused(dtype, bad):
    vectors = np.ones((3000, 4), dtype=dtype)
    vectors[2500, 1] = bad
    with pytest.raises(EmbeddingError, match="sketch: row 2500 holds an infinity or a NaN"):
        _sketch.make(vectors)


def test_a_sketch_of_another_shape_is_refused():
    vectors = np.eye(4, dtype=np.float16)
    with pytest.raises(ShapeError, match=r"sketch: shape \[3, 4\], expected \[4, 4\]"):
        exact.build().add(vectors, _sketch.make(vectors[:3]))


def test_no_rows_have_a_sketch():
    assert _sketch.make(np.empty((0, 5), dtype=np.float16)).codes.shape == (0, 5)


def write_table(folder, vectors):
    generation = writer.next_generation(folder)
    count = len(vectors)
    with writer.TableWriter(folder, "audio", width=vectors.shape[1], dtype="float16", generation=generation) as table:
        names, nothing = [f"clip_{row}" for row in range(count)], [None] * count
        metadata = writer.metadata_rows(
            ids=names, paths=names, spans=[(0.0, 1.0)] * count, captions=[[]] * count, labels=[[]] * count, splits=nothing
        )
        table.append(vectors, metadata)
        written = table.finish()
    return writer.publish(folder, [written], TableInfo(vectors.shape[1], "float16", {"audio": count}, "", "print"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "FEWEST_ROWS", 60)
    write_table(tmp_path, rows_of("random", 60, 8, np.random.default_rng(3)))
    return tmp_path


def test_a_sketch_comes_back_as_it_was_written(folder):
    info, table = open_table(folder, "audio")
    made, loaded = _sketch.make(table.vectors), _sketch.load_sketch(folder, "audio", info)
    for name in ("codes", "offsets", "steps", "error", "reach"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(made, name))
    assert loaded.codes.dtype == np.uint8
    assert not loaded.codes.flags.writeable


def test_a_short_table_has_none_and_an_update_removes_that_of_the_old_generation(folder):
    old = read_info(folder)
    write_table(folder, rows_of("random", 61, 8, np.random.default_rng(4)))
    assert sorted(path.name for path in (folder / "sketch").iterdir()) == ["audio_1.npy", "audio_1.npz"]
    with pytest.raises(EmbeddingError, match="was updated while it was read; ask again"):
        _sketch.load_sketch(folder, "audio", old)
    write_table(folder, rows_of("random", 59, 8, np.random.default_rng(5)))
    assert list((folder / "sketch").iterdir()) == []
    assert _sketch.load_sketch(folder, "audio", read_info(folder)) is None


def test_a_search_of_a_run_uses_its_sketch(folder, small_blocks, monkeypatch):
    taken = counted_fallbacks(monkeypatch)
    info, table = open_table(folder, "audio")
    index = search._open_index("exact", [], table, info, folder)
    query = table.vectors[7:8].astype(np.float32)
    scores, rows = index.search(query, 3)
    assert len(taken) == 1
    without = exact.build()
    without.add(table.vectors)
    assert_same([without.search(query, 3), (scores, rows)])
    assert rows[0, 0] == 7


def damage_scale(folder, **changes):
    path = folder / sketch_files("audio", 0)[1]
    with np.load(path) as arrays:
        content = {name: arrays[name] for name in arrays.files} | changes
    with path.open("wb") as file:
        np.savez(file, **content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "sketch/audio_0.npy").write_bytes(b"abc"), r"audio_0\.npy: cannot be read"),
        (lambda folder: (folder / "sketch/audio_0.npz").write_bytes(b"abc"), r"audio_0\.npz: cannot be read"),
        (lambda folder: (folder / "sketch/audio_0.npy").unlink(), r"audio_0\.npy: no such file"),
        (lambda folder: (folder / "sketch/audio_0.npz").unlink(), r"audio_0\.npz: no such file"),
        (lambda folder: damage_scale(folder, table="other"), r"audio_0\.npz: sketch of table other, expected"),
        (lambda folder: damage_scale(folder, steps=np.full(8, np.nan)), r"npz: expected finite offsets and steps \[8\]"),
        (lambda folder: damage_scale(folder, offsets=np.ones(7)), r"audio_0\.npz: expected finite offsets and steps \[8\]"),
        (lambda folder: damage_scale(folder, error=-1.0), r"audio_0\.npz: expected finite offsets and steps"),
        (lambda folder: np.save(folder / "sketch/audio_0.npy", np.zeros((9, 8), np.uint8)), r"\[9, 8\], expected uint8 \[60"),
    ],
)
def test_a_damaged_sketch_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(EmbeddingError, match=message) as caught:
        _sketch.load_sketch(folder, "audio", read_info(folder))
    assert "to search without, or embed again" in str(caught.value)


def test_codes_that_are_cut_short_are_named(folder):
    path = folder / "sketch/audio_0.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(EmbeddingError, match=r"audio_0\.npy: cannot be read \(cut short"):
        _sketch.load_sketch(folder, "audio", read_info(folder))


def test_writing_takes_memory_for_blocks_only(tmp_path):
    vectors = rows_of("random", 120_000, 32, np.random.default_rng(6))
    tracemalloc.start()
    _sketch.write_sketch(tmp_path, "audio", generation=0, table_id="id", vectors=vectors)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 * _sketch._BLOCK_ROWS * 32 < len(vectors) * 32 / 2  # bytes; all codes are as many as there are numbers
