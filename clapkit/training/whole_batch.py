"""The batch of all processes: their parts put together for the loss, and its gradients taken apart and put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from clapkit.training.distributed import Processes
from clapkit.types import Batch


@dataclass(frozen=True, slots=True)
class WholeBatch:
    """The pairs of all processes, on the device of this one; objectives see them as one batch.

    Attributes:
        audio: leaf [C, D], one row a clip.
        text: leaf [B, D].
        audio_row: int64 [B], the row of ``audio`` that each pair hears.
        positives: bool [B, B].
        index: int64 [B].
    """

    audio: Tensor
    text: Tensor
    audio_row: Tensor
    positives: Tensor
    index: Tensor


def gather_batch(batch: Batch, audio: Tensor, text: Tensor, *, processes: Processes) -> WholeBatch:
    """Put the parts of all processes together.

    Args:
        batch: the part of this process.
        audio: its embeddings [C / size, D], without a graph.
        text: likewise [B / size, D].
        processes: to gather from.

    Raises:
        ShapeError: if the parts are not equally large.
    """
    batch = _with_all_rows(batch, processes=processes)
    on_device = replace(batch, text_keys=batch.text_keys.to(text.device), clip_keys=batch.clip_keys.to(text.device))
    return WholeBatch(
        processes.gather(audio).requires_grad_(),
        processes.gather(text).requires_grad_(),
        batch.audio_row.to(audio.device),
        on_device.positives(),
        batch.index.to(audio.device),
    )


def _with_all_rows(batch: Batch, *, processes: Processes) -> Batch:
    """The batch with the rows and keys of all processes; the rest is that of this one."""
    if processes.size == 1:
        return batch
    widths = [batch.text_keys.shape[1], batch.clip_keys.shape[1]]
    text_width, clip_width = processes.gather(torch.tensor([widths])).amax(dim=0).tolist()
    columns = [
        batch.index[:, None],
        batch.audio_row[:, None] + processes.rank * len(batch.waveform),
        pad(batch.text_keys, (0, text_width - widths[0])),
        pad(batch.clip_keys, (0, clip_width - widths[1])),
    ]
    table = processes.gather(torch.cat(columns, dim=1))  # [B, 2 + J + K], one exchange instead of four
    index, audio_row, text_keys, clip_keys = torch.split(table, [1, 1, text_width, clip_width], dim=1)
    return replace(batch, index=index.squeeze(1), audio_row=audio_row.squeeze(1), text_keys=text_keys, clip_keys=clip_keys)


def gradient_of_own_rows(leaf: Tensor, *, processes: Processes) -> Tensor | None:
    """The share of this process of the gradient of a gathered leaf; None if nothing depends on it."""
    return None if leaf.grad is None else leaf.grad.chunk(processes.size)[processes.rank]


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
