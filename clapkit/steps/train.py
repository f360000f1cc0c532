"""The train step: data and modules are put together, the loop runs, the best weights become the model."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clapkit import registry
from clapkit.config import TrainConfig
from clapkit.data.dataset import TrainingBatches
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import RandomBatches
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ConfigError, ManifestError
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.train_log import event_log, forget_after, plot_run
from clapkit.steps.train_options import check, make_plan, plugin_options
from clapkit.steps.validation import Validator
from clapkit.training.checkpoint import find_checkpoint
from clapkit.training.loop import Interrupted, Trainer
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.types import Reporter


def run(config: TrainConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Train a model into a run directory.

    Raises:
        ClapkitError: if data, options or a checkpoint cannot be used.
        Interrupted: on SIGINT or SIGTERM, with the state saved.
    """
    started = time.perf_counter()
    check(config)
    options = plugin_options(config)
    device = torch.device(inputs.choose_device(config.device))
    train_data, val_data = _data(config, run_dir, reporter)
    run_dir.set_device(str(device))
    reporter.say(f"training on {device}: {len(train_data)} clips of {train_data.name}, validating on {len(val_data)}")

    torch.manual_seed(config.seed)
    encoder = build_encoder(config, options, train_data).to(device)
    objective = registry.build("loss", config.loss, options["loss"]).to(device)
    workers = config.workers if config.workers is not None else os.cpu_count() or 1
    batches = TrainingBatches(
        train_data,
        encoder.audio_spec,
        sampler=RandomBatches(len(train_data), config.batch_size, seed=config.seed),
        positives=config.positives,
        seed=config.seed,
        workers=max(1, workers),
    )
    plan = make_plan(config, batches.batches_per_epoch)
    groups = parameter_groups(encoder, lr=config.lr, weight_decay=config.weight_decay)
    trainer = Trainer(
        encoder,
        objective,
        optimizer=build_optimizer(groups + objective.param_groups(config.lr, config.weight_decay)),
        batches=batches,
        plan=plan,
        device=device,
        checkpoint_dir=run_dir.checkpoint_dir,
    )
    if config.resume:
        _resume(trainer, run_dir, reporter)
    validator = Validator(encoder, val_data, workers=max(1, workers), precision=config.precision)
    with (
        _stop_signals() as asked_to_stop,
        event_log(config, run_dir) as to_events,
        reporter.track("training", plan.total_steps, "steps") as tracker,
    ):
        tracker.advance(trainer.progress.step)

        def log(record: Mapping[str, Any]) -> None:
            run_dir.append_metrics(record)
            to_events(record)
            if plan.keep_best in record:
                shown = ", ".join(f"{name} {100 * record[name]:.1f} %" for name in ("t2a_R@1", "t2a_R@10", "a2t_R@1"))
                reporter.say(f"step {record['step']} of {plan.total_steps}: {shown}")

        def keep_best() -> None:
            _save_best(trainer, run_dir)

        try:
            progress = trainer.fit(validate=validator, log=log, tracker=tracker, on_best=keep_best, should_stop=asked_to_stop)
        except Interrupted:
            reporter.say(f"stopped and saved; go on with: clapkit train --resume --run-dir {run_dir.path}")
            raise
    plot_run(run_dir)
    return {
        "model": run_dir.model_dir.name,
        "steps": progress.step,
        "best_step": progress.best_step,
        "keep_best": plan.keep_best,
        "best_metrics": progress.best_metrics,
        "num_parameters": sum(p.numel() for p in encoder.parameters()),
        "train_s": progress.train_seconds,
        "wall_s": time.perf_counter() - started,
    }


def build_encoder(config: TrainConfig, options: Mapping[str, Mapping[str, Any]], train_data: Manifest) -> DualEncoder:
    """The dual encoder, fresh or from ``--init``, with a frozen tower where asked.

    Raises:
        CheckpointError: if ``--init`` holds no model.
    """
    if config.init is not None:
        if options["audio"] or options["text"]:
            raise ConfigError("--init brings its own towers; leave out the -O options of audio and text encoder")
        encoder = DualEncoder.load(inputs.resolve_model(config.init, runs_root=config.runs_root).folder).train()
    else:
        captions = [caption.text for clip in train_data for caption in clip.captions]
        encoder = DualEncoder(
            config.audio_encoder,
            config.text_encoder,
            embedding_dim=config.embedding_dim,
            audio_options=options["audio"],
            text_options={**options["text"], "captions": captions},
        )
    if config.freeze is not None:
        encoder.freeze(config.freeze)
    return encoder


def _data(config: TrainConfig, run_dir: RunDir, reporter: Reporter) -> tuple[Manifest, Manifest]:
    """Training and validation split; on resume the very files of the first start.

    Raises:
        ManifestError: if a split is missing, too small, or changed since the run was started.
    """
    recorded = run_dir.record["inputs"]
    if recorded:
        manifests = [Manifest.load(Path(entry["path"])) for entry in recorded]
        for entry, manifest in zip(recorded, manifests, strict=True):
            if manifest.fingerprint != entry["fingerprint"]:
                raise ManifestError(f"{entry['path']}: has changed since this run was started; train anew with --overwrite")
    else:
        addresses = [config.data] if config.val_data is None else [config.data, config.val_data]
        sources = [inputs.resolve_prepared(address, runs_root=config.runs_root) for address in addresses]
        reporter.say(f"data: {', '.join(str(source.path) for source in sources)}")
        for source in sources:
            run_dir.add_input(source.path.resolve(), source.manifest.fingerprint)
        manifests = [source.manifest for source in sources]
    train_data, val_data = manifests[0].split(config.train_split), manifests[-1].split(config.val_split)
    if len(val_data) < 2:
        raise ManifestError(
            f"split {config.val_split!r}: found {len(val_data)} clip, expected at least 2 to rank; prepare more data"
        )
    return train_data, val_data


def _resume(trainer: Trainer, run_dir: RunDir, reporter: Reporter) -> None:
    folder = find_checkpoint(run_dir.checkpoint_dir / "last")
    if folder is None:
        reporter.say("no checkpoint was written yet: starting at step 0")
    else:
        trainer.resume(folder)
        reporter.say(f"resuming at step {trainer.progress.step}")
    if run_dir.metrics_path.exists():
        forget_after(run_dir, trainer.progress.step if folder is not None else -1)


def _save_best(trainer: Trainer, run_dir: RunDir) -> None:
    encoder = trainer.encoder
    assert isinstance(encoder, DualEncoder)
    encoder.save(run_dir.model_dir)
    best = run_dir.checkpoint_dir / "best"
    encoder.save(best)
    run_dir.write_json(best / "metrics.json", {"step": trainer.progress.best_step, **trainer.progress.best_metrics})


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
