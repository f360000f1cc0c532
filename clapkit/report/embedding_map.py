"""A map in two dimensions of the sounds and texts of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clapkit.report.canvas import PALETTE, add_legend, new_canvas, write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

FloatArray = npt.NDArray[np.float64]

MAX_COLORED = 8
"""Labels up to this number have colours of their own."""

MAX_NAMED = 16
"""Labels up to this number are written where their sounds lie."""

_SOUND, _TEXT = PALETTE[0], PALETTE[1]
_NAME_CHARACTERS = 24


@dataclass(frozen=True, slots=True)
class EmbeddingMap:
    """Places of sounds and texts.

    Attributes:
        sounds: [N, 2].
        texts: [M, 2], M may be 0.
        clip: int [M], the row of ``sounds`` that each text belongs to; -1 for a text of no clip.
        labels: N labels, empty where a clip has none.
        text_labels: M labels of the texts.
        explained: share of the variance along each of the two axes.
    """

    sounds: FloatArray
    texts: FloatArray
    clip: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    text_labels: tuple[str, ...]
    explained: tuple[float, float]


def project(sounds: npt.ArrayLike, texts: npt.ArrayLike) -> tuple[FloatArray, FloatArray, tuple[float, float]]:
    """Principal components of both modalities together.

    The mean of all rows is taken off, not that of each modality, so that a gap between the modalities shows. Signs are
    fixed: the largest entry of each direction is positive.

    Reference: Hotelling, Analysis of a complex of statistical variables into principal components, 1933.

    Args:
        sounds: [N, D], N >= 1.
        texts: [M, D], M may be 0.

    Returns:
        Places [N, 2] and [M, 2], and the share of the variance along each axis.
    """
    rows = np.concatenate([np.asarray(sounds, np.float64), np.asarray(texts, np.float64)])  # [N + M, D]
    centered = rows - rows.mean(axis=0)
    eigenvalues, directions = np.linalg.eigh(centered.T @ centered)  # ascending
    directions = directions[:, ::-1][:, :2]  # [D, 2]
    if directions.shape[1] < 2:  # embeddings with a single number
        directions = np.pad(directions, ((0, 0), (0, 2 - directions.shape[1])))
    largest = np.abs(directions).argmax(axis=0)
    directions = directions * np.where(np.take_along_axis(directions, largest[None], axis=0) < 0, -1.0, 1.0)
    total = float(eigenvalues.clip(0).sum())
    shares = np.pad(eigenvalues.clip(0)[::-1], (0, 2))[:2] / (total if total > 0 else 1.0)
    places = centered @ directions  # [N + M, 2]
    number = len(np.asarray(sounds))
    return places[:number], places[number:], (float(shares[0]), float(shares[1]))


def draw_map(names: Sequence[str], maps: Sequence[EmbeddingMap], *, title: str, num_lines: int = 40) -> Figure:
    """Draw one map per run: sounds are dots, texts are triangles, grey lines join some of the pairs.

    Args:
        names: of the runs.
        maps: of the runs, at least one.
        title: above the figure.
        num_lines: pairs that are joined, at most, evenly over all.
    """
    columns = min(len(maps), 2)
    rows = -(-len(maps) // columns)
    canvas = new_canvas(width=5.2 * columns + (1.8 if columns == 1 else 0.0), height=0.9 + 4.6 * rows)
    grid = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[len(maps) :]:
        axes.set_axis_off()
    colors = _label_colors(maps)
    for axes, name, places in zip(grid, names, maps, strict=False):
        write(axes.set_title("", fontsize=10.5), name[-_NAME_CHARACTERS:] if len(maps) > 1 else "")
        _draw(axes, places, colors, num_lines=num_lines)
    write(canvas.suptitle("", fontsize=13), title)
    has_texts = any(len(places.texts) for places in maps)
    entries = [(_handle("o", "#555555" if colors else _SOUND), "sound")]
    entries += [(_handle("^", "#555555" if colors else _TEXT), "text")] if has_texts else []
    add_legend(canvas, entries + [(_handle("s", color), label) for label, color in colors.items()])
    return canvas


def _label_colors(maps: Sequence[EmbeddingMap]) -> dict[str, str]:
    """Label -> colour, empty if there are none or too many to tell apart."""
    labels = sorted({label for places in maps for label in places.labels if label})
    return dict(zip(labels, PALETTE, strict=False)) if 1 < len(labels) <= MAX_COLORED else {}


def _draw(axes: Axes, places: EmbeddingMap, colors: dict[str, str], *, num_lines: int) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"first component, {places.explained[0]:.0%} of the variance")
    axes.set_ylabel(f"second component, {places.explained[1]:.0%}")
    axes.set_aspect("equal", adjustable="datalim")
    paired = np.flatnonzero(places.clip >= 0)
    chosen = paired[np.unique(np.linspace(0, len(paired) - 1, min(num_lines, len(paired))).astype(int))] if len(paired) else []
    for text in chosen:
        ends = np.stack([places.sounds[places.clip[text]], places.texts[text]])  # [2, 2]
        axes.plot(ends[:, 0], ends[:, 1], color="#8a8a8a", linewidth=0.6, alpha=0.5, zorder=1)
    other = "#8a8a8a"
    sound_colors = [colors.get(label, other) for label in places.labels] if colors else _SOUND
    text_colors = [colors.get(label, other) for label in places.text_labels] if colors else _TEXT
    axes.scatter(places.sounds[:, 0], places.sounds[:, 1], c=sound_colors, marker="o", s=18, alpha=0.65, linewidths=0, zorder=2)
    if len(places.texts):
        axes.scatter(
            places.texts[:, 0],
            places.texts[:, 1],
            c=text_colors,
            marker="^",
            s=34,
            alpha=0.85,
            edgecolors="white",
            linewidths=0.5,
            zorder=3,
        )
    if not colors:
        _name_labels(axes, places)


def _name_labels(axes: Axes, places: EmbeddingMap) -> None:
    """Write the labels in the middle of their sounds, where there are few enough."""
    labels = sorted({label for label in places.labels if label})
    if len(labels) > MAX_NAMED:
        return
    for label in labels:
        middle = np.median(places.sounds[[other == label for other in places.labels]], axis=0)
        shown = label if len(label) <= _NAME_CHARACTERS else f"{label[: _NAME_CHARACTERS - 1]}…"
        text = axes.text(middle[0], middle[1], "", ha="center", va="center", fontsize=8, color="#1d2430", zorder=4)
        text.set_bbox({"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "boxstyle": "round,pad=0.15"})
        write(text, shown)


def _handle(marker: str, color: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, marker=marker, markersize=6, linestyle="")
