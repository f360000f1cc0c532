"""The batch of all processes: their parts put together for the loss, and its gradients taken apart and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from clapkit.training.distributed import Processes
from clapkit.training.grad_cache import Encoding
from clapkit.types import Batch, Context


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """The pairs of all processes, on the device of this one; objectives see them as one batch.

    Attributes:
        audio: leaf [C, D], one row a clip; [C, W, D] where windows are kept apart.
        text: leaf [B, D].
        variants: leaf [B, V, D], or None.
        audio_row: int64 [B], the row of ``audio`` that each pair hears.
        positives: bool [B, B].
        index: int64 [B].
        language: int64 [B], or None.
        variant_truth: int8 [B, V], or None.
        sentence_keys: int64 [B, 1 + V], or None.
        true_keys: int64 [B, K], or None.
        is_window: bool [C, W], or None.
    """

    audio: Tensor
    text: Tensor
    variants: Tensor | None
    audio_row: Tensor
    positives: Tensor
    index: Tensor
    language: Tensor | None
    variant_truth: Tensor | None
    sentence_keys: Tensor | None
    true_keys: Tensor | None
    is_window: Tensor | None

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Audio, text and variants, which get gradients."""
        return self.audio, self.text, self.variants

    def pairs(self, *, are_features: bool) -> tuple[Tensor, Tensor, Context]:
        """Unit-norm embeddings of the pairs [B, D] each, and what else is known of them, but for the teacher.

        Args:
            are_features: whether the leaves are not of unit norm yet.
        """
        audio, text, variants = self.audio[self.audio_row], self.text, self.variants
        context = Context(
            language=self.language,
            variants=variants,
            variant_truth=self.variant_truth,
            sentence_keys=self.sentence_keys,
            true_keys=self.true_keys,
        )
        if are_features:
            context = replace(context, audio_features=audio, text_features=text)
            audio, text = _unit_norm(audio), _unit_norm(text)
            if variants is not None:
                context = replace(context, variants=_unit_norm(variants))
        if audio.ndim == 3:
            assert self.is_window is not None, "windows that are kept apart are counted"
            context = replace(context, windows=audio, is_window=self.is_window[self.audio_row])
            audio = normalize(audio.sum(dim=1), dim=1)  # windows that are not there are 0
        return audio, text, context


def _unit_norm(features: Tensor) -> Tensor:
    """Features [..., D] brought to unit norm, in float32 or better."""
    return normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


def gather_batch(batch: Batch, own: Encoding, *, processes: Processes) -> WholeBatch:
    """Put the parts of all processes together.

    Args:
        batch: the part of this process.
        own: its embeddings, [C / size, D] and [B / size, D], without a graph.
        processes: to gather from.

    Raises:
        ShapeError: if the parts are not equally large.
    """
    device = own.audio.device
    is_window = None
    if own.audio.ndim == 3:
        is_window = processes.gather((batch.num_samples > 0).to(torch.int64)).bool().to(device)
    rows = _all_rows(batch, processes=processes)
    keys = replace(batch, text_keys=rows.text_keys.to(device), clip_keys=rows.clip_keys.to(device))
    return WholeBatch(
        audio=processes.gather(own.audio).requires_grad_(),
        text=processes.gather(own.text).requires_grad_(),
        variants=None if own.variants is None else processes.gather(own.variants).requires_grad_(),
        audio_row=rows.audio_row.to(device),
        positives=keys.positives(),
        index=rows.index.to(device),
        language=None if rows.language is None else rows.language.to(device),
        variant_truth=None if rows.variant_truth is None else rows.variant_truth.to(device),
        sentence_keys=None if rows.sentence_keys is None else rows.sentence_keys.to(device),
        true_keys=None if rows.true_keys is None else rows.true_keys.to(device),
        is_window=is_window,
    )


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of the pairs without their embeddings; integers, one row a pair."""

    index: Tensor
    audio_row: Tensor
    text_keys: Tensor
    clip_keys: Tensor
    language: Tensor | None
    variant_truth: Tensor | None
    sentence_keys: Tensor | None
    true_keys: Tensor | None


def _all_rows(batch: Batch, *, processes: Processes) -> _Rows:
    """Those of all processes."""
    language = torch.tensor([language_code(tag) for tag in batch.languages]) if batch.languages else None
    own = _Rows(
        batch.index,
        batch.audio_row,
        batch.text_keys,
        batch.clip_keys,
        language,
        batch.variant_truth,
        batch.sentence_keys,
        batch.true_keys,
    )
    if processes.size == 1:
        return own
    true_width = 0 if own.true_keys is None else own.true_keys.shape[1]
    widths = [batch.text_keys.shape[1], batch.clip_keys.shape[1], true_width]
    text_width, clip_width, all_true_width = processes.gather(torch.tensor([widths])).amax(dim=0).tolist()
    columns = [
        own.index[:, None],
        own.audio_row[:, None] + processes.rank * len(batch.waveform),
        pad(own.text_keys, (0, text_width - widths[0])),
        pad(own.clip_keys, (0, clip_width - widths[1])),
        *([] if language is None else [language[:, None]]),
        *([] if own.variant_truth is None else [own.variant_truth.to(torch.int64)]),
        *([] if own.sentence_keys is None else [own.sentence_keys]),
        *([] if own.true_keys is None else [pad(own.true_keys, (0, all_true_width - true_width))]),
    ]
    table = processes.gather(torch.cat(columns, dim=1))  # one exchange instead of eight
    index, audio_row, text_keys, clip_keys, *rest = torch.split(table, [column.shape[1] for column in columns], dim=1)
    return _Rows(
        index.squeeze(1),
        audio_row.squeeze(1),
        text_keys,
        clip_keys,
        None if language is None else rest.pop(0).squeeze(1),
        None if own.variant_truth is None else rest.pop(0).to(torch.int8),
        None if own.sentence_keys is None else rest.pop(0),
        None if own.true_keys is None else rest.pop(0),
    )


def language_code(tag: str) -> int:
    """A number for a language tag, the same on all machines; its letters, read as a number."""
    return int.from_bytes(tag.encode()[:_MOST_LETTERS], "big")


_MOST_LETTERS = 7  # that fit into int64


def gradient_of_own_rows(leaf: Tensor | None, *, processes: Processes) -> Tensor | None:
    """The share of this process of the gradient of a gathered leaf; None if there is none, or nothing depends on it."""
    return None if leaf is None or leaf.grad is None else leaf.grad.chunk(processes.size)[processes.rank]


def sum_gradients(parameters: Sequence[Tensor], *, processes: Processes) -> None:
    """Add up the gradients of parameters that each process has used for its own part of the batch."""
    if processes.size == 1:
        return
    # A layer may be dropped on one process only; one that none has used keeps no gradient, as without other processes.
    uses = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int64)
    processes.sum_([uses])
    used = [parameter for parameter, count in zip(parameters, uses.tolist(), strict=True) if count]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    processes.sum_([parameter.grad for parameter in used if parameter.grad is not None])
