"""The report of an evaluation as one HTML page that needs nothing but itself: no script, no font, no file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clapkit.report import cards, headline, other_tasks, study, task_tables
from clapkit.report._html import document, one_line, outside, table
from clapkit.report.classification import classification
from clapkit.report.numbers import Scales
from clapkit.report.pieces import STYLE, Picture, figure, paragraph, row, run_headings, value_cell

Run = Mapping[str, Any]
_MAX_TITLED = 4


@dataclass(frozen=True, slots=True)
class Pictures:
    """Figures of the page; all may be missing.

    Attributes:
        bars: headline metrics of retrieval.
        curves: of the training.
        tasks: task -> figure of its metrics.
        confusion: matrices of zero-shot classification.
        languages: retrieval by language.
        robustness: metrics of changed sounds.
        map: sounds and texts.
    """

    bars: Picture | None = None
    curves: Sequence[Picture] = ()
    tasks: Mapping[str, Picture] = field(default_factory=dict)
    confusion: Picture | None = None
    languages: Picture | None = None
    robustness: Sequence[Picture] = ()
    map: Picture | None = None


@dataclass(frozen=True, slots=True)
class Training:
    """What is known of how the runs were trained.

    Attributes:
        without_log: names of runs whose training was not found, so that the curves lack them.
        configurations: flag -> its value in each run (or its default, then the value, for a single run); None where the
            value is not known.
        without_configuration: names of runs whose configuration was not found.
    """

    without_log: Sequence[str] = ()
    configurations: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    without_configuration: Sequence[str] = ()


def report_page(
    names: Sequence[str],
    results: Mapping[str, Any],
    *,
    scales: Scales,
    pictures: Pictures,
    training: Training,
    media: cards.Media,
) -> str:
    """The whole page as HTML text.

    Every number of ``results`` on it has the attributes ``data-value``, unrounded, and ``data-at``, where it stands there.

    Args:
        names: of the runs; their order fixes the colours.
        results: the content of ``results.json``.
        scales: of the metrics.
        pictures: figures.
        training: of the runs.
        media: pictures and sounds of the clips in the evidence of the first run.
    """
    runs, comparison = results["runs"], results.get("comparison")
    sections = [
        ("evaluated", "What was evaluated", task_tables.protocol_box(names, runs)),
        ("comparison", "Comparison", study.study(names, comparison, scales)),
        ("metrics", "Metrics", figure(pictures.bars) + task_tables.metrics(names, runs, scales, pictures.tasks)),
        ("curves", "Training curves", _curves(pictures.curves, training.without_log)),
        ("classes", "Classes", classification(names, runs, pictures.confusion)),
        ("map", "Map of both modalities", figure(pictures.map)),
        *_evidence(names, results, media),
        ("languages", "Languages", other_tasks.languages(names, runs, scales, pictures.languages)),
        ("robustness", "Changed sounds", other_tasks.robustness(names, runs, scales, pictures.robustness)),
        ("configuration", "Configuration", _configuration(names, training)),
    ]
    top = [
        headline.subtitle(runs),
        headline.marks(names, runs),
        headline.verdict(names, runs, study.summary(comparison, scales), scales),
        headline.headline(names, runs, comparison, scales),
    ]
    return document(_title(names), header="".join(top), sections=sections, style=STYLE)


def _title(names: Sequence[str]) -> str:
    if len(names) > _MAX_TITLED:
        return f"Evaluation of {len(names)} runs"
    return f"Evaluation of {', '.join(headline.short(one_line(name)) for name in names)}"


def _evidence(names: Sequence[str], results: Mapping[str, Any], media: cards.Media) -> list[tuple[str, str, str]]:
    """Sections of queries, mistakes and hubs of the first run."""
    run = results["runs"][0]
    evidence = run.get("evidence")
    if not evidence:
        return []
    at = ("runs", 0, "evidence")
    whose = f" of {outside(names[0], limit=60, keep_end=True)}" if len(names) > 1 else ""
    says = f'<p class="soft">Clips and queries{whose}, the first run.</p>\n' if whose else ""
    rows = {facts["id"]: int(row) for row, facts in evidence["clips"].items()}
    geometry = run["tasks"].get("geometry", {})
    found = [
        ("queries", "Queries that went wrong", cards.queries(evidence, media, at)),
        ("mistakes", "Clips given a wrong class", cards.mistakes(evidence, media, at)),
        ("hubs", "Hubs", cards.hubs(geometry, rows, evidence, media, ("runs", 0, "tasks", "geometry"))),
    ]
    notes = "".join(paragraph(note, kind="soft") for note in evidence.get("notes", []))
    return [(anchor, title, says + notes + content if content else "") for anchor, title, content in found]


def _curves(curves: Sequence[Picture], without_log: Sequence[str]) -> str:
    parts = [figure(picture) for picture in curves]
    if without_log:
        text = f"Without curves, because no metrics.jsonl of a train run lies beside the model: {', '.join(without_log)}."
        parts.insert(0, paragraph(text))
    return "".join(parts)


def _configuration(names: Sequence[str], training: Training) -> str:
    parts = []
    if training.without_configuration:
        text = (
            f"Not known, because no run.json of a train run lies beside the model: {', '.join(training.without_configuration)}."
        )
        parts.append(paragraph(text))
    headings = run_headings(names, is_number=False)
    if len(names) == 1:
        headings = ['<th scope="col">default</th>', *headings]
        says, none = "Training options that are not at their default.", "All training options are at their defaults."
    else:
        says, none = "Training options that differ between the runs.", "No training option differs between the runs."
    if len(training.without_configuration) == len(names):
        return "".join(parts)
    parts.append(f'<p class="soft">{says if training.configurations else none}</p>\n')
    if training.configurations:
        rows = [
            row(outside(flag, limit=80), [value_cell(value) for value in values])
            for flag, values in training.configurations.items()
        ]
        parts.append(table(headings, rows))
    return "".join(parts)
