import json

import pytest

from clapkit.steps.evaluation.marks import lineage_marks, split_marks
from clapkit.steps.inputs import DataSource
from clapkit.steps.lineage import lineage_of, unknown_lineage


@pytest.fixture
def data(corpus, tmp_path):
    return DataSource(tmp_path / "manifest.jsonl", corpus)


def test_a_model_that_saw_none_of_the_clips_has_no_mark(data, corpus):
    lineage = lineage_of([data], train_split="train", val_split="train")
    assert lineage_marks(lineage, data, corpus.split("test")) == []


def test_clips_that_were_trained_on_are_counted(data, corpus):
    lineage = lineage_of([data], train_split="train", val_split="train")
    marks = lineage_marks(lineage, data, corpus)
    assert [mark.kind for mark in marks] == ["seen_clips", "selected_on_test"]
    assert marks[0].text == (
        "the model was trained on 2 of the 6 clips (same recording or file, in toy (train)), first toy/bird"
    )
    assert marks[1].text.startswith("the model was chosen among its checkpoints by 2 of the 6 clips")


def test_the_split_that_selected_the_weights_is_no_test_split(data, corpus):
    lineage = lineage_of([data], train_split="train", val_split="test")
    (mark,) = lineage_marks(lineage, data, corpus.split("test"))
    assert mark.kind == "selected_on_test"
    assert "4 of the 4 clips" in mark.text


def test_weights_of_unknown_origin_are_named(data, corpus):
    (mark,) = lineage_marks(unknown_lineage("laion/clap"), data, corpus)
    assert (mark.kind, mark.text) == (
        "unknown_training",
        "what laion/clap was trained on is not known: it may have been these clips",
    )


def lose(data, *records):
    data.path.with_name("rejected.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_a_split_that_lost_clips_is_incomplete(data, corpus):
    lose(
        data,
        {"item": "a", "reason": "gone", "kind": "missing", "split": "test"},
        {"item": "b", "reason": "damaged", "kind": "bad"},  # of no known split: it may have been of this one
        {"item": "c", "reason": "gone", "kind": "missing", "split": "train"},
        {"item": "d", "reason": "too long", "kind": "excluded", "split": "test"},
        {"item": "e caption 2", "reason": "empty", "kind": "bad", "check": "empty_caption", "split": "test"},
    )
    (mark,) = split_marks(data, "test", corpus.split("test"))
    assert mark.kind == "incomplete_split"
    assert mark.text == "2 clips of the corpus were missing or damaged when it was prepared; 4 are left"
    assert split_marks(data, "all", corpus)[0].text.startswith("3 clips")


def test_a_complete_split_has_no_mark(data, corpus):
    assert split_marks(data, "test", corpus.split("test")) == []
    lose(data)
    assert split_marks(data, "test", corpus.split("test")) == []
