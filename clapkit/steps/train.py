"""The train step: data and modules are put together, the loop runs, the best weights become the model."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clapkit.config import TrainConfig
from clapkit.data.clusters import Clusters
from clapkit.data.dataset import TrainingBatches
from clapkit.data.decoded import decode_threads
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import clips_per_batch
from clapkit.encoders.adaptation import count_trainable
from clapkit.encoders.clap import to_transformers
from clapkit.encoders.dual import DualEncoder
from clapkit.objectives.contract import needs_of
from clapkit.run_dir import RunDir
from clapkit.steps.row_features import FloatArray, keep_clusters
from clapkit.steps.train_batches import language_draw, training_batches
from clapkit.steps.train_data import keep_lineage, known_of_rows, record_weights, splits
from clapkit.steps.train_drift import drift_diagnostics
from clapkit.steps.train_encoder import build_encoder, prepare_for_device
from clapkit.steps.train_log import event_log, forget_after, plot_run
from clapkit.steps.train_objective import build_objective, check_objective, logit_scale, start_from_scale, teacher_of
from clapkit.steps.train_options import check, make_plan, plugin_options
from clapkit.steps.train_processes import device_of, follow, lead, processes_here
from clapkit.steps.train_suspects import write_suspects
from clapkit.steps.validation import Validator
from clapkit.training.batch_norm import synchronise_batch_norm
from clapkit.training.checkpoint import find_checkpoint
from clapkit.training.distributed import Processes, leave, seed_process
from clapkit.training.loop import Interrupted, Plan, Progress, Trainer
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.types import Reporter, SilentReporter

MIB = 2**20


def run(config: TrainConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Train a model into a run directory; under ``torchrun``, on all processes that it started.

    Raises:
        ClapkitError: if data, options or a checkpoint cannot be used.
        Interrupted: on SIGINT or SIGTERM, with the state saved.
    """
    check(config)
    check_objective(config, plugin_options(config))
    processes = lead(config, run_dir)
    try:
        return _train(config, run_dir, reporter, processes)
    finally:
        leave()


def run_follower(config: TrainConfig) -> None:
    """Take part in the training that the first process leads.

    Args:
        config: as given on the command line of this process; the first one's is used.

    Raises:
        ClapkitError: as ``run``.
        Interrupted: as ``run``.
    """
    told = follow(config)
    try:
        if told is not None:
            processes, config, run_dir = told
            _train(config, run_dir, SilentReporter(), processes)
    finally:
        leave()


@dataclass(frozen=True, slots=True)
class _Setting:
    """What a training is put together from, beside the data."""

    config: TrainConfig
    run_dir: RunDir
    reporter: Reporter
    processes: Processes
    device: torch.device
    workers: int


