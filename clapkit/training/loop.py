"""The training loop: batches, loss, step, log, validate, save, in the order in which they happen.

There is one way from a batch to its gradients, whether the encoder is run on all of it or on chunks, in one process or in
several: every process embeds its own part, without a graph as far as the loss is concerned; all embeddings are put together
as leaves; every process computes the loss of the whole batch and its gradients with respect to them; and every process passes
the gradients of its own rows on to the encoder. They are gradients of the one loss, so that summed over the processes, and
not averaged, they are the gradient of the whole batch. The objective sees the same everywhere: its gradients are averaged.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from clapkit.errors import ConfigError, NumericalError
from clapkit.training import checkpoint
from clapkit.training.arrivals import Arrivals
from clapkit.training.diagnostics import Diagnostics
from clapkit.training.distributed import OneProcess, Processes, seed_process
from clapkit.training.grad_cache import Precision, encode
from clapkit.training.long_captions import counted
from clapkit.training.optimizer import learning_rate_factor, set_learning_rate
from clapkit.training.plan import Plan as Plan
from clapkit.training.plan import Progress as Progress
from clapkit.training.teacher import Teacher
from clapkit.training.whole_batch import WholeBatch, gather_batch, gradient_of_own_rows, sum_gradients
from clapkit.types import Batch, Context, ContextNeed, LossOutput, Tracker

EMBEDDING_FORMS: dict[ContextNeed, str] = {"features": "features", "windows": "keep_windows"}
"""Needs of an objective -> argument by which the encoder is asked for embeddings of that form."""

Validate = Callable[[], dict[str, float]]
Log = Callable[[Mapping[str, Any]], None]


class Batches(Protocol):
    """What the loop needs of the data; a batch may hold fewer clips than pairs, see ``Batch.audio_row``.

    Of several processes each has the same number of batches, and in them parts of the same size.
    """

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

    def close(self) -> None:
        """Stop what was begun for batches that nobody will ask for."""
        ...


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop; its state is saved."""


