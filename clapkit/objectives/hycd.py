"""HyCD, hybrid contrastive distillation: learn new pairs and keep to what the model made of them before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from clapkit.objectives import infonce
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.draws import Draws
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.reweighted import Reweighted
from clapkit.objectives.row_blocks import blocks_of, computed_twice, needs_blocks, pair_cosines, rolled, rows_of
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.similarity import cosine
from clapkit.objectives.svr import SupportVectorRegularization
from clapkit.objectives.targets import further_positives
from clapkit.objectives.temperature import Temperature
from clapkit.types import Context, ContextNeed, LossOutput

HELD = (InfoNCE, SigLIP, SupportVectorRegularization, Reweighted)
HELD_NAMES = ("infonce", "siglip", "svr", "reweighted")
"""Losses that compare every text of the batch with every clip by one cosine and one temperature, and their names."""

DEFAULT_DISTILL = 0.5


def build(
    *,
    wrapped: nn.Module | None = None,
    distill: float = DEFAULT_DISTILL,
    teacher_tau: float | None = None,
    soften: float = 1.0,
    rafa: float = 0.0,
) -> HyCD:
    """Make the objective.

    Args:
        wrapped: the loss of the new pairs, ``infonce``, ``siglip``, ``svr`` or ``reweighted``; ``infonce`` unless given.
            ``clapkit train`` makes it for ``--base``.
        distill: share of the distillation in the loss; the paper's alpha is 1 minus this. 0 is the wrapped loss.
        teacher_tau: temperature of the teacher; that at which the wrapped loss starts, unless given.
        soften: the paper's T: logits of teacher and student are divided by it, and the distillation is multiplied by its
            square, which leaves its gradients their size.
        rafa: weight of the random feature alignment; 0 leaves it out.

    Raises:
        ConfigError: if an option is out of its range, or the wrapped loss is none of these.
    """
    require(0 <= distill <= 1, f"distill={distill}: expected a share from 0 to 1, for example {DEFAULT_DISTILL}")
    for name, value, example in (("teacher_tau", teacher_tau, 0.07), ("soften", soften, 1.0)):
        is_temperature = value is None or 0 < value < math.inf
        require(is_temperature, f"{name}={value}: expected a positive temperature, for example {example}")
    require(0 <= rafa < math.inf, f"rafa={rafa}: expected a finite weight of 0 or more")
    wrapped = infonce.build() if wrapped is None else wrapped
    found, expected = type(wrapped).__name__, ", ".join(HELD_NAMES)
    require(isinstance(wrapped, HELD), f"wrapped={found}: cannot be held to a teacher; expected one of {expected}")
    return HyCD(wrapped, distill=distill, teacher_tau=teacher_tau, soften=soften, rafa=rafa)


class HyCD(nn.Module):
    """A loss of new pairs, mixed with the divergence from what the model made of the same batch at the start of the run.

    ``L = (1 - distill) L_wrapped + distill T^2 (KL_t2a + KL_a2t) / 2 + rafa L_rafa``, with
    ``KL_t2a = mean_i KL( softmax_j(s'_ij / tau' T) || softmax_j(s_ij / tau T) )``, s' and tau' cosines and temperature of the
    frozen teacher, s and tau those of the student. Around InfoNCE and with T = 1 this is, up to a constant, ``KL(Y || P)``
    with the targets ``Y = (1 - distill) I + distill softmax(s' / tau')``. What the wrapped loss masks in its rows is masked in
    those of teacher and student. Of ``siglip`` the temperature counts; its bias is the same in all logits of a row.

    The temperature of the teacher stays where that of the wrapped loss starts, so that targets are those of the start, even
    if the student's is learned; with a schedule it is that of the anchor.

    ``L_rafa``: features, before they are brought to unit norm, are drawn to a normal random vector which is new in every step
    and the same for all pairs of a clip, ``mean (|z_a - r|^2 + |z_t - r|^2) / 2d``. In expectation over r this is a penalty
    on the length of features; what is left is noise that a pair has in common. Of unit-norm embeddings the expectation is
    constant: there would be no gradient but the noise.

    Reference: Yamaguchi et al., Post-pre-training for modality alignment in vision-language foundation models (CLIP-Refine),
    2025, arXiv 2504.12717. Deviations: cosines and temperatures instead of products of features at T = 1; any of four losses
    for the new pairs, at T = 1 also where distillation has another; no random feature alignment unless asked for, and its
    mean over both sides instead of their sum.

    Args:
        wrapped: the loss of the new pairs.
        distill: share of the distillation.
        teacher_tau: temperature of the teacher; None for that at which the wrapped loss starts.
        soften: T.
        rafa: weight of the random feature alignment.
    """

    teacher_momentum = None
    """The teacher is frozen."""

    def __init__(self, wrapped: nn.Module, *, distill: float, teacher_tau: float | None, soften: float, rafa: float) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.distill, self.teacher_tau, self.soften, self.rafa = distill, teacher_tau, soften, rafa
        self.needs: frozenset[ContextNeed] = frozenset({"teacher", "features"} if rafa else {"teacher"})
        self.draws = Draws() if rafa else None

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``context`` brings the teacher, and features for ``rafa``.

        Raises:
            ShapeError: as the wrapped loss, or if the shapes differ or B < 2.
        """
        check_batch(audio, text, positives, index)
        assert context is not None, "clapkit.objectives.contract.score checks what is needed"
        assert context.teacher_audio is not None
        assert context.teacher_text is not None
        base: LossOutput = self.wrapped(audio, text, positives, index, progress)
        terms: dict[str, Tensor] = {}
        with full_precision(audio, text) as (audio, text):
            teacher_audio, teacher_text = (
                rows.detach().to(text.dtype) for rows in (context.teacher_audio, context.teacher_text)
            )
            scale = self.temperature.scale(index, progress, dtype=text.dtype)
            scales = (scale, self.teacher_scale(index, progress, dtype=text.dtype))
            masked = positives if self.masks_further_positives else torch.zeros_like(positives)
            sides = (text, teacher_text), (audio, teacher_audio)
            terms["distill_t2a"] = self._divergence(*sides, masked, scales)
            terms["distill_a2t"] = self._divergence(*sides[::-1], masked.T, scales)
            distilled = (terms["distill_t2a"] + terms["distill_a2t"]) / 2
            total = (1 - self.distill) * base.total + self.distill * self.soften**2 * distilled
            if self.draws is not None:
                terms["rafa"] = self._alignment(context, index)
                total = total + self.rafa * terms["rafa"]
            own = loss_output(total, terms, {"teacher_positive_cosine": pair_cosines(teacher_audio, teacher_text).mean()})
        return replace(own, terms=base.terms | own.terms, stats=base.stats | own.stats)

    @property
    def temperature(self) -> Temperature:
        """That of the wrapped loss."""
        found = next(module for module in self.wrapped.modules() if isinstance(module, Temperature))
        assert isinstance(found, Temperature)
        return found

    @property
    def masks_further_positives(self) -> bool:
        """Whether the wrapped loss leaves positives off the diagonal out of its rows."""
        return next(module for module in self.wrapped.modules() if isinstance(module, (InfoNCE, SigLIP))).targets == "ignore"

    def teacher_scale(self, index: Tensor, progress: float, *, dtype: torch.dtype) -> Tensor | float:
        """The factor on the teacher's cosines: a number, or [B, 1] where a schedule gives every anchor its temperature."""
        if self.teacher_tau is not None:
            return 1 / self.teacher_tau
        temperature = self.temperature
        return 1 / temperature.tau if temperature.schedule is None else temperature.scale(index, progress, dtype=dtype)

    def _divergence(
        self,
        anchors: tuple[Tensor, Tensor],
        candidates: tuple[Tensor, Tensor],
        masked: Tensor,
        scales: tuple[Tensor | float, Tensor | float],
    ) -> Tensor:
        """One direction; student and teacher [B, D] each, ``masked`` bool [B, B] with its diagonal left as it is."""
        if not needs_blocks(anchors[0]):
            cosines = (cosine(*both) for both in zip(anchors, candidates, strict=True))
            return row_divergences([s * c / self.soften for s, c in zip(scales, cosines, strict=True)], masked).mean()
        total = anchors[0].new_zeros(())
        for rows in blocks_of(len(masked)):

            def block(some: Tensor, others: Tensor, scale: Tensor | float, known: Tensor | float, rows: slice = rows) -> Tensor:
                towards = [rolled(each, rows, dim=0) for each in (others, candidates[1])]
                logits = [
                    factor * cosine(few, many) / self.soften
                    for factor, few, many in zip((scale, known), (some, anchors[1][rows]), towards, strict=True)
                ]
                return row_divergences(logits, rolled(masked[rows], rows, dim=1)).sum()

            given = [rows_of(factor, rows) for factor in scales]
            total = total + computed_twice(block, anchors[0][rows], candidates[0], *given)
        return total / len(masked)

    def _alignment(self, context: Context, index: Tensor) -> Tensor:
        """The random feature alignment: a scalar, per number of a feature."""
        assert self.draws is not None
        assert context.audio_features is not None
        assert context.text_features is not None
        clips, of_clip = torch.unique(index, return_inverse=True)  # sorted: the order of the batch does not matter
        drawn = self.draws.generator(index).standard_normal((len(clips), context.text_features.shape[1]))
        with full_precision(context.audio_features, context.text_features) as (audio, text):
            target = torch.from_numpy(drawn).to(text.device, text.dtype)[of_clip]  # [B, D]
            return ((audio - target).square().mean() + (text - target).square().mean()) / 2

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the wrapped loss."""
        groups: list[ParamGroup] = self.wrapped.param_groups(lr, weight_decay)  # type: ignore[operator]
        return groups

    def after_step(self) -> None:
        """What the wrapped loss does after a step; and draw something else next time."""
        self.wrapped.after_step()  # type: ignore[operator]
        if self.draws is not None:
            self.draws.advance()


def row_divergences(logits: Sequence[Tensor], masked: Tensor) -> Tensor:
    """How far the softmax of the student's rows is from that of the teacher's, ``KL(teacher || student)``.

    Args:
        logits: of student and teacher [R, B] each, the own partner on the diagonal.
        masked: bool [R, B], entries off the diagonal that are left out of both.

    Returns:
        [R], nats, at least 0 but for rounding; with gradients to both.
    """
    left_out = further_positives(masked)
    # Minus infinity before the normalisation; behind it both are 0, so that 0 times their difference is no NaN.
    student, teacher = (rows.masked_fill(left_out, -math.inf).log_softmax(dim=1).masked_fill(left_out, 0.0) for rows in logits)
    divergences: Tensor = (teacher.exp() * (teacher - student)).sum(dim=1)
    return divergences
