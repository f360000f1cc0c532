"""Large batches: the B x B matrices of a loss, a block of rows at a time.

Up to ``MOST_ROWS`` pairs a loss forms its whole similarity matrix. Above, every block of rows is scored alone and again in the
backward pass, so that no float matrix larger than that ever exists, however large the batch; what grows with B x B is
``positives``, one byte an entry. In a block the targets are rolled so that the partner of row i stands in column i: a loss that
finds partners on the diagonal needs no other rule for blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clapkit.objectives.similarity import cosine

MOST_ROWS = 4096
"""Pairs up to which a batch is one block: its matrices take at most 64 MiB each, and so do those of the blocks of others."""

Result = TypeVar("Result")
RowScore = Callable[..., Tensor]


def needs_blocks(anchors: Tensor) -> bool:
    """Whether a batch [B, D] is scored in blocks."""
    return anchors.shape[0] > MOST_ROWS


def blocks_of(num_rows: int) -> list[slice]:
    """Blocks of rows, as equal as they can be: each is as wide as the batch, so that a larger batch has flatter ones."""
    count = -(-num_rows // max(1, MOST_ROWS**2 // num_rows))
    return [slice(num_rows * k // count, num_rows * (k + 1) // count) for k in range(count)]


def rows_of(scale: Tensor | float, rows: slice) -> Tensor | float:
    """The scale of some rows: of each anchor [B, 1], or one for all."""
    return scale[rows] if isinstance(scale, Tensor) and scale.ndim == 2 else scale


def rolled(matrix: Tensor, rows: slice, *, dim: int) -> Tensor:
    """Candidates in the order in which the partners of a block's rows come first."""
    return matrix.roll(-rows.start, dims=dim)


def weighted_mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Mean of losses [R], each counted with its weight [R]; divided by R, so that a light row makes others no heavier."""
    return losses.mean() if weights is None else (weights * losses).mean()


def mean_over_rows(
    score: RowScore,
    anchors: Tensor,
    targets: Tensor,
    positives: Tensor,
    scale: Tensor | float,
    weights: Tensor | None = None,
) -> Tensor:
    """A loss that is a mean over rows, without its matrix.

    Args:
        score: ``(similarity [R, B], positives [R, B], scale)``, and weights [R] where there are some, to the mean over the R
            rows, partners on the diagonal.
        anchors: [B, D].
        targets: [B, D], row i the partner of anchor i.
        positives: bool [B, B], rows are anchors.
        scale: a scalar or [B, 1].
        weights: [B], how much each row counts.

    Returns:
        Scalar.
    """
    total = anchors.new_zeros(())
    for rows in blocks_of(anchors.shape[0]):

        def block(some: Tensor, all_targets: Tensor, factor: Tensor | float, rows: slice = rows) -> Tensor:
            similarity = cosine(some, rolled(all_targets, rows, dim=0))  # [R, B]
            weighing = [] if weights is None else [weights[rows]]
            return score(similarity, rolled(positives[rows], rows, dim=1), factor, *weighing)

        loss = computed_twice(block, anchors[rows], targets, rows_of(scale, rows))
        total = total + loss * ((rows.stop - rows.start) / anchors.shape[0])
    return total


def computed_twice(function: Callable[..., Result], *arguments: Tensor | float) -> Result:
    """Call a function that draws nothing, keep its arguments only, and call it again in the backward pass."""
    result: Result = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def pair_cosines(audio: Tensor, text: Tensor) -> Tensor:
    """Cosine of every pair, [B], without gradients: for the log."""
    with torch.no_grad():
        return (audio * text).sum(dim=1)
