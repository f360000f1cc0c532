"""Figures of one or several runs: curves over training steps and bars of metrics, as PNG files.

``FIGURES`` says once which values of ``metrics.jsonl`` make which figure. Equal input gives equal bytes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Okabe and Ito, Color universal design, 2008; their yellow, too pale on white, is replaced by grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a8a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
REFERENCE_LABEL = "dashed: InfoNCE only, same batch"
# Legend entries must fit beside each other; the end of a path tells more than its beginning.
_LEGEND_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes: the curve of one logged value.

    Attributes:
        key: in the records of ``metrics.jsonl``.
        label: of the vertical axis, with the unit.
        reference: key of a second value of the same batch that is drawn dashed; None for none.
    """

    key: str
    label: str
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class CurveFigure:
    """Panels that are looked at together.

    Attributes:
        name: of the file, without ending.
        title: above the figure.
        panels: in reading order.
        shared_scale: all panels have the same vertical axis.
        note: what the reader must know to read it.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    shared_scale: bool = False
    note: str = ""


def _drift(key: str, label: str) -> Panel:
    return Panel(key, label, reference=f"infonce_{key}")


FIGURES = (
    CurveFigure(
        "loss", "Training loss", (Panel("loss", "loss"),), note="Losses of different objectives are on different scales."
    ),
    CurveFigure(
        "retrieval",
        "Validation retrieval",
        tuple(Panel(f"{direction}_R@{k}", "share of queries") for k in (1, 10) for direction in ("t2a", "a2t")),
        shared_scale=True,
        note="On the validation split of each run, which selects its weights; the table of metrics is of the test data.",
    ),
    CurveFigure(
        "radius",
        "Semantic radius and pair distance",
        (Panel("mean_radius", "chord length"), Panel("mean_distance", "chord length")),
        shared_scale=True,
    ),
    CurveFigure(
        "rho",
        "Share of the distance that the support vector goes (rho = radius / distance)",
        (Panel("mean_rho", "radius / distance"), Panel("share_rho_above_1", "share of pairs")),
    ),
    CurveFigure("temperature", "Temperature", (Panel("temperature", "temperature"),)),
    CurveFigure(
        "drift",
        "Semantic drift",
        (
            _drift("force_cos_local", "cosine"),
            _drift("force_cos_global", "cosine"),
            _drift("step_cos", "cosine"),
            _drift("perp_ratio", "perpendicular / parallel"),
            _drift("perp_ratio_variance", "variance of the ratio"),
        ),
        note="Force and step towards the paired sound; dashed, in the run's colour: InfoNCE alone on the same batch.",
    ),
    CurveFigure(
        "geometry",
        "Geometry of the embeddings",
        (
            Panel("modality_gap", "distance of the means"),
            Panel("alignment", "alignment"),
            Panel("uniformity_audio", "uniformity"),
            Panel("uniformity_text", "uniformity"),
        ),
    ),
)

Log = Sequence[Mapping[str, Any]]


def color_of(run: int) -> str:
    """Colour of the run with this number, the same in every figure and table."""
    return PALETTE[run % len(PALETTE)]


def has_values(figure: CurveFigure, logs: Sequence[Log]) -> bool:
    """Whether any run logged anything that the figure shows.

    Args:
        figure: one of ``FIGURES``.
        logs: records of each run.
    """
    return any(_points(log, panel.key) for panel in figure.panels for log in logs)


def plot_curves(path: Path, figure: CurveFigure, names: Sequence[str], logs: Sequence[Log]) -> None:
    """Draw a figure with one line per run, and write it as PNG.

    Args:
        path: of the file to write.
        figure: one of ``FIGURES``; panels without a value in any run are left out, one at least must have some.
        names: of the runs; the place of a run fixes its colour.
        logs: for each run its records, each with ``step``; empty for a run that is not to be drawn. A value that is
            missing, null or not finite is no point.
    """
    panels = [panel for panel in figure.panels if any(_points(log, panel.key) for log in logs)]
    canvas, grid = _grid(len(panels), shared_scale=figure.shared_scale)
    has_reference = False
    for axes, panel in zip(grid, panels, strict=False):
        _frame(axes, title=panel.key if len(figure.panels) > 1 else "", label=panel.label)
        axes.set_xlabel("step")
        for run, log in enumerate(logs):
            if points := _points(log, panel.key):
                axes.plot(*zip(*points, strict=True), **_line_style(run, len(points)))
            if panel.reference and (points := _points(log, panel.reference)):
                axes.plot(*zip(*points, strict=True), color=color_of(run), linestyle="--", linewidth=1.1, alpha=0.8)
                has_reference = True
    canvas.suptitle(figure.title, fontsize=13)
    drawn = [run for run, log in enumerate(logs) if any(_points(log, panel.key) for panel in panels)]
    entries: list[tuple[Any, str]] = [(_handle(run), names[run]) for run in drawn] if len(names) > 1 else []
    if has_reference:
        entries.append((_dashed_handle(), REFERENCE_LABEL))
    _add_legend(canvas, entries)
    _save(canvas, path)


def plot_bars(
    path: Path,
    names: Sequence[str],
    panels: Mapping[str, Sequence[str]],
    values: Sequence[Mapping[str, float]],
    *,
    intervals: Sequence[Mapping[str, Sequence[float]]],
    title: str,
) -> None:
    """Draw fractions as grouped bars, one group per metric and one bar per run, and write them as PNG.

    Args:
        path: of the file to write.
        names: of the runs.
        panels: title -> metrics in it; a metric that no run has is left out, one at least must be there.
        values: for each run, metric -> fraction.
        intervals: for each run, metric -> (lower, upper); a metric without one has no whisker.
        title: above the figure.
    """
    kept = {title: [metric for metric in metrics if any(metric in run for run in values)] for title, metrics in panels.items()}
    kept = {title: metrics for title, metrics in kept.items() if metrics}
    canvas = _canvas(width=10.0, height=0.8 + 2.9 * len(kept))
    grid = canvas.subplots(len(kept), 1, squeeze=False)[:, 0]
    width = 0.84 / len(names)
    for axes, (panel_title, metrics) in zip(grid, kept.items(), strict=True):
        _frame(axes, title=panel_title, label="percent")
        axes.set(xticks=range(len(metrics)), xticklabels=metrics, ylim=(0, 104), xlim=(-0.55, len(metrics) - 0.45))
        axes.tick_params(axis="x", length=0)
        for run, (found, bounds) in enumerate(zip(values, intervals, strict=True)):
            offset = (run - (len(names) - 1) / 2) * width
            for place, metric in enumerate(metrics):
                if metric in found:
                    _bar(axes, place + offset, found[metric], bounds.get(metric), width=width, color=color_of(run))
    canvas.suptitle(title, fontsize=13)
    _add_legend(canvas, [(_patch(run), name) for run, name in enumerate(names)] if len(names) > 1 else [])
    _save(canvas, path)


def _bar(axes: Axes, place: float, value: float, interval: Sequence[float] | None, *, width: float, color: str) -> None:
    axes.bar(place, 100 * value, width=min(0.92 * width, 0.4), color=color, zorder=2)
    if interval is not None:
        # White under black: the lower half of a whisker must be seen on the bar, a black one too.
        for line_width, line_color in ((2.8, "white"), (1.2, "#333333")):
            axes.plot([place, place], [100 * bound for bound in interval], color=line_color, linewidth=line_width, zorder=3)


def _points(log: Log, key: str) -> list[tuple[int, float]]:
    found = [(record["step"], record[key]) for record in log if record.get(key) is not None]
    # Our own logs hold null for what is not finite, but other tools write NaN and Infinity into JSON.
    return [(step, value) for step, value in found if math.isfinite(value)]


def _canvas(*, width: float, height: float) -> Figure:
    # The object interface needs no display and leaves the global state of pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    return canvas


def _grid(count: int, *, shared_scale: bool) -> tuple[Figure, list[Axes]]:
    if count == 1:
        canvas = _canvas(width=7.0, height=4.0)
        return canvas, [canvas.subplots()]
    columns = 3 if count in (3, 5, 6) else 2
    rows = math.ceil(count / columns)
    canvas = _canvas(width=10.0, height=0.8 + 3.1 * rows)
    grid = list(canvas.subplots(rows, columns, sharey=shared_scale, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return canvas, grid


def _frame(axes: Axes, *, title: str, label: str) -> None:
    axes.set_title(title, fontsize=10.5)
    axes.set_ylabel(label)
    axes.set_facecolor("white")
    axes.grid(alpha=0.3, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def _marker(run: int) -> str:
    # Colours repeat after eight runs; then the markers shift, so that no two of 64 runs look the same.
    return MARKERS[(run + run // len(PALETTE)) % len(MARKERS)]


def _line_style(run: int, num_points: int) -> dict[str, Any]:
    every = max(1, num_points // 8)
    # Runs begin their markers at different points, so that equal curves can be told apart.
    start = run % every
    return {
        "color": color_of(run),
        "marker": _marker(run),
        "markersize": 4.5,
        "markevery": (start, every),
        "linewidth": 1.5,
        "alpha": 0.9,
    }


def _handle(run: int) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color_of(run), marker=_marker(run), markersize=5, linewidth=1.8)


def _dashed_handle() -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color="#555555", linestyle="--", linewidth=1.2)


def _patch(run: int) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color_of(run))


def _add_legend(canvas: Figure, entries: Sequence[tuple[Any, str]]) -> None:
    if not entries:
        return
    names = [name if len(name) <= _LEGEND_CHARACTERS else f"…{name[1 - _LEGEND_CHARACTERS :]}" for _, name in entries]
    width, _ = canvas.get_size_inches()
    columns = max(1, min(len(names), int(width * 11) // (max(map(len, names)) + 7)))
    placeholders = [str(number) for number in range(len(names))]
    legend = canvas.legend([h for h, _ in entries], placeholders, loc="outside lower center", ncols=columns, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # As it is: matplotlib would drop a label that begins with _ and read $ as mathematics.
        text.set_parse_math(False)
        text.set_text(name)


def _save(canvas: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        # The font lacks some scripts; a box in the legend is no reason to bother, the page shows the name as text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        # Without the name and version of matplotlib, equal figures are equal files.
        canvas.savefig(path, dpi=120, format="png", metadata={"Software": None})
