"""Embedding L1: a small pull towards embeddings with few large entries."""

from __future__ import annotations

from torch import Tensor

from clapkit.objectives.contract import full_precision
from clapkit.objectives.terms._contract import Term, check_pairs


def build() -> Term:
    """Make the term; it has no options."""
    return embedding_l1


def embedding_l1(audio: Tensor, text: Tensor, positives: Tensor) -> Tensor:
    """``mean|A| / |A|_F + mean|T| / |T|_F``, the mean over all B D entries, ``|.|_F`` the Frobenius norm.

    For unit-norm rows the Frobenius norm is the constant ``sqrt(B)``: what remains is an L1 penalty, least for rows with a
    single entry, and the only term that depends on the axes of the embedding space.

    Reference: the training code of WavCaps (Mei et al., 2023, arXiv 2303.17395) and of its multilingual successor ML-CLAP.

    Args:
        audio: unit-norm [B, D].
        text: unit-norm [B, D].
        positives: bool [B, B]; not used.

    Returns:
        Scalar, at most ``2 / sqrt(B D)``.

    Raises:
        ShapeError: if the shapes differ or B < 2.
    """
    check_pairs(audio, text, positives)
    with full_precision(audio, text) as (audio, text):
        return relative_mean_magnitude(audio) + relative_mean_magnitude(text)


def relative_mean_magnitude(embeddings: Tensor) -> Tensor:
    """``mean|X| / |X|_F`` of embeddings [B, D]; scalar."""
    return embeddings.abs().mean() / embeddings.square().sum().sqrt()
