"""Runs that differ only in their seed are one method."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clapkit.config import TrainConfig
from clapkit.steps.evaluation.result import Outcome

_OF_THE_RUN = ("seed", "device")
"""Options that are part of what a run is, but not of the method: what is drawn, and where it is computed."""
_SEED_ENDING = re.compile(r"[-_. ]+(seed|s)?[-_. =]*\d*$")


@dataclass(frozen=True, slots=True)
class Method:
    """Runs of one training configuration.

    Attributes:
        name: what their names have in common; the name of the run where there is one.
        runs: their places among the outcomes.
        seeds: of the runs; None where it is not known.
    """

    name: str
    runs: tuple[int, ...]
    seeds: tuple[int | None, ...]


def methods_of(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[Method]:
    """Group models by the configuration that they were trained with, seed and device aside.

    A run of a seed that its method has already is a method of its own, because it says nothing about how seeds differ; so is
    a model whose training is not known.

    Args:
        outcomes: evaluated models.
        names: that tell them apart.

    Returns:
        Methods, in the order of their first runs.
    """
    groups: dict[str, list[int]] = {}
    for number, outcome in enumerate(outcomes):
        key = f"run {number}" if outcome.training is None else _configuration(outcome.training)
        seeds = {_seed(outcomes[other]) for other in groups.get(key, [])}
        groups.setdefault(f"run {number}" if _seed(outcome) in seeds else key, []).append(number)
    methods: list[Method] = []
    for runs in groups.values():
        name = _common_name([names[run] for run in runs])
        taken = {method.name for method in methods} | {names[run] for run in range(len(names)) if run not in runs}
        seeds_of_runs = tuple(_seed(outcomes[run]) for run in runs)
        methods.append(Method(names[runs[0]] if name in taken else name, tuple(runs), seeds_of_runs))
    return methods


def _configuration(training: Mapping[str, Any]) -> str:
    """What makes the method; an option that a run is older than did what is now its default."""
    known = {field.name: field.metadata["identity"] for field in dataclasses.fields(TrainConfig)}
    options = TrainConfig().resolved() | dict(training)
    chosen = {key: value for key, value in options.items() if known.get(key, True) and key not in _OF_THE_RUN}
    return json.dumps(chosen, sort_keys=True)


def _seed(outcome: Outcome) -> int | None:
    return None if outcome.training is None else outcome.training.get("seed", TrainConfig.seed)


def _common_name(names: Sequence[str]) -> str:
    """``svr-s0`` and ``svr-s1`` are runs of ``svr``."""
    if len(names) == 1:
        return names[0]
    return _SEED_ENDING.sub("", os.path.commonprefix(list(names))) or names[0]
