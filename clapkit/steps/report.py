"""``eval --report``: curves of the training, bars of the metrics, and one page with everything."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clapkit.config import TrainConfig
from clapkit.errors import RunDirError
from clapkit.files import atomic_path
from clapkit.report.curves import Log, plot_bars
from clapkit.report.page import Picture, report_page
from clapkit.run_dir import RunDir
from clapkit.steps.train_log import draw_figures, read_log

PAGE = "report.html"
_FRACTIONS = ("R@1", "R@5", "R@10", "mAP@10", "MRR")
_BARS = {
    "text to audio": [f"t2a_{metric}" for metric in _FRACTIONS],
    "audio to text": [f"a2t_{metric}" for metric in _FRACTIONS],
}


def write_report(run_dir: RunDir, results: Mapping[str, Any]) -> dict[str, str]:
    """Write ``plots/*.png`` and ``report.html``.

    Args:
        run_dir: of the evaluation.
        results: the content of ``results.json``.

    Returns:
        Kind -> path inside the run directory: ``report``, and ``plots`` if a figure was drawn.
    """
    runs = results["runs"]
    names = _distinct([run["run"] for run in runs])
    trained = [_train_run(Path(run["model"])) for run in runs]
    logs = [read_log(run.metrics_path) if run is not None and run.metrics_path.is_file() else [] for run in trained]
    records = [None if run is None else run.record.get("config", {}) for run in trained]
    bars = _draw_bars(run_dir, names, runs)
    curves = _draw_curves(run_dir, names, logs)
    page = report_page(
        names,
        runs,
        comparison=results.get("comparison"),
        bars=bars,
        curves=curves,
        without_log=[name for name, log in zip(names, logs, strict=True) if not log],
        configurations=configuration_differences(records),
        without_configuration=[name for name, record in zip(names, records, strict=True) if record is None],
    )
    run_dir.write_text(run_dir.path / PAGE, page)
    return {"report": PAGE} | ({"plots": run_dir.plot_dir.name} if bars or curves else {})


def configuration_differences(configs: Sequence[Mapping[str, Any] | None]) -> dict[str, list[str | None]]:
    """Training options in which runs differ; of a single run, those that differ from the defaults.

    Where a run writes, how much it says and what else changes no result is left out.

    Args:
        configs: of the runs, from ``run.json``; None where it is not known.

    Returns:
        Flag -> text of its value in each run, None where the run did not record it; for a single run the default comes first.
    """
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    defaults = TrainConfig().resolved()
    if len(configs) == 1 and configs[0] is not None:
        configs = [defaults, *configs]
    known = [config for config in configs if config is not None]
    found = {}
    for key in dict.fromkeys([*fields, *(key for config in known for key in config)]):
        if key in fields and not fields[key].metadata["identity"]:
            continue
        # A run older than an option did what is now its default.
        if len({_text(config.get(key, defaults.get(key))) for config in known}) > 1:
            values = [None if config is None or key not in config else _text(config[key]) for config in configs]
            found[_flag(key, fields)] = values
    return found


def _flag(key: str, fields: Mapping[str, dataclasses.Field[Any]]) -> str:
    flags = fields[key].metadata["flags"] if key in fields else ()
    return flags[0] if flags else f"--{key.replace('_', '-')}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "default" if value is None else str(value)


def _distinct(names: Sequence[str]) -> list[str]:
    """Names that tell runs apart: one that several share gets its number."""
    counts = Counter(names)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(names, start=1)]


def _train_run(model: Path) -> RunDir | None:
    """The train run whose ``model/`` this folder is, finished or not; None for a model that came alone."""
    run = RunDir(model.resolve().parent)
    try:
        return run if run.record.get("step") == "train" else None
    except RunDirError:
        return None


def _draw_bars(run_dir: RunDir, names: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> Picture | None:
    tasks = [run["tasks"].get("retrieval", {"metrics": {}, "intervals": {}}) for run in runs]
    if not any(task["metrics"] for task in tasks):
        return None
    intervals = [task["intervals"] for task in tasks]
    title = "Retrieval metrics" + (" with 95 % intervals" if any(intervals) else "")
    path = run_dir.plot_dir / "metrics.png"
    with atomic_path(path) as temporary:
        plot_bars(temporary, names, _BARS, [task["metrics"] for task in tasks], intervals=intervals, title=title)
    return Picture(title, path.read_bytes())


def _draw_curves(run_dir: RunDir, names: Sequence[str], logs: Sequence[Log]) -> list[Picture]:
    written = draw_figures(run_dir.plot_dir, names, logs)
    return [Picture(figure.title, path.read_bytes(), figure.note) for figure, path in written.items()]
