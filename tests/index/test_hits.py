import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clapkit.errors import ConfigError, ShapeError
from clapkit.index.hits import FoundItem, Span, fold, group, search_all_until, search_until


def window(path, start_s, end_s, *, clip=None, content=None):
    return {"id": clip or path, "path": path, "start_s": start_s, "end_s": end_s, "content": content}


def grouped(candidates, **options):
    """Hits of (score, window) pairs; rows are 0, 1, 2, ... in the order of the ranking."""
    scores = np.array([score for score, _ in candidates], dtype=np.float32)
    return group(scores, np.arange(len(candidates)), [one for _, one in candidates], **options)


def spans_of(item):
    return [(span.start_s, span.end_s) for span in item.spans]


def test_a_window_that_overlaps_a_better_one_by_more_than_half_is_no_hit():
    hits = grouped(
        [
            (0.9, window("a", 10, 20)),
            (0.8, window("a", 12, 22)),  # 8 of 10 s
            (0.7, window("a", 15, 25)),  # 5 of 10 s: half, not more
            (0.6, window("b", 10, 20)),
            (0.5, window("a", 4, 12)),  # 2 of 8 s
            (0.4, window("a", 17, 18)),  # inside
            (0.3, window("a", 0, 100)),  # around: overlaps the shorter one wholly
        ]
    )
    assert [hit.row for hit in hits] == [0, 2, 3, 4]
    assert [hit.rows for hit in hits] == [(0,), (2,), (3,), (4,)]
    np.testing.assert_allclose([hit.score for hit in hits], [0.9, 0.7, 0.6, 0.5])
    assert hits[1].spans == (Span(15, 25, hits[1].score),)


def test_one_row_per_clip_stays_as_it_is():
    candidates = [
        (0.9, window("a", 0, 10, clip="a1")),
        (0.8, window("a", 1, 11, clip="a2")),
        (0.7, window("a", None, None, clip="a3")),
    ]
    assert [hit.row for hit in grouped(candidates)] == [0, 1, 2]


def test_captions_of_one_clip_are_hits_of_their_own():
    assert len(grouped([(0.9, window("a", 0.0, 5.0)), (0.8, window("a", 0.0, 5.0)), (0.7, window("a", None, None))])) == 3


def naive_suppression(candidates):
    kept = []
    for number, (_, one) in enumerate(candidates):
        for other in (candidates[place][1] for place in kept):
            if (one["id"], one["path"]) != (other["id"], other["path"]) or one == other:
                continue
            overlap = min(one["end_s"], other["end_s"]) - max(one["start_s"], other["start_s"])
            if overlap > min(one["end_s"] - one["start_s"], other["end_s"] - other["start_s"]) / 2:
                break
        else:
            kept.append(number)
    return kept


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20), st.integers(0, 6)), max_size=25))
def test_suppression_equals_a_naive_loop(places):
    candidates = [
        (1 - number / 100, window(path, start, start + length)) for number, (path, start, length) in enumerate(places)
    ]
    assert [hit.row for hit in grouped(candidates)] == naive_suppression(candidates)


def test_windows_of_a_file_become_its_best_spans():
    hits = grouped(
        [
            (0.90, window("a", 10, 20)),
            (0.89, window("b", 0, 10)),
            (0.88, window("a", 60, 70)),
            (0.87, window("a", 20, 30)),  # touches the first
            (0.86, window("a", 5, 15)),  # overlaps it
            (0.85, window("a", 31, 41)),  # a second away
            (0.50, window("a", 70, 80)),  # touches, but is far below
        ],
        by="file",
    )
    assert [hit.row for hit in hits] == [0, 1]
    assert spans_of(hits[0]) == [(5, 30), (60, 70), (31, 41)]
    np.testing.assert_allclose([span.score for span in hits[0].spans], [0.90, 0.88, 0.85], atol=1e-6)
    assert hits[0].rows == (0, 2, 3, 4, 5)
    assert spans_of(hits[1]) == [(0, 10)]


def test_spans_follow_the_gap_the_drop_and_the_number_asked_for():
    candidates = [(0.9, window("a", 0, 10)), (0.8, window("a", 12, 20)), (0.7, window("a", 40, 50))]
    assert spans_of(grouped(candidates, by="file", merge_gap_s=2, max_drop=0.25)[0]) == [(0, 20), (40, 50)]
    (hit,) = grouped(candidates, by="file", max_spans=1, max_drop=0.25)
    assert spans_of(hit) == [(0, 10)]
    assert hit.rows == (0,)
    assert spans_of(grouped(candidates, by="file", max_drop=0)[0]) == [(0, 10)]


def test_a_window_inside_a_longer_one_does_not_end_its_span():
    (hit,) = grouped([(0.9, window("a", 0, 30)), (0.9, window("a", 5, 6)), (0.9, window("a", 29, 40))], by="file")
    assert spans_of(hit) == [(0, 40)]


def test_rows_without_a_place_are_a_span_without_a_place():
    (hit,) = grouped([(0.9, window("a", 0, 5)), (0.88, window("a", None, None)), (0.86, window("a", 2, None))], by="file")
    assert spans_of(hit) == [(0, 5), (None, None)]


