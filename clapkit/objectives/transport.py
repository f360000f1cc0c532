"""Targets rectified by optimal transport: negatives that answer as well as the pair does get a share of its target."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clapkit.objectives.contract import require
from clapkit.objectives.targets import SoftmaxPolicy, uniform_targets

DEFAULT_SHARE = 0.3
"""Of the paper."""
DEFAULT_EPS = 0.05
"""For cosines of unit vectors; the 1 of the authors' code leaves a plan that is nearly flat."""
ITERATIONS = 50


@dataclass(frozen=True, slots=True)
class Rectification:
    """How targets are rectified: ``(1 - share)`` of them stays, ``share`` goes where a plan with ``eps`` puts it."""

    share: float
    eps: float

    def targets(self, positives: Tensor, plan: Tensor) -> Tensor:
        """Target of every row: what stays is spread evenly over the positives of the row.

        Args:
            positives: bool [B, B], rows are anchors.
            plan: [B, B], likewise, from ``transport_plan``.

        Returns:
            [B, B], rows sum to 1.
        """
        moved = plan / plan.sum(dim=1, keepdim=True)  # what is missing after a finite number of iterations
        return (1 - self.share) * uniform_targets(positives, plan) + self.share * moved


def make_rectification(targets: SoftmaxPolicy, share: float | None, eps: float | None) -> Rectification | None:
    """What the options of a loss describe; None where targets are not rectified.

    Raises:
        ConfigError: if an option is out of its range, or given without ``targets=ot``.
    """
    if targets != "ot":
        for name, value in (("ot_share", share), ("ot_eps", eps)):
            require(value is None, f"{name}={value}: targets={targets} is not rectified; set targets=ot or leave it out")
        return None
    share, eps = DEFAULT_SHARE if share is None else share, DEFAULT_EPS if eps is None else eps
    require(0 <= share <= 1, f"ot_share={share}: expected a share from 0 to 1, for example {DEFAULT_SHARE}")
    require(0 < eps < math.inf, f"ot_eps={eps}: expected more than 0, for example {DEFAULT_EPS}")
    return Rectification(share, eps)


@torch.no_grad()
def transport_plan(similarity: Tensor, *, eps: float) -> Tensor:
    """Everybody gives 1 and gets 1, preferably among the similar: entropic optimal transport, by Sinkhorn in log space.

    Reference: Lin et al., Multi-granularity correspondence learning from long-term noisy videos (Norton), ICLR 2024,
    arXiv 2401.16702. Deviation: eps fits cosines; no bucket for what fits nowhere.

    Args:
        similarity: [B, B].
        eps: small keeps mass at the most similar, large spreads it.

    Returns:
        [B, B] without gradient. Rows sum to 1; columns do up to what ``ITERATIONS`` iterations leave: 1e-5 for eps of 0.1
        and more, up to 2e-2 for 0.05.
    """
    kernel = similarity / eps  # [B, B]
    to_columns = kernel.new_zeros(1, kernel.shape[1])
    for _ in range(ITERATIONS):
        to_rows = -(kernel + to_columns).logsumexp(dim=1, keepdim=True)  # [B, 1]
        to_columns = -(kernel + to_rows).logsumexp(dim=0, keepdim=True)  # [1, B]
    return (kernel + to_columns).softmax(dim=1)
