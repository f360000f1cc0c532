"""Tables of the compositional study, from what ``clapkit eval`` and ``clapkit train`` wrote: Markdown on standard output.

    python docs/studies/compositional.py runs/compositional

Values are means over seeds of means over clips. A clip counts once however many captions it has, and its value is averaged over
the seeds before anything else, so that intervals and tests have clips as their unit; what the seed adds is shown beside.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from clapkit.metrics.statistics import bootstrap_intervals, paired_sign_flip, weighted_mean
from clapkit.report.curves import CurveFigure, Panel, plot_curves

BASELINE, CONTROL = "infonce", "svr-fixed"
CONTROLLED = ("svr-static", "svr-adaptive")
SPLITS = ("test", "test-2", "test-3", "test-4")
COLUMNS = tuple((direction, name) for direction in ("t2a", "a2t") for name in ("R@1", "R@10", "mAP@10"))
DRIFT = ("force_cos_local", "force_cos_global", "step_cos")
TESTED = (("t2a", "R@1"), ("a2t", "R@1"), ("t2a", "mAP@10"))


def per_clip(root: Path) -> pd.DataFrame:
    """One row per method, seed and clip of all galleries, one column per metric."""
    tables = [pd.read_parquet(root / "eval" / split / "per_query.parquet") for split in SPLITS]
    table = pd.concat(tables)
    table[["method", "seed"]] = table["run"].str.rsplit("-", n=1, expand=True)
    names = sorted({name for _, name in COLUMNS})
    means = table.groupby(["method", "seed", "direction", "id"], sort=False)[names].mean()
    wide = means.unstack("direction").reset_index()
    wide.columns = ["_".join(part for part in reversed(column) if part) if column[1] else column[0] for column in wide.columns]
    return wide


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over clips [N]."""
    mean = weighted_mean(values, np.arange(len(values)), num_clips=len(values))
    return bootstrap_intervals({"mean": mean}, num_clips=len(values))["mean"]


def quality(clips: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """Values with intervals over clips, and the spread over seeds of t2a R@1."""
    lines = [
        "| method | " + " | ".join(f"{d} {n}" for d, n in COLUMNS) + " | t2a R@1 by seed |",
        "|---" * (len(COLUMNS) + 2) + "|",
    ]
    for method in methods:
        rows = clips[clips["method"] == method]
        cells = []
        for direction, name in COLUMNS:
            values = rows.groupby("id")[f"{direction}_{name}"].mean().to_numpy()
            low, high = interval(values)
            cells.append(f"{100 * values.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        seeds = rows.groupby("seed")["t2a_R@1"].mean()
        lines.append(f"| {method} | " + " | ".join(cells) + " | " + ", ".join(f"{100 * value:.1f}" for value in seeds) + " |")
    return lines


def tests(clips: pd.DataFrame, methods: Sequence[str], baseline: str) -> list[str]:
    """Paired differences to a baseline, with the p of a sign flip over clips, Holm-corrected over the methods."""
    others = [method for method in methods if method != baseline]
    lines = [f"| method - {baseline} | " + " | ".join(f"{d} {n}" for d, n in TESTED) + " |", "|---" * (len(TESTED) + 1) + "|"]
    cells: dict[str, list[str]] = {method: [] for method in others}
    for direction, name in TESTED:
        metric = f"{direction}_{name}"
        by_clip = clips.groupby(["method", "id"])[metric].mean().unstack("method")
        by_seed = clips.groupby(["method", "seed"])[metric].mean().unstack("method")
        differences = {method: (by_clip[method] - by_clip[baseline]).to_numpy() for method in others}
        corrected = holm({method: paired_sign_flip(values).two_sided_p for method, values in differences.items()})
        for method, values in differences.items():
            low, high = interval(values)
            seeds = ", ".join(f"{100 * value:+.1f}" for value in by_seed[method] - by_seed[baseline])
            cells[method].append(
                f"{100 * values.mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}], p = {corrected[method]:.3f} ({seeds})"
            )
    return lines + [f"| {method} | " + " | ".join(cells[method]) + " |" for method in others]


def holm(p_values: dict[str, float]) -> dict[str, float]:
    """Holm's correction for several tests."""
    corrected, largest = {}, 0.0
    for number, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - number)))
        corrected[name] = largest
    return corrected


