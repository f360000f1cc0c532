from pathlib import Path

import pytest

from clapkit.report.canvas import (
    add_legend,
    bar_handle,
    color_of,
    frame,
    line_handle,
    marker_of,
    name_ticks,
    new_canvas,
    new_grid,
    save,
    write,
)

HOSTILE = ["$x^2", "_hidden", "a\u202eb", "name\udcff", "音", "<b>&", "-->", "x" * 300]


def named_figure(name: str):
    canvas = new_canvas(width=8, height=4)
    axes = canvas.subplots()
    frame(axes, title=name, label="percent")
    name_ticks(axes, "x", [name, "b"], limit=12)
    write(axes.text(0, 0, ""), name)
    add_legend(canvas, [(line_handle(0), name), (bar_handle(1), name)])
    return canvas


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_any_name_can_be_drawn(tmp_path: Path, name: str, kind: str) -> None:
    save(named_figure(name), tmp_path / "a", kind=kind)
    assert (tmp_path / "a").stat().st_size > 1000


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_figures_are_equal_bytes_without_date_and_version(tmp_path: Path, kind: str) -> None:
    contents = []
    for _ in range(2):
        save(named_figure("a"), tmp_path / "a", kind=kind)
        contents.append((tmp_path / "a").read_bytes())
    assert contents[0] == contents[1]
    assert b"Matplotlib v" not in contents[0]
    assert b"<dc:date>" not in contents[0]


def test_an_svg_holds_its_text_as_outlines_and_no_script(tmp_path: Path) -> None:
    save(named_figure("<script>"), tmp_path / "a", kind="svg")
    content = (tmp_path / "a").read_text()
    assert "<script" not in content
    assert "<text" not in content
    assert "<path" in content


def test_an_svg_has_the_size_of_the_figure(tmp_path: Path) -> None:
    save(named_figure("a"), tmp_path / "a", kind="svg")
    assert 'width="576pt" height="288pt"' in (tmp_path / "a").read_text()  # 8 x 4 inches of 72 points


def test_of_64_runs_no_two_look_the_same() -> None:
    assert len({(color_of(run), marker_of(run)) for run in range(64)}) == 64


def test_panels_that_are_not_needed_are_hidden() -> None:
    _, grid = new_grid(5, shared_scale=True)
    assert [axes.axison for axes in grid] == [True] * 5 + [False]


def test_names_of_ticks_are_cut_and_stay(words) -> None:
    canvas = new_canvas(width=3, height=2)
    name_ticks(canvas.subplots(), "y", ["a long name", "$x^2$"], limit=6)
    found = words(canvas)
    assert "a lon…" in found
    assert "$x^2$" in found


def test_without_entries_there_is_no_legend() -> None:
    canvas = new_canvas(width=3, height=2)
    add_legend(canvas, [])
    assert canvas.legends == []
