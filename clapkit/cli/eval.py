"""``clapkit eval``."""

from __future__ import annotations

from typing import Any

from clapkit.cli.console import Table, show_metric
from clapkit.cli.execute import console_for, execute
from clapkit.config import EvalConfig

HELP = """Evaluate one model, or compare several, on a split.

\b
    clapkit eval
    clapkit eval --tasks zero-shot --prompt "{} can be heard."
    clapkit eval infonce svr --split test --report
    clapkit eval --embeddings AUDIO.npy,TEXT.npy --data captions
"""

_COLUMNS = ("metric", ">value", ">95 % interval", ">chance")


def run(config: EvalConfig, argv: list[str]) -> None:
    """Evaluate, then print metrics with their intervals."""
    from clapkit.steps import evaluate

    console = console_for(config)
    _, result = execute("eval", config, argv, evaluate.run, console)
    several = result.get("comparison")
    console.result(result, tables=_metrics(result["runs"][0]) if several is None else _compared(result["runs"], several))


def _metrics(run: dict[str, Any]) -> list[Table]:
    """One table per task: value, and as far as the task has them, interval and what guessing gives."""
    protocol = run["protocol"]
    where = f"{run['run']} on {protocol['data']} {protocol['split']}, {protocol['num_clips']} clips"
    return [
        _table(f"{name}: {where}", [_row(task, *pair) for pair in task["metrics"].items()])
        for name, task in run["tasks"].items()
        if task["metrics"]
    ]


def _table(title: str, rows: list[list[str]]) -> Table:
    """Without the columns that say nothing: a task may have no chance level, and no intervals."""
    filled = [column for column in range(len(_COLUMNS)) if any(row[column] for row in rows)]
    return Table(title, [_COLUMNS[column] for column in filled], [[row[column] for column in filled] for row in rows])


def _row(task: dict[str, Any], name: str, value: float) -> list[str]:
    chance = task["chance"].get(name)
    interval = _interval(name, task["intervals"].get(name))
    return [name, show_metric(name, value), interval, "" if chance is None else show_metric(name, chance)]


def _interval(name: str, interval: list[float] | None) -> str:
    return "" if interval is None else f"{show_metric(name, interval[0])} – {show_metric(name, interval[1])}"


def _compared(runs: list[dict[str, Any]], compared: dict[str, Any]) -> list[Table]:
    """One table per task with the methods as columns, then what may be claimed of them."""
    names = [method["method"] for method in compared["methods"]]
    protocol = runs[0]["protocol"]
    where = f"{protocol['data']} {protocol['split']}, {protocol['num_clips']} clips"
    metrics: dict[str, list[str]] = {}
    for run in runs:
        for task, result in run["tasks"].items():
            metrics[task] = list(dict.fromkeys([*metrics.get(task, ()), *result["metrics"]]))
    tables = [
        Table(f"{task}: {where}", ["metric", *(f">{name}" for name in names)], [_methods(compared, name) for name in found])
        for task, found in metrics.items()
        if found
    ]
    return [*tables, _leaderboard(compared)]


def _methods(compared: dict[str, Any], metric: str) -> list[str]:
    values = [method["metrics"].get(metric) for method in compared["methods"]]
    return [metric, *("" if value is None else show_metric(metric, value) for value in values)]


def _leaderboard(compared: dict[str, Any]) -> Table:
    """The methods in the declared metrics, with what may be claimed."""
    rows = [[method["method"], *(_standing(method, name) for name in compared["headline"])] for method in compared["methods"]]
    title = f"compared with {compared['baseline_method']} (+ better, - worse, = no difference shown)"
    return Table(title, ["method", *(f">{name}" for name in compared["headline"])], rows)


_SIGNS = {"better": " +", "worse": " -", "no difference shown": " ="}


def _standing(method: dict[str, Any], metric: str) -> str:
    value = method["metrics"].get(metric)
    verdict = method["verdicts"].get(metric)
    return "" if value is None else show_metric(metric, value) + (_SIGNS[verdict["verdict"]] if verdict else "")
