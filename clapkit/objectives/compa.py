"""CompA: captions that are nearly right as negatives of their own clip, and the parts of a caption as further positives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from clapkit.errors import ShapeError
from clapkit.objectives import infonce
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.infonce import InfoNCE
from clapkit.objectives.pair_weights import WEIGHABLE, WEIGHABLE_NAMES
from clapkit.objectives.row_blocks import blocks_of, computed_twice, mean_over_rows, needs_blocks, rolled, rows_of
from clapkit.objectives.siglip import SigLIP
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import further_positives
from clapkit.objectives.temperature import Temperature
from clapkit.types import Context, ContextNeed, LossOutput


def build(*, wrapped: nn.Module | None = None, hard_weight: float = 1.0) -> CompA:
    """Make the objective.

    Args:
        wrapped: the loss that is added to, ``infonce``, ``siglip``, ``svr`` or ``reweighted``; ``infonce`` unless given.
            ``clapkit train`` makes it for ``--base``.
        hard_weight: how much false variants count; 0 measures them only.

    Raises:
        ConfigError: if an option is out of its range, or the loss cannot be added to.
    """
    require(0 <= hard_weight < math.inf, f"hard_weight={hard_weight}: expected a weight of 0 or more, for example 1")
    return CompA(wrapped, hard_weight)


@dataclass(frozen=True, slots=True)
class _Variants:
    """The variants of a batch.

    Attributes:
        scores: cosines with the own clip [B, V].
        is_true: bool [B, V].
        is_false: bool [B, V].
    """

    scores: Tensor
    is_true: Tensor
    is_false: Tensor

    @property
    def has_false(self) -> Tensor:
        """Whether a row has a false variant, bool [B]."""
        return self.is_false.any(dim=1)

    @property
    def share(self) -> Tensor:
        """What each of the K + 1 true sentences of a row counts, ``1 / (1 + K)``, [B]."""
        return (1 + self.is_true.sum(dim=1)).to(self.scores.dtype).reciprocal()


class CompA(nn.Module):
    """A loss in which every clip has also to be told from false variants of its own caption, and fits the parts of it.

    Row i has a caption, K_i variants p_ik that are true of its clip too and M_i variants h_im that are false; l, p, h are their
    logits with clip i, ``n_i = logsumexp_j l_ij`` the normaliser of the wrapped loss over the B captions. False variants are
    candidates of their own clip alone, in the direction from audio to text:

        ``L = L_wrapped + (1 / 2) mean_i hard_weight softplus(logsumexp_m h_im - n_i)``

    which for ``infonce`` and a weight of 1 is the cross-entropy over the B captions and the own M, as
    ``logsumexp(x, y) = x + softplus(y - x)``. With true variants, a->t averages the cross-entropies of the ``1 + K_i`` true
    sentences, whose normaliser then holds p_ik too, and t->a has each of them as an anchor for clip i among the B clips; a
    caption counts ``1 / (1 + K_i)`` in the wrapped loss, each variant as much. A sigmoid asks every pair on its own:
    ``siglip`` gets ``(1 / B) sum_i [sum_k softplus(-p_ik) + hard_weight sum_m softplus(h_im)]`` with logits that hold its bias.

    Of ``svr`` and ``reweighted`` variants enter the base alone: they have no support vectors, ``alpha`` does not weigh them.

    A sentence that is known to be true of another clip of the batch, one of its captions or of their true variants
    (``Context.true_keys``), is no negative of that clip, nor the clip of it: such a pair is a further positive, of which the
    wrapped loss makes what it makes of others. So "a dog barks", as a part or as a caption, pushes away no clip whose caption
    has that part. The reverse says nothing: the whole caption stays a negative of a clip that is only said to hold the part.

    Reference: Ghosh et al., CompA: addressing the gap in compositional reasoning in audio-language models, ICLR 2024, arXiv
    2310.08753, the contrastive losses with hard negatives and the modular one. Deviations: a row may have fewer variants than
    others; candidates that do not belong to a row never enter its sum, where the authors' code multiplies their logits by
    -100000; t->a counts each clip once, however many parts its caption has; what is true of several clips, and the sigmoid
    form, are ours.

    Args:
        wrapped: the loss; None for ``infonce``.
        hard_weight: of the false variants.

    Raises:
        ConfigError: if the loss cannot be added to.
    """

    needs: frozenset[ContextNeed] = frozenset({"variants"})

    def __init__(self, wrapped: nn.Module | None, hard_weight: float) -> None:
        super().__init__()
        wrapped = infonce.build() if wrapped is None else wrapped
        found, expected = type(wrapped).__name__, ", ".join(WEIGHABLE_NAMES)
        require(isinstance(wrapped, WEIGHABLE), f"wrapped={found}: no loss that compa adds to; expected one of {expected}")
        self.wrapped = wrapped
        self.hard_weight = hard_weight

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``context`` holds ``variants`` and ``variant_truth``.

        Where it holds ``sentence_keys`` and ``true_keys`` too, sentences that are true of other clips are no negatives of them.

        Raises:
            ShapeError: as the loss, or if there are no variants or their shapes do not fit the batch.
        """
        check_batch(audio, text, positives, index)
        embedded, truth = _checked(context, text)
        positives = positives | _true_of(context, 0, like=positives)  # not symmetric: caption i is true of clip j
        with full_precision(audio, text) as (clips, captions):
            # What is no variant is set to 0 before it is looked at: neither its value nor its gradient is then anything else.
            embedded = embedded.to(clips.dtype).masked_fill((truth == 0)[:, :, None], 0.0)  # [B, V, D]
            variants = _Variants((embedded @ clips[:, :, None]).squeeze(2), truth == 1, truth == -1)
            true_slots = [slot for slot, is_used in enumerate(variants.is_true.any(dim=0).tolist()) if is_used]
            scale = self.base.temperature.scale(index, progress, dtype=captions.dtype)
            if isinstance(self.base, SigLIP):
                weights = None
                added = self._logistic(self.base, variants, scale)
            else:
                weights = variants.share if true_slots else None
                added = self._softmax(self.base, clips, captions, positives, variants, scale)
                for slot in true_slots:
                    of_slot = variants.share * variants.is_true[:, slot]  # [B]
                    also_true = positives | _true_of(context, 1 + slot, like=positives)
                    anchored = self._anchored(self.base, embedded[:, slot], clips, captions, also_true, scale, of_slot)
                    added["parts"] = added["parts"] + anchored / 2
            output: LossOutput = self.wrapped(audio, text, positives, index, progress, weights)
            total = output.total + added["parts"] + self.hard_weight * added["hard"]
            own = loss_output(total, added, _stats(variants, (clips * captions).sum(dim=1)))
        if own.stats["false_share"] == 0:
            del own.stats["above_false"]  # of nothing
        return LossOutput(total=total, terms=output.terms | own.terms, stats=output.stats | own.stats)

    @property
    def base(self) -> InfoNCE | SigLIP:
        """The contrastive loss inside the wrapped one."""
        base = self.wrapped if isinstance(self.wrapped, (InfoNCE, SigLIP)) else self.wrapped.base
        assert isinstance(base, (InfoNCE, SigLIP))
        return base

    @property
    def temperature(self) -> Temperature:
        """That of the loss."""
        return self.base.temperature

    def _logistic(self, base: SigLIP, variants: _Variants, scale: Tensor | float) -> dict[str, Tensor]:
        """What the pairs of clip and variant add to a sigmoid loss."""
        logits = scale * variants.scores + base.offset(len(variants.scores))  # [B, V]
        hard = softplus(logits).masked_fill(~variants.is_false, 0.0).sum(dim=1).mean()
        parts = softplus(-logits).masked_fill(~variants.is_true, 0.0).sum(dim=1).mean()
        return {"hard": hard, "parts": parts}

    def _softmax(
        self, base: InfoNCE, audio: Tensor, text: Tensor, positives: Tensor, variants: _Variants, scale: Tensor | float
    ) -> dict[str, Tensor]:
        """What variants add from audio to text: as further candidates, and as those that are looked for."""
        logits = scale * variants.scores  # [B, V]
        captions = _log_normaliser(base, audio, text, positives, scale)  # [B]
        # A row without true variants keeps its very normaliser: the sum over candidates at minus infinity is 0.
        true_logits = logits.masked_fill(~variants.is_true, -math.inf)
        all_true = torch.cat([captions[:, None], true_logits], dim=1).logsumexp(dim=1)  # [B]
        found = ((captions[:, None] - logits) * variants.is_true).sum(dim=1)  # [B]
        parts = all_true - captions + variants.share * found
        # Rows without false variants have finite logits here too: a gradient behind a mask may be 0, not 0 times infinity.
        masked = ~variants.is_false & variants.has_false[:, None]
        ahead = logits.masked_fill(masked, -math.inf).logsumexp(dim=1) - all_true  # [B]
        hard = softplus(ahead).masked_fill(~variants.has_false, 0.0)  # [B]
        return {"hard": hard.mean() / 2, "parts": parts.mean() / 2}

    def _anchored(
        self,
        base: InfoNCE,
        anchors: Tensor,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        scale: Tensor | float,
        weights: Tensor,
    ) -> Tensor:
        """Mean cross-entropy, weighed with ``weights`` [B], of true variants [B, D] as anchors among the clips [B, D]."""
        if needs_blocks(anchors):
            return mean_over_rows(base.one_direction, anchors, audio, positives, scale, weights)
        # A part has the plan of its caption.
        plan = base.plan(cosine(text, audio))
        return base.one_direction(cosine(anchors, audio), positives, scale, weights, plan)

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups of the loss."""
        groups: list[ParamGroup] = self.wrapped.param_groups(lr, weight_decay)  # type: ignore[operator]
        return groups

    def after_step(self) -> None:
        """What the loss does after a step."""
        self.wrapped.after_step()  # type: ignore[operator]


def _checked(context: Context | None, text: Tensor) -> tuple[Tensor, Tensor]:
    """Variants [B, V, D] and their truth [B, V]."""
    variants, truth = (None, None) if context is None else (context.variants, context.variant_truth)
    if variants is None or truth is None:
        raise ShapeError("CompA: the batch brings no variants, which this objective needs; pass them in context")
    size, width = text.shape
    if variants.ndim != 3 or (len(variants), variants.shape[2]) != (size, width) or truth.shape != variants.shape[:2]:
        raise ShapeError(
            f"variants is {list(variants.shape)} and variant_truth {list(truth.shape)}; "
            f"expected [{size}, V, {width}] and [{size}, V]"
        )
    assert context is not None
    keys, true_keys = context.sentence_keys, context.true_keys
    if keys is not None and true_keys is not None:
        if keys.shape != (size, 1 + truth.shape[1]) or true_keys.ndim != 2 or len(true_keys) != size:
            raise ShapeError(
                f"sentence_keys is {list(keys.shape)} and true_keys {list(true_keys.shape)}; "
                f"expected [{size}, {1 + truth.shape[1]}] and [{size}, K]"
            )
    return variants, truth.to(variants.device)


def _true_of(context: Context | None, place: int, *, like: Tensor) -> Tensor:
    """Of which clips one sentence of each row is known to be true: bool [B, B], sentences in rows, as ``like``.

    Args:
        context: nothing is known where it has no keys.
        place: 0 for the captions, 1 for their first variants, and so on.
        like: on the device that is wanted.
    """
    if context is None or context.sentence_keys is None or context.true_keys is None:
        return torch.zeros_like(like)
    keys, true_keys = context.sentence_keys[:, place].to(like.device), context.true_keys.to(like.device).contiguous()
    # One row for each different sentence: a comparison of all pairs with every key would take ten times as long.
    sentences, which = torch.unique(keys, return_inverse=True)  # [S], [B]
    found = torch.searchsorted(sentences, true_keys).clamp(max=len(sentences) - 1)  # [B, K]
    is_key = (sentences[found] == true_keys) & (true_keys != 0)
    table = like.new_zeros(len(sentences) + 1, len(true_keys))  # the last row takes what no sentence of the batch is
    table[found.where(is_key, len(sentences)), torch.arange(len(true_keys), device=like.device)[:, None]] = True
    return table[which]


def _log_normaliser(base: InfoNCE, audio: Tensor, text: Tensor, positives: Tensor, scale: Tensor | float) -> Tensor:
    """``logsumexp_j l_ij`` of the direction from audio to text [B], over the captions that the loss has in its sum."""
    normalisers = []
    for rows in blocks_of(len(audio)) if needs_blocks(audio) else [slice(0, len(audio))]:

        def block(some: Tensor, candidates: Tensor, factor: Tensor | float, rows: slice = rows) -> Tensor:
            logits = factor * cosine(some, rolled(candidates, rows, dim=0))  # [R, B]
            if base.targets == "ignore":
                logits = logits.masked_fill(further_positives(rolled(positives.T[rows], rows, dim=1)), -math.inf)
            return logits.logsumexp(dim=1)

        arguments = audio[rows], text, rows_of(scale, rows)
        normalisers.append(computed_twice(block, *arguments) if needs_blocks(audio) else block(*arguments))
    return torch.cat(normalisers)


@torch.no_grad()
def _stats(variants: _Variants, own: Tensor) -> dict[str, Tensor | float]:
    """Share of rows with a false variant, and how often the caption, cosine ``own`` [B], is above all of them."""
    has_false = variants.has_false
    is_above = (own[:, None] > variants.scores) | ~variants.is_false  # [B, V]
    wins = (is_above.all(dim=1) & has_false).sum()
    return {"false_share": has_false.to(own.dtype).mean(), "above_false": wins / has_false.sum().clamp(min=1)}
