import numpy as np
import pytest

from clapkit.report.confusion import MAX_CLASSES, draw_confusion


def test_brightness_is_the_share_of_a_class_and_numbers_are_clips(words) -> None:
    canvas = draw_confusion(["a"], ["cat", "dog"], [[[3, 1], [0, 0]]], title="T")
    (image,) = canvas.axes[0].images
    assert image.get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]  # a class without clips has no share
    found = words(canvas)
    assert {"3", "1", "cat", "dog", "taken for", "is"} <= set(found)
    assert "0" not in found


def test_matrices_of_runs_stand_side_by_side_with_their_names(words) -> None:
    canvas = draw_confusion(["$a", "b"], ["x", "y"], [np.eye(2), np.eye(2)], title="T")
    assert len(canvas.axes) == 2
    assert {"$a", "b"} <= set(words(canvas))


def test_many_classes_are_drawn_without_numbers(words) -> None:
    names = [f"class {number} " + "x" * 40 for number in range(MAX_CLASSES)]
    found = words(draw_confusion(["a"], names, [7 * np.eye(MAX_CLASSES)], title="T"))
    assert "7" not in found
    assert {len(name) for name in found if name.startswith("class 59")} == {24}


def test_more_classes_than_can_be_read_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(AssertionError, match="61"):
        draw_confusion(["a"], ["x"] * 61, [np.eye(61)], title="T")
