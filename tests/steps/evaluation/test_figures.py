import numpy as np
import pytest

from clapkit.report.embedding_map import EmbeddingMap
from clapkit.steps.evaluation.evidence import Evidence
from clapkit.steps.evaluation.figures import Figures
from clapkit.steps.evaluation.result import Outcome


def make_run(**tasks):
    return {"tasks": {name.replace("_", "-"): {"metrics": {}, "intervals": {}} | task for name, task in tasks.items()}}


@pytest.fixture
def figures(tmp_path):
    return Figures(tmp_path / "plots", ["a", "b"])


def written(figures):
    return sorted(path.name for path in figures.folder.iterdir())


def test_every_kind_of_result_has_its_figure_as_png_and_svg(figures):
    point = {"change": "gain", "severity": 6, "unit": "dB", "metrics": {"t2a_R@1": 0.5, "cosine": 0.5}}
    run = make_run(
        retrieval={"metrics": {"t2a_R@1": 0.5}, "chance": {"t2a_R@1": 0.1}},
        zero_shot={"confusion": {"classes": ["x", "y"], "counts": [[1, 0], [0, 1]]}},
        multilingual={"per_language": {"fr": {"metrics": {"t2a_R@1": 0.5}}}},
        robustness={"robustness": [point], "clean": {"t2a_R@1": 0.6}},
        temporal={"metrics": {"temporal_order_accuracy": 0.5}, "chance": {"temporal_order_accuracy": 0.5}},
    )
    pictures = figures.draw_all([run, run], [], [[{"step": 1, "loss": 1.0}], []])
    names = ("confusion", "languages", "loss", "metrics", "robustness_t2a_R1", "temporal")
    assert written(figures) == sorted(f"{name}.{kind}" for name in names for kind in ("png", "svg"))
    assert pictures.tasks.keys() == {"temporal"}
    assert pictures.confusion.png == (figures.folder / "confusion.png").read_bytes()


def test_without_results_nothing_is_written(figures):
    pictures = figures.draw_all([make_run(), make_run()], [], [[], []])
    assert figures.num_written == 0
    assert not figures.folder.exists()
    assert pictures.bars is pictures.map is pictures.confusion is None


def test_matrices_of_too_many_classes_are_not_drawn(figures):
    confusion = {"classes": [str(n) for n in range(61)], "counts": np.eye(61).tolist()}
    assert figures.draw_all([make_run(zero_shot={"confusion": confusion})], [], [[]]).confusion is None
    largest = {"num_pairs": 1, "largest": [{"target": "a", "predicted": "b", "count": 1}]}
    assert figures.draw_all([make_run(zero_shot={"confusion": largest})], [], [[]]).confusion is None


def test_maps_of_four_runs_stand_side_by_side_and_the_others_are_counted(tmp_path):
    places = EmbeddingMap(np.eye(2), np.eye(2)[:1], np.array([0]), ("x", "y"), ("x",), (0.5, 0.5))
    evidence = Evidence(places, {}, {}, {}, [], ())
    outcomes = [Outcome(str(n), None, "f", {}, evidence=evidence) for n in range(5)]
    figures = Figures(tmp_path / "plots", [str(n) for n in range(5)])
    picture = figures.draw_all([make_run()] * 5, outcomes, [[]] * 5).map
    assert "The first 4 of 5 runs." in picture.note
