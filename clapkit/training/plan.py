"""How long a training goes on and what happens on the way, and where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train and what to do on the way.

    Attributes:
        total_steps: optimiser steps.
        warmup_steps: steps of linear warm-up.
        schedule: learning rate behind the warm-up.
        clip_grad: largest gradient norm; 0 is no limit.
        precision: autocast of the encoders.
        eval_every: steps between validations; the last step is always validated.
        save_every: steps between checkpoints, besides those at validations; None for no others.
        log_every: steps between lines of the log.
        keep_best: validation metric that selects the best weights.
        lower_is_better: whether that metric is a rank.
        patience: stop after so many validations without a better metric.
        diagnostics_every: steps between measurements of drift, besides that of the first step; None for none.
        accum_steps: batches, each with its own negatives, whose mean gradient makes one step.
        grad_cache_chunk: pairs, and clips, that a process encodes at a time; None for all.
    """

    total_steps: int
    warmup_steps: int
    schedule: Literal["cosine", "constant"]
    clip_grad: float
    precision: Literal["fp32", "bf16", "fp16"]
    eval_every: int
    save_every: int | None
    log_every: int
    keep_best: str
    lower_is_better: bool
    patience: int | None
    diagnostics_every: int | None = None
    accum_steps: int = 1
    grad_cache_chunk: int | None = None


@dataclass(slots=True)
class Progress:
    """Where a run stands; saved in every checkpoint.

    ``captions_cut`` and ``captions_split`` say how often training captions were too long for the text tower, cut or read in
    parts. They are those of this process, but for a checkpoint, which holds those of all.
    """

    step: int = 0
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    validations_without_better: int = 0
    train_seconds: float = 0.0
    captions_cut: int = 0
    captions_split: int = 0
