"""Tables of a comparison: Markdown and LaTeX for people (percent), CSV and JSON for programs (fractions)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from clapkit.run_dir import RunDir
from clapkit.steps.comparison.latex import latex
from clapkit.steps.comparison.markdown import markdown

_COLUMNS = (
    *("run", "metric", "value", "lower", "upper", "difference", "two_sided_p"),
    *("method", "kind", "chance", "difference_lower", "difference_upper", "p_holm", "num_clips"),
    *("minimum_detectable_difference", "num_runs", "deviation", "test_error", "seed_error", "verdict"),
)


def write_tables(run_dir: RunDir, compared: Mapping[str, Any]) -> dict[str, str]:
    """Write ``comparison.md``, ``.csv``, ``.json`` and ``.tex``.

    Args:
        run_dir: where the files go.
        compared: from ``compare``.

    Returns:
        Kind -> file name.
    """
    names = {f"comparison_{kind}": f"comparison.{kind}" for kind in ("md", "csv", "json", "tex")}
    run_dir.write_text(run_dir.path / names["comparison_md"], markdown(compared))
    run_dir.write_text(run_dir.path / names["comparison_csv"], long_form(compared))
    run_dir.write_json(run_dir.path / names["comparison_json"], compared)
    run_dir.write_text(run_dir.path / names["comparison_tex"], latex(compared))
    return names


def long_form(compared: Mapping[str, Any]) -> str:
    """CSV with one line per run and metric, and per method of several runs and metric; ``kind`` tells them apart.

    Lines of runs carry the tests against the baseline run, lines of methods those against its method and the verdict.

    Args:
        compared: from ``compare``.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    methods = {method["method"]: method for method in compared["methods"]}
    for row in compared["rows"]:
        alone = methods[row["method"]] if len(methods[row["method"]]["runs"]) == 1 else {"verdicts": {}}
        fixed = {"run": row["label"], "method": row["method"], "kind": "run", "num_runs": 1}
        for name in row["metrics"]:
            chance = {"chance": row["chance"].get(name, "")}
            writer.writerow(fixed | _measured(row, name) | chance | _verdict(alone, name))
    for method in compared["methods"]:
        if len(method["runs"]) > 1:
            fixed = {"run": "", "method": method["method"], "kind": "method", "num_runs": len(method["runs"])}
            for name in method["metrics"]:
                spread = {key: method["spread"][name].get(key, "") for key in ("deviation", "test_error", "seed_error")}
                writer.writerow(fixed | _measured(method, name) | spread | _verdict(method, name))
    return buffer.getvalue()


def _measured(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Value, interval and test of one metric."""
    lower, upper = row["intervals"].get(name, ("", ""))
    found = {"metric": name, "value": row["metrics"][name], "lower": lower, "upper": upper}
    test = row["tests"].get(name)
    if test is not None:
        keys = ("difference", "two_sided_p", "p_holm", "num_clips", "minimum_detectable_difference")
        found |= {key: test.get(key, "") for key in keys}
        found["difference_lower"], found["difference_upper"] = test["interval"] or ("", "")
    return found


def _verdict(method: Mapping[str, Any], name: str) -> dict[str, str]:
    return {"verdict": method["verdicts"].get(name, {}).get("verdict", "")}