def test_a_ranking_by_something_else_than_its_scores_keeps_its_order():
    hits = grouped([(0.5, window("a", 0, 5)), (0.9, window("b", 0, 5)), (0.7, window("a", 5, 10))], by="file")
    assert [(hit.row, round(hit.score, 3)) for hit in hits] == [(0, 0.5), (1, 0.9)]
    assert hits[0].spans == (Span(0, 10, 0.5),)


def test_no_candidates_give_no_hits():
    assert grouped([]) == grouped([], by="file") == []
    assert fold([], [], rows=np.empty(0, dtype=np.int64)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_spans": 0}, "max_spans = 0, expected at least 1"),
        ({"merge_gap_s": -1}, "merge_gap_s = -1, expected at least 0"),
        ({"max_drop": float("nan")}, "max_drop = nan, expected at least 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        grouped([], **options)


def test_candidates_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ShapeError, match=r"scores \[2\], rows \[1\] and 1 of metadata"):
        group(np.zeros(2), np.zeros(1, dtype=np.int64), [window("a", 0, 1)])


def folded(candidates, vectors=None):
    rows = np.arange(len(candidates))
    give = None if vectors is None else (lambda wanted: np.asarray(vectors)[wanted])
    return fold(grouped(candidates), [one for _, one in candidates], rows=rows, vectors=give)


def test_copies_are_one_hit_that_names_their_paths():
    hits = folded(
        [
            (0.9, window("a", 0, 5, content="x")),
            (0.9, window("b", 0, 5, content="x")),
            (0.89, window("c", 0, 5, content="y")),
            (0.89, window("d", 0, 5.0001, content="x")),
            (0.89, window("b", 0, 5, content="x", clip="again")),
            (0.89, window("a", 0, 5, content="x", clip="again")),
        ]
    )
    assert [(hit.row, hit.also) for hit in hits] == [(0, ("b", "d")), (2, ())]


def test_other_places_of_one_file_are_no_copies():
    assert len(folded([(0.9, window("a", 0, 5, content="x")), (0.9, window("b", 5, 10, content="x"))])) == 2


def test_equal_bytes_with_unlike_scores_are_no_copies():
    # sqrt(2 - 2 * 0.9999) = 0.01414: vectors of cosine 0.9999 have cosines with a query that differ by no more
    for score, number in ((0.887, 1), (0.885, 2)):
        assert len(folded([(0.9, window("a", 0, 5, content="x")), (score, window("b", 0, 5, content="x"))])) == number


def test_where_no_hash_is_known_vectors_tell_copies():
    def at(degrees):
        return [math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]

    candidates = [
        (0.9, window("a", 0, 5)),
        (0.9, window("b", 2, 7)),  # cos 0.8 degrees = 0.99990: a copy
        (0.9, window("c", 0, 5)),  # cos 0.9 degrees = 0.99988: none
        (0.9, window("d", 0, 5, content="x")),  # one of both has no hash
        (0.9, window("e", 0, 5, content="y")),  # equal vectors, but bytes that differ from d's and a place like a's
    ]
    vectors = [at(0), at(0.8), at(-0.9), at(90), at(90)]
    assert [(hit.row, hit.also) for hit in folded(candidates, vectors)] == [(0, ("b",)), (2, ()), (3, ()), (4, ())]
    assert len(folded(candidates)) == 5  # by content only
    vectors = [at(0), at(10), at(20), at(0), at(20)]
    assert [(hit.row, hit.also) for hit in folded(candidates, vectors)] == [(0, ("d",)), (1, ()), (2, ("e",))]


def test_vectors_are_not_read_where_all_bytes_are_known():
    candidates = [(0.9, window("a", 0, 5, content="x")), (0.9, window("b", 0, 5, content="x"))]

    def give(_):
        raise AssertionError("asked for vectors")

    assert len(fold(grouped(candidates), [one for _, one in candidates], rows=np.arange(2), vectors=give)) == 1


def test_files_that_are_copies_fold_after_grouping():
    candidates = [
        (0.9, window("a", 0, 5, content="x")),
        (0.9, window("b", 0, 5, content="x")),
        (0.85, window("a", 5, 10, content="x")),
        (0.85, window("b", 5, 10, content="x")),
    ]
    (hit,) = fold(grouped(candidates, by="file"), [one for _, one in candidates], rows=np.arange(4))
    assert (spans_of(hit), hit.also) == ([(0, 10)], ("b",))


class Library:
    """Windows of a few files, some of them copies, with scores that tie."""

    def __init__(self, seed, num_files=12):
        generator = np.random.default_rng(seed)
        self.metadata, scores = [], []
        for number in range(num_files):
            num_windows = int(generator.integers(1, 9))
            of_file = np.round(generator.uniform(0, 1) + generator.uniform(-0.1, 0.1, num_windows), 2)
            for copy in range(int(generator.integers(1, 4))):
                for place, score in enumerate(of_file):
                    self.metadata.append(window(f"{number}.{copy}", 2.0 * place, 2.0 * place + 5, content=f"{number}"))
                    scores.append(score)
        self.scores = np.array(scores, dtype=np.float32)
        self.order = np.argsort(-self.scores, kind="stable")
        self.asked = []

    def search(self, count):
        self.asked.append(count)
        rows = self.order[:count]
        return self.scores[rows], rows

    def hits(self, by, folds, **options):
        def make(scores, rows):
            metadata = [self.metadata[row] for row in rows]
            items = group(scores, rows, metadata, by=by)
            return fold(items, metadata, rows=rows) if folds else items

        return search_until(self.search, make, num_items=len(self.scores), **options)


@pytest.mark.parametrize("by", ["none", "file"])
@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_hits_do_not_depend_on_the_first_number_of_candidates(by, folds, seed):
    library = Library(seed)
    for k in (1, 4, 100):
        everything = library.hits(by, folds, k=k, first=10_000)
        assert everything
        for first in (None, 1, 2, 3, 7, 20, 50):
            assert library.hits(by, folds, k=k, first=first) == everything
        lowest = float(np.median(library.scores))
        above = library.hits(by, folds, k=k, min_score=lowest, first=1)
        assert above == [hit for hit in everything if hit.score >= lowest]


def test_no_more_candidates_are_asked_for_than_hits_need():
    library = Library(0)
    library.metadata = [window(str(row), 0, 5) for row in range(len(library.scores))]
    assert len(library.hits("none", False, k=5)) == 5
    assert library.asked == [5]
    library.asked.clear()
    assert library.hits("none", False, k=5, min_score=2.0) == []
    assert library.asked == [5]
    library.asked.clear()
    assert len(library.hits("none", False, k=10_000)) == len(library.scores)
    assert library.asked == [len(library.scores)]


def test_candidates_grow_fourfold_until_there_are_enough_hits():
    library = Library(1)
    library.metadata = [window("one file", 0.0, 5.0 + row / 1000) for row in range(len(library.scores))]
    assert len(library.hits("none", False, k=2)) == 1
    assert library.asked == [2, 8, 32, len(library.scores)]


def item(row, score):
    return FoundItem(int(row), float(score), (int(row),), ())


def test_only_queries_with_too_few_hits_are_searched_again():
    asked = []

    def search(queries, count):
        asked.append((queries.tolist(), count))
        return [(np.linspace(1, 0, 20, dtype=np.float32)[:count], np.arange(20)[:count])] * len(queries)

    def make(query, scores, rows):
        every = 1 if query == 0 else 5  # query 1 loses four of five candidates
        return [item(row, score) for row, score in zip(rows, scores, strict=True) if row % every == 0]

    hits = search_all_until(search, make, num_queries=2, k=3, num_items=20)
    assert asked == [([0, 1], 3), ([1], 12)]
    assert [[hit.row for hit in some] for some in hits] == [[0, 1, 2], [0, 5, 10]]


def test_an_index_that_finds_fewer_than_asked_has_no_more():
    def search(_, count):
        rows = np.full(count, -1)
        rows[:2] = [4, 2]
        return [(np.zeros(count, dtype=np.float32), rows)]

    hits = search_all_until(
        search, lambda _, scores, rows: [item(*one) for one in zip(rows, scores, strict=True)], num_queries=1, k=5, num_items=50
    )
    assert [hit.row for hit in hits[0]] == [4, 2]
    assert search_until(lambda _: (np.zeros(0), np.zeros(0, dtype=np.int64)), lambda *_: [], k=5, num_items=50) == []


def test_an_empty_table_is_not_searched():
    assert search_until(lambda _: 1 / 0, lambda *_: [], k=5, num_items=0) == []


@pytest.mark.parametrize(("k", "first"), [(0, 5), (5, 0)])
def test_numbers_of_hits_that_make_no_sense_are_refused(k, first):
    with pytest.raises(ConfigError, match=f"{k} hits from {first} candidates"):
        search_until(lambda _: 1 / 0, lambda *_: [], k=k, first=first, num_items=9)


def test_a_file_in_which_nothing_stands_out_is_no_span_from_end_to_end() -> None:
    # Four windows in a row. Halfway from the best, 0.10, to a background of 0.02 is 0.06: only the neighbours above it join.
    scores, rows = np.array([0.10, 0.08, 0.05, 0.04], dtype=np.float32), np.arange(4)
    metadata = [{"id": "a", "path": "a.wav", "start_s": 5.0 * n, "end_s": 5.0 * n + 5} for n in range(4)]
    (loose,) = group(scores, rows, metadata, by="file")
    assert [(span.start_s, span.end_s) for span in loose.spans] == [(0.0, 20.0)]
    (tight,) = group(scores, rows, metadata, by="file", background=0.02)
    assert [(span.start_s, span.end_s) for span in tight.spans] == [(0.0, 10.0)]
    assert tight.floor == pytest.approx(0.06)
    (alone,) = group(scores, rows, metadata, by="file", background=0.5)  # all of it is below what is usual
    assert alone.rows == (0,)
