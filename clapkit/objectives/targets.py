"""What to do with pairs of a batch that are no negatives although they are not on the diagonal.

Two captions of one clip in a batch make such a pair. ``ignore`` takes it out of the loss, ``soft`` counts it as a
further positive. A matrix ``positives`` marks them, together with the diagonal; rows are anchors. A softmax has one more way,
``ot``, which takes part of every target to where a transport plan of the batch has it (clapkit.objectives.transport).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from clapkit.objectives.contract import require_choice

Policy = Literal["ignore", "soft"]
SoftmaxPolicy = Literal["ignore", "soft", "ot"]


def check_policy(policy: Policy) -> Policy:
    """Give back a policy that exists.

    Raises:
        ConfigError: if it does not.
    """
    require_choice("targets", policy, Policy)
    return policy


def further_positives(positives: Tensor) -> Tensor:
    """The positives that lie off the diagonal: bool [B, B] to bool [B, B]."""
    return positives.clone().fill_diagonal_(False)


def no_negatives(positives: Tensor) -> Tensor:
    """All positives, the diagonal included: bool [B, B] to bool [B, B]."""
    return positives.clone().fill_diagonal_(True)


def uniform_targets(positives: Tensor, like: Tensor) -> Tensor:
    """Each row spread evenly over its positives.

    Args:
        positives: bool [B, B].
        like: a tensor of the wanted type.

    Returns:
        [B, B], rows sum to 1.
    """
    weights = no_negatives(positives).to(like.dtype)
    return weights / weights.sum(dim=1, keepdim=True)