class Trainer:
    """One run: the modules, their optimiser and where they stand.

    Args:
        encoder: the dual encoder, on its device, see ``clapkit.training.grad_cache.Encoder``.
        objective: the loss with its learnable parts, on the same device.
        optimizer: over both, each group with its ``peak_lr``.
        batches: the data.
        plan: how long and how.
        device: of the modules.
        checkpoint_dir: where ``last`` and ``best`` go.
        diagnostics: measures drift where the plan asks for it.
        processes: that train together; this one alone unless given.
        needs: what the objective has to know beside the embeddings of the pairs.
        teacher: that tells it, where it needs one.
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
        processes: Processes | None = None,
        needs: frozenset[ContextNeed] = frozenset(),
        teacher: Teacher | None = None,
    ) -> None:
        assert ("teacher" in needs) == (teacher is not None), f"needs {sorted(needs)}"
        self.encoder, self.objective, self.optimizer = encoder, objective, optimizer
        self.batches, self.plan, self.device, self.checkpoint_dir = batches, plan, device, checkpoint_dir
        self.diagnostics = diagnostics
        self.processes: Processes = OneProcess() if processes is None else processes
        self.progress = Progress()
        self.needs, self.teacher = needs, teacher
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

        Of several processes all call this, and only the first one logs, shows and saves.

        Args:
            validate: embeds the validation split and gives its metrics; may leave the encoder in evaluation mode. Called on
                all processes; the metrics of the first one count.
            log: takes one flat record per logged step and per validation.
            tracker: shows every step.
            on_best: called when validation finds better weights, before the checkpoint is written.
            should_stop: asked after every step; all processes stop as soon as one is told to.

        Raises:
            ConfigError: if the plan does not fit the batches, or diagnostics do not fit the plan.
            NumericalError: if loss or gradient is not finite; the last checkpoint stays as it is.
            Interrupted: if asked to stop; the state is saved.
        """
        self._check_plan()
        self.processes.copy_([*self.encoder.state_dict().values(), *self.objective.state_dict().values()])
        if self.teacher is not None:
            self.processes.copy_(list(self.teacher.encoder.state_dict().values()))
        if not self.processes.is_first:
            log, on_best = _log_nothing, _do_nothing
        if self.progress.step == 0:
            # Shows that validation works and where the run starts from; untrained weights are never the best ones.
            self.encoder.eval()
            log({"step": 0, **validate()})
        self.encoder.train()
        clock, waited, num_clips = time.perf_counter(), 0.0, 0
        for epoch, arrivals in self._remaining():
            clock += self._measure_drift(arrivals, log)
            output, gradient_norm, lr = self._step(arrivals)
            waited, num_clips = waited + arrivals.waited_s, num_clips + arrivals.num_clips
            step = self.progress.step = self.progress.step + 1
            if self.processes.is_first:
                tracker.advance(1, loss=f"{float(output.terms['loss']):.3f}")
            last = step == self.plan.total_steps
            if step % self.plan.log_every == 0 or last:
                elapsed = time.perf_counter() - clock
                self.progress.train_seconds += elapsed
                speed = {
                    "clips_per_s": self.processes.size * num_clips / elapsed,
                    "data_wait_share": min(1.0, waited / elapsed),
                }
                record = {"step": step, "epoch": epoch, **output.terms, **output.stats}
                log(record | {"gradient_norm": gradient_norm, "lr": lr} | speed)
                clock, waited, num_clips = time.perf_counter(), 0.0, 0
            if step % self.plan.eval_every == 0 or last:
                self._validate(validate, log, on_best)
                self.save()
                self.encoder.train()
                clock, waited, num_clips = time.perf_counter(), 0.0, 0
                if self.plan.patience and self.progress.validations_without_better >= self.plan.patience:
                    break
            elif self.plan.save_every and step % self.plan.save_every == 0:
                self.save()
            if self.processes.any(should_stop()) and not last:
                self.save()
                raise Interrupted
        return self.progress

    def _check_plan(self) -> None:
        accum_steps, per_epoch = self.plan.accum_steps, self.batches.batches_per_epoch
        if not 1 <= accum_steps <= per_epoch:
            raise ConfigError(
                f"--accum-steps {accum_steps}: an epoch has {per_epoch} batches; expected a number from 1 to {per_epoch}"
            )
        is_measured = self.diagnostics is not None and self.plan.diagnostics_every
        assert not (is_measured and self.needs), "the step refuses to measure objectives that need more than the pairs"
        if is_measured and (self.processes.size > 1 or accum_steps > 1):
            raise ConfigError(
                f"--diagnostics: a step is made of {accum_steps} batches on {self.processes.size} processes; "
                "drift is measured where one process makes a step of one batch, so leave --diagnostics out"
            )

    def _measure_drift(self, arrivals: Arrivals, log: Log) -> float:
        """Log the drift of the coming step, where it is its turn; gives the seconds that this took."""
        step, every = self.progress.step + 1, self.plan.diagnostics_every
        if self.diagnostics is None or not every or (step > 1 and step % every):
            return 0.0
        batch = arrivals.look_at_next()  # the only one: _check_plan has refused more
        record = self.diagnostics.measure(
            self.encoder,
            self.objective,
            batch=batch,
            progress=self.progress.step / self.plan.total_steps,
            device=self.device,
            autocast_dtype=self._precision.dtype,
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
        other._step([batch])
        return other.encoder

    def _remaining(self) -> Iterator[tuple[int, Arrivals]]:
        """Epoch and batches of a step, from where the run stands to the end.

        Batches at the end of an epoch that are too few for a step are left out.
        """
        accum_steps = self.plan.accum_steps
        per_epoch = self.batches.batches_per_epoch // accum_steps
        step = self.progress.step
        while step < self.plan.total_steps:
            epoch, first = divmod(step, per_epoch)
            batches = self.batches.epoch(epoch, first=first * accum_steps)
            for _ in range(first, min(per_epoch, first + self.plan.total_steps - step)):
                step += 1
                yield epoch, Arrivals(batches, accum_steps)

    def _step(self, batches: Iterable[Batch]) -> tuple[LossOutput, float | None, float]:
        """Take a step; gives the loss, the gradient norm (None for an fp16 step that overflowed) and the learning rate."""
        plan, step = self.plan, self.progress.step
        factor = learning_rate_factor(
            step, total_steps=plan.total_steps, warmup_steps=plan.warmup_steps, schedule=plan.schedule
        )
        lr = set_learning_rate(self.optimizer, factor)
        self.optimizer.zero_grad(set_to_none=True)
        output = mean_output(list(map(self._backward, batches)))  # none is held while the next is awaited
        sum_gradients(list(self.encoder.parameters()), processes=self.processes)
        self.processes.mean_([p.grad for p in self.objective.parameters() if p.grad is not None])
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, plan.clip_grad or float("inf")))
        if plan.precision != "fp16":  # the scaler skips fp16 steps that overflow and lowers its scale
            self._check_finite(norm, "gradient norm", output)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.objective.after_step()  # type: ignore[operator]
        if self.teacher is not None:
            self.teacher.follow(self.encoder)
        return output, norm if math.isfinite(norm) else None, lr

    def _backward(self, batch: Batch) -> LossOutput:
        """Add the gradients of a batch to those of the step: its own share of them to the encoder, all to the objective."""
        form = {EMBEDDING_FORMS[need]: True for need in self.needs if need in EMBEDDING_FORMS}
        with counted(self.encoder, batch, self.progress):
            own = encode(self.encoder, batch, precision=self._precision, chunk=self.plan.grad_cache_chunk, **form)
        whole = gather_batch(batch, own, processes=self.processes)  # C clips, B pairs
        audio, text, context = whole.pairs(are_features="features" in self.needs)  # [B, D] each
        told = {"context": self._taught(context, batch, whole)} if self.needs else {}
        output: LossOutput = self.objective(
            audio, text, whole.positives, whole.index, self.progress.step / self.plan.total_steps, **told
        )
        output.terms = {"loss": float(output.total.detach())} | output.terms
        self._check_finite(output.terms["loss"], "loss", output)
        torch.autograd.backward(self.scaler.scale(output.total / self.plan.accum_steps))
        own.backward(*(gradient_of_own_rows(leaf, processes=self.processes) for leaf in whole.leaves))
        return replace(output, total=output.total.detach())

    def _taught(self, context: Context, batch: Batch, whole: WholeBatch) -> Context:
        """The context, with what the teacher makes of the batch where there is one."""
        if self.teacher is None:
            return context
        taught = self.teacher.embed(batch, precision=self._precision, chunk=self.plan.grad_cache_chunk)
        audio, text = (self.processes.gather(rows) for rows in taught)
        return replace(context, teacher_audio=audio[whole.audio_row], teacher_text=text)

    @property
    def _precision(self) -> Precision:
        """Device and autocast of the encoder."""
        return Precision(self.device, {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.plan.precision])

    def _check_finite(self, value: float, name: str, output: LossOutput) -> None:
        if not math.isfinite(value):
            terms = ", ".join(f"{key} {number:g}" for key, number in (output.terms | output.stats).items())
            raise NumericalError(
                f"step {self.progress.step + 1}: {name} is {value} ({terms}); lower --lr or --clip-grad, or use "
                "--precision fp32, and --resume from the last checkpoint"
            )

    def _validate(self, validate: Validate, log: Log, on_best: Callable[[], None]) -> None:
        self.encoder.eval()
        metrics = self.processes.broadcast(validate())  # so that all decide alike
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
        """Write ``checkpoints/last``; of several processes all call this, and the first one writes."""
        generators = self.processes.gather_values(checkpoint.generator_state())
        progress = asdict(self.progress) | self.long_captions()
        if self.processes.is_first:
            self._write(generators, progress)
        self.processes.barrier()  # nobody leaves before the checkpoint is whole

    def long_captions(self) -> dict[str, int]:
        """``captions_cut`` and ``captions_split`` of all processes together, see ``Progress``; all processes call this."""
        counts = self.processes.gather_values((self.progress.captions_cut, self.progress.captions_split))
        return dict(zip(("captions_cut", "captions_split"), map(sum, zip(*counts, strict=True)), strict=True))

    def _write(self, generators: list[dict[str, Any]], progress: dict[str, Any]) -> None:
        state = {
            "progress": progress,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generators": generators,
            "batches": self.batches.state_dict(),
        }
        if self.teacher is not None:
            state["teacher"] = self.teacher.state_dict()
        checkpoint.save_checkpoint(self.checkpoint_dir / "last", encoder=self.encoder, objective=self.objective, state=state)

    def resume(self, folder: Path, *, seed: int = 0) -> None:
        """Take up the state of a checkpoint, which may be of another number of processes.

        With the same number the run goes on bit for bit. With another one the batches are the same, but what the processes
        draw, such as dropout, starts anew.

        Args:
            folder: of the checkpoint.
            seed: of the run, for what starts anew.

        Raises:
            CheckpointError: if it is damaged or does not fit.
        """
        state = checkpoint.load_checkpoint(folder, encoder=self.encoder, objective=self.objective)
        self.progress = Progress(**state["progress"])
        if not self.processes.is_first:  # what all had counted goes on in one of them
            self.progress.captions_cut = self.progress.captions_split = 0
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.batches.load_state_dict(state.get("batches", {}))  # older checkpoints have none
        if self.teacher is not None:
            self.teacher.load_state_dict(state["teacher"])
        generators = state["generators"]
        generators = [generators] if isinstance(generators, dict) else generators  # one of a single process, in older ones
        if len(generators) == self.processes.size:
            checkpoint.restore_generators(generators[self.processes.rank])
        else:
            seed_process(seed, self.processes.rank, step=self.progress.step)


def mean_output(outputs: Sequence[LossOutput]) -> LossOutput:
    """One output for several batches of a step, with the means of their numbers; a single one is given back as it is."""
    if len(outputs) == 1:
        return outputs[0]
    return LossOutput(
        torch.stack([output.total for output in outputs]).mean(),
        _mean_numbers([output.terms for output in outputs]),
        _mean_numbers([output.stats for output in outputs]),
    )


def _mean_numbers(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means by name, over those that have it."""
    values = {name: [found[name] for found in numbers if name in found] for found in numbers for name in found}
    return {name: sum(found) / len(found) for name, found in values.items()}


def _log_nothing(record: Mapping[str, Any]) -> None:
    """What processes other than the first one log."""


def _do_nothing() -> None:
    """What they do about better weights."""
