"""CyCLIP: similarities should be the same read from either modality."""

from __future__ import annotations

from torch import Tensor

from clapkit.objectives.contract import full_precision, require
from clapkit.objectives.similarity import cosine
from clapkit.objectives.terms._contract import Term, check_pairs


def build(*, in_modal: bool = True, cross_modal: bool = True) -> Term:
    """Make the term.

    Args:
        in_modal: compare the cosines among clips with those among captions.
        cross_modal: compare the cosine of caption i and clip j with that of caption j and clip i.

    Raises:
        ConfigError: if neither is wanted.
    """
    require(in_modal or cross_modal, "in_modal=false with cross_modal=false: cyclip has nothing left; leave the term out")

    def cyclip(audio: Tensor, text: Tensor, positives: Tensor) -> Tensor:
        check_pairs(audio, text, positives)
        with full_precision(audio, text) as (audio, text):
            parts = [cross_modal_asymmetry(audio, text)] if cross_modal else []
            parts += [in_modal_asymmetry(audio, text)] if in_modal else []
            return sum(parts[1:], start=parts[0])

    return cyclip


def cross_modal_asymmetry(audio: Tensor, text: Tensor) -> Tensor:
    """``(1/B) sum_ij (t_i.a_j - t_j.a_i)^2``, 0 where the cosine matrix is symmetric.

    Reference: Goel et al., CyCLIP: cyclic contrastive language-image pretraining, 2022, arXiv 2205.14459. Deviations: none;
    the paper's weight 0.25 is left to the caller. All pairs count, further positives too: symmetry asks no pair to move apart.

    Args:
        audio: unit-norm [B, D].
        text: unit-norm [B, D].

    Returns:
        Scalar, 0 or more; grows with B, as in the paper.
    """
    similarity = cosine(text, audio)  # [B, B]
    return (similarity - similarity.T).square().sum(dim=1).mean()


def in_modal_asymmetry(audio: Tensor, text: Tensor) -> Tensor:
    """``(1/B) sum_ij (a_i.a_j - t_i.t_j)^2``, 0 where both modalities have the same geometry.

    Reference and conventions as for ``cross_modal_asymmetry``.

    Args:
        audio: unit-norm [B, D].
        text: unit-norm [B, D].

    Returns:
        Scalar, 0 or more; grows with B, as in the paper.
    """
    return (cosine(audio, audio) - cosine(text, text)).square().sum(dim=1).mean()
