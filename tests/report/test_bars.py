import numpy as np

from clapkit.report.bars import draw_bars, draw_shares
from clapkit.report.canvas import PALETTE

PANELS = {"text to audio": ["t2a_R@1", "t2a_R@5"], "audio to text": ["a2t_R@1"]}


def one_bar(**given):
    return draw_bars(["one"], {"": ["t2a_R@1"]}, [{"t2a_R@1": 0.5}], intervals=[given.pop("interval", {})], title="", **given)


def test_bars_have_the_colours_of_their_runs(pixels, shows) -> None:
    values = [{"t2a_R@1": 0.5}, {"t2a_R@1": 0.25, "t2a_R@5": 1.0}]
    canvas = draw_bars(["one", "two"], PANELS, values, intervals=[{"t2a_R@1": (0.4, 0.6)}, {}], title="Metrics")
    # 10 x (0.8 + 2.9) inches at 120 dots: no run has a metric of the second panel.
    assert pixels(canvas).shape == (444, 1200, 3)
    assert all(shows(canvas, PALETTE[run]) for run in (0, 1))


def test_bars_of_runs_differ_in_more_than_colour() -> None:
    values = [{"t2a_R@1": 0.5}] * 3
    canvas = draw_bars(["a", "b", "c"], PANELS, values, intervals=[{}] * 3, title="")
    assert len({bar.get_hatch() for bar in canvas.axes[0].patches}) == 3


def test_intervals_are_drawn(pixels) -> None:
    assert (pixels(one_bar(interval={"t2a_R@1": (0.4, 0.6)})) != pixels(one_bar())).any()


def test_a_bar_is_as_high_as_its_value() -> None:
    (bar,) = one_bar().axes[0].patches
    assert bar.get_height() == 50  # percent


def test_chance_is_a_dashed_line_across_its_group(words) -> None:
    canvas = one_bar(chance={"t2a_R@1": 0.1, "other": 0.5})
    (line,) = canvas.axes[0].lines
    assert line.get_linestyle() == "--"
    assert np.allclose(line.get_ydata(), 10)
    assert "chance" in words(canvas)
    assert "chance" not in words(one_bar())


def test_shares_stand_on_a_line_each_with_interval_and_chance(words) -> None:
    rows = ["zu", "<script>" + "x" * 100]
    canvas = draw_shares(
        ["a", "b"],
        rows,
        [{"zu": 0.25}, {"zu": 0.5, rows[1]: 1.0}],
        title="$T",
        label="percent",
        intervals=[{"zu": (0.2, 0.3)}, {}],
        chance={"zu": 0.125},
    )
    points = {tuple(line.get_xdata()) for line in canvas.axes[0].lines}
    assert {(25.0,), (50.0,), (100.0,), (20.0, 30.0), (12.5, 12.5)} <= points
    found = words(canvas)
    assert {"zu", "a", "b", "chance", "$T"} <= set(found)
    assert any(name.startswith("<script>x") and name.endswith("…") for name in found)


def test_one_run_stands_in_the_middle_of_its_line_without_a_legend() -> None:
    canvas = draw_shares(["a"], ["zu"], [{"zu": 0.25}], title="", label="")
    (line,) = canvas.axes[0].lines
    assert list(line.get_ydata()) == [0.0]
    assert canvas.legends == []
