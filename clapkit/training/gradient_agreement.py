"""Do the parts of a loss want the same of the encoder? Cosines between their gradients.

The gradient of a part is that with respect to all parameters of the encoder that are trained, of both towers: each direction
of a contrastive loss reaches both. It is read off a step that is rehearsed with the part as its objective, so that chunks,
precision, dropout and frozen layers are those of the run. Clipping such a step changes the length of its gradient and not the
direction.

Reference: Wu et al., Scaling multimodal pre-training via cross-modality gradient harmonization, 2022, arXiv 2211.02077, which
compares the gradients of two losses; clapkit only logs how well they agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from clapkit.types import LossOutput

Gradients = Mapping[str, Tensor]
"""Parameter name -> its gradient, on the processor; a parameter that gets none is missing."""

NEGLIGIBLE = 1e-6
"""Length of a difference of unit vectors, and share of a gradient, below which it is rounding in float32."""


class Part(nn.Module):
    """A part of an objective with the interface of one; it shares modules with it and leaves them as they are."""

    def after_step(self) -> None:
        """Nothing: what follows a step of the objective is not of interest here."""


class PartOfPairs(Part):
    """A loss of some pairs of the batch, as if there were no others.

    Args:
        loss: with the interface of an objective, for any number of pairs.
        rows: of the pairs in the batch, int64 [n].
    """

    def __init__(self, loss: nn.Module, rows: Tensor) -> None:
        super().__init__()
        self.loss, self.rows = loss, rows

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Score the pairs; see ``clapkit.types.Objective``."""
        rows = self.rows.to(index.device)
        output: LossOutput = self.loss(audio[rows], text[rows], positives[rows][:, rows], index[rows], progress)
        return output


class PartAdded(Part):
    """What an objective adds to a loss that it wraps: any loss whose gradient is the difference of both gradients.

    Both are taken at the embeddings and subtracted there. A difference that is rounding only is exactly 0.

    Args:
        objective: of the run.
        base: the loss that it wraps.
    """

    def __init__(self, objective: nn.Module, base: nn.Module) -> None:
        super().__init__()
        self.objective, self.base = objective, base

    def forward(self, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float) -> LossOutput:
        """Give a total with that gradient and no meaning of its own; see ``clapkit.types.Objective``."""
        whole, base = (
            _embedding_gradient(loss, audio, text, positives, index, progress) for loss in (self.objective, self.base)
        )
        added = whole - base  # [2, B, D]
        if added.norm() <= NEGLIGIBLE * base.norm():
            added = torch.zeros_like(added)
        return LossOutput((added[0] * audio).sum() + (added[1] * text).sum(), {}, {})


def _embedding_gradient(
    loss: nn.Module, audio: Tensor, text: Tensor, positives: Tensor, index: Tensor, progress: float
) -> Tensor:
    """The gradients of a loss with respect to audio and text, one upon the other: [2, B, D], no half precision."""
    dtype = torch.promote_types(torch.promote_types(audio.dtype, text.dtype), torch.float32)
    leaves = [embedded.detach().to(dtype).requires_grad_() for embedded in (audio, text)]
    return torch.stack(torch.autograd.grad(loss(*leaves, positives, index, progress).total, leaves))


@dataclass(frozen=True, slots=True)
class Parts:
    """What an objective is made of, each part with the interface of an objective and sharing modules with it.

    Attributes:
        base: the loss that it is or wraps.
        directions: the two directions of the base, text to audio first; None where it has none.
        added: what the objective adds to the base; None where it is the base.
    """

    base: nn.Module
    directions: tuple[nn.Module, nn.Module] | None = None
    added: nn.Module | None = None


def gradient_agreement(
    parts: Parts | None,
    languages: Sequence[str],
    *,
    take_step: Callable[[nn.Module], nn.Module],
    known: Mapping[nn.Module, Gradients],
) -> dict[str, float]:
    """How well the gradients of the parts of an objective agree on a batch.

    Args:
        parts: of the objective; None gives nothing.
        languages: of the captions of the batch; empty where they are not known.
        take_step: takes a step with a loss, on copies; gives the encoder with the gradients of that step.
        known: gradients of losses that need no further step.

    Returns:
        Name -> cosine. One of a gradient that is 0 or not finite is left out. Of languages there are the mean and the lowest
        over all pairs of them, where at least two have two captions each.
    """
    if parts is None:
        return {}

    def gradients(loss: nn.Module) -> Gradients:
        return known[loss] if loss in known else gradients_of(take_step(loss))

    found = {}
    if parts.directions is not None:
        text_to_audio, audio_to_text = parts.directions
        found["grad_cos_directions"] = gradient_cosine(gradients(text_to_audio), gradients(audio_to_text))
    if parts.added is not None:
        found["grad_cos_added"] = gradient_cosine(gradients(parts.base), gradients(parts.added))
    by_language = [gradients(PartOfPairs(parts.base, rows)) for rows in rows_of_languages(languages)]
    cosines = [gradient_cosine(one, other) for one, other in combinations(by_language, 2)]
    finite = [cosine for cosine in cosines if math.isfinite(cosine)]
    if finite:
        found |= {"grad_cos_languages": sum(finite) / len(finite), "grad_cos_languages_min": min(finite)}
    return {name: cosine for name, cosine in found.items() if math.isfinite(cosine)}


def rows_of_languages(languages: Sequence[str]) -> list[Tensor]:
    """Rows of the captions of each language that has at least two, int64 [n] each; none if this is one language only."""
    rows = [[row for row, found in enumerate(languages) if found == language] for language in sorted(set(languages))]
    large = [torch.tensor(own) for own in rows if len(own) > 1]
    return large if len(large) > 1 else []


def gradients_of(encoder: nn.Module) -> dict[str, Tensor]:
    """The gradients that an encoder holds after a backward pass."""
    return {name: p.grad.detach().cpu() for name, p in encoder.named_parameters() if p.grad is not None}


def gradient_cosine(a: Gradients, b: Gradients) -> float:
    """Cosine between two gradients, as if all parameters were one vector; NaN where one is 0 or not finite."""
    lengths = math.sqrt(_dot(a, a)) * math.sqrt(_dot(b, b))
    return _dot(a, b) / lengths if lengths > 0 else math.nan


def _dot(a: Gradients, b: Gradients) -> float:
    """Inner product, added up in float64 one parameter at a time; a gradient that is missing is 0."""
    shared = [name for name in a if name in b]
    return sum(float(torch.dot(a[name].flatten().double(), b[name].flatten().double())) for name in shared)
