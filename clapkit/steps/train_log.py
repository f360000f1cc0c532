"""What a training run logs besides ``metrics.jsonl``: event files and curves; and how resuming rewinds the log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from clapkit.config import TrainConfig
from clapkit.errors import ConfigError
from clapkit.files import atomic_path, to_json_line
from clapkit.report.curves import plot_curves
from clapkit.run_dir import RunDir


@contextmanager
def event_log(config: TrainConfig, run_dir: RunDir) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """TensorBoard event files, where asked for.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """
    if config.log_to is None:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--log-to tensorboard: not installed; pip install 'clapkit[tensorboard]'") from error
    writer = SummaryWriter(run_dir.path / "tensorboard")

    def write(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, record["step"])

    try:
        yield write
    finally:
        writer.close()


def forget_after(run_dir: RunDir, step: int) -> None:
    """Drop logged steps that the checkpoint does not know: they will be logged again."""
    lines = []
    for line in run_dir.metrics_path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # a kill cut the last line
        if record["step"] <= step:
            lines.append(to_json_line(record))
    run_dir.write_text(run_dir.metrics_path, "".join(lines))


def plot_run(run_dir: RunDir) -> None:
    """Draw loss, validation retrieval and, where there is one, the radius."""
    records = [json.loads(line) for line in run_dir.metrics_path.read_text(encoding="utf-8").splitlines()]
    figures = {
        "loss": ("Training loss", "nats", ["loss"]),
        "retrieval": ("Validation retrieval", "share", ["t2a_R@1", "t2a_R@10", "a2t_R@1", "a2t_R@10"]),
        "radius": ("Semantic radius and pair distance", "chord length", ["mean_radius", "mean_distance"]),
    }
    for name, (title, label, keys) in figures.items():
        curves = {key: [(r["step"], r[key]) for r in records if r.get(key) is not None] for key in keys}
        curves = {key: points for key, points in curves.items() if points}
        if keys[0] in curves:
            with atomic_path(run_dir.plot_dir / f"{name}.png") as path:
                plot_curves(path, curves, title=title, label=label)
