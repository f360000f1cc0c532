"""What a training distrusts: the clips whose losses stand out, as a list to clean the data by."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
from torch import nn

from clapkit.data.manifest import Manifest
from clapkit.files import atomic_path
from clapkit.objectives.dbpm import History, history_of
from clapkit.run_dir import RunDir
from clapkit.types import Reporter

FILE_NAME = "suspects.csv"
COLUMNS = ("id", "path", "caption", "score", "mean_loss", "kind", "weight")


def write_suspects(run_dir: RunDir, objective: nn.Module, train_data: Manifest, reporter: Reporter) -> dict[str, Any] | None:
    """Write ``suspects.csv``, if the objective has kept a history: all clips that were trained on, the hardest first.

    Args:
        run_dir: of the run.
        objective: of the run, at its end.
        train_data: the training split, whose rows the history is about.
        reporter: is told how many stand out.

    Returns:
        ``file`` and counts of ``faulty``, ``trivial``, ``listed`` and ``unseen`` clips; None without a history.
    """
    history = history_of(objective)
    if history is None:
        return None
    rows = order_of(history)
    columns = {name: getattr(history, name).cpu().numpy() for name in ("score", "mean_loss", "faulty", "trivial", "weight")}
    with atomic_path(run_dir.path / FILE_NAME) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows.tolist():
            clip = train_data.clips[row]
            kind = "faulty" if columns["faulty"][row] else "trivial" if columns["trivial"][row] else ""
            numbers = [f"{columns[name][row]:.6g}" for name in ("score", "mean_loss")]
            captions = " | ".join(caption.text for caption in clip.captions)
            path_of_audio = str(train_data.audio_path(clip))
            writer.writerow([clip.id, path_of_audio, captions, *numbers, kind, f"{columns['weight'][row]:.6g}"])
    counts = {"faulty": int(columns["faulty"].sum()), "trivial": int(columns["trivial"].sum())}
    reporter.say(
        f"{FILE_NAME}: of {len(rows)} clips, {counts['faulty']} are much harder to match than the others, as with a wrong "
        f"caption, and {counts['trivial']} much easier; the hardest come first"
    )
    return {"file": FILE_NAME, **counts, "listed": len(rows), "unseen": len(train_data) - len(rows)}


def order_of(history: History) -> np.ndarray:
    """Training rows with a history, int64, the highest score first; equal scores in the order of the rows."""
    score: np.ndarray = history.score.cpu().numpy()
    order = np.argsort(-score, kind="stable")  # NaN comes last
    return order[: np.count_nonzero(~np.isnan(score))]
