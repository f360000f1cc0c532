"""The training loop: batch, loss, step, log, validate, save, in the order in which they happen."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from clapkit.errors import NumericalError
from clapkit.training import checkpoint
from clapkit.training.diagnostics import Diagnostics
from clapkit.training.optimizer import learning_rate_factor, set_learning_rate
from clapkit.types import Batch, LossOutput, Tracker

Validate = Callable[[], dict[str, float]]
Log = Callable[[Mapping[str, Any]], None]


class Encoder(Protocol):
    """What the loop needs of the dual encoder."""

    def __call__(self, waveform: Tensor, num_samples: Tensor, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Embed the clips and captions of a batch: audio [C, D] and text [B, D]."""
        ...


class Batches(Protocol):
    """What the loop needs of the data; a batch may hold fewer clips than pairs, see ``Batch.audio_row``."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches in one epoch."""
        ...

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch ``first`` on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the batches depend on besides seed and epoch: tensors and plain values."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""
        ...


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


@dataclass(slots=True)
class Progress:
    """Where a run stands; saved in every checkpoint."""

    step: int = 0
    best_step: int | None = None
    best_metrics: dict[str, float] = field(default_factory=dict)
    validations_without_better: int = 0
    train_seconds: float = 0.0


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved."""


class Trainer:
    """One run: the modules, their optimiser and where they stand.

    Args:
        encoder: the dual encoder, on its device.
        objective: the loss with its learnable parts, on the same device.
        optimizer: over both, each group with its ``peak_lr``.
        batches: the data.
        plan: how long and how.
        device: of the modules.
        checkpoint_dir: where ``last`` and ``best`` go.
        diagnostics: measures drift where the plan asks for it.
    """

    def __init__(
        self,
        encoder: nn.Module,
        objective: nn.Module,
        *,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        plan: Plan,
        device: torch.device,
        checkpoint_dir: Path,
        diagnostics: Diagnostics | None = None,
    ) -> None:
        self.encoder, self.objective, self.optimizer = encoder, objective, optimizer
        self.batches, self.plan, self.device, self.checkpoint_dir = batches, plan, device, checkpoint_dir
        self.diagnostics = diagnostics
        self.progress = Progress()
        self.scaler = torch.amp.grad_scaler.GradScaler(device.type, enabled=plan.precision == "fp16")

    def fit(
        self,
        *,
        validate: Validate,
        log: Log,
        tracker: Tracker,
        on_best: Callable[[], None],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """Train to the end of the plan, or until patience runs out.

        Args:
            validate: embeds the validation split and gives its metrics; may leave the encoder in evaluation mode.
            log: takes one flat record per logged step and per validation.
            tracker: shows every step.
            on_best: called when validation finds better weights, before the checkpoint is written.
            should_stop: asked after every step.

        Raises:
            NumericalError: if loss or gradient is not finite; the last checkpoint stays as it is.
            Interrupted: if asked to stop; the state is saved.
        """
        if self.progress.step == 0:
            # Shows that validation works and where the run starts from; untrained weights are never the best ones.
            self.encoder.eval()
            log({"step": 0, **validate()})
        self.encoder.train()
        clock, waited, logged = time.perf_counter(), 0.0, self.progress.step
        for epoch, batch, wait in self._remaining():
            waited += wait
            clock += self._measure_drift(batch, log)
            output, gradient_norm, lr = self._step(batch)
            step = self.progress.step = self.progress.step + 1
            tracker.advance(1, loss=f"{float(output.terms['loss']):.3f}")
            last = step == self.plan.total_steps
            if step % self.plan.log_every == 0 or last:
                elapsed = time.perf_counter() - clock
                self.progress.train_seconds += elapsed
                speed = {
                    "clips_per_s": (step - logged) * len(batch.waveform) / elapsed,
                    "data_wait_share": min(1.0, waited / elapsed),
                }
                record = {"step": step, "epoch": epoch, **output.terms, **output.stats}
                log(record | {"gradient_norm": gradient_norm, "lr": lr} | speed)
                clock, waited, logged = time.perf_counter(), 0.0, step
            if step % self.plan.eval_every == 0 or last:
                self._validate(validate, log, on_best)
                self.save()
                self.encoder.train()
                clock, waited, logged = time.perf_counter(), 0.0, step
                if self.plan.patience and self.progress.validations_without_better >= self.plan.patience:
                    break
            elif self.plan.save_every and step % self.plan.save_every == 0:
                self.save()
            if should_stop() and not last:
                self.save()
                raise Interrupted
        return self.progress

    def _measure_drift(self, batch: Batch, log: Log) -> float:
        """Log the drift of the coming step, where it is its turn; gives the seconds that this took."""
        step, every = self.progress.step + 1, self.plan.diagnostics_every
        if self.diagnostics is None or not every or (step > 1 and step % every):
            return 0.0
        record = self.diagnostics.measure(
            self.encoder,
            self.objective,
            batch=batch,
            progress=self.progress.step / self.plan.total_steps,
            device=self.device,
            autocast_dtype=None if self.plan.precision == "fp32" else _dtype(self.plan.precision),
            rehearse=lambda objective: self._rehearse(batch, objective),
        )
        log({"step": step, **record})
        return record["drift_seconds"]

    def _rehearse(self, batch: Batch, objective: nn.Module) -> nn.Module:
        """Take the coming step with an objective on copies of everything; gives the encoder that it leads to."""
        other = copy.copy(self)
        other.progress = replace(self.progress)
        # In one call, so that the optimiser's copy holds the parameters of the copied modules.
        other.encoder, other.objective, other.optimizer, other.scaler = copy.deepcopy(
            (self.encoder, objective, self.optimizer, self.scaler)
        )
        other._step(batch)
        return other.encoder

    def _remaining(self) -> Iterator[tuple[int, Batch, float]]:
        """Epoch, batch and the seconds that the loop waited for it, from where the run stands to the end."""
        per_epoch = self.batches.batches_per_epoch
        step = self.progress.step
        while step < self.plan.total_steps:
            epoch, first = divmod(step, per_epoch)
            batches = self.batches.epoch(epoch, first=first)
            while step < self.plan.total_steps:
                started = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    break
                step += 1
                yield epoch, batch, time.perf_counter() - started

    def _step(self, batch: Batch) -> tuple[LossOutput, float | None, float]:
        """Take a step; gives the loss, the gradient norm (None for an fp16 step that overflowed) and the learning rate."""
        plan, step = self.plan, self.progress.step
        factor = learning_rate_factor(
            step, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps, schedule=plan.schedule
        )
        lr = set_learning_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=_dtype(plan.precision), enabled=plan.precision != "fp32"):
            audio, text = self.encoder(
                batch.waveform.to(self.device), batch.num_samples.to(self.device), batch.captions
            )  # [C, D] and [B, D]
        audio = audio[batch.audio_row.to(self.device)]  # [B, D]
        positives = batch.positives().to(self.device)
        output: LossOutput = self.objective(audio, text, positives, batch.index.to(self.device), step / plan.total_steps)
        output.terms = {"loss": float(output.total.detach())} | output.terms
        self._check_finite(output.terms["loss"], "loss", output)
        torch.autograd.backward(self.scaler.scale(output.total))
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, plan.clip_grad or float("inf")))
        if plan.precision != "fp16":  # the scaler skips fp16 steps that overflow and lowers its scale
            self._check_finite(norm, "gradient norm", output)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.objective.after_step()  # type: ignore[operator]
        return output, norm if math.isfinite(norm) else None, lr

    def _check_finite(self, value: float, name: str, output: LossOutput) -> None:
        if not math.isfinite(value):
            terms = ", ".join(f"{key} {number:g}" for key, number in (output.terms | output.stats).items())
            raise NumericalError(
                f"step {self.progress.step + 1}: {name} is {value} ({terms}); lower --lr or --clip-grad, or use "
                "--precision fp32, and --resume from the last checkpoint"
            )

    def _validate(self, validate: Validate, log: Log, on_best: Callable[[], None]) -> None:
        self.encoder.eval()
        metrics = validate()
        log({"step": self.progress.step, **metrics})
        value, best = metrics[self.plan.keep_best], self.progress.best_metrics.get(self.plan.keep_best)
        better = best is None or (value < best if self.plan.lower_is_better else value > best)
        if not better:
            self.progress.validations_without_better += 1
        # Equal values go to the later weights: on splits whose captions repeat the metric has a low ceiling, which is
        # reached long before the model is good.
        if better or value == best:
            self.progress.best_step, self.progress.best_metrics = self.progress.step, metrics
            on_best()
        if better:
            self.progress.validations_without_better = 0

    def save(self) -> None:
        """Write ``checkpoints/last``."""
        state = {
            "progress": asdict(self.progress),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": checkpoint.generator_state(),
            "batches": self.batches.state_dict(),
        }
        checkpoint.save_checkpoint(self.checkpoint_dir / "last", encoder=self.encoder, objective=self.objective, state=state)

    def resume(self, folder: Path) -> None:
        """Take up the state of a checkpoint.

        Raises:
            CheckpointError: if it is damaged or does not fit.
        """
        state = checkpoint.load_checkpoint(folder, encoder=self.encoder, objective=self.objective)
        self.progress = Progress(**state["progress"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.batches.load_state_dict(state.get("batches", {}))  # older checkpoints have none
        checkpoint.restore_generators(state["generators"])


def _dtype(precision: str) -> torch.dtype:
    return torch.float16 if precision == "fp16" else torch.bfloat16
