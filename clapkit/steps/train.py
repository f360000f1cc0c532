"""The train step: data and modules are put together, the loop runs, the best weights become the model."""

from __future__ import annotations

import json
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
from clapkit.errors import ConfigError, ManifestError, UnknownNameError
from clapkit.report.curves import plot_curves
from clapkit.run_dir import RunDir, atomic_path, to_json_line
from clapkit.steps import inputs
from clapkit.steps.validation import RETRIEVAL_METRICS, Validator
from clapkit.training.checkpoint import find_checkpoint
from clapkit.training.loop import Interrupted, Plan, Trainer
from clapkit.training.optimizer import build_optimizer, parameter_groups
from clapkit.types import Reporter

LOSS_FLAGS = (
    *("base", "radius", "sides", "alpha", "beta", "radius_init", "radius_lr", "radius_bound"),
    *("temperature", "tau", "margin"),
)
PLUGINS = (("loss", "loss"), ("audio", "audio encoder"), ("text", "text encoder"))


def run(config: TrainConfig, run_dir: RunDir, reporter: Reporter) -> dict[str, Any]:
    """Train a model into a run directory.

    Raises:
        ClapkitError: if data, options or a checkpoint cannot be used.
        Interrupted: on SIGINT or SIGTERM, with the state saved.
    """
    started = time.perf_counter()
    _check(config)
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
        _event_log(config, run_dir) as to_events,
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
    _plot(run_dir)
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


def plugin_options(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Options of loss and towers, from the flags and from ``-O``.

    ``-O audio.window_s=10`` names the tower; without a prefix the one plug-in that knows the key takes it.

    Raises:
        ConfigError: if a flag does not apply to the loss, or a key fits several plug-ins.
        UnknownNameError: if no plug-in knows a key.
    """
    chosen = {"loss": config.loss, "audio": config.audio_encoder, "text": config.text_encoder}
    known = {part: set(registry.defaults(kind, chosen[part])) - {"captions", "tokenizer"} for part, kind in PLUGINS}
    options: dict[str, dict[str, Any]] = {"loss": {}, "audio": {}, "text": {}}
    for flag in LOSS_FLAGS:
        value = getattr(config, flag)
        if value is None:
            continue
        if flag not in known["loss"]:
            losses = [name for name in registry.names("loss") if flag in registry.defaults("loss", name)]
            raise ConfigError(
                f"--{flag.replace('_', '-')} does not apply to --loss {config.loss}; it belongs to --loss {' or '.join(losses)}"
            )
        options["loss"][flag] = value
    for key, value in registry.parse_assignments(config.options).items():
        part, dot, name = key.partition(".")
        owners = [part] if dot and part in known else [p for p in known if key in known[p]]
        name = name if dot and part in known else key
        if len(owners) > 1:
            raise ConfigError(f"-O {key}: fits {' and '.join(owners)}; write {owners[0]}.{key} or {owners[1]}.{key}")
        if not owners or name not in known[owners[0]]:
            everything = [f"{p}.{k}" for p in known for k in known[p]]
            raise UnknownNameError("option -O", key, everything)
        if name in options[owners[0]]:
            raise ConfigError(f"-O {key}: is also given as --{name.replace('_', '-')}; give it once")
        options[owners[0]][name] = value
    if "batch_size" in known["loss"]:
        options["loss"]["batch_size"] = config.batch_size
    return options


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


def make_plan(config: TrainConfig, batches_per_epoch: int) -> Plan:
    """Steps and intervals of a configuration."""
    total = config.max_steps if config.max_steps is not None else config.epochs * batches_per_epoch
    warmup = config.warmup_steps if config.warmup_steps is not None else min(500, max(1, total // 20))
    return Plan(
        total_steps=total,
        warmup_steps=min(warmup, total),
        schedule=config.schedule,
        clip_grad=config.clip_grad,
        precision=config.precision,
        eval_every=config.eval_every * batches_per_epoch,
        save_every=config.save_every,
        log_every=config.log_every,
        keep_best=config.keep_best,
        lower_is_better=config.keep_best.endswith(("MedR", "MeanR")),
        patience=config.patience,
    )


def _check(config: TrainConfig) -> None:
    if config.val_split == "test":
        raise ConfigError("--val-split test: the best checkpoint would be selected on the test split; name another")
    if config.keep_best not in RETRIEVAL_METRICS:
        raise UnknownNameError("metric for --keep-best", config.keep_best, RETRIEVAL_METRICS)
    positive = {
        "--epochs": config.epochs,
        "--max-steps": config.max_steps,
        "--lr": config.lr,
        "--eval-every": config.eval_every,
        "--save-every": config.save_every,
        "--log-every": config.log_every,
        "--patience": config.patience,
        "--embedding-dim": config.embedding_dim,
    }
    for flag, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{flag} {value}: expected more than 0")
    for flag, value in {"--weight-decay": config.weight_decay, "--clip-grad": config.clip_grad}.items():
        if value < 0:
            raise ConfigError(f"{flag} {value}: expected 0 or more")


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
        _forget_after(run_dir, trainer.progress.step if folder is not None else -1)


def _forget_after(run_dir: RunDir, step: int) -> None:
    """Drop logged steps that the checkpoint does not know: they will be logged again."""
    lines = []
    for line in run_dir.metrics_path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break  # a kill cut the last line
        if record["step"] <= step:
            lines.append(to_json_line(record))
    run_dir.write_text(run_dir.metrics_path, "".join(lines))


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


@contextmanager
def _event_log(config: TrainConfig, run_dir: RunDir) -> Iterator[Any]:
    """TensorBoard event files, where asked for.

    Raises:
        ConfigError: if TensorBoard is not installed.
    """
    if config.log_to is None:
        yield lambda record: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("--log-to tensorboard: not installed; pip install 'clapkit[tensorboard]'") from error
    writer = SummaryWriter(run_dir.path / "tensorboard")

    def write(record: Mapping[str, Any]) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, record["step"])

    try:
        yield write
    finally:
        writer.close()


def _plot(run_dir: RunDir) -> None:
    records = [json.loads(line) for line in run_dir.metrics_path.read_text(encoding="utf-8").splitlines()]
    figures = {
        "loss": ("Training loss", "nats", ["loss"]),
        "retrieval": ("Validation retrieval", "share", ["t2a_R@1", "t2a_R@10", "a2t_R@1", "a2t_R@10"]),
        "radius": ("Semantic radius and pair distance", "chord length", ["mean_radius", "mean_distance"]),
    }
    for name, (title, label, keys) in figures.items():
        curves = {key: [(r["step"], r[key]) for r in records if r.get(key) is not None] for key in keys}
        curves = {key: points for key, points in curves.items() if points}
        if keys[0] in curves:
            with atomic_path(run_dir.plot_dir / f"{name}.png") as path:
                plot_curves(path, curves, title=title, label=label)
