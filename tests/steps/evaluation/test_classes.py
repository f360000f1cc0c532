import numpy as np
import pytest

from clapkit.errors import ConfigError, ManifestError
from clapkit.steps.evaluation.classes import (
    class_table,
    classes_of,
    fold_numbers,
    label_matrix,
    read_classes,
    source_numbers,
)
from clapkit.types import Clip


def clip(name, *labels, **given):
    return Clip(id=name, audio=f"{name}.wav", labels=labels, **given)


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
        return tmp_path / "classes.txt"

    return write


def test_classes_of_clips_are_sorted_and_spelled():
    assert classes_of([clip("a", "sea_waves"), clip("b", "Dog", "sea_waves")]) == {"Dog": ("Dog",), "sea_waves": ("sea waves",)}
    assert classes_of([clip("a", "Sea_waves")], spelling="raw") == {"Sea_waves": ("Sea_waves",)}


def test_a_list_gives_texts_and_its_order_does_not_matter(write):
    expected = {"cat": ("a cat", "meowing"), "sea_waves": ("sea waves",)}
    assert read_classes(write("sea_waves\ncat\ta cat\ncat\tmeowing\n")) == expected
    assert list(read_classes(write("# list\ncat\ta cat\n\ncat\tmeowing\nsea_waves\n"))) == ["cat", "sea_waves"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\n\ta cat\n", r"classes.txt, line 2: 'a cat', expected label or label<TAB>text"),
        ("cat\t\n", "line 1"),
        ("cat\ta\tb\n", "line 1"),
        ("cat\ncat\n", r"line 2: 'cat' with 'cat' comes twice"),
        ("\n", "is empty"),
    ],
)
def test_a_bad_list_is_refused_with_its_line(write, text, message):
    with pytest.raises(ConfigError, match=message):
        read_classes(write(text))


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--classes .*gone.txt: cannot be read"):
        read_classes(tmp_path / "gone.txt")


def test_labels_become_a_matrix():
    matrix = label_matrix([clip("a", "x"), clip("b", "y", "x")], ["x", "y", "z"])
    assert matrix.tolist() == [[True, False, False], [True, True, False]]


def test_a_label_that_is_no_class_is_named_with_clip_and_count():
    clips = [clip("a", "dog"), clip("b", "dogs"), clip("c", "dogs", "cats"), clip("d", "cats")]
    message = (
        r"^clip b: label 'dogs' is no class of --classes list.txt \(closest: 'dog'\); it and 1 other labels would leave 3 of 4 "
        "clips without their class; add it to the list, or correct the labels in the manifest$"
    )
    with pytest.raises(ManifestError, match=message):
        label_matrix(clips, ["dog"], known_from="--classes list.txt")


def test_takes_of_a_recording_have_its_number_and_other_clips_their_own():
    clips = [clip("a", source="s"), clip("d"), clip("b", source="s"), clip("c"), clip("s")]
    assert source_numbers(clips).tolist() == [0, 1, 0, 2, 0]  # the last is the recording itself


def test_folds_are_there_for_all_clips_or_for_none():
    assert fold_numbers([clip("a", fold=2), clip("b", fold=1)]).tolist() == [2, 1]
    assert fold_numbers([clip("a", fold=2), clip("b")]) is None


def test_the_table_of_classes_has_null_where_nothing_is_defined():
    columns = {
        "num_clips": np.array([2, 0]),
        "recall": np.array([0.5, np.nan]),
        "precision": np.array([1.0, 0.0]),
        "average_precision": np.array([0.7, np.nan]),
        "confused_with": np.array([1, -1]),
        "num_confused": np.array([1, 0]),
    }
    first, second = class_table(columns, ["x", "y"])
    assert first == {
        "class": "x",
        "num_clips": 2,
        "recall": 0.5,
        "precision": 1.0,
        "average_precision": 0.7,
        "confused_with": "y",
        "num_confused": 1,
    }
    assert (second["recall"], second["average_precision"], second["confused_with"]) == (None, None, None)
