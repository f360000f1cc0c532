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

from clapkit.config import TrainConfig
from clapkit.data.clusters import Clusters
from clapkit.data.manifest import Manifest
from clapkit.data.samplers import clips_per_batch
from clapkit.encoders.dual import DualEncoder
from clapkit.errors import ConfigError, ManifestError
from clapkit.run_dir import RunDir
from clapkit.steps import inputs
from clapkit.steps.row_features import FloatArray, keep_clusters, row_features, run_clusters
from clapkit.steps.train_batches import training_batches
from clapkit.steps.train_drift import drift_diagnostics
from clapkit.steps.train_log import event_log, forget_after, plot_run
from clapkit.steps.train_objective import build_objective
from clapkit.steps.train_options import (
    DEFAULT_FEATURES,
    check,
    make_plan,
    needs_clusters,
    needs_features,
    plugin_options,
    trained_towers,
)
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
    size = clips_per_batch(config.batch_size, config.captions_per_clip, num_clips=len(train_data))
    run_dir.set_device(str(device))
    reporter.say(f"training on {device}: {len(train_data)} clips of {train_data.name}, validating on {len(val_data)}")

    torch.manual_seed(config.seed)
    encoder = build_encoder(config, options, train_data).to(device)
    clusters, features = _known_of_rows(config, train_data, encoder, run_dir, reporter)
    workers = max(1, config.workers if config.workers is not None else os.cpu_count() or 1)
    batches = training_batches(config, train_data, encoder, size=size, clusters=clusters, workers=workers, reporter=reporter)
    steps_per_epoch = batches.batches_per_epoch
    plan = make_plan(config, steps_per_epoch)
    objective = build_objective(
        config, options, plan=plan, steps_per_epoch=steps_per_epoch, clusters=clusters, features=features
    )
    objective.to(device)
    groups = parameter_groups(encoder, lr=config.lr, weight_decay=config.weight_decay)
    groups += objective.param_groups(config.lr, config.weight_decay)  # type: ignore[operator]
    trainer = Trainer(
        encoder,
        objective,
        optimizer=build_optimizer(groups),
        batches=batches,
        plan=plan,
        device=device,
        checkpoint_dir=run_dir.checkpoint_dir,
    )
    if config.diagnostics is not None:
        trainer.diagnostics = drift_diagnostics(objective, batches, batch_size=config.batch_size, seed=config.seed)
    if config.resume:
        _resume(trainer, run_dir, reporter)
    validator = Validator(encoder, val_data, workers=workers, precision=config.precision)
    with (
        _stop_signals() as asked_to_stop,
        event_log(config, run_dir) as to_events,
        reporter.track("training", plan.total_steps, "steps") as tracker,
    ):
        tracker.advance(trainer.progress.step)
        if clusters is not None:
            keep_clusters(run_dir, clusters, train_data, seed=config.seed)

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
        ConfigError: if an option of the towers contradicts what ``--init`` holds.
    """
    if config.init is not None:
        if options["audio"] or options["text"]:
            raise ConfigError("--init brings its own towers; leave out the -O options of audio and text encoder")
        encoder = DualEncoder.load(inputs.resolve_model(config.init, runs_root=config.runs_root).folder).train()
        _check_brought(config, encoder)
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


def _check_brought(config: TrainConfig, encoder: DualEncoder) -> None:
    """Refuse towers and widths that ``--init`` does not bring. A flag at its default looks like one that was not given."""
    brought = {
        "audio_encoder": encoder.tower_names["audio"],
        "text_encoder": encoder.tower_names["text"],
        "embedding_dim": encoder.embedding_dim,
    }
    for field, held in brought.items():
        given = getattr(config, field)
        if given not in (held, getattr(TrainConfig, field)):
            flag = "--" + field.replace("_", "-")
            raise ConfigError(f"{flag} {given}: --init {config.init} brings its own, {held}; leave {flag} out")


def _known_of_rows(
    config: TrainConfig, train_data: Manifest, encoder: DualEncoder, run_dir: RunDir, reporter: Reporter
) -> tuple[Clusters | None, FloatArray | None]:
    """Clusters and frozen vectors of the training clips, each where something in the run asks for it."""
    source, trained = config.features or DEFAULT_FEATURES, trained_towers(config)
    clusters, features = None, None
    if needs_clusters(config):
        clusters = run_clusters(
            train_data,
            run_dir,
            address=config.clusters,
            source=source,
            num_clusters=config.num_clusters,
            seed=config.seed,
            encoder=encoder,
            trained_towers=trained,
            runs_root=config.runs_root,
            reporter=reporter,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    if needs_features(config):
        features = row_features(
            source,
            train_data,
            encoder=encoder,
            trained_towers=trained,
            reporter=reporter,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    return clusters, features


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
