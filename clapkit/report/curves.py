"""Curves over the training steps of one or several runs.

``FIGURES`` says once which values of ``metrics.jsonl`` make which figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clapkit.report.canvas import add_legend, color_of, dashed_handle, frame, line_handle, marker_of, new_grid, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCE_LABEL = "dashed: InfoNCE only, same batch"


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


def has_values(figure: CurveFigure, logs: Sequence[Log]) -> bool:
    """Whether any run logged anything that the figure shows.

    Args:
        figure: one of ``FIGURES``.
        logs: records of each run.
    """
    return any(_points(log, panel.key) for panel in figure.panels for log in logs)


def plot_curves(path: Path, figure: CurveFigure, names: Sequence[str], logs: Sequence[Log]) -> None:
    """Draw a figure with one line per run and write it; see ``draw_curves``.

    Args:
        path: of the file to write, PNG.
        figure: one of ``FIGURES``.
        names: of the runs.
        logs: of the runs.
    """
    save(draw_curves(figure, names, logs), path)


def draw_curves(figure: CurveFigure, names: Sequence[str], logs: Sequence[Log]) -> Figure:
    """Draw a figure with one line per run.

    Args:
        figure: one of ``FIGURES``; panels without a value in any run are left out, one at least must have some.
        names: of the runs; the place of a run fixes its colour.
        logs: for each run its records, each with ``step``; empty for a run that is not to be drawn. A value that is
            missing, null or not finite is no point.
    """
    panels = [panel for panel in figure.panels if any(_points(log, panel.key) for log in logs)]
    canvas, grid = new_grid(len(panels), shared_scale=figure.shared_scale)
    has_reference = False
    for axes, panel in zip(grid, panels, strict=False):
        frame(axes, title=panel.key if len(figure.panels) > 1 else "", label=panel.label)
        axes.set_xlabel("step")
        for run, log in enumerate(logs):
            if points := _points(log, panel.key):
                axes.plot(*zip(*points, strict=True), **_line_style(run, len(points)))
            if panel.reference and (points := _points(log, panel.reference)):
                axes.plot(*zip(*points, strict=True), color=color_of(run), linestyle="--", linewidth=1.1, alpha=0.8)
                has_reference = True
    canvas.suptitle(figure.title, fontsize=13)
    drawn = [run for run, log in enumerate(logs) if any(_points(log, panel.key) for panel in panels)]
    entries: list[tuple[Any, str]] = [(line_handle(run), names[run]) for run in drawn] if len(names) > 1 else []
    if has_reference:
        entries.append((dashed_handle(), REFERENCE_LABEL))
    add_legend(canvas, entries)
    return canvas


def _points(log: Log, key: str) -> list[tuple[int, float]]:
    found = [(record["step"], record[key]) for record in log if record.get(key) is not None]
    # Our own logs hold null for what is not finite, but other tools write NaN and Infinity into JSON.
    return [(step, value) for step, value in found if math.isfinite(value)]


def _line_style(run: int, num_points: int) -> dict[str, Any]:
    every = max(1, num_points // 8)
    # Runs begin their markers at different points, so that equal curves can be told apart.
    start = run % every
    return {
        "color": color_of(run),
        "marker": marker_of(run),
        "markersize": 4.5,
        "markevery": (start, every),
        "linewidth": 1.5,
        "alpha": 0.9,
    }
