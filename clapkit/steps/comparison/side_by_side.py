"""The comparison of evaluated models: runs against a baseline run, methods against its method, the best against the second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from clapkit.errors import UnknownNameError
from clapkit.metrics.paired import PairedTest, holm, paired_tests
from clapkit.metrics.seeds import SeedError, seed_difference, seed_error
from clapkit.scales import better_end, is_fraction
from clapkit.steps.comparison.methods import Method, methods_of
from clapkit.steps.comparison.numbers import lower_is_better
from clapkit.steps.comparison.per_query import ClipValues, clip_values, detectable
from clapkit.steps.comparison.protocol import clip_warnings, find_baseline, labels, protocol_differences
from clapkit.steps.comparison.verdict import RULE, judge
from clapkit.steps.evaluation.result import Outcome

HEADLINE = ("t2a_R@1", "a2t_R@1", "zero_shot_accuracy")
"""Metrics on which claims rest where none are named."""
_UNFAIR = ("seen_clips", "selected_on_test")
"""Marks of numbers that no other has a fair chance against."""

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the runs of a method answered to the same queries.

    Attributes:
        queries: hash of the queries.
        values: per seed and clip [S, N], see ``ClipValues``.
        linear: the same without the sizes of the clips, for standard errors [S, N].
    """

    queries: str
    values: Values
    linear: Values


