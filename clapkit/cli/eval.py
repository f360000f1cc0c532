"""``clapkit eval``."""

from __future__ import annotations

from typing import Any

from clapkit.cli.console import Table
from clapkit.cli.execute import console_for, execute
from clapkit.config import EvalConfig

HELP = """Evaluate one model, or compare several, on a split.

\b
    clapkit eval
    clapkit eval --tasks zero-shot --prompt "{} can be heard."
    clapkit eval infonce svr --split test
"""


def run(config: EvalConfig, argv: list[str]) -> None:
    """Evaluate, then print metrics with their intervals."""
    from clapkit.steps import evaluate

    console = console_for(config)
    _, result = execute("eval", config, argv, evaluate.run, console)
    console.result(result, tables=[_metrics(model) for model in result["models"]])


def _metrics(model: dict[str, Any]) -> Table:
    rows = [
        [name, _shown(name, value), _interval(name, model["intervals"].get(name))] for name, value in model["metrics"].items()
    ]
    return Table(f"{model['model']} on {model['split']}", ["metric", ">value", ">95 % interval"], rows)


def _interval(name: str, interval: list[float] | None) -> str:
    return "" if interval is None else f"{_shown(name, interval[0])} – {_shown(name, interval[1])}"


def _shown(name: str, value: float) -> str:
    return f"{value:.1f}" if name.endswith(("MedR", "MeanR")) else f"{100 * value:.1f} %"
