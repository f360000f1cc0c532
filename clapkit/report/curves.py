"""Training curves as PNG files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

Curves = Mapping[str, Sequence[tuple[int, float]]]


def plot_curves(path: Path, curves: Curves, *, title: str, label: str) -> None:
    """Draw curves over the step and write them as PNG.

    Args:
        path: of the file to write.
        curves: name -> points (step, value).
        title: above the figure.
        label: of the vertical axis.
    """
    # The object interface needs no display and leaves the global state of pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, points in curves.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, label=name, linewidth=1.4, marker="o" if len(points) < 40 else None, markersize=3)
    axes.set(title=title, xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120, format="png")
