"""What a training run logs besides ``metrics.jsonl``: event files and curves; and how resuming rewinds the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clapkit.config import TrainConfig
from clapkit.errors import ConfigError
from clapkit.files import atomic_path
from clapkit.report.curves import FIGURES, CurveFigure, Log, has_values, plot_curves
from clapkit.run_dir import RunDir


@contextmanager
def event_log(config: TrainConfig, run_dir: RunDir, *, write: bool) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """TensorBoard event files, where asked for.

    Args:
        config: of the run.
        run_dir: of the run.
        write: False for processes that leave the writing to another.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """
    if config.log_to is None or not write:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--log-to tensorboard: not installed; pip install 'clapkit[tensorboard]'") from error
    writer = SummaryWriter(run_dir.path / "tensorboard")

    def add(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step" and value is not None:
                writer.add_scalar(name, value, record["step"])

    try:
        yield add
    finally:
        writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a ``metrics.jsonl``, up to a line that a kill cut.

    Args:
        path: of the file.
    """
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # also of a character that was cut in two
            break
    return records


def forget_after(run_dir: RunDir, step: int) -> None:
    """Drop logged steps that the checkpoint does not know: they will be logged again."""
    kept = [record for record in read_log(run_dir.metrics_path) if record["step"] <= step]
    run_dir.write_lines(run_dir.metrics_path, kept)


def draw_figures(folder: Path, names: Sequence[str], logs: Sequence[Log]) -> dict[CurveFigure, Path]:
    """Draw every figure of the training for which a run logged values.

    Args:
        folder: where the files go.
        names: of the runs.
        logs: records of each run, from ``read_log``; empty for a run without.

    Returns:
        Figure -> file.
    """
    written = {}
    for figure in FIGURES:
        if has_values(figure, logs):
            written[figure] = folder / f"{figure.name}.png"
            with atomic_path(written[figure]) as path:
                plot_curves(path, figure, names, logs)
    return written


def plot_run(run_dir: RunDir) -> None:
    """Draw the figures of one training run into its ``plots/``."""
    draw_figures(run_dir.plot_dir, [run_dir.path.name], [read_log(run_dir.metrics_path)])
