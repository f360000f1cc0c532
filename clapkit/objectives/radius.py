"""The semantic radius of SVR: how far an anchor is moved towards its own target.

A radius model gives R for every anchor of a batch. It sees detached similarities and distances only: if R depended on
the embeddings through the graph, SVR would no longer act on the push across the pull direction alone
(docs/objectives.md).

Reference: SupCLAP, arXiv 2509.21033. Chosen here, because we found it in no source: every start value; the width,
activation and input order of the predictor; both bounds; the ratio model.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from clapkit.errors import ShapeError
from clapkit.objectives.contract import require, require_choice

Order = Literal["sorted", "raw"]

RadiusKind = Literal["adaptive", "static", "fixed", "ratio"]
Bound = Literal["penalty", "hard", "clamp"]

HIDDEN_UNITS = 64
SORTED_ROWS = 1024
DISTANCE_OF_STRANGERS = math.sqrt(2.0)
"""Chord distance of orthogonal unit vectors: where the pairs of an untrained model start."""


def make_radius_model(kind: RadiusKind, *, initial: float, bound: Bound, batch_size: int | None, order: Order) -> nn.Module:
    """Make a radius model.

    Args:
        kind: which one.
        initial: R at the start; under the hard bound, for a pair of orthogonal embeddings; for ``ratio``, the share.
        bound: what its output is passed through; the learned ones start accordingly.
        batch_size: for ``adaptive``.
        order: for ``adaptive``.
    """
    if kind == "fixed":
        return FixedRadius(initial)
    if kind == "ratio":
        return RatioRadius(initial)
    output = hard_bound_logit(initial) if bound == "hard" else initial
    return StaticRadius(output) if kind == "static" else AdaptiveRadius(output, batch_size=batch_size, order=order)


def check_radius_options(
    kind: RadiusKind, *, initial: float, learning_rate: float | None, bound: Bound, max_ratio: float | None
) -> None:
    """Check that the options of a radius fit each other; their names are those of ``svr.build``.

    Raises:
        ConfigError: if they do not.
    """
    require_choice("radius", kind, RadiusKind)
    require_choice("radius_bound", bound, Bound)
    is_learned = kind in ("adaptive", "static")
    require(0 <= initial < math.inf, f"radius_init={initial}: expected 0 or more")
    if learning_rate is not None:
        require(is_learned, f"radius_lr={learning_rate}: radius={kind} learns nothing; leave it out")
        require(0 <= learning_rate < math.inf, f"radius_lr={learning_rate}: expected 0 or more")
    if bound == "hard":
        require(is_learned, f"radius_bound=hard: radius={kind} learns nothing; leave it out")
        in_reach = 0 < initial < DISTANCE_OF_STRANGERS
        require(in_reach, f"radius_init={initial}: radius_bound=hard starts between 0 and 1.41, the ends excluded")
    if bound == "clamp":
        require(kind != "ratio", "radius_bound=clamp: radius=ratio is a constant share; choose it with radius_init")
    if max_ratio is not None:
        require(bound == "clamp", f"max_ratio={max_ratio}: radius_bound={bound} has no such limit; set it to clamp")
        require(0 < max_ratio < math.inf, f"max_ratio={max_ratio}: expected more than 0")


class FixedRadius(nn.Module):
    """A constant R. ``FixedRadius(0)`` is the control experiment: SVR then only repeats its base loss.

    Args:
        radius: R.
    """

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, similarity: Tensor, positives: Tensor, distance: Tensor) -> Tensor:
        """Give R [B] for ``distance`` [B]; the other arguments are not looked at."""
        return torch.full_like(distance, self.radius)


class RatioRadius(nn.Module):
    """A constant share of each pair's distance, R = rho D; nothing is learned (not in the paper).

    Args:
        ratio: rho.
    """

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio

    def forward(self, similarity: Tensor, positives: Tensor, distance: Tensor) -> Tensor:
        """Give R [B] for ``distance`` [B]; the other arguments are not looked at."""
        return self.ratio * distance


class StaticRadius(nn.Module):
    """One learned number for all pairs (StaticSVR).

    Args:
        initial: the number at the start.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(initial))

    def forward(self, similarity: Tensor, positives: Tensor, distance: Tensor) -> Tensor:
        """Give R [B] for ``distance`` [B]; the other arguments are not looked at."""
        return self.radius.expand_as(distance)


