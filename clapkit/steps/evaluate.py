"""``clapkit eval``: the tasks of one or several models on one split, with intervals, protocol, marks and a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

from clapkit import registry
from clapkit.config import EvalConfig
from clapkit.data.manifest import Manifest
from clapkit.errors import ConfigError, ManifestError, MetricError, UnknownNameError
from clapkit.files import atomic_path
from clapkit.run_dir import RunDir
from clapkit.scales import better_end
from clapkit.steps import comparison, inputs, report
from clapkit.steps.evaluation.classes import label_matrix, read_classes
from clapkit.steps.evaluation.context import Evaluated
from clapkit.steps.evaluation.evidence import gather
from clapkit.steps.evaluation.marks import REFUSED, split_marks
from clapkit.steps.evaluation.prompts import read_prompts
from clapkit.steps.evaluation.relevance import read_relevance
from clapkit.steps.evaluation.result import Mark, Outcome, Task
from clapkit.steps.evaluation.subjects import ALL, Subject, embed, expect_one_test_set, protocol, resolve_subjects
from clapkit.steps.evaluation.submission import check_num_files, write_submission
from clapkit.types import Clip, Reporter

_SUBMISSION = "submission.csv"
# What people look for first; the others follow by name.
_FIRST = ("retrieval", "zero-shot", "multilingual")


def run(config: EvalConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Evaluate models on a split.

    Args:
        config: of the command.
        run_dir: where results go.
        reporter: progress and messages.

    Returns:
        ``metrics`` and ``intervals`` of the first model (name -> value), its ``protocol``, all ``runs``, the
        ``comparison`` of several, and ``paths``.

    Raises:
        ClapkitError: if a model or the data cannot be used, a task is unknown or impossible, or ``--strict`` refuses.
    """
    inputs.refuse_options(config.options)
    wanted = read_tasks(config.tasks)
    _check(config, wanted)
    device = inputs.choose_device(config.device)
    run_dir.set_device(device)
    subjects = resolve_subjects(config)
    _check_subjects(subjects, config)
    outcomes = []
    for subject in subjects:
        outcome = _evaluate(subject, wanted=wanted, device=device, config=config, run_dir=run_dir, reporter=reporter)
        _check_headline(config.headline, outcome)
        outcomes.append(outcome)
    _mark_other_protocols(outcomes, config=config, reporter=reporter)
    document: dict[str, Any] = {"runs": [outcome.document() for outcome in outcomes]}
    paths = {"results": "results.json", "per_query": "per_query.parquet"}
    comparison.write_per_query(run_dir.path / paths["per_query"], outcomes)
    if len(outcomes) > 1:
        compared = comparison.compare(
            outcomes, baseline=config.baseline, headline=config.headline, num_draws=config.bootstrap, seed=config.seed
        )
        for warning in compared["warnings"]:
            reporter.warn(warning)
        document["comparison"] = compared
        paths |= comparison.write_tables(run_dir, compared)
    run_dir.write_json(run_dir.path / paths["results"], document)
    if config.submission is not None:
        paths["submission"] = _SUBMISSION
    if config.report:
        paths |= report.write_report(run_dir, document, outcomes)
    first = outcomes[0]
    return {
        "metrics": first.metrics,
        "intervals": first.intervals,
        "protocol": first.protocol,
        **document,
        "paths": paths,
    }


def read_tasks(text: str | None) -> tuple[str, ...]:
    """Split ``--tasks``; empty for those of the default that the data allow.

    Raises:
        UnknownNameError: if a task does not exist.
        ConfigError: if there is none in the text.
    """
    if text is None:
        return ()
    known = [name.replace("_", "-") for name in registry.names("task")]
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise ConfigError(f"--tasks {text!r}: names no task; known: {', '.join(known)}")
    for name in names:
        if name not in (*known, ALL):
            raise UnknownNameError("task", name, known)
    return names


def _check(config: EvalConfig, wanted: Sequence[str]) -> None:
    if config.bootstrap < 0:
        raise ConfigError(f"--bootstrap {config.bootstrap}: expected 0 or more draws; leave it out for 2000")
    if config.submission is not None and len(config.runs) + (config.embeddings is not None) > 1:
        raise ConfigError(f"--submission {config.submission}: is of one model, and several are evaluated; name one of them")
    if config.baseline is not None and len(config.runs) + (config.embeddings is not None) < 2:
        raise ConfigError(f"--baseline {config.baseline}: there is nothing to compare it with; name several runs")
    read_prompts(config)
    for flag, value, task in (("--relevance", config.relevance, "retrieval"), ("--classes", config.classes, "zero-shot")):
        if value is not None and wanted and not {task, ALL} & {*wanted}:
            raise ConfigError(
                f"{flag} {value}: is for the task {task}, which is not among --tasks; add it, or leave {flag} out"
            )


def _check_subjects(subjects: Sequence[Subject], config: EvalConfig) -> None:
    """Refuse what would be refused after minutes of embedding."""
    expect_one_test_set(subjects, config.split)
    split = subjects[0].split(config.split)
    if config.submission is not None:
        if not any(clip.captions for clip in split):
            raise ManifestError(f"--submission {config.submission}: no clip has a caption that could be a query; leave it out")
        check_num_files(config.submission, _file_names(split.clips))
    if config.classes is not None:
        label_matrix(split.clips, read_classes(config.classes), known_from=str(config.classes))
    if config.relevance is not None:
        read_relevance(config.relevance, subjects[0].data.manifest)
    outcomes = [Outcome(subject.name, subject.path, subject.fingerprint, {}) for subject in subjects]
    comparison.find_baseline(outcomes, config.baseline)


