"""CACR, contrastive attraction and repulsion: far positives pull more, near negatives push more."""

from __future__ import annotations

import math

from torch import Tensor, nn

from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives
from clapkit.types import LossOutput


def build(*, attraction: float = 1.0, repulsion: float = 1.0, detach_weights: bool = False) -> CACR:
    """Make the objective.

    Args:
        attraction: how much more a far positive counts than a near one; 0 for all alike.
        repulsion: how much more a near negative counts than a far one; 0 for all alike.
        detach_weights: let no gradient through the weights.

    Raises:
        ConfigError: if an option is out of its range.
    """
    for name, value in (("attraction", attraction), ("repulsion", repulsion)):
        require(0 <= value < math.inf, f"{name}={value}: expected a factor of 0 or more on squared distances, for example 1")
    return CACR(attraction, repulsion, detach_weights)


class CACR(nn.Module):
    """Expected distance to the positives minus that to the negatives, averaged over both directions.

    With squared distances ``c_ij = 2 - 2 s_ij``:
    ``L_i = sum_{p in Pos(i)} softmax_p(attraction c_ip) c_ip - sum_{n in Neg(i)} softmax_n(-repulsion c_in) c_in``.

    The first sum is over all captions of a clip and all clips of a caption that the batch holds. With one positive in a row
    it is the distance of the pair. A row without negatives only attracts.

    Reference: Zheng et al., Contrastive attraction and contrastive repulsion for representation learning, 2021,
    arXiv 2105.03746. Deviation: negatives and positives across the modalities only.

    Args:
        attraction: t+ of the paper.
        repulsion: t- of the paper.
        detach_weights: hold the weights constant.
    """

    def __init__(self, attraction: float, repulsion: float, detach_weights: bool) -> None:
        super().__init__()
        self.attraction = attraction
        self.repulsion = repulsion
        self.detach_weights = detach_weights

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        Raises:
            ShapeError: if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            similarity = cosine(text, audio)  # [B, B], rows are texts
            both = [self.one_direction(s, p) for s, p in ((similarity, positives), (similarity.T, positives.T))]
            attraction, repulsion = ((there + back) / 2 for there, back in zip(*both, strict=True))
            terms = {"attraction": attraction, "repulsion": repulsion}
            stats = {
                "positive_cosine": similarity.diagonal().mean(),
                "positives_per_anchor": no_negatives(positives).sum(dim=1).to(similarity.dtype).mean(),
            }
            return loss_output(attraction + repulsion, terms, stats)

    def one_direction(self, similarity: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
        """What attracts and what repels, averaged over the rows.

        Args:
            similarity: [B, B], rows are anchors, the own partner on the diagonal.
            positives: bool [B, B], likewise.

        Returns:
            Two scalars, of which the second is negative.
        """
        distance = 2 - 2 * similarity  # [B, B]
        attracted = no_negatives(positives)
        near = self.weights(-self.repulsion * distance, ~attracted)
        far = self.weights(self.attraction * distance, attracted)
        return (far * distance).sum(dim=1).mean(), -(near * distance).sum(dim=1).mean()

    def weights(self, logits: Tensor, counted: Tensor) -> Tensor:
        """Softmax of rows [B, B] over the entries that are counted, 0 elsewhere and in rows without any."""
        logits = logits.detach() if self.detach_weights else logits
        is_empty = ~counted.any(dim=1, keepdim=True)  # softmax of nothing is NaN
        return logits.masked_fill(~counted & ~is_empty, -math.inf).softmax(dim=1).masked_fill(is_empty, 0.0)

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Nothing to learn."""
        return []

    def after_step(self) -> None:
        """Nothing to keep in a range."""
