"""The figures of a report, for the page as PNG and for a paper as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clapkit.files import atomic_path
from clapkit.report.bars import draw_bars, draw_shares
from clapkit.report.canvas import save
from clapkit.report.confusion import MAX_CLASSES, draw_confusion
from clapkit.report.curves import FIGURES, Log, draw_curves, has_values
from clapkit.report.embedding_map import draw_map
from clapkit.report.page import Pictures
from clapkit.report.pieces import Picture
from clapkit.report.robustness import draw_robustness
from clapkit.scales import is_fraction
from clapkit.steps.evaluation.result import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Run = Mapping[str, Any]

MAX_SIDE_BY_SIDE = 4
"""Maps and matrices; those of more runs would be too small to read."""

_KINDS: tuple[Literal["png", "svg"], ...] = ("png", "svg")
_FRACTIONS = ("R@1", "R@5", "R@10", "mAP@10", "MRR")
_BARS = {
    "text to audio": [f"t2a_{metric}" for metric in _FRACTIONS],
    "audio to text": [f"a2t_{metric}" for metric in _FRACTIONS],
}
# Tasks that have figures of their own, or whose metrics are no shares.
_OTHER_TASKS = ("retrieval", "zero-shot", "geometry", "multilingual", "robustness", "cost")


class Figures:
    """Writes figures into the folder of a run and gives them back for the page."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        """Into ``folder``, which is made with the first figure; ``names`` are those of the runs."""
        self.folder, self.names, self.num_written = folder, names, 0

    def draw_all(self, runs: Sequence[Run], outcomes: Sequence[Outcome], logs: Sequence[Log]) -> Pictures:
        """Every figure for which there is something to draw.

        Args:
            runs: as in ``results.json``.
            outcomes: the same, with what was gathered for the report.
            logs: of the training; empty where there is none.
        """
        return Pictures(
            bars=self._bars(runs),
            curves=[
                self._write(figure.name, figure.title, partial(draw_curves, figure, self.names, logs), note=figure.note)
                for figure in FIGURES
                if has_values(figure, logs)
            ],
            tasks=self._tasks(runs),
            confusion=self._confusion(runs),
            languages=self._languages(runs),
            robustness=self._robustness(runs),
            map=self._map(outcomes),
        )

    def _write(self, name: str, title: str, draw: Callable[[], Figure], *, note: str = "") -> Picture:
        canvas = draw()
        for kind in _KINDS:
            with atomic_path(self.folder / f"{name}.{kind}") as path:
                save(canvas, path, kind=kind)
            # The layout was found for the first file; finding it again would take as long.
            canvas.set_layout_engine("none")
        self.num_written += 1
        return Picture(title, (self.folder / f"{name}.png").read_bytes(), note)

    def _bars(self, runs: Sequence[Run]) -> Picture | None:
        tasks = [run["tasks"].get("retrieval", {"metrics": {}, "intervals": {}}) for run in runs]
        if not any(metric in task["metrics"] for task in tasks for panel in _BARS.values() for metric in panel):
            return None
        intervals = [task["intervals"] for task in tasks]
        title = "Retrieval metrics" + (" with 95 % intervals" if any(intervals) else "")
        chance = next((task["chance"] for task in tasks if task.get("chance")), None)
        values = [task["metrics"] for task in tasks]
        return self._write(
            "metrics", title, lambda: draw_bars(self.names, _BARS, values, intervals=intervals, title=title, chance=chance)
        )

    def _tasks(self, runs: Sequence[Run]) -> dict[str, Picture]:
        """Shares of composition, temporal order, probes and whatever else, beside chance."""
        found = {}
        for task in dict.fromkeys(task for run in runs for task in run["tasks"] if task not in _OTHER_TASKS):
            results = [run["tasks"].get(task, {"metrics": {}, "intervals": {}}) for run in runs]
            rows = [m for m in dict.fromkeys(m for result in results for m in result["metrics"]) if is_fraction(m)]
            if not rows:
                continue
            found[task] = self._write(
                task,
                task,
                partial(
                    draw_shares,
                    self.names,
                    rows,
                    [result["metrics"] for result in results],
                    title=task,
                    label="percent",
                    intervals=[result["intervals"] for result in results],
                    chance=next((result["chance"] for result in results if result.get("chance")), None),
                ),
            )
        return found

    def _confusion(self, runs: Sequence[Run]) -> Picture | None:
        found = [(n, run["tasks"].get("zero-shot", {}).get("confusion") or {}) for n, run in enumerate(runs)]
        found = [(n, matrix) for n, matrix in found if "counts" in matrix and len(matrix["classes"]) <= MAX_CLASSES]
        same = [(n, matrix) for n, matrix in found if matrix["classes"] == found[0][1]["classes"]][:MAX_SIDE_BY_SIDE]
        if not same:
            return None
        classes = same[0][1]["classes"]
        # Side by side only as many as can be read.
        same = same[: MAX_SIDE_BY_SIDE if len(classes) <= 12 else 2]
        note = "Numbers are clips; brightness is the share of the clips of a class." + _only(len(same), len(runs))
        names, matrices = [self.names[n] for n, _ in same], [matrix["counts"] for _, matrix in same]
        title = "Confusion matrix"
        return self._write("confusion", title, lambda: draw_confusion(names, classes, matrices, title=title), note=note)

    def _languages(self, runs: Sequence[Run]) -> Picture | None:
        found = [run["tasks"].get("multilingual", {}).get("per_language", {}) for run in runs]
        rows = list(dict.fromkeys(language for run in found for language in run))
        if not rows:
            return None
        metric = "t2a_R@1"
        values = [{language: entry["metrics"][metric] for language, entry in run.items()} for run in found]
        variants = [run["tasks"].get("multilingual", {}).get("variants", {}) for run in runs]
        intervals = [
            {
                language: bounds
                for language in rows
                if (bounds := (given.get(f"language_{language}", {}).get("intervals") or {}).get(metric)) is not None
            }
            for given in variants
        ]
        title = "Text to audio in every language"
        label = "R@1, percent"
        return self._write(
            "languages",
            title,
            lambda: draw_shares(self.names, rows, values, title=title, label=label, intervals=intervals),
        )

    def _robustness(self, runs: Sequence[Run]) -> list[Picture]:
        tasks = [run["tasks"].get("robustness", {}) for run in runs]
        points = [task.get("robustness", []) for task in tasks]
        metrics = dict.fromkeys(metric for found in points for point in found for metric in point["metrics"])
        pictures = []
        for metric in metrics:
            if not is_fraction(f"robustness_{metric}"):
                continue
            clean = [task.get("clean", {}).get(metric) for task in tasks]
            title = f"{metric} of changed sounds"
            name = f"robustness_{metric.replace('@', '')}"
            pictures.append(
                self._write(
                    name,
                    title,
                    partial(draw_robustness, self.names, points, metric=metric, clean=clean, title=title),
                )
            )
        return pictures

    def _map(self, outcomes: Sequence[Outcome]) -> Picture | None:
        found = [(n, outcome.evidence.map) for n, outcome in enumerate(outcomes) if outcome.evidence is not None]
        found = found[:MAX_SIDE_BY_SIDE]
        if not found:
            return None
        names, maps = [self.names[n] for n, _ in found], [places for _, places in found]
        title = "Sounds and texts, the first two principal components of both together"
        note = (
            "Dots are sounds, triangles texts (the first caption of a clip, or the prompt of a class); grey lines join some "
            "pairs. Two components show only the share of the variance that the axes say." + _only(len(found), len(outcomes))
        )
        return self._write("map", title, lambda: draw_map(names, maps, title=title), note=note)


def _only(shown: int, total: int) -> str:
    return "" if shown == total else f" The first {shown} of {total} runs."
