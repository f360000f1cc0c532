import hashlib
import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from clapkit.report.canvas import PALETTE, color_of
from clapkit.report.curves import FIGURES, CurveFigure, Panel, has_values, plot_curves

LOSS = CurveFigure("loss", "Loss", (Panel("loss", "nats"),))
DRIFT = CurveFigure("drift", "Drift", (Panel("cos", "cosine", reference="infonce_cos"), Panel("ratio", "ratio")))


def falling(start: float, *, steps: int = 10) -> list[dict[str, float]]:
    return [{"step": step, "loss": start / (1 + step)} for step in range(steps)]


def size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def has_color(path: Path, color: str) -> bool:
    """Whether some pixel is (nearly) of this colour."""
    pixels = matplotlib.image.imread(io.BytesIO(path.read_bytes()))[..., :3]
    wanted = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return bool((np.abs(pixels - wanted).max(axis=-1) < 0.12).any())


def test_a_png_of_the_right_size_is_written(tmp_path: Path) -> None:
    plot_curves(tmp_path / "a.png", LOSS, ["one"], [falling(3)])
    assert size(tmp_path / "a.png") == (840, 480)


def test_equal_input_gives_equal_bytes_that_name_no_version(tmp_path: Path) -> None:
    digests = set()
    for name in ("a.png", "b.png"):
        plot_curves(tmp_path / name, LOSS, ["one", "two"], [falling(3), falling(2)])
        content = (tmp_path / name).read_bytes()
        digests.add(hashlib.sha256(content).hexdigest())
        assert b"Software" not in content
    assert len(digests) == 1


def test_a_run_keeps_its_colour_where_another_has_no_log(tmp_path: Path) -> None:
    plot_curves(tmp_path / "a.png", LOSS, ["one", "two"], [[], falling(3)])
    assert has_color(tmp_path / "a.png", PALETTE[1])
    assert not has_color(tmp_path / "a.png", PALETTE[0])


def test_eight_runs_have_eight_colours() -> None:
    assert len({color_of(run) for run in range(8)}) == 8


def test_where_colours_repeat_the_markers_differ(tmp_path: Path) -> None:
    assert color_of(8) == color_of(0)
    names = ["same"] * 9
    plot_curves(tmp_path / "0.png", LOSS, names, [falling(3), *[[]] * 8])
    plot_curves(tmp_path / "8.png", LOSS, names, [*[[]] * 8, falling(3)])
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "8.png").read_bytes()


def test_the_infonce_value_is_drawn_too(tmp_path: Path) -> None:
    with_reference = [{"step": step, "cos": 0.5, "infonce_cos": 0.3} for step in range(3)]
    without = [{"step": step, "cos": 0.5} for step in range(3)]
    plot_curves(tmp_path / "with.png", DRIFT, ["one"], [with_reference])
    plot_curves(tmp_path / "without.png", DRIFT, ["one"], [without])
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_null_and_what_is_not_finite_is_no_point() -> None:
    assert not has_values(LOSS, [[{"step": 1, "loss": None}, {"step": 2, "loss": float("nan")}, {"step": 3}], []])
    assert has_values(LOSS, [[], [{"step": 1, "loss": 0.0}]])


def test_panels_without_values_take_no_room(tmp_path: Path) -> None:
    plot_curves(tmp_path / "one.png", DRIFT, ["a"], [[{"step": 1, "ratio": 2.0}]])
    assert size(tmp_path / "one.png") == (840, 480)  # a single pair of axes


@pytest.mark.parametrize("name", ["_hidden", "$x^2", "sound 音", "a/very/long/path/" * 8, ""])
def test_any_name_can_stand_in_the_legend(tmp_path: Path, name: str) -> None:
    plot_curves(tmp_path / "a.png", LOSS, [name, "two"], [falling(3), falling(2)])
    assert size(tmp_path / "a.png") == (840, 480)


def test_every_figure_has_its_own_file_and_draws_each_value_once() -> None:
    assert len({figure.name for figure in FIGURES}) == len(FIGURES)
    keys = [panel.key for figure in FIGURES for panel in figure.panels]
    assert len(set(keys)) == len(keys)
    drift = next(figure for figure in FIGURES if figure.name == "drift")
    assert all(panel.reference == f"infonce_{panel.key}" for panel in drift.panels)