def _check_headline(headline: Sequence[str], outcome: Outcome) -> None:
    for name in headline:
        if name not in outcome.metrics:
            raise UnknownNameError("--headline metric", name, outcome.metrics)
        if better_end(name) is None:
            raise ConfigError(f"--headline {name}: neither end of it is the better one; choose a metric that can be won")


def _evaluate(
    subject: Subject, *, wanted: Sequence[str], device: str, config: EvalConfig, run_dir: RunDir, reporter: Reporter
) -> Outcome:
    """All tasks of one model."""
    if subject.path is not None:
        run_dir.add_input(subject.path, subject.fingerprint)
    run_dir.add_input(subject.data.path, subject.data.manifest.fingerprint)
    split = subject.split(config.split)
    tasks = _possible_tasks(split, wanted, has_model=subject.given is None)
    if ALL in wanted:
        left_out = [name.replace("_", "-") for name in registry.names("task") if name.replace("_", "-") not in tasks]
        if left_out:
            reporter.say(f"--tasks all: {', '.join(left_out)} cannot be done with this model on these data and are left out")
    reporter.say(f"model {subject.name} on {device}: {', '.join(tasks)} on {config.split} of {split.name}")
    marks = subject.marks(split) + split_marks(subject.data, config.split, split)
    _tell(marks, config=config, reporter=reporter)
    evaluated, rejected = embed(subject, split, device=device, config=config, reporter=reporter)
    if rejected:
        run_dir.write_lines(run_dir.rejected_path, [{"item": r.item, "reason": r.reason} for r in rejected])
        lost = Mark("incomplete_split", f"{len(rejected)} of {len(split)} clips could not be embedded, see rejected.jsonl")
        _tell([lost], config=config, reporter=reporter)
        marks.append(lost)
    outcome = Outcome(
        run=subject.name,
        model=subject.path,
        model_fingerprint=subject.fingerprint,
        protocol=protocol(subject, evaluated, split=split),
        training=subject.training,
        marks=marks,
    )
    _run_tasks(tasks, evaluated, outcome, wanted=wanted, reporter=reporter)
    if config.submission is not None:
        _submit(evaluated, run_dir.path / _SUBMISSION, num_files=config.submission, reporter=reporter)
    if config.report:
        outcome.evidence = gather(evaluated, outcome.tasks)
    return outcome


def _submit(evaluated: Evaluated, path: Path, *, num_files: int, reporter: Reporter) -> None:
    """The ranked lists of files that DCASE takes, by the names that the files have."""
    captions = evaluated.captions
    names = _file_names(evaluated.clips)
    with atomic_path(path) as temporary:
        for warning in write_submission(temporary, evaluated.audio, captions.texts, captions.vectors, names, num_files):
            reporter.warn(warning)


def _file_names(clips: Sequence[Clip]) -> list[str]:
    return [PurePath(clip.audio).name for clip in clips]


def _mark_other_protocols(outcomes: Sequence[Outcome], *, config: EvalConfig, reporter: Reporter) -> None:
    """Mark the models that were measured otherwise than the baseline."""
    for outcome, marks in zip(outcomes, comparison.protocol_marks(outcomes, config.baseline), strict=True):
        _tell([replace(mark, text=f"{outcome.run}: {mark.text}") for mark in marks], config=config, reporter=reporter)
        outcome.marks += marks


def _run_tasks(
    tasks: dict[str, Task], evaluated: Evaluated, outcome: Outcome, *, wanted: Sequence[str], reporter: Reporter
) -> None:
    """Run tasks one after the other; under ``--tasks all``, what turns out not to be possible is left out with a warning."""
    for name, task in tasks.items():
        try:
            outcome.tasks[name] = task.run(evaluated)
        except (ConfigError, ManifestError, MetricError) as error:
            if task.by_default or name in wanted:
                raise
            reporter.warn(f"--tasks {ALL}: {name} is left out: {error}")
            continue
        outcome.minimum_detectable |= comparison.detectable(outcome.tasks[name])
        for warning in outcome.tasks[name].warnings:
            reporter.warn(f"{outcome.run}: {warning}")


def _tell(marks: Sequence[Mark], *, config: EvalConfig, reporter: Reporter) -> None:
    """Warn of marks, or refuse them."""
    for mark in marks:
        if config.strict and mark.kind in REFUSED:
            raise ManifestError(f"--strict: {mark.text}; evaluate on other clips, or leave --strict out to mark the results")
        reporter.warn(mark.text)


def _possible_tasks(split: Manifest, wanted: Sequence[str], *, has_model: bool) -> dict[str, Task]:
    """Name -> task, of those that are wanted, or of the default; all must be, one must be possible."""
    known: dict[str, Task] = {name.replace("_", "-"): registry.build("task", name) for name in registry.names("task")}
    known = {name: known[name] for name in sorted(known, key=lambda name: (not known[name].by_default, _place(name)))}
    for name in wanted:
        if name == ALL:
            continue
        if not known[name].possible(split):
            raise ManifestError(f"data {split.name}: no clip has {known[name].needs}, which {name} needs; choose another task")
        if known[name].needs_model and not has_model:
            raise ConfigError(f"--tasks {name}: embeds something of its own, and --embeddings gives vectors only; name a model")
    if ALL in wanted:
        chosen = list(known)
    else:
        chosen = list(wanted) or [name for name, task in known.items() if task.by_default]
    tasks = {name: known[name] for name in chosen if known[name].possible(split) and (has_model or not known[name].needs_model)}
    if not tasks:
        raise ManifestError(f"data {split.name}: no clip has captions or labels, so there is nothing to evaluate")
    return tasks


def _place(task: str) -> tuple[int, str]:
    return (_FIRST.index(task) if task in _FIRST else len(_FIRST), task)
