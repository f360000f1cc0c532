"""ALBEF's contrast: candidates and soft targets come from a slow mean of the encoder, and a queue brings more of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clapkit.errors import ConfigError, ShapeError
from clapkit.objectives.contract import ParamGroup, check_batch, full_precision, loss_output, require
from clapkit.objectives.infonce import DEFAULT_TAU
from clapkit.objectives.row_blocks import MOST_ROWS, computed_twice, pair_cosines, rows_of
from clapkit.objectives.similarity import cosine
from clapkit.objectives.targets import no_negatives
from clapkit.objectives.temperature import Temperature, TemperatureKind, make_temperature
from clapkit.types import Context, ContextNeed, LossOutput

DEFAULT_MOMENTUM = 0.995
DEFAULT_DISTILL = 0.4
DEFAULT_RAMP = 0.05
"""The first of 20 epochs, which is how long ``clapkit train`` trains unless told otherwise."""
EMPTY = -1
"""Training row of a place in the queue that nothing was written to yet."""


MOST_QUEUED = 2**20
"""Places of the queue: 4 GiB of embeddings with 512 numbers; the paper has a sixteenth of it."""


def build(
    *,
    momentum: float = DEFAULT_MOMENTUM,
    queue: int = 0,
    distill: float = DEFAULT_DISTILL,
    ramp: float = DEFAULT_RAMP,
    temperature: TemperatureKind = "learnable",
    tau: float | None = None,
    schedule: nn.Module | None = None,
    embedding_dim: int | None = None,
) -> ALBEF:
    """Make the objective.

    Args:
        momentum: share of the teacher's weights that is kept in every step; 1 is a teacher that stays as it was.
        queue: how many of the teacher's embeddings of earlier pairs are further candidates; 0 for none.
        distill: share of the teacher's answers in the targets, once it is reached.
        ramp: share of the training during which it grows from 0 to ``distill``.
        temperature: ``learnable`` (a log scale, kept between temperatures 0.01 and 1) or ``fixed``; of the teacher too.
        tau: the temperature, at the start where it is learned; 0.07.
        schedule: gives every anchor its temperature, instead of ``temperature`` and ``tau``.
        embedding_dim: width D of the embeddings, for the queue; from ``clapkit train``.

    Raises:
        ConfigError: if an option is out of its range, ``tau`` is given beside a schedule, or a queue has no width.
    """
    for name, value, example in (("momentum", momentum, DEFAULT_MOMENTUM), ("distill", distill, DEFAULT_DISTILL)):
        require(0 <= value <= 1, f"{name}={value}: expected a share from 0 to 1, for example {example}")
    require(0 <= ramp <= 1, f"ramp={ramp}: expected a share of the training from 0 to 1, for example {DEFAULT_RAMP}")
    require(queue >= 0, f"queue={queue}: expected a number of pairs, 0 for no queue")
    scale = make_temperature(temperature, tau, schedule, default=DEFAULT_TAU)
    require(queue <= MOST_QUEUED, f"queue={queue}: expected at most {MOST_QUEUED} pairs, which take gigabytes; pass fewer")
    if queue and embedding_dim is None:
        raise ConfigError(
            f"queue={queue}: the width of its embeddings is not known; clapkit train supplies embedding_dim, else pass it"
        )
    return ALBEF(scale, Queue(queue, embedding_dim or 0), momentum=momentum, distill=distill, ramp=ramp)


class ALBEF(nn.Module):
    """Cross-entropy of picking the partner among the teacher's embeddings, with targets that are partly the teacher's.

    The teacher follows the encoder, ``theta' <- m theta' + (1 - m) theta`` after every step. Candidates c' of text i are the
    teacher's clips a' of the batch and of the queue, and vice versa:
    ``L_t2a = -mean_i sum_j Y_ij log softmax_j(t_i.c'_j / tau)``, ``Y = (1 - a) U + a softmax_j(t'_i.c'_j / tau)``,
    ``L = (L_t2a + L_a2t) / 2``. U is even over the positives of a row: those of the batch, its own partner among them, and
    places of the queue with the same training row. a grows linearly from 0 to ``distill``. Targets have no gradient.

    With momentum 1, no queue and ``distill`` 0 this is InfoNCE against fixed candidates.

    The queue is written after a step, with the teacher's embeddings of all pairs of that step; the oldest make room. Places
    that were never written to are in no softmax.

    Reference: Li et al., Align before fuse: vision and language representation learning with momentum distillation, 2021,
    arXiv 2107.07651. Deviations: the contrast alone, without fusion encoder, matching and masked words; a temperature kept in
    [0.01, 1]; no queue unless asked for, of any size; a ramp in shares of the training. The queue knows training rows and not
    captions: an equal caption of another clip is a positive in the batch and a negative in the queue.

    Args:
        temperature: scales the similarities, also those of the teacher.
        queue: of the teacher's embeddings.
        momentum: m.
        distill: a, once it is reached.
        ramp: share of the training until then.
    """

    needs: frozenset[ContextNeed] = frozenset({"teacher"})

    def __init__(self, temperature: Temperature, queue: Queue, *, momentum: float, distill: float, ramp: float) -> None:
        super().__init__()
        self.temperature, self.queue = temperature, queue
        self.teacher_momentum: float | None = momentum
        self.distill, self.ramp = distill, ramp
        self._noted: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        positives: Tensor,
        index: Tensor,
        progress: float,
        context: Context | None = None,
    ) -> LossOutput:
        """Score a batch; see ``clapkit.types.Objective``. ``context`` brings the teacher.

        Raises:
            ShapeError: if the shapes differ, B < 2, or D is not that of the queue.
        """
        check_batch(audio, text, positives, index)
        assert context is not None, "clapkit.objectives.contract.score checks what is needed"
        assert context.teacher_audio is not None
        assert context.teacher_text is not None
        with full_precision(audio, text) as (audio, text):
            known = Sides(context.teacher_audio.detach().to(audio.dtype), context.teacher_text.detach().to(text.dtype))
            self._noted.append((known.audio, known.text, index))
            share = self.share(progress)
            scale = self.temperature.scale(index, progress, dtype=text.dtype)
            more = self.queue.read(index, like=text)
            marked = no_negatives(positives)
            is_positive = torch.cat([marked, more.is_positive], dim=1)  # [B, B + Q]
            to_clips = torch.cat([known.audio, more.audio]), is_positive
            to_texts = torch.cat([known.text, more.text]), torch.cat([marked.T, more.is_positive], dim=1)
            text_to_audio = directed_loss(text, known.text, *to_clips, more.is_empty, scale, share=share)
            audio_to_text = directed_loss(audio, known.audio, *to_texts, more.is_empty, scale, share=share)
            stats = {
                **self.temperature.stats(index, progress),
                "positive_cosine": pair_cosines(audio, text).mean(),
                "teacher_positive_cosine": pair_cosines(known.audio, known.text).mean(),
                "teacher_share": share,
            }
            if self.queue.size:
                stats["queue_filled"] = (~more.is_empty).sum()
            terms = {"t2a": text_to_audio, "a2t": audio_to_text}
            return loss_output((text_to_audio + audio_to_text) / 2, terms, stats)

    def share(self, progress: float) -> float:
        """a, at a share of the training."""
        return self.distill * min(1.0, progress / self.ramp) if self.ramp else self.distill

    def param_groups(self, lr: float, weight_decay: float) -> list[ParamGroup]:
        """Optimiser groups; nothing here is decayed, whatever ``weight_decay`` says."""
        return self.temperature.param_groups(lr)

    @torch.no_grad()
    def after_step(self) -> None:
        """Keep the scale in its range, and queue what the teacher said of the batches since the last step."""
        self.temperature.after_step()
        noted, self._noted = self._noted, []
        for audio, text, index in noted:
            self.queue.write(audio, text, index)


@dataclass(frozen=True, slots=True)
class Sides:
    """Embeddings of pairs, [N, D] each."""

    audio: Tensor
    text: Tensor


@dataclass(frozen=True, slots=True)
class Queued:
    """What a queue holds for a batch.

    Attributes:
        audio: [Q, D].
        text: [Q, D].
        is_positive: bool [B, Q], whether a place holds the training row of a pair.
        is_empty: bool [Q], whether nothing was written there yet.
    """

    audio: Tensor
    text: Tensor
    is_positive: Tensor
    is_empty: Tensor


class Queue(nn.Module):
    """The embeddings that were written last; all of it is in the state dict.

    Args:
        size: Q, how many pairs it holds; may be 0.
        embedding_dim: D.
    """

    audio: Tensor
    text: Tensor
    row: Tensor
    pointer: Tensor

    def __init__(self, size: int, embedding_dim: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("audio", torch.zeros(size, embedding_dim))
        self.register_buffer("text", torch.zeros(size, embedding_dim))
        self.register_buffer("row", torch.full((size,), EMPTY))  # training rows; tells too what was filled
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))  # where the next pair goes

    def read(self, index: Tensor, *, like: Tensor) -> Queued:
        """What it holds, for pairs of the training rows ``index`` [B] with embeddings as wide as ``like`` [B, D].

        Raises:
            ShapeError: if they are not as wide as those that are queued.
        """
        width = like.shape[1]
        if not self.size:
            none = like.new_zeros((0, width))
            return Queued(none, none, index.new_zeros((len(index), 0), dtype=torch.bool), self.row == EMPTY)
        if width != self.audio.shape[1]:
            raise ShapeError(
                f"albef: embeddings have {width} numbers, those of its queue {self.audio.shape[1]}; pass embedding_dim={width}"
            )
        audio, text = self.audio.to(like.dtype), self.text.to(like.dtype)
        return Queued(audio, text, index[:, None] == self.row, self.row == EMPTY)

    def write(self, audio: Tensor, text: Tensor, index: Tensor) -> None:
        """Write pairs, [B, D] each, of the training rows ``index`` [B] over the oldest ones."""
        if not self.size:
            return
        kept = slice(max(0, len(index) - self.size), None)  # of a batch larger than the queue the end stays
        count = len(index[kept])
        places = (self.pointer + torch.arange(count, device=self.pointer.device)) % self.size
        for buffer, rows in ((self.audio, audio), (self.text, text), (self.row, index)):
            buffer[places] = rows[kept].to(buffer.dtype)
        self.pointer.copy_((self.pointer + count) % self.size)


def directed_loss(
    anchors: Tensor,
    known: Tensor,
    candidates: Tensor,
    is_positive: Tensor,
    is_empty: Tensor,
    scale: Tensor | float,
    *,
    share: float,
) -> Tensor:
    """One direction, the mean over its rows.

    Args:
        anchors: of the student [B, D].
        known: the same of the teacher [B, D].
        candidates: of the teacher, the batch before the queue [B + Q, D].
        is_positive: bool [B, B + Q], at least one in a row.
        is_empty: bool [Q], places of the queue that hold nothing.
        scale: 1 / tau, a scalar or [B, 1].
        share: of the teacher's answers in the targets.

    Returns:
        Scalar, nats. Large batches are scored in blocks of rows, each of which is computed again in the backward pass.
    """
    left_out = torch.cat([is_empty.new_zeros(len(candidates) - len(is_empty)), is_empty])  # [B + Q]
    blocks = row_blocks(len(anchors), len(candidates))
    total = anchors.new_zeros(())
    for rows in blocks:

        def block(some: Tensor, factor: Tensor | float, rows: slice = rows) -> Tensor:
            return row_losses(some, known[rows], candidates, is_positive[rows], left_out, factor, share=share).sum()

        given = anchors[rows], rows_of(scale, rows)
        total = total + (block(*given) if len(blocks) == 1 else computed_twice(block, *given))
    return total / len(anchors)


def row_blocks(num_rows: int, num_candidates: int) -> list[slice]:
    """Blocks of rows whose matrices are no larger than those of a batch that is taken at once."""
    count = -(-num_rows // max(1, MOST_ROWS**2 // num_candidates))
    return [slice(num_rows * k // count, num_rows * (k + 1) // count) for k in range(count)]


def row_losses(
    anchors: Tensor,
    known: Tensor,
    candidates: Tensor,
    is_positive: Tensor,
    left_out: Tensor,
    scale: Tensor | float,
    *,
    share: float,
) -> Tensor:
    """Cross-entropies of some rows, [R]; arguments as those of ``directed_loss``, ``left_out`` bool [B + Q]."""
    cosines = cosine(anchors, candidates)  # [R, B + Q]
    targets = is_positive.to(cosines.dtype)
    targets = targets / targets.sum(dim=1, keepdim=True)
    if share > 0:
        with torch.no_grad():
            # Minus infinity before the softmax, and so no target where there is nothing.
            answers = (scale * cosine(known, candidates)).masked_fill(left_out, -math.inf).softmax(dim=1)
        targets = torch.lerp(targets, answers, share)
    logits = scale * cosines
    wanted = (targets * logits).sum(dim=1)
    losses: Tensor = logits.masked_fill(left_out, -math.inf).logsumexp(dim=1) - wanted
    return losses
