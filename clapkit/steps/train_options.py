"""From the configuration of a training run to the options of its plug-ins and its plan."""

from __future__ import annotations

from typing import Any

from clapkit import registry
from clapkit.config import TrainConfig
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.steps.validation import RETRIEVAL_METRICS
from clapkit.training.loop import Plan

LOSS_FLAGS = (
    *("base", "radius", "sides", "alpha", "beta", "radius_init", "radius_lr", "radius_bound"),
    *("temperature", "tau", "margin"),
)
PLUGINS = (("loss", "loss"), ("audio", "audio encoder"), ("text", "text encoder"))


def check(config: TrainConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        ConfigError: if a value is out of range, or the test split is to select the model.
        UnknownNameError: if there is no such metric.
    """
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