def _train(config: TrainConfig, run_dir: RunDir, reporter: Reporter, processes: Processes) -> dict[str, Any]:
    started = time.perf_counter()
    options = plugin_options(config)
    device = torch.device(device_of(config))
    workers = decode_threads(config.workers, processes_here=processes_here(), is_model_on_cpu=device.type == "cpu")
    setting = _Setting(config, run_dir, reporter, processes, device, workers)
    train_data, val_data = splits(config, run_dir, reporter)
    run_dir.set_device(str(device))
    on = f"{device}" if processes.size == 1 else f"{processes.size} processes ({device.type})"
    reporter.say(f"training on {on}: {len(train_data)} clips of {train_data.name}, validating on {len(val_data)}")

    torch.manual_seed(config.seed)
    encoder = build_encoder(config, options, train_data, reporter).to(device)
    record_weights(config, run_dir)
    prepare_for_device(config, encoder, reporter)
    start_from_scale(config, options, encoder.config.get("logit_scale"), reporter)
    trainer, clusters = _trainer(setting, encoder, options, train_data)
    validator = Validator(
        encoder, val_data, workers=workers, precision=config.precision, processes=processes, keep_best=config.keep_best
    )

    def begin() -> None:
        if processes.is_first:
            keep_lineage(config, run_dir)
        if clusters is not None and processes.is_first:
            keep_clusters(run_dir, clusters, train_data, seed=config.seed)

    progress = _fit(setting, trainer, validator, begin=begin)
    result = {
        "model": run_dir.model_dir.name,
        "steps": progress.step,
        "best_step": progress.best_step,
        "keep_best": config.keep_best,
        "best_metrics": progress.best_metrics,
        "num_parameters": sum(p.numel() for p in encoder.parameters()),
        "num_trained": count_trainable(encoder),
        "num_processes": processes.size,
        **_long_captions(encoder, trainer),
        "train_s": progress.train_seconds,
        "wall_s": time.perf_counter() - started,
    }
    if device.type == "cuda":
        result["peak_memory_mib"] = torch.cuda.max_memory_allocated(device) / MIB
    if processes.is_first:
        _say_what_was_cut(result, reporter)
        plot_run(run_dir)
        suspects = write_suspects(run_dir, trainer.objective, train_data, reporter)
        if suspects is not None:
            result["suspects"] = suspects
        if config.export is not None:
            result["export"] = _export(run_dir)
    processes.barrier()
    return result


def _trainer(
    setting: _Setting, encoder: DualEncoder, options: Mapping[str, Mapping[str, Any]], train_data: Manifest
) -> tuple[Trainer, Clusters | None]:
    """The trainer where the run starts or goes on, and the clusters that it trains with."""
    config, processes = setting.config, setting.processes
    clusters, features = _known_everywhere(setting, encoder, train_data)
    draw = language_draw(config, train_data)
    captions_per_clip = config.captions_per_clip if draw is None else draw.captions_per_clip
    size = clips_per_batch(config.batch_size, captions_per_clip, num_clips=len(train_data))
    batches = training_batches(
        config,
        train_data,
        encoder,
        size=size,
        clusters=clusters,
        workers=setting.workers,
        reporter=setting.reporter,
        processes=processes,
        cache_dir=setting.run_dir.path / "audio_cache",
        caption_draw=draw,
    )
    plan = make_plan(config, batches.batches_per_epoch)
    objective = build_objective(
        config,
        options,
        plan=plan,
        steps_per_epoch=batches.batches_per_epoch // config.accum_steps,
        num_rows=len(train_data),
        embedding_dim=encoder.embedding_dim,
        clusters=clusters,
        features=features,
        captions_per_clip=captions_per_clip,
    ).to(setting.device)
    groups = parameter_groups(encoder, lr=config.lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay)
    groups += objective.param_groups(config.lr, config.weight_decay)  # type: ignore[operator]
    synchronise_batch_norm(encoder, processes)
    trainer = Trainer(
        encoder,
        objective,
        optimizer=build_optimizer(groups),
        batches=batches,
        plan=plan,
        device=setting.device,
        checkpoint_dir=setting.run_dir.checkpoint_dir,
        diagnostics=_diagnostics(config, objective, batches),
        processes=processes,
        needs=needs_of(objective),
        teacher=teacher_of(objective, encoder),
    )
    if processes.size > 1:
        seed_process(config.seed, processes.rank)
    if config.resume:
        _resume(trainer, setting)
    return trainer, clusters


def _known_everywhere(
    setting: _Setting, encoder: DualEncoder, train_data: Manifest
) -> tuple[Clusters | None, FloatArray | None]:
    """Clusters and frozen vectors, computed by the first process for all."""
    known = None
    if setting.processes.is_first:
        known = known_of_rows(setting.config, train_data, encoder, setting.run_dir, setting.reporter)
    told: tuple[Clusters | None, FloatArray | None] = setting.processes.broadcast(known)
    return told


def _diagnostics(config: TrainConfig, objective: nn.Module, batches: TrainingBatches) -> Any:
    if config.diagnostics is None:
        return None
    return drift_diagnostics(objective, batches, batch_size=config.batch_size, seed=config.seed)


