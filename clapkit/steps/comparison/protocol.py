"""Whether two results may be put side by side: what their protocols differ in, and whether they are of the same clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clapkit.errors import ConfigError, UnknownNameError
from clapkit.steps.comparison.per_query import evaluated_ids
from clapkit.steps.evaluation.result import Mark, Outcome

_OF_THE_MODEL = tuple(f"audio_policy.{fact}" for fact in ("sample_rate", "window_s", "hop_s", "pool"))
"""What a model is made for, not how it was measured: told, but no reason for a mark."""
_LONGEST_VALUE = 40


def labels(outcomes: Sequence[Outcome]) -> list[str]:
    """Names that tell models apart: one that several share gets its number."""
    counts = Counter(outcome.run for outcome in outcomes)
    return [o.run if counts[o.run] == 1 else f"{o.run} ({number})" for number, o in enumerate(outcomes, start=1)]


def find_baseline(outcomes: Sequence[Outcome], name: str | None) -> int:
    """Which of the models the others are compared with.

    Args:
        outcomes: evaluated models.
        name: of the run, or the path that it was named by; None for the first.

    Returns:
        Its place among ``outcomes``.

    Raises:
        UnknownNameError: if none is called so.
        ConfigError: if several are.
    """
    if name is None:
        return 0
    found = [number for number, outcome in enumerate(outcomes) if outcome.run == name]
    found = found if len(found) == 1 else [n for n, o in enumerate(outcomes) if _lies_at(o, Path(name))] or found
    if not found:
        raise UnknownNameError("--baseline", name, labels(outcomes), hint="expected one of the runs that are evaluated")
    if len(found) > 1:
        listing = ", ".join(str(outcomes[number].model) for number in found)
        raise ConfigError(f"--baseline {name}: is the name of {len(found)} runs ({listing}); give the path of one")
    return found[0]


def protocol_differences(outcome: Outcome, baseline: Outcome) -> dict[str, tuple[Any, Any]]:
    """What two models were not measured alike in; tasks that only one of them has are left out.

    Args:
        outcome: of a model.
        baseline: what it is compared with.

    Returns:
        Key of the protocol, with dots, after the name of the task if it is of one -> value of ``outcome`` and of ``baseline``;
        None where one has no such key.
    """
    ours, theirs = dict(_flat(outcome.protocol)), dict(_flat(baseline.protocol))
    for task in outcome.tasks.keys() & baseline.tasks.keys():
        ours |= _flat(outcome.tasks[task].protocol, f"{task}.")
        theirs |= _flat(baseline.tasks[task].protocol, f"{task}.")
    return {key: (ours.get(key), theirs.get(key)) for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)}


def protocol_marks(outcomes: Sequence[Outcome], baseline: str | None = None) -> list[list[Mark]]:
    """Marks of models that were measured by another protocol than the baseline.

    Sample rate, window and pooling of a model are its own and no reason for a mark.

    Args:
        outcomes: evaluated models.
        baseline: as for ``find_baseline``.

    Returns:
        For each model no mark or one, ``other_protocol``.

    Raises:
        UnknownNameError: if there is no such run.
        ConfigError: if several are called so.
    """
    reference = outcomes[find_baseline(outcomes, baseline)]
    marks: list[list[Mark]] = []
    for outcome in outcomes:
        found = {k: v for k, v in protocol_differences(outcome, reference).items() if k not in _OF_THE_MODEL}
        said = "; ".join(_said(key, *values) for key, values in found.items())
        marks.append([Mark("other_protocol", f"measured otherwise than {reference.run}: {said}")] if found else [])
    return marks


def clip_warnings(outcomes: Sequence[Outcome], baseline: int) -> list[str]:
    """One sentence for each model that was evaluated on other clips than the baseline.

    Args:
        outcomes: evaluated models.
        baseline: place of the one that they are compared with.
    """
    names = labels(outcomes)
    reference = evaluated_ids(outcomes[baseline])
    warnings = []
    for name, outcome in zip(names, outcomes, strict=True):
        ids = evaluated_ids(outcome)
        if ids == reference or not ids or not reference:
            continue
        shared = len(ids & reference)
        share = f"{shared} of its {len(ids)} clips are" if shared else f"none of its {len(ids)} clips is"
        among = f"among the {len(reference)} of {names[baseline]}"
        warnings.append(f"{name}: {share} {among}; what differs is not tested, evaluate both with one --data and --split")
    return warnings


def _lies_at(outcome: Outcome, path: Path) -> bool:
    if outcome.model is None:
        return False
    model = outcome.model.resolve()
    return path.resolve() in (model, model.parent)


def _flat(protocol: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _said(key: str, ours: Any, theirs: Any) -> str:
    """What differs; values that nobody would read, such as hashes and lists of classes, are not spelt out."""
    if max(len(str(ours)), len(str(theirs))) > _LONGEST_VALUE:
        return f"other {key}"
    found, expected = ("not stated" if value is None else value for value in (ours, theirs))
    return f"{key} {found} instead of {expected}"
