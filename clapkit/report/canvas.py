"""What all figures share: colours and markers that colour-blind readers can tell apart, legends, and files of equal bytes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clapkit.report._html import one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

# Okabe and Ito, Color universal design, 2008; their yellow, too pale on white, is replaced by grey.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8a8a8a")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")
# Legend entries must fit beside each other; the end of a path tells more than its beginning.
_LEGEND_CHARACTERS = 40
# A longer title would leave no room for its panel.
_TEXT_CHARACTERS = 90
# Ids inside an SVG file are hashes of what they name and of this.
_SALT = "clapkit"


def color_of(run: int) -> str:
    """Colour of the run with this number, the same in every figure and table."""
    return PALETTE[run % len(PALETTE)]


def marker_of(run: int) -> str:
    """Marker of the run with this number: where colours repeat they shift, so that no two of 64 runs look the same."""
    return MARKERS[(run + run // len(PALETTE)) % len(MARKERS)]


def new_canvas(*, width: float, height: float) -> Figure:
    """An empty figure.

    Args:
        width: inches.
        height: inches.
    """
    # The object interface needs no display and leaves the global state of pyplot alone.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(canvas)
    return canvas


def new_grid(count: int, *, shared_scale: bool) -> tuple[Figure, list[Axes]]:
    """A figure with room for some panels, and their axes in reading order.

    Args:
        count: of the panels, > 0.
        shared_scale: all have the same vertical axis.
    """
    if count == 1:
        canvas = new_canvas(width=7.0, height=4.0)
        return canvas, [canvas.subplots()]
    columns = 3 if count in (3, 5, 6) else 2
    rows = math.ceil(count / columns)
    canvas = new_canvas(width=10.0, height=0.8 + 3.1 * rows)
    grid = list(canvas.subplots(rows, columns, sharey=shared_scale, squeeze=False).flat)
    for axes in grid[count:]:
        axes.set_axis_off()
    return canvas, grid


def frame(axes: Axes, *, title: str, label: str) -> None:
    """Title, vertical label and quiet lines of one panel."""
    write(axes.set_title("", fontsize=10.5), title)
    axes.set_ylabel(label)
    axes.set_facecolor("white")
    axes.grid(alpha=0.3, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def write(text: Text, words: str) -> None:
    """Set a text that may come from outside, cut but else as it is: matplotlib would read ``$`` as mathematics."""
    line = one_line(words)
    text.set_parse_math(False)
    text.set_text(line if len(line) <= _TEXT_CHARACTERS else f"{line[: _TEXT_CHARACTERS - 1]}…")


def name_ticks(axes: Axes, axis: Literal["x", "y"], names: Sequence[str], *, limit: int, **style: Any) -> None:
    """Put names at 0, 1, ... of an axis.

    Args:
        axes: of the panel.
        axis: which of the two.
        names: may come from outside.
        limit: characters of a name to show.
        style: of the text, as matplotlib names it.
    """
    shown = [name if len(name) <= limit else f"{name[: limit - 1]}…" for name in map(one_line, names)]
    set_ticks = axes.set_xticks if axis == "x" else axes.set_yticks
    set_ticks(range(len(shown)), shown, parse_math=False, **style)


def line_handle(run: int) -> Line2D:
    """What stands for a run in the legend of lines."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color_of(run), marker=marker_of(run), markersize=5, linewidth=1.8)


def dashed_handle(*, color: str = "#555555") -> Line2D:
    """What stands for a dashed line in a legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle="--", linewidth=1.2)


def bar_style(run: int) -> dict[str, Any]:
    """Colour and hatching of the bars of a run; the first needs no hatching to be told from the others."""
    return {"facecolor": color_of(run), "edgecolor": "white", "linewidth": 0.0, "hatch": HATCHES[run % len(HATCHES)]}


def bar_handle(run: int) -> Any:
    """What stands for a run in the legend of bars."""
    from matplotlib.patches import Patch

    return Patch(**bar_style(run))


def add_legend(canvas: Figure, entries: Sequence[tuple[Any, str]]) -> None:
    """A legend below the panels; nothing without entries.

    Args:
        canvas: the figure.
        entries: handle and name.
    """
    if not entries:
        return
    names = [name if len(name) <= _LEGEND_CHARACTERS else f"…{name[1 - _LEGEND_CHARACTERS :]}" for _, name in entries]
    width, _ = canvas.get_size_inches()
    columns = max(1, min(len(names), int(width * 11) // (max(map(len, names)) + 7)))
    placeholders = [str(number) for number in range(len(names))]
    legend = canvas.legend([h for h, _ in entries], placeholders, loc="outside lower center", ncols=columns, frameon=False)
    for text, name in zip(legend.get_texts(), names, strict=True):
        # Set afterwards: matplotlib would drop a label that begins with _.
        write(text, name)


def save(canvas: Figure, path: Path, *, kind: Literal["png", "svg"] = "png") -> None:
    """Write a figure, as SVG with its text as outlines. Equal figures are equal bytes.

    Args:
        canvas: the figure.
        path: of the file to write, whatever its ending.
        kind: of the file.
    """
    from matplotlib import rc_context

    # The backends name their version, and SVG the date, unless told not to.
    metadata = {"Creator": None, "Date": None} if kind == "svg" else {"Software": None}
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": _SALT, "svg.fonttype": "path", "hatch.linewidth": 0.5}):
        # The font lacks some scripts; a box in the legend is no reason to bother, the page shows the name as text.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from font", category=UserWarning)
        canvas.savefig(path, dpi=120, format=kind, metadata=metadata)
