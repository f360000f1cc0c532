"""Linear probe: how well a linear classifier tells classes apart by frozen embeddings.

Features are standardised by the training clips. Logistic regression, multinomial for clips with one label and one against the
rest otherwise, is fitted to all training clips at once by L-BFGS in float64: there is no learning rate, no order of batches and
no initial draw that the result could depend on. The objective is

    mean over clips of the loss + strength / 2 * |W|^2,

the offsets are not penalised; with M clips it is scikit-learn's ``LogisticRegression(C=1 / (M * strength))``, against which it
was checked. The strength is that of a grid with the lowest loss on training clips held out for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from clapkit.errors import MetricError
from clapkit.metrics.ranking import BoolArray, FloatArray

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""The grid of L2 strengths."""

_MAX_ITERATIONS = 1000
# Largest entry of the gradient of the mean loss at which a fit has ended; smaller ones move weights in the fifth digit only.
_TOLERANCE = 1e-7
# Likewise where a fit only tells strengths of a grid apart, which differ by a factor of ten.
_CHOICE_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        mean: of the training features [D].
        scale: their standard deviation [D]; 1 where a feature is constant.
        weight: [L, D], of the classes that were learned.
        offset: [L].
        learned: bool [C]; the others had no training clip, or (one against the rest) every one.
        always: bool [C], classes that every training clip has.
        is_multi_label: one against the rest.
        has_converged: whether the gradient was small enough in the end.
    """

    mean: FloatArray
    scale: FloatArray
    weight: FloatArray
    offset: FloatArray
    learned: BoolArray
    always: BoolArray
    is_multi_label: bool
    has_converged: bool

    def logits(self, features: npt.ArrayLike) -> FloatArray:
        """Of the learned classes [N, L], for features [N, D]."""
        standardised = (_checked_features(features) - self.mean) / self.scale
        result: FloatArray = standardised @ self.weight.T + self.offset
        return result

    def scores(self, features: npt.ArrayLike) -> FloatArray:
        """Log-probabilities, or log-odds of one against the rest, of all classes [N, C].

        A class without training clips is below all others, one that all training clips had is above.
        """
        found = self.logits(features)
        if not self.is_multi_label:
            found = functional.log_softmax(torch.from_numpy(found), dim=1).numpy()
        scores = np.full((len(found), len(self.learned)), found.min(initial=0.0) - 1)
        scores[:, self.learned] = found
        scores[:, self.always] = found.max(initial=0.0) + 1
        return scores

    def loss(self, features: npt.ArrayLike, labels: npt.ArrayLike) -> float:
        """Mean loss of clips in nats, without the penalty; over the classes that were learned.

        Args:
            features: [N, D].
            labels: bool or 0/1 [N, C].
        """
        truth = np.asarray(labels, dtype=np.float64)[:, self.learned]
        return float(_loss(torch.from_numpy(self.logits(features)), torch.from_numpy(truth), self.is_multi_label))


@dataclass(frozen=True, slots=True)
class Choice:
    """How a strength was chosen.

    Attributes:
        strength: with the lowest loss on the clips held out; of equal ones, the largest.
        losses: strength -> that loss.
        is_at_edge: whether it is the largest or smallest of the grid, so that a better one may lie beyond.
    """

    strength: float
    losses: dict[float, float]
    is_at_edge: bool


def fit_probe(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    strength: float,
    is_multi_label: bool = False,
    start: LinearProbe | None = None,
    tolerance: float = _TOLERANCE,
) -> LinearProbe:
    """Fit a linear probe.

    Args:
        features: of the training clips [M, D].
        labels: bool or 0/1 [M, C]; one in every row, unless ``is_multi_label``.
        strength: of the L2 penalty, > 0.
        is_multi_label: one against the rest instead of multinomial.
        start: a probe of the same clips with another strength, from which the minimum is near; None starts from zeros.
        tolerance: largest entry of the gradient of the mean loss in the end.

    Raises:
        MetricError: if shapes do not fit, a value is not finite, the strength is not positive, or nothing is to be told apart.
    """
    x, truth = _checked_features(features), _checked_labels(labels, is_multi_label=is_multi_label)
    if len(x) != len(truth):
        raise MetricError(f"probe: {len(x)} rows of features and {len(truth)} of labels, expected the same clips")
    if not 0 < strength < np.inf:
        raise MetricError(f"probe: strength {strength}, expected more than 0; it makes the solution unique")
    always: BoolArray = np.logical_and.reduce(truth, axis=0) & is_multi_label
    learned: BoolArray = np.logical_or.reduce(truth, axis=0) & ~always
    if learned.sum() < (1 if is_multi_label else 2):
        raise MetricError(
            f"probe: {int(learned.sum())} classes can be told apart in the training clips, expected at least 2; learn on a "
            "split with more"
        )
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    # A feature that is constant up to rounding says nothing, and must not be blown up.
    scale = np.where(deviation > 1e-9 * np.abs(x).max(axis=0), deviation, 1.0)
    weight, offset, has_converged = _minimise(
        torch.from_numpy((x - mean) / scale),
        torch.from_numpy(truth[:, learned].astype(np.float64)),
        strength,
        is_multi_label,
        start=None if start is None else (start.weight, start.offset),
        tolerance=tolerance,
    )
    return LinearProbe(mean, scale, weight, offset, learned, always, is_multi_label, has_converged)


def choose_strength(
    features: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    held_out: npt.ArrayLike,
    strengths: Sequence[float] = STRENGTHS,
    is_multi_label: bool = False,
) -> Choice:
    """Choose the strength of the penalty on a part of the training clips.

    Args:
        features: of the training clips [M, D].
        labels: bool or 0/1 [M, C].
        held_out: bool [M], clips that judge; the others are fitted to. Clips of one recording belong on one side.
        strengths: to choose from.
        is_multi_label: one against the rest instead of multinomial.

    Raises:
        MetricError: as ``fit_probe``, or if no clip is held out.
    """
    x, truth, judges = np.asarray(features), np.asarray(labels), np.asarray(held_out)
    if judges.shape != (len(x),) or judges.dtype != np.bool_ or not judges.any():
        raise MetricError(f"probe: held_out is {judges.dtype} {list(judges.shape)}, expected bool [{len(x)}], one of them True")
    losses, probe = {}, None
    for strength in sorted(strengths, reverse=True):
        probe = fit_probe(
            x[~judges],
            truth[~judges],
            strength=strength,
            is_multi_label=is_multi_label,
            start=probe,
            tolerance=_CHOICE_TOLERANCE,
        )
        losses[strength] = probe.loss(x[judges], truth[judges])
    best = min(losses, key=lambda strength: losses[strength])
    return Choice(best, losses, len(losses) > 1 and best in (min(losses), max(losses)))


def _minimise(
    x: Tensor,
    truth: Tensor,
    strength: float,
    is_multi_label: bool,
    *,
    start: tuple[FloatArray, FloatArray] | None,
    tolerance: float,
) -> tuple[FloatArray, FloatArray, bool]:
    """Weights [L, D] and offsets [L] of the minimum."""
    # The penalty keeps weights in the span of the rows, so that with few clips few numbers are to be found.
    span = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else torch.eye(x.shape[1], dtype=x.dtype)  # [D, min(M, D)]
    x = x @ span
    # The penalty makes weights stiffer than offsets; measured in this unit, they are alike, and strong penalties converge, too.
    unit = math.sqrt(1 / (1 + strength))
    weight = torch.zeros(truth.shape[1], x.shape[1], dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(truth.shape[1], dtype=torch.float64, requires_grad=True)
    if start is not None:
        with torch.no_grad():
            weight.copy_(torch.from_numpy(start[0]) @ span / unit)
            offset.copy_(torch.from_numpy(start[1]))
    optimizer = torch.optim.LBFGS(
        [weight, offset],
        max_iter=_MAX_ITERATIONS,
        max_eval=2 * _MAX_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimizer.zero_grad()
        scaled = weight * unit
        loss = _loss(x @ scaled.T + offset, truth, is_multi_label) + strength / 2 * scaled.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        closure()
    assert weight.grad is not None, weight
    assert offset.grad is not None, offset
    largest = max(float(weight.grad.abs().max()), float(offset.grad.abs().max()))
    return (weight * unit @ span.T).detach().numpy(), offset.detach().numpy(), largest <= 10 * tolerance


def _loss(logits: Tensor, truth: Tensor, is_multi_label: bool) -> Tensor:
    """Mean over clips of the cross-entropy, or of the sum over classes of the binary one."""
    if is_multi_label:
        return functional.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(truth)
    return -(functional.log_softmax(logits, dim=1) * truth).sum() / len(truth)


def _checked_features(features: npt.ArrayLike) -> FloatArray:
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise MetricError(f"probe: features {list(x.shape)}, expected [N, D] of finite numbers; embed again with sound weights")
    return x


def _checked_labels(labels: npt.ArrayLike, *, is_multi_label: bool) -> BoolArray:
    truth = np.asarray(labels)
    if truth.ndim != 2 or not np.isin(truth, (0, 1)).all():
        raise MetricError(f"probe: labels {truth.dtype} {list(truth.shape)}, expected bool [M, C]")
    if not is_multi_label and (truth.sum(axis=1) != 1).any():
        row = int(np.argmax(truth.sum(axis=1) != 1))
        raise MetricError(
            f"probe: clip {row} has {int(truth[row].sum())} labels, expected one; fit one against the rest instead"
        )
    return truth.astype(bool)
