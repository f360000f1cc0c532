"""SVR, Support Vector Regularization: a contrastive loss, and the same from anchors moved towards their targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from clapkit.errors import ConfigError
from clapkit.objectives import infonce, siglip
from clapkit.objectives.contract import (
    ParamGroup,
    check_batch,
    full_precision,
    loss_output,
    require,
    require_choice,
    undecayed_group,
)
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.radius import (
    AdaptiveRadius,
    Bound,
    Order,
    RadiusKind,
    check_radius_options,
    clamp_ratio,
    hard_bound,
    make_radius_model,
    radius_penalty,
)
from clapkit.objectives.row_blocks import blocks_of, computed_twice, needs_blocks, pair_cosines, rolled, rows_of
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.similarity import cosine, smooth_norm, support_vectors
from clapkit.objectives.targets import SoftmaxPolicy
from clapkit.objectives.temperature import TemperatureKind
from clapkit.objectives.transport import make_rectification
from clapkit.types import LossOutput

Base = Literal["infonce", "siglip"]
Sides = Literal["bi", "uni"]

DEFAULT_BETA = 0.01
DEFAULT_RADIUS = 0.25
DEFAULT_RATIO = 0.2


def build(
    *,
    base: Base = "infonce",
    radius: RadiusKind = "adaptive",
    sides: Sides = "bi",
    alpha: float = 1.0,
    beta: float | None = None,
    radius_init: float | None = None,
    radius_lr: float | None = None,
    radius_bound: Bound = "penalty",
    max_ratio: float | None = None,
    radius_shared: bool = True,
    radius_input: Order = "sorted",
    constrain_static: bool = False,
    normalize_support: bool = False,
    detach_pull_target: bool = False,
    batch_size: int | None = None,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    bias_init: Literal["auto"] | float = "auto",
    targets: SoftmaxPolicy = "ignore",
    ot_share: float | None = None,
    ot_eps: float | None = None,
    schedule: nn.Module | None = None,
) -> SupportVectorRegularization:
    """Make the objective; the defaults are bi-DynamicSVR on InfoNCE.

    Args:
        base: the loss that is regularised.
        radius: R per anchor, predicted (``adaptive``), one learned number (``static``), a constant (``fixed``) or a
            constant share of each pair's distance (``ratio``).
        sides: move texts and audio (``bi``) or texts only (``uni``).
        alpha: weight of the support-vector term; 0 leaves the base loss, bit for bit.
        beta: weight of the radius penalty; 0.01 where there is one.
        radius_init: R at the start, or the share for ``ratio``; 0.25 (``ratio``: 0.2).
        radius_lr: learning rate of the radius; that of the encoders unless set.
        radius_bound: how a learned R is held: ``penalty`` (the paper), ``hard`` (R = D sigmoid), ``clamp`` (R cut to
            [0, max_ratio D]).
        max_ratio: largest R / D under ``clamp``; 1.
        radius_shared: one radius model for both directions, or one each.
        radius_input: negatives ``sorted`` by similarity or in batch order (``raw``), for ``adaptive``.
        constrain_static: penalise ``static`` too.
        normalize_support: bring support vectors back to unit norm.
        detach_pull_target: no gradient to the target through the direction of the move.
        batch_size: B, which is the input width of ``adaptive``; None takes that of the first batch.
        temperature: of the base.
        tau: of the base; its own default unless set.
        bias_init: of the base ``siglip``.
        targets: of the base; under ``ot`` support vectors have the plan of the pairs that they come from.
        ot_share: of the base ``infonce``, with ``targets=ot``.
        ot_eps: likewise.
        schedule: of the base ``infonce``: gives every anchor its temperature, which its support vector has too.

    Raises:
        ConfigError: if an option is out of its range or has no meaning beside the others.
    """
    require_choice("base", base, Base)
    require_choice("sides", sides, Sides)
    require_choice("radius_input", radius_input, Order)
    require(0 <= alpha < math.inf, f"alpha={alpha}: expected a weight of 0 or more")
    require(batch_size is None or batch_size >= 2, f"batch_size={batch_size}: expected at least 2")
    initial = radius_init
    if initial is None:
        initial = DEFAULT_RATIO if radius == "ratio" else DEFAULT_RADIUS
    check_radius_options(radius, initial=initial, learning_rate=radius_lr, bound=radius_bound, max_ratio=max_ratio)
    names = ["t2a"] if sides == "uni" else ["both"] if radius_shared else ["t2a", "a2t"]
    return SupportVectorRegularization(
        make_base(
            base,
            temperature=temperature,
            tau=tau,
            bias_init=bias_init,
            targets=targets,
            ot_share=ot_share,
            ot_eps=ot_eps,
            schedule=schedule,
        ),
        {
            name: make_radius_model(radius, initial=initial, bound=radius_bound, batch_size=batch_size, order=radius_input)
            for name in names
        },
        SvrSettings(
            sides=sides,
            alpha=alpha,
            beta=_resolve_beta(beta, radius, radius_bound, constrain_static),
            radius_lr=radius_lr,
            bound=radius_bound,
            max_ratio=1.0 if max_ratio is None else max_ratio,
            normalize_support=normalize_support,
            detach_pull_target=detach_pull_target,
        ),
    )


@dataclass(frozen=True, slots=True)
class SvrSettings:
    """How the support-vector term is formed and weighed; fields as in ``build``. ``beta`` None: there is no penalty."""

    sides: Sides
    alpha: float
    beta: float | None
    radius_lr: float | None
    bound: Bound
    max_ratio: float
    normalize_support: bool
    detach_pull_target: bool


@dataclass(frozen=True, slots=True)
class SupportTerm:
    """One direction of SVR: its loss (scalar), the R and D that it used [B], and its radius penalty (scalar)."""

    loss: Tensor
    radius: Tensor
    distance: Tensor
    penalty: Tensor | None


class SupportVectorRegularization(nn.Module):
    """Base loss plus the same loss with anchors that have been moved a semantic radius R towards their targets.

    Text side: ``u_i = (a_i - t_i) / D_i``, support vector ``t_i + R_i u_i``, and ``L_svr,t2a`` is the base loss of one
    direction with support vectors in place of texts, everything else alike. Audio side: the mirror image. Then
    ``L = L_base + alpha (L_svr,t2a + L_svr,a2t) / 2 + beta L_cons``; the one-sided form drops ``L_svr,a2t``.

    With the embeddings of the candidates held fixed, the gradient on text i through its support vector is that on the
    support vector, with the part across ``u_i`` scaled by ``1 - R_i / D_i``. The base loss keeps its own push: SVR adds
    a term in which less of the push goes sideways, it takes nothing away from the base (docs/objectives.md).

    Reference: SupCLAP, ICLR 2026, arXiv 2509.21033. Deviation: sums over the two directions are means, so that alpha
    keeps its meaning beside a base that is a mean. What we found in no source is an option of ``build``.

    Args:
        base: loss and options of the base.
        radius_models: one model under ``both``, or one each under ``t2a`` and ``a2t``.
        settings: form and weights of the support-vector term.
    """

    def __init__(self, base: InfoNCE | SigLIP, radius_models: dict[str, nn.Module], settings: SvrSettings) -> None:
        super().__init__()
        self.base = base
        self.radius = nn.ModuleDict(radius_models)
        self.settings = settings

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        weights: Tensor | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``.

        ``weights`` [B] say how much each pair counts, its support vectors included; the penalty on the radius has none.

        Raises:
            ShapeError: if the shapes differ, B < 2, B is not the batch size of the adaptive radius, or too large for the
                targets of the base.
        """
        check_batch(audio, text, positives, index)
        with full_precision(audio, text) as (audio, text):
            scale = self.base.temperature.scale(index, progress, dtype=text.dtype)
            if needs_blocks(text):
                similarity = plan = None
                total, terms = self.base.both_in_blocks(text, audio, positives, scale, weights)
                stats = self.base.pair_stats(pair_cosines(audio, text), index, progress)
            else:
                similarity = cosine(text, audio)  # [B, B], rows are texts
                plan = self.base.plan(similarity)
                total, terms = self.base.both_directions(similarity, positives, scale, weights, plan)
                stats = self.base.stats(similarity, index, progress)
            if self.settings.alpha > 0:
                support = {"t2a": self._support_term("t2a", text, audio, similarity, positives, scale, weights, plan)}
                if self.settings.sides == "bi":
                    turned, plan = (None if matrix is None else matrix.T for matrix in (similarity, plan))
                    support["a2t"] = self._support_term("a2t", audio, text, turned, positives.T, scale, weights, plan)
                total = total + self.settings.alpha * sum(term.loss for term in support.values()) / 2
                terms |= {f"support_{side}": term.loss for side, term in support.items()}
                penalties = [term.penalty for term in support.values() if term.penalty is not None]
                if self.settings.beta is not None:
                    terms["radius_penalty"] = torch.stack(penalties).mean()
                    total = total + self.settings.beta * terms["radius_penalty"]
                stats |= self._radius_stats(support)
            return loss_output(total, terms, stats)

    def _support_term(
        self,
        side: str,
        anchors: Tensor,
        targets: Tensor,
        similarity: Tensor | None,
        positives: Tensor,
        scale: Tensor | float,
        weights: Tensor | None = None,
        plan: Tensor | None = None,
    ) -> SupportTerm:
        """Form one direction; ``anchors`` [B, D], ``similarity``, ``positives`` and ``plan`` [B, B] with anchors in rows.

        Without ``similarity``, the rows are taken in blocks, each of which is computed again in the backward pass. A support
        vector has the temperature, the weight and the targets of its anchor.
        """
        if similarity is not None:
            return self._support_rows(side, anchors, targets, similarity, positives, scale, weights, plan)
        parts = []
        for rows in blocks_of(anchors.shape[0]):

            def block(
                some: Tensor, candidates: Tensor, factor: Tensor | float, rows: slice = rows
            ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
                candidates = rolled(candidates, rows, dim=0)
                marked = rolled(positives[rows], rows, dim=1)  # [R, B]
                cosines = cosine(some.detach(), candidates.detach())  # [R, B], for the radius alone
                weighing = None if weights is None else weights[rows]
                term = self._support_rows(side, some, candidates, cosines, marked, factor, weighing, None)
                return term.loss, term.radius, term.distance, term.penalty

            parts.append(SupportTerm(*computed_twice(block, anchors[rows], targets, rows_of(scale, rows))))
        shares = [part.radius.shape[0] / anchors.shape[0] for part in parts]
        penalties = [share * part.penalty for share, part in zip(shares, parts, strict=True) if part.penalty is not None]
        return SupportTerm(
            torch.stack([share * part.loss for share, part in zip(shares, parts, strict=True)]).sum(),
            torch.cat([part.radius for part in parts]),
            torch.cat([part.distance for part in parts]),
            torch.stack(penalties).sum() if penalties else None,
        )

    def _support_rows(
        self,
        side: str,
        anchors: Tensor,
        targets: Tensor,
        similarity: Tensor,
        positives: Tensor,
        scale: Tensor | float,
        weights: Tensor | None,
        plan: Tensor | None,
    ) -> SupportTerm:
        """One direction of R anchors [R, D] whose partners come first among the targets [B, D]."""
        own = targets[: anchors.shape[0]]  # [R, D]
        pull_targets = own.detach() if self.settings.detach_pull_target else own
        distance = smooth_norm(pull_targets - anchors)  # [B]; not from cosines, which lose close pairs
        radius, penalty = self._radius(side, similarity.detach(), positives, distance.detach())  # [B], scalar
        support = support_vectors(anchors, pull_targets, radius / distance, normalize=self.settings.normalize_support)  # [B, D]
        loss = self.base.one_direction(cosine(support, targets), positives, scale, weights, plan)
        return SupportTerm(loss, radius.detach(), distance.detach(), penalty)

    def _radius(self, side: str, similarity: Tensor, positives: Tensor, distance: Tensor) -> tuple[Tensor, Tensor | None]:
        """R within its bound, and the penalty on R before it is cut; nothing here leads back to the embeddings."""
        model = self.radius["both" if "both" in self.radius else side]
        radius: Tensor = model(similarity, positives, distance).to(distance.dtype)
        penalty = None if self.settings.beta is None else radius_penalty(radius, distance)
        if self.settings.bound == "hard":
            radius = hard_bound(radius, distance)
        elif self.settings.bound == "clamp":
            radius = clamp_ratio(radius, distance, max_ratio=self.settings.max_ratio)
        return radius, penalty

    @torch.no_grad()
    def _radius_stats(self, support: dict[str, SupportTerm]) -> dict[str, Tensor | float]:
        radius = torch.cat([term.radius for term in support.values()])
        distance = torch.cat([term.distance for term in support.values()])
        ratio = radius / distance
        stats: dict[str, Tensor | float] = {
            "mean_distance": distance.mean(),
            "mean_radius": radius.mean(),
            "mean_rho": ratio.mean(),
            "share_rho_above_1": (ratio > 1).to(ratio.dtype).mean(),
            "share_rho_below_0": (ratio < 0).to(ratio.dtype).mean(),
        }
        if "both" not in self.radius and len(support) == 2:
            stats |= {f"mean_radius_{side}": term.radius.mean() for side, term in support.items()}
        return stats

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says.

        Raises:
            ConfigError: if the adaptive radius does not know its batch size yet.
        """
        if any(isinstance(model, AdaptiveRadius) and model.predictor is None for model in self.radius.values()):
            raise ConfigError("svr: the adaptive radius has no parameters before its first batch; pass batch_size=B")
        groups = self.base.param_groups(lr, weight_decay)
        parameters = list(self.radius.parameters())
        if parameters:
            radius_lr = lr if self.settings.radius_lr is None else self.settings.radius_lr
            groups.append(undecayed_group("radius", parameters, radius_lr))
        return groups

    def after_step(self) -> None:
        """Keep the scale of the base in its range."""
        self.base.after_step()


def _resolve_beta(beta: float | None, radius: RadiusKind, bound: Bound, constrain_static: bool) -> float | None:
    """The weight of the penalty, or None where the penalty does not exist."""
    require(not constrain_static or radius == "static", f"constrain_static=true: radius={radius} is not static")
    penalised = radius == "adaptive" or constrain_static
    if penalised and bound != "hard":
        beta = DEFAULT_BETA if beta is None else beta
        require(0 <= beta < math.inf, f"beta={beta}: expected a weight of 0 or more")
        return beta
    require(not constrain_static, "constrain_static=true: radius_bound=hard never leaves [0, D]; nothing to penalise")
    remedy = "; set constrain_static=true" if radius == "static" and bound != "hard" else "; leave it out"
    require(beta is None, f"beta={beta}: radius={radius} with radius_bound={bound} has no penalty to weigh{remedy}")
    return None


def make_base(
    base: Base,
    *,
    temperature: TemperatureKind,
    tau: float | None,
    bias_init: Literal["auto"] | float,
    targets: SoftmaxPolicy,
    ot_share: float | None,
    ot_eps: float | None,
    schedule: nn.Module | None,
) -> InfoNCE | SigLIP:
    """The loss that ``svr`` and ``reweighted`` wrap; the arguments are those of ``build``.

    Raises:
        ConfigError: if an option has no meaning for the base or is out of its range.
    """
    if base == "siglip":
        require(
            schedule is None,
            "schedule: base=siglip has one scale and one bias for all pairs, which no anchor has for itself; use base=infonce",
        )
        require_choice("targets", targets, SoftmaxPolicy)
        if targets == "ot":
            raise ConfigError("targets=ot: base=siglip has no target to be moved from one clip to another; use base=infonce")
        make_rectification(targets, ot_share, ot_eps)
        return siglip.build(temperature=temperature, tau=0.1 if tau is None else tau, bias_init=bias_init, targets=targets)
    require(bias_init == "auto", f"bias_init={bias_init}: base=infonce has no bias; leave it out")
    return infonce.build(temperature=temperature, tau=tau, targets=targets, ot_share=ot_share, ot_eps=ot_eps, schedule=schedule)
