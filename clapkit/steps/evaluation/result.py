"""What a task of ``clapkit eval`` is, and what it gives."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from clapkit.data.manifest import Manifest
    from clapkit.steps.evaluation.context import Evaluated
    from clapkit.steps.evaluation.evidence import Evidence

Columns = Mapping[str, Sequence[Any]]
"""Column name -> one value per query; every table has ``id`` (of the clip) and ``clip`` (its row among the evaluated clips).

With a column ``source`` (name of the recording) clips of one recording are one observation for the tests between models."""


@dataclass(slots=True)
class TaskResult:
    """What one task says of one model.

    Attributes:
        metrics: name -> value; fractions, except ranks and quantities whose name says the unit. These names are the headline
            numbers that tables show, so they are unique over all tasks.
        intervals: name of a metric -> its 95 % interval.
        chance: name of a metric -> what a model that guesses gets.
        counts: numbers of queries, items, clips, classes.
        protocol: what must be equal for two results of this task to be comparable.
        warnings: sentences for people.
        variants: the same task by other rules (merged captions, a prompt alone, one language): name -> ``metrics`` and
            ``intervals``. Never shown in one column with ``metrics``.
        details: everything else that reports show or people look up, JSON values only; its keys stand beside the above in
            ``results.json``.
        per_query: table -> columns, for ``per_query.parquet``, the tests against a baseline, and the report.
        tested: name of a metric -> table and column whose mean over queries it is; tests draw clips, with all queries of each.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    chance: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    per_query: dict[str, Columns] = field(default_factory=dict)
    tested: dict[str, tuple[str, str]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """What ``results.json`` says of the task: all but the values of single queries."""
        return {
            "metrics": self.metrics,
            "intervals": self.intervals,
            "chance": self.chance,
            "counts": self.counts,
            "variants": self.variants,
            "protocol": self.protocol,
            "warnings": self.warnings,
            **self.details,
        }


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that a reader must know before believing the numbers of a model.

    Attributes:
        kind: ``seen_clips``, ``selected_on_test``, ``incomplete_split``, ``unknown_training`` or ``other_protocol``.
        text: one sentence with what was found.
    """

    kind: str
    text: str


@dataclass(slots=True)
class Outcome:
    """Everything that was found out about one model.

    Attributes:
        run: how results call the model.
        model: its folder or file; None where only embeddings were given.
        model_fingerprint: hash of weights and configuration; of the vectors where only embeddings were given.
        protocol: what must be equal for two models to be comparable, whatever the task.
        training: resolved configuration of the train run that made the model; None where it is not known.
        marks: what a reader must know.
        tasks: name -> result, in the order in which they ran.
        minimum_detectable: name of a metric -> the difference from an independent result on such clips that would be found in
            80 % of cases.
        evidence: what the report shows beside numbers; None without ``--report``.
    """

    run: str
    model: Path | None
    model_fingerprint: str
    protocol: dict[str, Any]
    training: Mapping[str, Any] | None = None
    marks: list[Mark] = field(default_factory=list)
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    minimum_detectable: dict[str, float] = field(default_factory=dict)
    evidence: Evidence | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of all tasks."""
        return {name: value for task in self.tasks.values() for name, value in task.metrics.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Intervals of all tasks."""
        return {name: value for task in self.tasks.values() for name, value in task.intervals.items()}

    def document(self) -> dict[str, Any]:
        """What ``results.json`` says of the model."""
        return {
            "run": self.run,
            "model": None if self.model is None else os.fspath(self.model),
            "model_fingerprint": self.model_fingerprint,
            "protocol": self.protocol,
            "marks": [{"kind": mark.kind, "text": mark.text} for mark in self.marks],
            "minimum_detectable": self.minimum_detectable,
            "tasks": {name: task.document() for name, task in self.tasks.items()},
            **({} if self.evidence is None else {"evidence": self.evidence.document()}),
        }


class Task(Protocol):
    """A task of ``clapkit eval``.

    Attributes:
        needs: what the clips must have, as in "no clip has <needs>, which <task> needs".
        by_default: whether it runs where ``--tasks`` is not given and the data allow it.
        needs_model: whether it embeds something of its own, so that vectors alone are not enough.
    """

    needs: str
    by_default: bool
    needs_model: bool

    def possible(self, split: Manifest) -> bool:
        """Whether the clips of a split have what the task needs; looks at the manifest only."""
        ...

    def run(self, evaluated: Evaluated) -> TaskResult:
        """Evaluate one model.

        Raises:
            ClapkitError: if what could be embedded is not enough, or the task cannot be done with this model.
        """
        ...
