"""The two ends that all objectives share: checking and upcasting what comes in, handing over numbers.

Besides ``forward``, an objective offers the training loop ``param_groups(lr, weight_decay)``, its learnable scalars and
networks as optimiser groups, and ``after_step()``, which pulls them back into their range after every optimiser step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from clapkit.errors import ConfigError, ShapeError
from clapkit.types import Context, ContextNeed, LossOutput

ParamGroup = dict[str, Any]
"""One optimiser group: ``params``, ``lr``, ``weight_decay`` and a ``name`` for the log."""


def require(condition: bool, message: str) -> None:
    """Refuse an option.

    Raises:
        ConfigError: with ``message``, unless ``condition`` holds.
    """
    if not condition:
        raise ConfigError(message)


def require_choice(option: str, value: str, choices: object) -> None:
    """Refuse a value that is not one of a ``Literal``'s.

    Raises:
        ConfigError: naming the option and the values that it can have.
    """
    known = get_args(choices)
    require(value in known, f"{option}={value}: expected one of {', '.join(known)}")


def undecayed_group(name: str, params: list[torch.nn.Parameter], lr: float) -> ParamGroup:
    """An optimiser group without weight decay, which would drag a scale, bias or radius towards 0 for no reason."""
    return {"name": name, "params": params, "lr": lr, "weight_decay": 0.0}


def check_batch(audio: Tensor, text: Tensor, positives: Tensor, index: Tensor) -> None:
    """Check that the arguments of an objective describe one batch of B >= 2 pairs.

    Raises:
        ShapeError: if they do not; a single pair has nothing to be contrasted with.
    """
    if audio.ndim != 2 or audio.shape != text.shape:
        raise ShapeError(f"audio is {list(audio.shape)} and text {list(text.shape)}; expected the same [B, D] twice")
    batch_size = audio.shape[0]
    if batch_size < 2:
        raise ShapeError(f"a batch of {batch_size} pairs has no negatives; expected at least 2 pairs")
    if positives.shape != (batch_size, batch_size) or positives.dtype != torch.bool:
        found = f"{positives.dtype} {list(positives.shape)}"
        raise ShapeError(f"positives is {found}; expected torch.bool [{batch_size}, {batch_size}]")
    if index.shape != (batch_size,):
        raise ShapeError(f"index is {list(index.shape)}; expected [{batch_size}]")


@contextmanager
def full_precision(audio: Tensor, text: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Switch autocast off and give both embeddings in float32 (in float64 if one of them already is).

    A chord distance of close pairs, taken in bfloat16, is wrong by 8 % at cosine 0.99 and 0 at 0.999.
    """
    dtype = torch.promote_types(torch.promote_types(audio.dtype, text.dtype), torch.float32)
    with torch.autocast(device_type=audio.device.type, enabled=False):
        yield audio.to(dtype), text.to(dtype)


def loss_output(total: Tensor, terms: Mapping[str, Tensor], stats: Mapping[str, Tensor | float]) -> LossOutput:
    """Bundle a loss with its numbers; all tensors are read in one transfer, because each one stalls a GPU.

    Args:
        total: the scalar to minimise.
        terms: name -> unweighted scalar.
        stats: name -> scalar that says what the objective is doing.
    """
    scalars = [*terms.values(), *stats.values()]
    tensors = [value.detach().to(total.dtype) for value in scalars if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist())
    numbers = [next(read) if isinstance(value, Tensor) else value for value in scalars]
    return LossOutput(
        total=total,
        terms=dict(zip(terms, numbers[: len(terms)], strict=True)),
        stats=dict(zip(stats, numbers[len(terms) :], strict=True)),
    )


def needs_of(objective: nn.Module) -> frozenset[ContextNeed]:
    """What an objective, with all that it is made of, has to know beside the embeddings of the pairs."""
    return frozenset().union(*(getattr(module, "needs", ()) for module in objective.modules()))


def score(
    objective: nn.Module,
    audio: Tensor,
    text: Tensor,
    positives: Tensor,
    index: Tensor,
    progress: float,
    context: Context | None = None,
) -> LossOutput:
    """Score a batch with any objective, which is told of ``context`` if it, or a part of it, needs that.

    Raises:
        ShapeError: if it needs what ``context`` does not hold, or the batch is none.
    """
    wanted = needs_of(objective)
    if not wanted:
        output: LossOutput = objective(audio, text, positives, index, progress)
        return output
    context = Context() if context is None else context
    missing = sorted(need for need in wanted if _part(context, need) is None)
    if missing:
        raise ShapeError(f"{type(objective).__name__}: the batch brings no {', '.join(missing)}, which this objective needs")
    output = objective(audio, text, positives, index, progress, context=context)
    return output


def _part(context: Context, need: ContextNeed) -> Tensor | None:
    fields = {"teacher": "teacher_audio", "features": "audio_features"}
    part: Tensor | None = getattr(context, fields.get(need, need))
    return part
