"""How metrics fall as sounds are changed more and more: one panel per change, one line per run and metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from clapkit.report.canvas import add_legend, dashed_handle, frame, line_handle, marker_of, name_ticks, new_grid, write
from clapkit.report.canvas import color_of as run_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[Mapping[str, Any]]


def draw_robustness(
    names: Sequence[str], runs: Sequence[Points], *, metric: str, clean: Sequence[float | None], title: str
) -> Figure:
    """Draw one metric against the severity of every change; dashed, in the colour of a run: its value without any.

    Args:
        names: of the runs.
        runs: for each run its measurements: ``change``, ``severity`` (a number or a word), ``unit``, ``metrics``.
        metric: which of the metrics, a fraction.
        clean: its value for each run without any change; None where it is not known.
        title: above the figure.
    """
    changes = list(dict.fromkeys(point["change"] for points in runs for point in points if metric in point["metrics"]))
    values = [point["metrics"][metric] for points in runs for point in points if metric in point["metrics"]]
    highest = 100 * max([*values, *(value for value in clean if value is not None)])
    canvas, grid = new_grid(len(changes), shared_scale=True)
    for axes, change in zip(grid, changes, strict=False):
        found = [[point for point in points if point["change"] == change and metric in point["metrics"]] for points in runs]
        _panel(axes, change, found, metric=metric, clean=clean)
        # From zero, so that a fall looks as large as it is; all panels alike.
        axes.set_ylim(-0.03 * highest, max(1.08 * highest, 1.0))
    write(canvas.suptitle("", fontsize=13), title)
    entries = [(line_handle(run), name) for run, name in enumerate(names)] if len(names) > 1 else []
    add_legend(canvas, entries + ([(dashed_handle(), "unchanged")] if any(v is not None for v in clean) else []))
    return canvas


def _panel(axes: Axes, change: str, runs: Sequence[Points], *, metric: str, clean: Sequence[float | None]) -> None:
    """Severities stand side by side in their order: they are steps, and some are words or cover decades."""
    severities = list(dict.fromkeys(point["severity"] for points in runs for point in points))
    if severities != sorted(severities, reverse=True) and all(isinstance(value, int | float) for value in severities):
        severities.sort()
    unit = next(point.get("unit") or "" for points in runs for point in points)
    frame(axes, title=change.replace("_", " "), label="percent")
    axes.set(xlim=(-0.4, len(severities) - 0.6))
    shown = [f"{severity:g}" if isinstance(severity, int | float) else str(severity) for severity in severities]
    name_ticks(axes, "x", shown, limit=12, fontsize=8.5)
    write(axes.xaxis.label, unit)
    for run, points in enumerate(runs):
        color, reference = run_color(run), clean[run]
        if reference is not None and points:
            axes.axhline(100 * reference, color=color, linestyle="--", linewidth=1.0, alpha=0.6, zorder=1)
        places = [(severities.index(point["severity"]), 100 * point["metrics"][metric]) for point in points]
        if places:
            axes.plot(*zip(*places, strict=True), color=color, marker=marker_of(run), markersize=5, linewidth=1.5, zorder=2)
