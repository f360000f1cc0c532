"""Losses over captions in several languages: any objective, called once for each language or for each side of a triangle.

Both wrap an objective that knows nothing of languages. They are no losses by themselves: which one is meant says the way in
which captions are drawn, ``clapkit.data.caption_languages``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clapkit.errors import ShapeError
from clapkit.objectives.alip import ALIP
from clapkit.objectives.contract import ParamGroup, check_batch, loss_output, needs_of, require, score
from clapkit.objectives.pair_weights import without_judgement
from clapkit.objectives.sogclr import SogCLR
from clapkit.types import Context, ContextNeed, LossOutput

_ONE_LANGUAGE_AT_A_TIME: dict[type[nn.Module], str] = {
    ALIP: "alip compares the captions of a clip in a batch, and would see one of them at a time",
    SogCLR: "sogclr keeps one normaliser for each clip and side, and these losses have several",
}
"""Losses that cannot be called several times for the same clips -> why."""


class PerLanguage(nn.Module):
    """KCL: every language is a batch of its own, with its own softmax; the loss is the mean over languages.

    ``L = 1/K sum_k L_k``, with L_k the mean of both directions over the N pairs of language k; that is
    ``1/(2NK) sum_k (sum a2t + sum t2a)``. Captions of another language are neither positives nor negatives. Where languages
    differ in their number of pairs they count alike nevertheless. Memories that the objective keeps of training rows are those
    of clips, and shared by the languages.

    Reference: ATRI, 2025, arXiv 2502.14627 (KCL).

    Args:
        objective: the loss of one language; parameters, optimiser groups and limits are its own.

    Raises:
        ConfigError: if the objective cannot be called several times for the same clips.
    """

    needs: frozenset[ContextNeed] = frozenset({"language"})

    def __init__(self, objective: nn.Module) -> None:
        super().__init__()
        _check_callable_repeatedly(objective)
        self.objective = objective

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``stats`` gets ``loss_<tag>`` of every language.

        Raises:
            ShapeError: as the objective, if the shapes differ, a language has a single pair, or languages are not told.
        """
        check_batch(audio, text, positives, index)
        told = _told(context)
        outputs: dict[str, LossOutput] = {}
        for code, rows in _rows_of_languages(_language(told, like=index)):
            marked = positives[rows][:, rows]
            outputs[f"loss_{_tag(code)}"] = score(
                self.objective, audio[rows], text[rows], marked, index[rows], progress, told.select(rows)
            )
        return _mean_output(outputs)

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the objective."""
        groups: list[ParamGroup] = self.objective.param_groups(lr, weight_decay)  # type: ignore[operator]
        return groups

    def after_step(self) -> None:
        """What the objective does after a step."""
        self.objective.after_step()  # type: ignore[operator]


class Anchored(nn.Module):
    """CACL: sound, caption in the anchor language and caption in another one, pulled together along all three sides.

    Of N clips with two captions each, ``L = 1/3 (L(audio, anchor) + L(audio, other) + L(anchor, other))``, each term the mean
    of both directions over N pairs; that is 1/(6N) of the sums. In the third term captions of the anchor language stand where
    sounds stand. Two clips are no negatives of each other in any term for which one of their rows says so. What an objective
    remembers of pairs of sound and caption has no say in the third term, and learns nothing of it.

    Reference: ATRI, 2025, arXiv 2502.14627 (CACL).

    Args:
        objective: the loss of each term; parameters, optimiser groups and limits are its own.
        anchor_code: number of the anchor language, as in ``Context.language``.

    Raises:
        ConfigError: if the objective has to know more than embeddings, or cannot be called several times for the same clips.
    """

    needs: frozenset[ContextNeed] = frozenset({"language"})

    def __init__(self, objective: nn.Module, anchor_code: int) -> None:
        super().__init__()
        _check_callable_repeatedly(objective)
        wanted = ", ".join(sorted(needs_of(objective)))
        require(
            not wanted,
            f"language strategy anchor: the loss also looks at {wanted} of each sound and caption, and a pair of two captions "
            "has none; use the strategy all or sample",
        )
        self.objective, self.anchor_code = objective, anchor_code

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        ``stats`` gets the loss of each term: ``loss_audio_anchor``, ``loss_audio_other`` and ``loss_anchor_other``.

        Raises:
            ShapeError: as the objective, if the shapes differ, languages are not told, or rows are no couples of one clip.
        """
        check_batch(audio, text, positives, index)
        anchors, others = couples(index, _language(_told(context), like=index) == self.anchor_code)
        related = positives[anchors][:, others]
        cross = related | related.T | positives[anchors][:, anchors] | positives[others][:, others]
        sides = {
            "loss_audio_anchor": (audio[anchors], text[anchors], positives[anchors][:, anchors]),
            "loss_audio_other": (audio[others], text[others], positives[others][:, others]),
        }
        outputs = {
            name: score(self.objective, one, other, marked, index[anchors], progress)
            for name, (one, other, marked) in sides.items()
        }
        with without_judgement(self.objective):
            outputs["loss_anchor_other"] = score(self.objective, text[anchors], text[others], cross, index[anchors], progress)
        return _mean_output(outputs)

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the objective."""
        groups: list[ParamGroup] = self.objective.param_groups(lr, weight_decay)  # type: ignore[operator]
        return groups

    def after_step(self) -> None:
        """What the objective does after a step."""
        self.objective.after_step()  # type: ignore[operator]


def couples(index: Tensor, is_anchor: Tensor) -> tuple[Tensor, Tensor]:
    """Find the two rows of each clip, in whatever order rows are.

    Args:
        index: int64 [2N], equal for rows of one clip.
        is_anchor: bool [2N].

    Returns:
        Rows of the anchors, ascending, and those that belong to them, int64 [N] each.

    Raises:
        ShapeError: if not every anchor has one other row of its clip.
    """
    anchors, others = is_anchor.nonzero().squeeze(1), (~is_anchor).nonzero().squeeze(1)
    by_clip, others_by_clip = index[anchors].argsort(stable=True), index[others].argsort(stable=True)
    if not torch.equal(index[anchors][by_clip], index[others][others_by_clip]):
        raise ShapeError(
            f"{len(anchors)} captions are in the anchor language and {len(others)} in others; expected one of each for every "
            "clip"
        )
    place = torch.empty_like(by_clip)
    place[by_clip] = others_by_clip
    return anchors, others[place]


def _check_callable_repeatedly(objective: nn.Module) -> None:
    for module in objective.modules():
        reason = _ONE_LANGUAGE_AT_A_TIME.get(type(module))
        require(reason is None, f"language strategies all and anchor: {reason}; use another loss or the strategy sample")


def _told(context: Context | None) -> Context:
    return Context() if context is None else context


def _language(context: Context, *, like: Tensor) -> Tensor:
    if context.language is None or context.language.shape != like.shape:
        found = "none" if context.language is None else f"{list(context.language.shape)}"
        raise ShapeError(f"languages of captions: {found}, expected {list(like.shape)}, one per pair")
    return context.language


def _rows_of_languages(language: Tensor) -> list[tuple[int, Tensor]]:
    """Codes, ascending, with their rows in the order of the batch."""
    codes, inverse, counts = torch.unique(language, return_inverse=True, return_counts=True)
    rows = inverse.argsort(stable=True).split(counts.tolist())
    return list(zip(codes.tolist(), rows, strict=True))


def _tag(code: int) -> str:
    """The tag that a code stands for: its bytes are the first letters of the tag."""
    return code.to_bytes(8, "big").strip(b"\0").decode(errors="replace")


def _mean_output(outputs: Mapping[str, LossOutput]) -> LossOutput:
    """Mean of losses and of what they log; the loss of each is logged under its name too."""
    found = list(outputs.values())
    total = torch.stack([output.total for output in found]).mean()
    named = loss_output(total, {}, {name: output.total for name, output in outputs.items()})
    return LossOutput(
        total=total,
        terms=_means([output.terms for output in found]),
        stats=_means([output.stats for output in found]) | named.stats,
    )


def _means(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each number over those that have it."""
    values: dict[str, list[float]] = {}
    for own in numbers:
        for name, value in own.items():
            values.setdefault(name, []).append(value)
    return {name: sum(found) / len(found) for name, found in values.items()}
