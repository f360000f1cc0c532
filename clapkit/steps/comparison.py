"""Several evaluated models side by side: per-query values, paired tests against the first, and tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from clapkit.files import atomic_path
from clapkit.metrics.retrieval import clip_means
from clapkit.metrics.statistics import bootstrap_intervals, paired_sign_flip, weighted_mean
from clapkit.run_dir import RunDir

_PER_QUERY = pa.schema(
    [
        ("run", pa.string()),
        ("task", pa.string()),
        ("direction", pa.string()),
        ("id", pa.string()),
        ("caption", pa.string()),
        ("rank", pa.float64()),
        ("R@1", pa.float64()),
        ("R@5", pa.float64()),
        ("R@10", pa.float64()),
        ("mAP@10", pa.float64()),
        ("MRR", pa.float64()),
        ("target", pa.string()),
        ("predicted", pa.string()),
        ("correct", pa.float64()),
    ]
)
# Ranks are counts; every other metric is a fraction and is shown in percent.
_RANK_METRICS = ("MedR", "MeanR")


def write_per_query(path: Path, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """Write one row per query and model; columns that a task does not have are null.

    Args:
        path: of the parquet file.
        outcomes: evaluated models with ``run`` and ``per_query``: task -> direction -> column -> values.
    """
    parts = []
    for outcome in outcomes:
        for task, directions in outcome["per_query"].items():
            for direction, columns in directions.items():
                size = len(columns["id"])
                fixed = {"run": [outcome["run"]] * size, "task": [task] * size, "direction": [direction] * size}
                values = {**columns, **fixed}
                arrays = [pa.array(values.get(name, [None] * size), type=kind) for name, kind in _fields()]
                parts.append(pa.Table.from_arrays(arrays, schema=_PER_QUERY))
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables([_PER_QUERY.empty_table(), *parts]), temporary)


def compare(outcomes: Sequence[Mapping[str, Any]], *, num_draws: int, seed: int) -> dict[str, Any]:
    """Metrics of all models, and paired tests of each against the first.

    The test is a sign flip of the per-clip differences; it is left out where two models were not evaluated on the
    same clips and captions, and for MedR and mAP of zero-shot, which are no means over clips.

    Args:
        outcomes: evaluated models.
        num_draws: of the bootstrap interval of the difference; 0 for none.
        seed: of the draws.

    Returns:
        ``baseline``, ``metrics`` (names) and ``rows``: for each model ``run``, ``metrics``, ``intervals`` and ``tests``
        (metric -> difference, interval, two_sided_p, num_clips).
    """
    baseline = _per_clip(outcomes[0])
    rows = []
    for number, outcome in enumerate(outcomes):
        tasks = outcome["tasks"].values()
        rows.append(
            {
                "run": outcome["run"],
                "metrics": {name: value for task in tasks for name, value in task["metrics"].items()},
                "intervals": {name: value for task in tasks for name, value in task["intervals"].items()},
                "tests": _tests(baseline, _per_clip(outcome), num_draws=num_draws, seed=seed) if number else {},
            }
        )
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    return {"baseline": outcomes[0]["run"], "metrics": names, "rows": rows}


def write_tables(run_dir: RunDir, compared: Mapping[str, Any]) -> dict[str, str]:
    """Write the comparison as Markdown (percent), CSV and JSON (fractions).

    Args:
        run_dir: where the files go.
        compared: from ``compare``.

    Returns:
        Kind -> file name.
    """
    names = {f"comparison_{kind}": f"comparison.{kind}" for kind in ("md", "csv", "json")}
    run_dir.write_text(run_dir.path / names["comparison_md"], markdown(compared))
    run_dir.write_text(run_dir.path / names["comparison_csv"], _csv(compared))
    run_dir.write_json(run_dir.path / names["comparison_json"], compared)
    return names


def markdown(compared: Mapping[str, Any]) -> str:
    """A table with one row per metric and one column per model: value, interval, p of the paired test.

    Args:
        compared: from ``compare``.
    """
    rows = compared["rows"]
    lines = [
        "| metric | " + " | ".join(row["run"].replace("|", "\\|") for row in rows) + " |",
        "|---|" + "---|" * len(rows),
    ]
    for name in compared["metrics"]:
        lines.append(f"| {name} | " + " | ".join(_cell(row, name) for row in rows) + " |")
    note = (
        f"Percent, except MedR and MeanR; 95 % bootstrap intervals over clips; p: paired sign-flip test against "
        f"{compared['baseline']}, not corrected for the number of metrics."
    )
    return "\n".join([*lines, "", note]) + "\n"


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row["metrics"].get(name)
    if value is None:
        return ""
    scale, digits = (1.0, 1) if name.endswith(_RANK_METRICS) else (100.0, 2)
    text = f"{scale * value:.{digits}f}"
    if name in row["intervals"]:
        lower, upper = row["intervals"][name]
        text += f" [{scale * lower:.{digits}f}, {scale * upper:.{digits}f}]"
    if name in row["tests"]:
        text += f", p = {row['tests'][name]['two_sided_p']:.4f}"
    return text


def _csv(compared: Mapping[str, Any]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["run", "metric", "value", "lower", "upper", "difference", "two_sided_p"])
    for row in compared["rows"]:
        for name, value in row["metrics"].items():
            lower, upper = row["intervals"].get(name, ("", ""))
            test = row["tests"].get(name, {})
            writer.writerow([row["run"], name, value, lower, upper, test.get("difference", ""), test.get("two_sided_p", "")])
    return buffer.getvalue()


def _fields() -> list[tuple[str, pa.DataType]]:
    return [(field.name, field.type) for field in _PER_QUERY]


def _per_clip(outcome: Mapping[str, Any]) -> dict[str, tuple[tuple[str, ...], npt.NDArray[np.float64]]]:
    """Metric -> identity of its queries and mean of each clip."""
    found = {}
    for directions in outcome["per_query"].values():
        for direction, columns in directions.items():
            texts = columns.get("caption", columns["id"])
            queries = tuple(f"{id}\n{text}" for id, text in zip(columns["id"], texts, strict=True))
            zero_shot = direction == "zero_shot"
            names = {"correct": "zero_shot_accuracy"} if zero_shot else _retrieval_names(direction, columns)
            for column, metric in names.items():
                found[metric] = (queries, clip_means(columns[column], columns["clip"])[1].astype(np.float64))
    return found


def _retrieval_names(direction: str, columns: Mapping[str, Any]) -> dict[str, str]:
    kept = [name for name in columns if name not in ("id", "clip", "caption")]
    return {name: f"{direction}_{'MeanR' if name == 'rank' else name}" for name in kept}


def _tests(baseline: Mapping[str, Any], other: Mapping[str, Any], *, num_draws: int, seed: int) -> dict[str, Any]:
    tests: dict[str, Any] = {}
    for metric, (queries, values) in other.items():
        expected, reference = baseline.get(metric, (None, None))
        if queries != expected:
            continue
        difference = values - reference
        flip = paired_sign_flip(difference, seed=seed)
        interval = None
        if num_draws:
            size = len(difference)
            mean = weighted_mean(difference, np.arange(size), num_clips=size)
            interval = bootstrap_intervals({metric: mean}, num_clips=size, num_draws=num_draws, seed=seed)[metric]
        tests[metric] = {
            "difference": flip.mean_difference,
            "interval": interval,
            "two_sided_p": flip.two_sided_p,
            "num_clips": len(difference),
        }
    return tests
