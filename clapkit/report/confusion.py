"""The confusion matrix of a classification as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clapkit.report.canvas import name_ticks, new_canvas, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_CLASSES = 60
"""A figure with more classes cannot be read."""

_MAX_WRITTEN = 16
_NAME_CHARACTERS = 24
# Cells darker than this are written on in white.
_DARK = 0.55


def draw_confusion(names: Sequence[str], classes: Sequence[str], matrices: Sequence[npt.ArrayLike], *, title: str) -> Figure:
    """Draw one confusion matrix per run, side by side; a row is a class as it is, a column as it was taken for.

    Brightness is the share of the clips of a class, so that classes of any size can be compared; numbers are clips.

    Args:
        names: of the runs.
        classes: C names, at most ``MAX_CLASSES``.
        matrices: for each run counts [C, C], rows true.
        title: above the figure.
    """
    assert len(classes) <= MAX_CLASSES, len(classes)
    size = min(max(3.4, 0.36 * len(classes) + 1.8), 9.5)
    canvas = new_canvas(width=size * len(names) + 0.9, height=size + 0.7)
    grid = canvas.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name, matrix in zip(grid, names, matrices, strict=True):
        write(axes.set_title("", fontsize=10.5), name[-_NAME_CHARACTERS:] if len(names) > 1 else "")
        _matrix(axes, np.asarray(matrix, dtype=np.float64), classes)
    for axes in grid[1:]:
        axes.set_ylabel("")
    write(canvas.suptitle("", fontsize=13), title)
    return canvas


def _matrix(axes: Axes, counts: npt.NDArray[np.float64], classes: Sequence[str]) -> None:
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros_like(counts), where=totals > 0)  # [C, C]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    font = 9 if len(classes) <= _MAX_WRITTEN else 6.5
    name_ticks(axes, "x", classes, limit=_NAME_CHARACTERS, fontsize=font, rotation=90)
    name_ticks(axes, "y", classes, limit=_NAME_CHARACTERS, fontsize=font)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    axes.set_xticks(np.arange(-0.5, len(classes)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(classes)), minor=True)
    axes.grid(which="minor", color="#e4e8ee", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    if len(classes) <= _MAX_WRITTEN:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > _DARK else "#1d2430"
            axes.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=9, color=color)
