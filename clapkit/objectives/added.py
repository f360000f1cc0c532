"""Terms beside an objective: any loss, plus weighted terms on the embeddings of the same batch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clapkit import registry
from clapkit.errors import ConfigError
from clapkit.objectives.contract import ParamGroup, loss_output, require, score
from clapkit.objectives.terms._contract import Term
from clapkit.types import Context, LossOutput


def read_additions(additions: Iterable[str]) -> dict[str, float]:
    """Read ``NAME=WEIGHT`` texts.

    A weight of 0 is a term that is measured and not trained on. A negative one is refused: every term is a penalty, and to
    reward what it penalises (to push pairs apart, to clump modalities) is a mistyped minus rather than an experiment.

    Args:
        additions: for example ``["alignment=0.1", "uniformity=0.05"]``.

    Returns:
        Term name -> weight, in the given order.

    Raises:
        ConfigError: if a text is no assignment, a weight is no finite number of 0 or more, or a name comes twice.
        UnknownNameError: if there is no such term.
    """
    weights: dict[str, float] = {}
    for text in additions:
        name, equals, weight = (part.strip() for part in text.partition("="))
        require(bool(equals and name), f"--add {text}: expected NAME=WEIGHT, for example --add alignment=0.1")
        registry.module("term", name)
        require(name not in weights, f"--add {name} is given twice; give it once")
        weights[name] = _read_weight(name, weight)
    return weights


def _read_weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError as error:
        raise ConfigError(f"--add {name}={text}: the weight is no number; write for example --add {name}=0.1") from error
    require(0 <= weight < math.inf, f"--add {name}={text}: expected a finite weight of 0 or more")
    return weight


def with_terms(
    objective: nn.Module, additions: Iterable[str], *, options: Mapping[str, Mapping[str, Any]] | None = None
) -> nn.Module:
    """Add terms to an objective.

    Args:
        objective: any objective.
        additions: texts ``NAME=WEIGHT``; without any, ``objective`` itself comes back.
        options: term name -> options of its ``build``; texts are read by their annotations.

    Raises:
        ConfigError: as ``read_additions``, or if there are options for a term that is not added.
        UnknownNameError: if there is no such term, or it has no such option.
    """
    weights, options = read_additions(additions), options or {}
    for name in options:
        require(name in weights, f"options for the term {name}: it is not added; give --add {name}=WEIGHT or leave them out")
    if not weights:
        return objective
    return AddedTerms(objective, {name: registry.build("term", name, options.get(name)) for name in weights}, weights)


class AddedTerms(nn.Module):
    """``L = L_objective + sum_k weight_k term_k``; the terms see the very embeddings that the objective sees.

    Terms learn nothing and keep nothing: parameters, optimiser groups and limits are those of the objective, which stays
    reachable as ``objective``.

    Args:
        objective: the loss that is added to.
        terms: name -> term.
        weights: name -> weight of the term, 0 or more.
    """

    def __init__(self, objective: nn.Module, terms: Mapping[str, Term], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.objective = objective
        self.terms = dict(terms)
        self.weights = dict(weights)

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``terms`` gets the unweighted value of every ``added_<name>``.

        Raises:
            ShapeError: as the objective, or if the shapes differ or B < 2.
        """
        output = score(self.objective, audio, text, positives, index, progress, context)
        total, values = output.total, {}
        for name, term in self.terms.items():
            # A weight of 0 must not reach the gradient even as 0 times something infinite.
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] > 0):
                value = values[f"added_{name}"] = term(audio, text, positives)
            total = total + self.weights[name] * value if self.weights[name] > 0 else total
        added = loss_output(total, values, {})
        return LossOutput(total=total, terms=output.terms | added.terms, stats=output.stats)

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the objective."""
        groups: list[ParamGroup] = self.objective.param_groups(lr, weight_decay)  # type: ignore[operator]
        return groups

    def after_step(self) -> None:
        """What the objective does after a step."""
        self.objective.after_step()  # type: ignore[operator]
