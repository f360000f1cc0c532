"""``eval --report``: figures, and one page with everything."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clapkit.config import TrainConfig
from clapkit.errors import RunDirError
from clapkit.report.cards import Media
from clapkit.report.numbers import Scales
from clapkit.report.page import Training, report_page
from clapkit.run_dir import RunDir
from clapkit.scales import decimals, is_fraction
from clapkit.steps.evaluation.figures import Figures
from clapkit.steps.evaluation.media import make_media
from clapkit.steps.evaluation.result import Outcome
from clapkit.steps.train_log import read_log

PAGE = "report.html"


def write_report(run_dir: RunDir, results: Mapping[str, Any], outcomes: Sequence[Outcome]) -> dict[str, str]:
    """Write ``plots/*.png``, ``plots/*.svg`` and ``report.html``.

    Args:
        run_dir: of the evaluation.
        results: the content of ``results.json``.
        outcomes: the evaluated models, in the order of ``results["runs"]``, with their evidence.

    Returns:
        Kind -> path inside the run directory: ``report``, and ``plots`` if a figure was drawn.
    """
    runs = results["runs"]
    names = _distinct([run["run"] for run in runs])
    trained = [None if run["model"] is None else _train_run(Path(run["model"])) for run in runs]
    logs = [read_log(run.metrics_path) if run is not None and run.metrics_path.is_file() else [] for run in trained]
    records = [None if run is None else run.record.get("config", {}) for run in trained]
    figures = Figures(run_dir.plot_dir, names)
    pictures = figures.draw_all(runs, outcomes, logs)
    evidence = outcomes[0].evidence
    page = report_page(
        names,
        results,
        scales=Scales(is_fraction, decimals),
        pictures=pictures,
        training=Training(
            without_log=[name for name, log in zip(names, logs, strict=True) if not log],
            configurations=configuration_differences(records),
            without_configuration=[name for name, record in zip(names, records, strict=True) if record is None],
        ),
        media=Media({}, {}) if evidence is None else make_media(evidence.sources),
    )
    run_dir.write_text(run_dir.path / PAGE, page)
    return {"report": PAGE} | ({"plots": run_dir.plot_dir.name} if figures.num_written else {})


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
