import numpy as np
import pytest

from clapkit.steps.evaluation import queries
from clapkit.steps.evaluation.queries import Gallery, find_queries


def turned(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def make_gallery(audio, text, clip, texts) -> Gallery:
    return Gallery.build(audio, text, np.array(clip, dtype=np.int64), texts)


@pytest.fixture
def gallery() -> Gallery:
    """Clips at 0, 30 and 90 degrees; the caption of the first lies at the third, the others at their own."""
    return make_gallery(turned(0, 30, 90), turned(90, 30, 90), [0, 1, 2], ["a dog", "a cat", "a bell"])


def test_the_worst_query_comes_with_its_rank_margin_and_hits(gallery: Gallery) -> None:
    found = find_queries(gallery, {"t2a": [3, 1, 1], "a2t": [2, 1, 1]})
    (query,) = found["t2a_worst"]
    assert (query["clip"], query["caption"], query["rank"], query["num_items"]) == (0, "a dog", 3, 3)
    # "a dog" at 90 degrees: cosine 1 with the third clip, 1/2 with the second, 0 with its own.
    assert query["score"] == pytest.approx(0, abs=1e-6)
    assert query["margin"] == pytest.approx(1, abs=1e-6)
    assert [(hit["clip"], hit["rank"], hit["kind"]) for hit in query["hits"]] == [(2, 1, "wrong"), (1, 2, "wrong")]
    assert [hit["score"] for hit in query["hits"]] == pytest.approx([1, 0.5], abs=1e-6)


def test_a_query_that_is_among_the_worst_is_not_shown_again(gallery: Gallery) -> None:
    found = find_queries(gallery, {"t2a": [3, 1, 1], "a2t": [2, 1, 1]})
    assert found["t2a_confusing"] == []


def test_clips_look_for_captions(gallery: Gallery) -> None:
    (query,) = find_queries(gallery, {"t2a": [3, 1, 1], "a2t": [2, 1, 1]})["a2t_worst"]
    # The first clip at 0 degrees: cosine cos 30 with "a cat", 0 with the others.
    assert (query["clip"], query["caption"]) == (0, None)
    assert query["hits"][0] | {"score": 0} == {"clip": 1, "caption": "a cat", "rank": 1, "score": 0, "kind": "wrong"}
    assert query["margin"] == pytest.approx(np.cos(np.radians(30)), abs=1e-6)


def test_a_clip_described_in_the_same_words_is_not_wrong() -> None:
    gallery = make_gallery(turned(0, 80, 60), turned(90, 90, 60), [0, 1, 2], ["a dog", "a dog", "a cat"])
    found = find_queries(gallery, {"t2a": [3, 1, 1], "a2t": [3, 1, 1]})
    (query,) = found["t2a_worst"]
    assert [(hit["clip"], hit["kind"]) for hit in query["hits"]] == [(1, "same words"), (2, "wrong")]
    assert query["margin"] == pytest.approx(np.cos(np.radians(30)), abs=1e-6)  # of the third clip, not of the second
    (asked,) = found["a2t_worst"]
    assert [(hit["caption"], hit["kind"]) for hit in asked["hits"]] == [("a cat", "wrong")]  # a right one is no later hit


def test_where_all_words_are_the_same_nothing_is_wrong() -> None:
    gallery = make_gallery(turned(0, 90), turned(90, 0), [0, 1], ["a dog", "a dog"])
    found = find_queries(gallery, {"t2a": [2, 2], "a2t": [2, 2]})
    assert found["t2a_worst"][0]["margin"] is None
    assert len(found["t2a_worst"]) == 1  # the words are shown once
    assert found["t2a_confusing"] == []


def test_queries_that_are_answered_are_not_shown() -> None:
    gallery = make_gallery(turned(0, 90), turned(0, 90), [0, 1], ["a", "b"])
    assert not any(find_queries(gallery, {"t2a": [1, 1], "a2t": [1, 1]}).values())


def test_ranks_that_are_not_of_these_queries_are_left_alone(gallery: Gallery) -> None:
    assert find_queries(gallery, {"t2a": [1, 2]}) == {}


def test_a_clip_without_captions_can_be_found_but_does_not_ask() -> None:
    gallery = make_gallery(turned(0, 90, 45), turned(90, 0), [0, 1], ["a", "b"])
    found = find_queries(gallery, {"t2a": [3, 3], "a2t": [2, 2]})
    assert {query["clip"] for kind in ("a2t_worst", "a2t_confusing") for query in found[kind]} <= {0, 1}


def test_the_worst_come_first_and_few_are_shown() -> None:
    number = 12
    gallery = make_gallery(turned(*range(number)), turned(*range(number)), range(number), [f"text {n}" for n in range(number)])
    found = find_queries(gallery, {"t2a": list(range(1, number + 1)), "a2t": [1] * number})
    assert [query["rank"] for query in found["t2a_worst"]] == [12, 11, 10]


def test_of_many_queries_every_so_many_are_searched_for_margins(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gallery.notes == ()
    monkeypatch.setattr(queries, "MAX_QUERIES", 2)
    assert gallery.notes[0] == "margins are of 2 of the 3 captions, evenly chosen"
    assert queries._sample(np.arange(3)).tolist() == [0, 2]


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gallery = make_gallery(vectors[:20], vectors[20:], range(20), [f"text {n % 7}" for n in range(20)])
    ranks = {"t2a": rng.integers(1, 20, 20), "a2t": rng.integers(1, 20, 20)}
    whole = find_queries(gallery, ranks)
    monkeypatch.setattr(queries, "_CHUNK_SCORES", 1)
    assert find_queries(gallery, ranks) == whole
