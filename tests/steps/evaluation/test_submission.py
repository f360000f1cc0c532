import json
from pathlib import Path

import numpy as np
import pytest

from clapkit.errors import ConfigError
from clapkit.steps.evaluation import submission
from clapkit.steps.evaluation.submission import write_submission

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/golden_metrics.json").read_text())
CASE = next(case for case in GOLDEN if case["kind"] == "submission")


def write(path, similarity, texts, names, n):
    """The rows of the matrix are the clips; every caption is an axis of its own."""
    audio = np.array(similarity, dtype=np.float32)
    return write_submission(path, audio, texts, np.eye(audio.shape[1], dtype=np.float32), names, n)


def rows(path):
    return [line.split(",") for line in path.read_text().splitlines()[1:]]


def test_the_golden_file_is_written_byte_for_byte(tmp_path):
    warnings = write(tmp_path / "s.csv", CASE["similarity"], CASE["captions"], CASE["audio_names"], 3)
    assert (tmp_path / "s.csv").read_bytes() == CASE["expected"].encode()
    assert warnings == []


def test_only_the_best_files_are_written(tmp_path):
    write(tmp_path / "s.csv", [[1], [3], [2]], ["rain"], ["a", "b", "c"], 2)
    assert (tmp_path / "s.csv").read_text() == "caption,file_name_1,file_name_2\nrain,b,c\n"


def test_rows_are_those_of_a_sort_that_keeps_the_order_of_equal_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(submission, "_BLOCK_SCORES", 60)
    scores = np.random.default_rng(0).integers(0, 4, (20, 30))
    names = [f"{number}.wav" for number in range(20)]
    write(tmp_path / "s.csv", scores, [f"q{number}" for number in range(30)], names, 7)
    expected = [[f"q{q}", *(names[clip] for clip in np.argsort(-scores[:, q], kind="stable")[:7])] for q in range(30)]
    assert rows(tmp_path / "s.csv") == expected


def test_a_file_of_several_clips_stands_once_where_its_best_clip_is(tmp_path):
    write(tmp_path / "s.csv", [[1], [5], [4], [9]], ["rain"], ["a", "b", "b", "a"], 2)
    assert rows(tmp_path / "s.csv") == [["rain", "a", "b"]]


def test_a_text_that_comes_again_is_written_once_with_a_warning(tmp_path):
    warnings = write(tmp_path / "s.csv", [[1, 0, 1], [0, 1, 0]], ["rain", "wind", "rain"], ["a", "b"], 1)
    assert rows(tmp_path / "s.csv") == [["rain", "a"], ["wind", "b"]]
    assert warnings == ["submission: 1 captions have the text of another and are written once"]


@pytest.mark.parametrize("n", [0, 3])
def test_more_files_than_there_are_is_refused(tmp_path, n):
    with pytest.raises(ConfigError, match=f"--submission {n}: the evaluated clips are 2 files; choose 1 to 2"):
        write(tmp_path / "s.csv", [[1], [2], [3]], ["rain"], ["a", "b", "b"], n)
    assert not (tmp_path / "s.csv").exists()