def _fit(setting: _Setting, trainer: Trainer, validator: Validator, *, begin: Callable[[], None]) -> Progress:
    """Run the loop, with its log, its progress bar and its signals; ``begin`` is called once nothing can be refused."""
    run_dir, reporter, plan = setting.run_dir, setting.reporter, trainer.plan
    with (
        _stop_signals() as asked_to_stop,
        event_log(setting.config, run_dir, write=setting.processes.is_first) as to_events,
        reporter.track("training", plan.total_steps, "steps") as tracker,
    ):
        tracker.advance(trainer.progress.step)
        begin()

        def log(record: Mapping[str, Any]) -> None:
            run_dir.append_metrics(record)
            to_events(record)
            _say_validation(record, plan, reporter)

        def keep_best() -> None:
            _save_best(trainer, run_dir)

        try:
            return trainer.fit(validate=validator, log=log, tracker=tracker, on_best=keep_best, should_stop=asked_to_stop)
        except Interrupted:
            reporter.say(f"stopped and saved; go on with: clapkit train --resume --run-dir {run_dir.path}")
            raise
        finally:
            trainer.batches.close()


def _say_validation(record: Mapping[str, Any], plan: Plan, reporter: Reporter) -> None:
    if plan.keep_best in record:
        shown = ", ".join(f"{name} {100 * record[name]:.1f} %" for name in ("t2a_R@1", "t2a_R@10", "a2t_R@1"))
        reporter.say(f"step {record['step']} of {plan.total_steps}: {shown}")


def _long_captions(encoder: DualEncoder, trainer: Trainer) -> dict[str, Any]:
    """How often training captions were cut (and at how many tokens) and read in parts, by all processes together."""
    counts: dict[str, Any] = trainer.long_captions()
    tower = encoder.captions_cut
    return counts | {"captions_cut": None if tower is None else (counts["captions_cut"], tower[1])}


def _say_what_was_cut(result: Mapping[str, Any], reporter: Reporter) -> None:
    cut, num_split = result["captions_cut"], result["captions_split"]
    if num_split:
        reporter.say(f"captions longer than the text tower reads were read in parts, {num_split} times in all epochs")
    if cut is not None and cut[0]:
        reporter.warn(
            f"captions longer than the {cut[1]} tokens that the text tower reads were cut, {cut[0]} times in all epochs"
        )


def _resume(trainer: Trainer, setting: _Setting) -> None:
    run_dir, reporter = setting.run_dir, setting.reporter
    folder = find_checkpoint(run_dir.checkpoint_dir / "last")
    if folder is None:
        reporter.say("no checkpoint was written yet: starting at step 0")
    else:
        trainer.resume(folder, seed=setting.config.seed)
        reporter.say(f"resuming at step {trainer.progress.step}")
    if run_dir.metrics_path.exists() and setting.processes.is_first:
        forget_after(run_dir, trainer.progress.step if folder is not None else -1)


def _save_best(trainer: Trainer, run_dir: RunDir) -> None:
    encoder = trainer.encoder
    assert isinstance(encoder, DualEncoder)
    encoder.config.pop("logit_scale", None)
    scale = logit_scale(trainer.objective)
    if scale is not None:
        encoder.config["logit_scale"] = scale
    encoder.save(run_dir.model_dir)
    best = run_dir.checkpoint_dir / "best"
    encoder.save(best)
    run_dir.write_json(best / "metrics.json", {"step": trainer.progress.best_step, **trainer.progress.best_metrics})


def _export(run_dir: RunDir) -> str:
    """Write the best model as a folder of transformers; gives its name in the run directory."""
    to_transformers(DualEncoder.load(run_dir.model_dir), run_dir.path / "export")
    return "export"


@contextmanager
def _stop_signals() -> Iterator[Any]:
    """Turn SIGINT and SIGTERM into a question that the loop asks; a second signal stops at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)

    earlier = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