def compositions(root: Path, clips: pd.DataFrame, methods: Sequence[str]) -> list[str]:
    """t2a R@1 by what the clip is made of."""
    manifest = (root / "prepare" / "mix" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[1:]
    kind = {clip["id"]: clip["extra"]["composition"] for clip in map(json.loads, manifest)}
    kinds = ("single", "then", "while")
    table = clips.assign(kind=clips["id"].map(kind)).groupby(["method", "kind"])["t2a_R@1"].mean()
    lines = ["| method | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    return lines + [f"| {m} | " + " | ".join(f"{100 * table[m, k]:.1f}" for k in kinds) + " |" for m in methods]


def training(root: Path, methods: Sequence[str], seeds: Sequence[str]) -> list[str]:
    """What the runs did: time, radius, and drift at the end beside the InfoNCE value of the same weights."""
    header = ["time / " + BASELINE, "mean rho", "rho > 1", *(f"{key} (infonce)" for key in DRIFT)]
    lines = ["| method | " + " | ".join(header) + " |", "|---" * (len(header) + 1) + "|"]
    seconds = {m: [_json(root / "train" / f"{m}-{s}" / "result.json")["train_s"] for s in seeds[1:] or seeds] for m in methods}
    for method in methods:
        log = _log(root / "train" / f"{method}-{seeds[0]}")
        last = next(record for record in reversed(log) if "loss" in record)
        drift = next(record for record in reversed(log) if "step_cos" in record)
        cells = [f"{statistics.mean(seconds[method]) / statistics.mean(seconds[BASELINE]):.2f}"]
        cells += [f"{last['mean_rho']:.2f}", f"{100 * last['share_rho_above_1']:.0f} %"] if "mean_rho" in last else ["", ""]
        cells += [f"{drift[key]:.3f} ({drift['infonce_' + key]:.3f})" for key in DRIFT]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def draw(root: Path, methods: Sequence[str], seed: str) -> Path:
    """Curves of drift and rho over the steps of one seed, ``drift.png``: dashed, InfoNCE on the same weights."""
    panels = [Panel(key, "cosine", reference=f"infonce_{key}") for key in DRIFT] + [Panel("mean_rho", "radius / distance")]
    logs = [_log(root / "train" / f"{method}-{seed}") for method in methods]
    path = root / "drift.png"
    plot_curves(path, CurveFigure("drift", "Drift of the texts, and the radius", tuple(panels)), methods, logs)
    return path


def _log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _json(path: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return content


def main(root: Path) -> None:
    """Print all tables."""
    clips = per_clip(root)
    methods = list(dict.fromkeys(clips["method"]))
    seeds = list(dict.fromkeys(clips["seed"]))
    title = f"Retrieval, percent, {clips['id'].nunique()} clips in {len(SPLITS)} galleries, mean of seeds {', '.join(seeds)}"
    sections = {title: quality(clips, methods)}
    compared = "points [95 % interval over clips], Holm-corrected p (by seed)"
    sections[f"Paired differences to {BASELINE}, {compared}"] = tests(clips, methods, BASELINE)
    controlled = [method for method in methods if method in CONTROLLED]
    if CONTROL in methods and controlled:
        sections[f"The same to the control {CONTROL}"] = tests(clips, controlled, CONTROL)
    sections["t2a R@1 by composition"] = compositions(root, clips, methods)
    sections[f"Training (drift of seed {seeds[0]} at its last measurement)"] = training(root, methods, seeds)
    for heading, lines in sections.items():
        print(f"\n### {heading}\n", *lines, sep="\n")
    print(f"\nCurves: {draw(root, methods, seeds[0])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