Pairs = dict[tuple[int, str], tuple[_Answers, _Answers]]
"""(place of a run or method, metric) -> answers of it and of what it is compared with."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """The models, and what follows from them at once."""

    outcomes: Sequence[Outcome]
    names: list[str]
    values: list[dict[str, ClipValues]]
    methods: list[Method]
    baseline: int

    def of_runs(self, runs: Sequence[int], metric: str) -> _Answers | None:
        """Answers of some runs; None where they lack the metric or had other queries."""
        found = [self.values[run][metric] for run in runs if metric in self.values[run]]
        if len(found) < len(runs) or len({item.queries for item in found}) != 1:
            return None
        return _Answers(found[0].queries, np.stack([item.values for item in found]), np.stack([item.linear for item in found]))

    def pair(self, runs: Sequence[int], others: Sequence[int], metric: str) -> tuple[_Answers, _Answers] | None:
        """Answers of two groups of runs to the same queries."""
        first, second = self.of_runs(runs, metric), self.of_runs(others, metric)
        if first is None or second is None or first.queries != second.queries:
            return None
        return first, second

    def means(self, method: Method) -> dict[str, float]:
        """Metrics that all runs of a method have, averaged over them."""
        found = [self.outcomes[run].metrics for run in method.runs]
        return {name: float(np.mean([m[name] for m in found])) for name in found[0] if all(name in m for m in found)}


def compare(
    outcomes: Sequence[Outcome],
    *,
    baseline: str | None = None,
    headline: Sequence[str] = (),
    num_draws: int,
    seed: int,
) -> dict[str, Any]:
    """Put evaluated models side by side and test what they differ in.

    Runs that were trained alike but for their seed are one method; a run alone is a method, too. Every tested metric of every
    run is compared with the baseline run, clip by clip, and every method, averaged over its seeds, with the baseline's method.
    Models that were not evaluated on the same clips and captions are not tested against each other. What is claimed follows
    ``verdict.RULE`` and stands in ``methods``; the tests of single runs are for looking.

    Args:
        outcomes: evaluated models, one or more, with the marks that tables shall show.
        baseline: name or path of the run that the others are compared with; None for the first.
        headline: metrics on which claims rest; empty for those of ``HEADLINE`` that there are.
        num_draws: of the bootstrap intervals of differences; 0 for none.
        seed: of the draws.

    Returns:
        JSON values: ``baseline`` (name), its ``protocol``, ``baseline_method``, ``headline``, ``metrics`` (names), ``rule``,
        ``warnings`` and

        * ``rows``: for each model ``run``, ``label``, ``method``, ``metrics``, ``intervals``, ``chance``, ``marks``,
          ``protocol_differences`` (keys), ``minimum_detectable`` (metric -> difference from an independent result) and
          ``tests``: metric -> ``difference``, ``interval``, ``two_sided_p``, ``num_clips``,
          ``minimum_detectable_difference``, and ``p_holm`` of headline metrics;
        * ``methods``: for each ``method``, ``runs``, ``seeds``, ``metrics`` (means over seeds), ``intervals``, ``marks``,
          ``spread`` (of several runs: metric -> ``deviation``, ``worst``, ``best``, and where it is tested ``test_error``,
          ``seed_error``, ``interval``), ``tests`` as above with ``seeds`` (None, or ``test_error``, ``seed_error``,
          ``interval``, ``num_runs``, ``worst_above_best``), and ``verdicts``: headline metric -> ``verdict``, ``reason``;
        * ``leaders``: headline metric -> ``best``, ``second``, ``test`` between the two, ``real``.

    Raises:
        UnknownNameError: if the baseline or a headline metric does not exist.
        ConfigError: if several runs are called as the baseline.
    """
    first = find_baseline(outcomes, baseline)
    names = labels(outcomes)
    data = _Compared(outcomes, names, [clip_values(outcome) for outcome in outcomes], methods_of(outcomes, names), first)
    metrics = list(dict.fromkeys(name for outcome in outcomes for name in outcome.metrics))
    chosen = _headline(headline, metrics)
    home = next(number for number, method in enumerate(data.methods) if first in method.runs)
    leading = {metric: _leading(data, metric) for metric in chosen}
    groups = {
        "rows": _pairs(data, [(run,) for run in range(len(outcomes))], first),
        "methods": _pairs(data, [method.runs for method in data.methods], home),
        "leaders": _leader_pairs(data, leading),
    }
    tests = _test(groups, headline=chosen, num_draws=num_draws, seed=seed)
    return {
        "baseline": names[first],
        "protocol": dict(outcomes[first].protocol),
        "baseline_method": data.methods[home].name,
        "headline": chosen,
        "metrics": metrics,
        "rule": RULE,
        "warnings": clip_warnings(outcomes, first),
        "rows": [_row(data, run, tests["rows"].get(run, {})) for run in range(len(outcomes))],
        "methods": [
            _method(data, number, tests["methods"].get(number, {}), headline=[] if number == home else chosen)
            for number in range(len(data.methods))
        ],
        "leaders": {metric: _leader(data, metric, order, tests["leaders"]) for metric, order in leading.items() if order},
    }


# What is tested ---------------------------------------------------------------------------------------------------------


def _headline(wanted: Sequence[str], metrics: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in metrics:
            raise UnknownNameError("--headline metric", name, metrics)
    return list(dict.fromkeys(wanted)) or [name for name in HEADLINE if name in metrics]


def _pairs(data: _Compared, groups: Sequence[Sequence[int]], reference: int) -> Pairs:
    """Every group of runs against the reference group, in every metric that allows it."""
    found = {}
    for number, runs in enumerate(groups):
        for metric in data.values[runs[0]]:
            pair = data.pair(runs, groups[reference], metric)
            if number != reference and pair is not None:
                found[number, metric] = pair
    return found


def _leading(data: _Compared, metric: str) -> list[int]:
    """Places of the methods that have a metric, best first."""
    values = {number: data.means(method).get(metric) for number, method in enumerate(data.methods)}
    sign = 1 if lower_is_better(metric) else -1
    return [number for _, number in sorted((sign * value, n) for n, value in values.items() if value is not None)]


def _leader_pairs(data: _Compared, leading: Mapping[str, Sequence[int]]) -> Pairs:
    found = {}
    for metric, order in leading.items():
        if len(order) > 1:
            pair = data.pair(data.methods[order[0]].runs, data.methods[order[1]].runs, metric)
            if pair is not None:
                found[order[0], metric] = pair
    return found


def _test(
    groups: Mapping[str, Pairs], *, headline: Sequence[str], num_draws: int, seed: int
) -> dict[str, dict[int, dict[str, Any]]]:
    """Group -> place -> metric -> test; all pairs of equally many clips are drawn for at once, Holm is by group."""
    flat = {(group, *key): pair for group, pairs in groups.items() for key, pair in pairs.items()}
    by_size: dict[int, list[tuple[str, int, str]]] = {}
    for key, (ours, _) in flat.items():
        by_size.setdefault(ours.values.shape[1], []).append(key)
    tested: dict[tuple[str, int, str], PairedTest] = {}
    for keys in by_size.values():
        columns = np.stack(
            [flat[key][0].values.mean(axis=0) - flat[key][1].values.mean(axis=0) for key in keys], axis=1
        )  # [N, M]
        tested |= zip(keys, paired_tests(columns, num_draws=num_draws, seed=seed), strict=True)
    found: dict[str, dict[int, dict[str, Any]]] = {group: {} for group in groups}
    for group, place, metric in flat:
        document: dict[str, Any] = dataclasses.asdict(tested[group, place, metric])
        if group != "rows":
            document["seeds"] = _seeds(metric, *(answers.linear for answers in flat[group, place, metric]))
        found[group].setdefault(place, {})[metric] = document
    for by_place in found.values():
        claims = [tests[metric] for tests in by_place.values() for metric in headline if metric in tests]
        for claim, adjusted in zip(claims, holm([claim["two_sided_p"] for claim in claims]), strict=True):
            claim["p_holm"] = adjusted
    return found


def _seeds(metric: str, ours: Values, theirs: Values) -> dict[str, Any] | None:
    """What the seeds add to a test: both errors and their interval; None with one run of each, or one clip."""
    if max(len(ours), len(theirs)) < 2 or ours.shape[1] < 2:
        return None
    sign = -1 if lower_is_better(metric) else 1
    up, down = sign * ours.mean(axis=1), sign * theirs.mean(axis=1)  # per seed, higher is better
    better, worse = (up, down) if up.mean() >= down.mean() else (down, up)
    return {
        **_errors(seed_difference(ours, theirs)),
        "num_runs": [len(ours), len(theirs)],
        "worst_above_best": bool(better.min() > worse.max()),
    }


def _errors(error: SeedError) -> dict[str, Any]:
    return {"test_error": error.test_error, "seed_error": error.seed_error, "interval": error.interval}


# What is said -----------------------------------------------------------------------------------------------------------


def _row(data: _Compared, run: int, tests: Mapping[str, Any]) -> dict[str, Any]:
    outcome = data.outcomes[run]
    results = list(outcome.tasks.values())
    return {
        "run": outcome.run,
        "label": data.names[run],
        "method": next(method.name for method in data.methods if run in method.runs),
        "metrics": outcome.metrics,
        "intervals": outcome.intervals,
        "chance": {name: value for result in results for name, value in result.chance.items()},
        "marks": [dataclasses.asdict(mark) for mark in outcome.marks],
        "protocol_differences": list(protocol_differences(outcome, data.outcomes[data.baseline])),
        "minimum_detectable": {name: value for result in results for name, value in detectable(result).items()},
        "tests": dict(tests),
    }


def _method(data: _Compared, number: int, tests: Mapping[str, Any], *, headline: Sequence[str]) -> dict[str, Any]:
    method = data.methods[number]
    spread = _spread(data, method) if len(method.runs) > 1 else {}
    with_seeds = {metric: found["interval"] for metric, found in spread.items() if "interval" in found}
    judged = {metric: judge(metric, tests.get(metric)) for metric in headline}
    return {
        "method": method.name,
        "runs": [data.names[run] for run in method.runs],
        "seeds": list(method.seeds),
        "metrics": data.means(method),
        "intervals": with_seeds if spread else data.outcomes[method.runs[0]].intervals,
        "marks": [
            {"run": data.names[run], **dataclasses.asdict(mark)} for run in method.runs for mark in data.outcomes[run].marks
        ],
        "spread": spread,
        "tests": dict(tests),
        "verdicts": {metric: {"verdict": verdict, "reason": reason} for metric, (verdict, reason) in judged.items()},
    }


def _spread(data: _Compared, method: Method) -> dict[str, dict[str, Any]]:
    """How the runs of a method differ, metric by metric."""
    found: dict[str, dict[str, Any]] = {}
    for metric in data.means(method):
        values = np.array([data.outcomes[run].metrics[metric] for run in method.runs])
        ends = [float(values.min()), float(values.max())]
        worst, best = reversed(ends) if lower_is_better(metric) else ends
        found[metric] = {"deviation": float(values.std(ddof=1)), "worst": worst, "best": best}
        by_clip = data.of_runs(method.runs, metric)
        if by_clip is not None and by_clip.linear.shape[1] > 1:
            found[metric] |= _errors(seed_error(by_clip.linear))
            found[metric]["interval"] = _possible(metric, found[metric]["interval"])
    return found


def _possible(metric: str, interval: tuple[float, float]) -> tuple[float, float]:
    """An interval within what the metric can be: with two seeds Student's t leaves the range of a share far behind."""
    if not is_fraction(metric) or better_end(metric) is None:
        return interval
    return max(0.0, interval[0]), min(1.0, interval[1])


def _leader(data: _Compared, metric: str, order: Sequence[int], tests: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The best method in a metric, and whether it really is better than the second."""
    test = tests.get(order[0], {}).get(metric)
    marks = {mark.kind for run in data.methods[order[0]].runs for mark in data.outcomes[run].marks}
    return {
        "best": data.methods[order[0]].name,
        "second": data.methods[order[1]].name if len(order) > 1 else None,
        "test": test,
        "real": test is not None and judge(metric, test)[0] == "better" and not marks & set(_UNFAIR),
    }
