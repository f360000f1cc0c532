"""Bars of metrics with their intervals: grouped by metric with one bar per run, and lines of shares beside chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clapkit.report.canvas import (
    add_legend,
    bar_handle,
    bar_style,
    color_of,
    dashed_handle,
    frame,
    marker_of,
    name_ticks,
    new_canvas,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Values = Mapping[str, float]
Intervals = Mapping[str, Sequence[float]]
_CHANCE = "#333333"
# Names of rows longer than this would take the room of the values.
_NAME_CHARACTERS = 34


def draw_bars(
    names: Sequence[str],
    panels: Mapping[str, Sequence[str]],
    values: Sequence[Values],
    *,
    intervals: Sequence[Intervals],
    title: str,
    chance: Values | None = None,
) -> Figure:
    """Draw fractions as grouped bars, one group per metric and one bar per run.

    Args:
        names: of the runs.
        panels: title -> metrics in it; a metric that no run has is left out, one at least must be there.
        values: for each run, metric -> fraction.
        intervals: for each run, metric -> (lower, upper); a metric without one has no whisker.
        title: above the figure.
        chance: metric -> what guessing gives, a dashed line across its group.
    """
    kept = {title: [metric for metric in metrics if any(metric in run for run in values)] for title, metrics in panels.items()}
    kept = {title: metrics for title, metrics in kept.items() if metrics}
    canvas = new_canvas(width=10.0, height=0.8 + 2.9 * len(kept))
    grid = canvas.subplots(len(kept), 1, squeeze=False)[:, 0]
    width = 0.84 / len(names)
    has_chance = False
    for axes, (panel_title, metrics) in zip(grid, kept.items(), strict=True):
        frame(axes, title=panel_title, label="percent")
        axes.set(xticks=range(len(metrics)), xticklabels=metrics, ylim=(0, 104), xlim=(-0.55, len(metrics) - 0.45))
        axes.tick_params(axis="x", length=0)
        for run, (found, bounds) in enumerate(zip(values, intervals, strict=True)):
            offset = (run - (len(names) - 1) / 2) * width
            for place, metric in enumerate(metrics):
                if metric in found:
                    _bar(axes, place + offset, found[metric], bounds.get(metric), width=width, run=run)
        for place, metric in enumerate(metrics):
            if chance and metric in chance:
                axes.plot([place - 0.45, place + 0.45], [100 * chance[metric]] * 2, color=_CHANCE, linestyle="--", zorder=4)
                has_chance = True
    canvas.suptitle(title, fontsize=13)
    entries = [(bar_handle(run), name) for run, name in enumerate(names)] if len(names) > 1 else []
    add_legend(canvas, entries + ([(dashed_handle(color=_CHANCE), "chance")] if has_chance else []))
    return canvas


def draw_shares(
    names: Sequence[str],
    rows: Sequence[str],
    values: Sequence[Values],
    *,
    title: str,
    label: str,
    intervals: Sequence[Intervals] = (),
    chance: Values | None = None,
) -> Figure:
    """Draw fractions as points on lines, one line per name of ``rows``: languages, kinds of tests.

    Args:
        names: of the runs; their markers tell them apart.
        rows: what is measured, from above; names may be long and come from outside.
        values: for each run, row -> fraction.
        title: above the figure.
        label: of the horizontal axis.
        intervals: for each run, row -> (lower, upper); empty for none.
        chance: row -> what guessing gives, a dashed mark on its line.
    """
    canvas = new_canvas(width=8.0, height=1.5 + 0.34 * len(rows))
    axes = canvas.subplots()
    frame(axes, title="", label="")
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(-2, 102))
    name_ticks(axes, "y", rows, limit=_NAME_CHARACTERS)
    axes.set_xlabel(label)
    axes.tick_params(axis="y", length=0)
    for run, found in enumerate(values):
        offset = 0.5 * ((run + 0.5) / len(names) - 0.5) if len(names) > 1 else 0.0
        for place, row in enumerate(rows):
            if row not in found:
                continue
            if intervals and row in intervals[run]:
                bounds = [100 * bound for bound in intervals[run][row]]
                axes.plot(bounds, [place + offset] * 2, color=color_of(run), linewidth=1.4, alpha=0.8, zorder=2)
            axes.plot(100 * found[row], place + offset, color=color_of(run), marker=marker_of(run), markersize=6, zorder=3)
    marks = [(100 * chance[row], place) for place, row in enumerate(rows) if chance and row in chance]
    for at, place in marks:
        axes.plot([at, at], [place - 0.38, place + 0.38], color=_CHANCE, linestyle="--", linewidth=1.3, zorder=1)
    write(canvas.suptitle("", fontsize=13), title)
    entries = [(_point_handle(run), name) for run, name in enumerate(names)] if len(names) > 1 else []
    add_legend(canvas, entries + ([(dashed_handle(color=_CHANCE), "chance")] if marks else []))
    return canvas


def _point_handle(run: int) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color_of(run), marker=marker_of(run), markersize=6, linestyle="")


def _bar(axes: Axes, place: float, value: float, interval: Sequence[float] | None, *, width: float, run: int) -> None:
    axes.bar(place, 100 * value, width=min(0.92 * width, 0.4), zorder=2, **bar_style(run))
    if interval is not None:
        # White under black: the lower half of a whisker must be seen on the bar, a black one too.
        for line_width, line_color in ((2.8, "white"), (1.2, "#333333")):
            axes.plot([place, place], [100 * bound for bound in interval], color=line_color, linewidth=line_width, zorder=3)