class AdaptiveRadius(nn.Module):
    """A number for every anchor, predicted from its similarities to the batch by a three-layer network (DynamicSVR).

    The last layer starts with weights 0 and bias ``initial``, so that training starts like StaticSVR. The other weights
    are drawn from torch's global generator: seed it before. The input is B wide: the batch size is part of the model.

    Args:
        initial: output at the start.
        batch_size: B; None takes that of the first batch.
        order: of the input, see ``similarity_profile``.
    """

    def __init__(self, initial: float, *, batch_size: int | None, order: Order) -> None:
        super().__init__()
        self.initial = initial
        self.order = order
        self.predictor: nn.Sequential | None = None
        if batch_size is not None:
            self.predictor = self._make_predictor(batch_size)

    def _make_predictor(self, batch_size: int) -> nn.Sequential:
        last = nn.Linear(HIDDEN_UNITS, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, self.initial)
        return nn.Sequential(
            nn.Linear(batch_size, HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, HIDDEN_UNITS), nn.ReLU(), last
        )

    @property
    def _weight(self) -> Tensor:
        assert self.predictor is not None
        weight = self.predictor[0].weight
        assert isinstance(weight, Tensor)
        return weight  # [HIDDEN_UNITS, B]

    def forward(self, similarity: Tensor, positives: Tensor, distance: Tensor) -> Tensor:
        """Predict R.

        Args:
            similarity: detached cosines [B, B], rows are anchors; or [R, B], a block of rows.
            positives: bool, likewise.
            distance: not looked at.

        Returns:
            [B], or [R].

        Raises:
            ShapeError: if B is not the batch size that the predictor was made for, or the order of the batch is asked of a
                block.
        """
        if self.predictor is None:
            self.predictor = self._make_predictor(similarity.shape[1]).to(similarity)
        batch_size, made_for = similarity.shape[1], self._weight.shape[1]
        if batch_size != made_for:
            raise ShapeError(
                f"adaptive radius: the batch has {batch_size} pairs, the predictor was made for {made_for};"
                " keep the batch size constant (drop the last, smaller batch) or use another radius"
            )
        profile = similarity_profile(similarity, positives, order=self.order)  # [B, B]
        radius: Tensor = self.predictor(profile.to(self._weight.dtype))  # [B, 1]
        return radius.squeeze(1)  # [B]


@torch.no_grad()
def similarity_profile(similarity: Tensor, positives: Tensor, *, order: Order) -> Tensor:
    """What the predictor sees of each anchor: the cosine of its pair first, then those of its negatives.

    Positives off the diagonal are no negatives, but the width is fixed: they are replaced by the lowest of the other
    cosines of their row, which says "no competition here" and depends neither on batch order nor on what is replaced.

    Args:
        similarity: cosines [B, B], rows are anchors; or [R, B], a block of rows with their partners on its diagonal.
        positives: bool, likewise.
        order: ``sorted`` (negatives from the most similar down, so that the batch order does not matter) or ``raw``.

    Returns:
        [B, B] or [R, B], no gradient.

    Raises:
        ShapeError: if the order of the batch is asked of a block, whose columns are in another.
    """
    if order == "raw" and similarity.shape[0] != similarity.shape[1]:
        raise ShapeError(
            f"adaptive radius: radius_input=raw has the order of the batch, which a block of {similarity.shape[0]} of "
            f"{similarity.shape[1]} pairs does not; use sorted, or smaller batches"
        )
    replaced = positives.clone().fill_diagonal_(False)
    lowest = similarity.masked_fill(replaced, math.inf).amin(dim=1, keepdim=True)  # [B, 1]
    profile = torch.empty(similarity.shape, dtype=similarity.dtype, device=similarity.device)  # [B, B], contiguous
    torch.where(replaced, lowest, similarity, out=profile)
    positive = similarity.diagonal().clone()  # [B]
    if order == "raw":
        return torch.cat([positive[:, None], off_diagonal(profile)], dim=1)
    profile.fill_diagonal_(math.inf)  # sorts to the front, where the pair belongs
    sort_rows_descending(profile)
    profile[:, 0] = positive
    return profile


def off_diagonal(matrix: Tensor) -> Tensor:
    """A square matrix without its diagonal, rows in order: contiguous [B, B] to [B, B - 1]."""
    size = matrix.shape[0]
    # Behind its first entry, a flat square matrix is B - 1 rows of B off-diagonal entries and one diagonal entry each.
    return matrix.flatten()[1:].view(size - 1, size + 1)[:, :-1].reshape(size, size - 1)


def sort_rows_descending(matrix: Tensor) -> None:
    """Sort each row of a contiguous [B, B] in place.

    On the processor, numpy's vectorised sort takes a tenth of the time of ``torch.sort``, which also makes an index
    matrix of twice the size of its input.
    """
    if matrix.device.type == "cpu":
        matrix.numpy()[:, ::-1].sort(axis=1)  # ascending seen from behind
        return
    for start in range(0, matrix.shape[0], SORTED_ROWS):
        rows = matrix[start : start + SORTED_ROWS]
        rows.copy_(rows.sort(dim=1, descending=True).values)


def hard_bound(logit: Tensor, distance: Tensor) -> Tensor:
    """R = D sigmoid(logit), which never leaves (0, D) but saturates (not in the paper); [B] and [B] to [B]."""
    return distance * logit.sigmoid()


def hard_bound_logit(radius: float) -> float:
    """The logit with which ``hard_bound`` gives ``radius`` to a pair of orthogonal embeddings, D = sqrt(2)."""
    share = radius / DISTANCE_OF_STRANGERS
    return math.log(share / (1.0 - share))


def clamp_ratio(radius: Tensor, distance: Tensor, *, max_ratio: float) -> Tensor:
    """R cut to [0, max_ratio D] (not in the paper); an anchor that is cut sends R no gradient; [B] and [B] to [B]."""
    return torch.minimum(radius.clamp(min=0.0), max_ratio * distance)


def radius_penalty(radius: Tensor, distance: Tensor) -> Tensor:
    """The constraint of SupCLAP, ``mean_i [ relu(R_i - D_i) + relu(-R_i) ]``: 0 inside [0, D], slope 1 outside.

    Args:
        radius: R [B].
        distance: D [B], detached: else the term would reward pairs that move apart.
    """
    return (relu(radius - distance) + relu(-radius)).mean()
