import numpy as np
import pytest

from clapkit.report.canvas import PALETTE
from clapkit.report.embedding_map import MAX_NAMED, EmbeddingMap, draw_map, project


def make_map(labels: list[str], *, texts: int = 1) -> EmbeddingMap:
    rng = np.random.default_rng(0)
    return EmbeddingMap(
        rng.normal(size=(len(labels), 2)),
        rng.normal(size=(texts, 2)),
        np.zeros(texts, np.int64),
        tuple(labels),
        tuple(labels[:1] * texts),
        (0.5, 0.25),
    )


def test_places_are_the_principal_components_of_both_together() -> None:
    # Mean (2, 0, 0); around it +-2 along x and +-1 along y: variance 8 and 2 of 10, nothing along z.
    sounds, texts, explained = project([[4, 0, 0], [0, 0, 0]], [[2, 1, 0], [2, -1, 0]])
    assert np.allclose(sounds, [[2, 0], [-2, 0]])
    assert np.allclose(texts, [[0, 1], [0, -1]])
    assert explained == pytest.approx((0.8, 0.2))


def test_a_gap_between_the_modalities_shows() -> None:
    rng = np.random.default_rng(0)
    sounds, texts, _ = project(rng.normal(size=(50, 8)) + 9 * np.eye(8)[0], rng.normal(size=(50, 8)))
    assert sounds[:, 0].min() > texts[:, 0].max()


def test_signs_do_not_depend_on_the_order_of_rows() -> None:
    rows = np.random.default_rng(1).normal(size=(20, 5))
    forward, _, _ = project(rows, rows[:0])
    backward, _, _ = project(rows[::-1], rows[:0])
    assert np.allclose(forward, backward[::-1])


@pytest.mark.parametrize("sounds", [[[1.0, 0.0]], [[1.0], [2.0]], [[1.0, 0.0], [1.0, 0.0]]])
def test_rows_that_have_no_two_directions_have_places_all_the_same(sounds) -> None:
    places, texts, explained = project(sounds, np.empty((0, len(sounds[0]))))
    assert places.shape == (len(sounds), 2)
    assert texts.shape == (0, 2)
    assert np.isfinite(places).all()
    assert np.isfinite(explained).all()


def test_few_labels_have_colours(shows, words) -> None:
    canvas = draw_map(["a"], [make_map(["cat", "dog"] * 5)], title="T")
    assert shows(canvas, PALETTE[0])
    assert shows(canvas, PALETTE[1])
    assert {"cat", "dog", "sound", "text"} <= set(words(canvas))


def test_more_labels_are_written_at_their_sounds_and_too_many_are_not(words) -> None:
    labels = [f"label {number}" for number in range(MAX_NAMED + 1)]
    assert "label 3" in words(draw_map(["a"], [make_map(labels[:MAX_NAMED])], title="T"))
    assert "label 3" not in words(draw_map(["a"], [make_map(labels)], title="T"))


def test_sounds_and_texts_differ_in_their_markers_and_some_pairs_are_joined() -> None:
    canvas = draw_map(["a"], [make_map(["cat"] * 3, texts=9)], title="T", num_lines=4)
    sounds, texts = canvas.axes[0].collections
    assert sounds.get_paths()[0].vertices.shape != texts.get_paths()[0].vertices.shape
    assert len(canvas.axes[0].lines) == 4


def test_maps_of_runs_stand_side_by_side(words) -> None:
    found = draw_map(["$a", "b", "c"], [make_map([""])] * 3, title="T")
    assert [axes.axison for axes in found.axes] == [True, True, True, False]
    assert {"$a", "b", "c"} <= set(words(found))


def test_a_map_of_sounds_alone_names_no_texts(words) -> None:
    assert "text" not in words(draw_map(["a"], [make_map(["cat"], texts=0)], title="T"))
