"""From the configuration of a training run to the options of its plug-ins and its plan."""

from __future__ import annotations

from typing import Any, NoReturn

from clapkit import registry
from clapkit.config import TrainConfig
from clapkit.data.caption_variants import check_kinds
from clapkit.data.samplers import clips_per_batch
from clapkit.errors import ConfigError, UnknownNameError
from clapkit.objectives.added import read_additions
from clapkit.objectives.window_fusion import FUSABLE_NAMES
from clapkit.steps.row_features import Source, Tower, check_num_clusters, check_source
from clapkit.steps.validation import VALIDATION_METRICS
from clapkit.training.loop import Plan

LOSS_FLAGS = (
    *("base", "radius", "sides", "alpha", "beta", "radius_init", "radius_lr", "radius_bound"),
    *("temperature", "tau", "margin"),
)
SUPPLIED = {
    *("captions", "tokenizer", "weights", "config", "front_end", "tokenizer_config"),
    *("batch_size", "schedule", "features", "side", "wrapped", "num_rows", "embedding_dim"),
    *("total_steps", "steps_per_epoch", "cluster_sizes", "quantity"),
}
"""Options of plug-ins that this step fills in; -O may not."""
DEFAULT_FEATURES: Source = "tfidf"
DEFAULT_FALSE_VARIANTS = 3
MOST_VARIANTS = 1000
"""Of a caption."""
MOST_DIMENSIONS = 2**16
"""Of an embedding."""
MOST_PAIRS = 2**20
"""Of a batch, so that a loss for it can be made before the data tell how many clips there are."""
VARIANT_LOSSES = ("compa",)


def check(config: TrainConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        ConfigError: if a value is out of range, or the test split is to select the model.
        UnknownNameError: if there is no such metric.
    """
    if config.val_split == "test":
        raise ConfigError("--val-split test: the best checkpoint would be selected on the test split; name another")
    if config.keep_best not in VALIDATION_METRICS:
        raise UnknownNameError("metric for --keep-best", config.keep_best, VALIDATION_METRICS)
    positive = {
        "--epochs": config.epochs,
        "--max-steps": config.max_steps,
        "--lr": config.lr,
        "--eval-every": config.eval_every,
        "--save-every": config.save_every,
        "--log-every": config.log_every,
        "--patience": config.patience,
        "--embedding-dim": config.embedding_dim,
        "--num-clusters": config.num_clusters,
        "--captions-per-clip": config.captions_per_clip,
        "--mine-every": config.mine_every,
        "--mine-filter": config.mine_filter,
        "--diagnostics": config.diagnostics,
        "--unfreeze-last": config.unfreeze_last,
        "--layer-decay": config.layer_decay,
        "--lora-rank": config.lora_rank,
        "--accum-steps": config.accum_steps,
        "--grad-cache-chunk": config.grad_cache_chunk,
        "--windows": config.windows,
    }
    for flag, value in positive.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{flag} {value}: expected more than 0")
    if config.embedding_dim > MOST_DIMENSIONS:
        raise ConfigError(f"--embedding-dim {config.embedding_dim}: expected at most {MOST_DIMENSIONS}; pass fewer")
    not_negative = {
        "--weight-decay": config.weight_decay,
        "--clip-grad": config.clip_grad,
        "--warmup-steps": config.warmup_steps,
        "--mine-neighbours": config.mine_neighbours,
        "--false-variants": config.false_variants,
        "--true-variants": config.true_variants,
    }
    for flag, value in not_negative.items():
        if value is not None and value < 0:
            raise ConfigError(f"{flag} {value}: expected 0 or more")
    if config.loss == "alip" and config.language_strategy is not None:
        raise ConfigError(
            f"--loss alip: compares captions of a clip in one batch, which --language-strategy {config.language_strategy} "
            "keeps apart; leave one out"
        )
    if config.loss == "alip" and config.captions_per_clip < 2:
        raise ConfigError("--loss alip: compares the captions of a clip in a batch with each other; pass --captions-per-clip 2")
    if config.loss == "hycd" and config.init is None:  # pre-trained towers have fresh heads, and so no common space yet
        raise ConfigError(
            "--loss hycd: keeps to what the model knew at its start, and this one knows nothing yet; name a model by --init"
        )
    check_unused(config)
    _check_adaptation(config)
    _check_variants(config)
    _check_hard_weight(config)
    _check_languages(config)
    _check_windows(config)
    _check_batch(config)


def _check_variants(config: TrainConfig) -> None:
    """Refuse flags about variants of captions that nothing would look at, and a loss about them that would get none."""
    if not needs_variants(config):
        able = " or ".join(name for name in registry.names("loss") if name in VARIANT_LOSSES)
        _require_unset(config, ("false_variants", "true_variants", "variants"), f"belongs to --loss {able}")
    elif sum(numbers_of_variants(config)) == 0:
        raise ConfigError(f"--false-variants 0: --loss {config.loss} is about variants; pass 1 or more, or another --loss")
    elif numbers_of_variants(config)[0] == 0:
        _require_unset(config, ("variants",), "says of which kinds false variants are, and --false-variants 0 asks for none")
    if sum(numbers_of_variants(config)) > MOST_VARIANTS:
        false, true = numbers_of_variants(config)
        raise ConfigError(
            f"--false-variants {false}, --true-variants {true}: expected at most {MOST_VARIANTS} in all, each of which is a "
            "sentence to encode; pass fewer"
        )
    check_kinds(kinds_of_variants(config) or ())


def _check_batch(config: TrainConfig) -> None:
    """Refuse a size of batches that clips cannot fill; only data know how many captions ``--language-strategy all`` takes."""
    if config.batch_size > MOST_PAIRS:
        raise ConfigError(f"--batch-size {config.batch_size}: expected at most {MOST_PAIRS} pairs; pass fewer")
    if config.language_strategy != "all":
        each = 2 if config.language_strategy == "anchor" else config.captions_per_clip
        clips_per_batch(config.batch_size, each, num_clips=max(2, config.batch_size))


def _check_hard_weight(config: TrainConfig) -> None:
    """Refuse a weight of false variants where there are none."""
    if not needs_variants(config) or numbers_of_variants(config)[0] > 0:
        return
    for key, value in registry.parse_assignments(config.options).items():
        if key in ("hard_weight", "loss.hard_weight"):
            raise ConfigError(f"-O {key}={value}: weighs false variants, and --false-variants 0 asks for none; leave one out")


def _check_languages(config: TrainConfig) -> None:
    """Refuse flags about languages that contradict each other."""
    if config.language_strategy != "anchor":
        _require_unset(config, ("anchor_language",), "belongs to --language-strategy anchor")
    if config.language_strategy in ("all", "anchor") and config.loss == "albef":
        raise ConfigError(
            f"--language-strategy {config.language_strategy}: compares each language for itself, and the queue of --loss albef "
            "holds all of them; use --language-strategy sample"
        )
    if config.language_strategy is not None and config.captions_per_clip > 1:
        raise ConfigError(
            f"--captions-per-clip {config.captions_per_clip}: --language-strategy {config.language_strategy} says which "
            "captions of a clip share a batch; leave one out"
        )


def _check_windows(config: TrainConfig) -> None:
    """Refuse a fusion of nothing, and the one that takes a loss on cosines where the loss takes vectors."""
    if (config.windows or 1) == 1:
        _require_unset(config, ("fusion",), "needs several --windows of each clip to fuse")
    if config.fusion == "softmax" and config.loss not in FUSABLE_NAMES:
        raise ConfigError(
            f"--fusion softmax: the sound of a clip depends on the caption, and --loss {config.loss} compares one vector per "
            f"clip; use --loss {' or '.join(FUSABLE_NAMES)}, or another --fusion"
        )


def _check_adaptation(config: TrainConfig) -> None:
    """Refuse flags about what of the towers is trained that contradict each other, or that nothing would look at."""
    if config.unfreeze_last is not None and config.freeze is None:
        raise ConfigError(f"--unfreeze-last {config.unfreeze_last}: belongs to --freeze; say which tower is frozen")
    if config.lora_rank is not None and config.lora is None:
        raise ConfigError(f"--lora-rank {config.lora_rank}: belongs to --lora; say which towers get adapters")
    if config.freeze is not None and config.lora in (config.freeze, "both"):
        raise ConfigError(f"--lora {config.lora}: the {config.freeze} tower is frozen by --freeze; leave one out")
    if config.layer_decay is not None and config.layer_decay > 1:
        raise ConfigError(f"--layer-decay {config.layer_decay}: expected more than 0 and at most 1")
    if config.diagnostics is not None and config.accum_steps > 1:
        raise ConfigError("--diagnostics: measures steps of one batch; leave out --accum-steps")


def scheduled(config: TrainConfig) -> tuple[str, str] | None:
    """The schedule that is asked for and what it gives, ``("mmts", "temperature")``; None without one.

    Raises:
        ConfigError: if the loss cannot follow it.
        UnknownNameError: if there is no such schedule.
    """
    for flag, quantity, unscheduled in (
        ("temperature", "temperature", ("learnable", "fixed")),
        ("margin_schedule", "margin", ("constant",)),
    ):
        name = getattr(config, flag)
        if name is None or name in unscheduled:
            continue
        schedules = registry.names("schedule")
        if name not in schedules:
            raise UnknownNameError(f"--{flag.replace('_', '-')}", name, (*unscheduled, *schedules))
        if quantity == "temperature" and "siglip" in (config.loss, config.base):
            raise ConfigError(
                f"--temperature {name}: siglip reads the log odds of every pair from one scale and one bias, which temperatures"
                " of anchors would set against each other; use infonce, dcl, decoupled, cwcl, mochi, m3col, or svr on infonce"
            )
        known = registry.defaults("loss", contrasting_loss(config))
        if quantity not in known:
            _refuse_flag(config, flag, quantity)
        if "schedule" not in known:
            raise ConfigError(f"--{flag.replace('_', '-')} {name}: --loss {config.loss} follows no schedule; leave it out")
        return name, quantity
    return None


def wraps(config: TrainConfig) -> bool:
    """Whether the loss weighs the pairs of another one, which ``--base`` names, instead of comparing them itself."""
    return "wrapped" in registry.defaults("loss", config.loss)


def contrasting_part(config: TrainConfig) -> str:
    """The part of the run that compares pairs, and so has temperature, margin or radius: ``loss``, or its ``base``."""
    return "base" if wraps(config) else "loss"


def contrasting_loss(config: TrainConfig) -> str:
    """The plug-in that plays this part."""
    return (config.base or "infonce") if wraps(config) else config.loss


def plugins(config: TrainConfig) -> dict[str, tuple[str, str]]:
    """Part of the run -> kind and name of the plug-in that plays it."""
    chosen = {
        "loss": ("loss", config.loss),
        "audio": ("audio encoder", config.audio_encoder),
        "text": ("text encoder", config.text_encoder),
    }
    chosen[contrasting_part(config)] = ("loss", contrasting_loss(config))
    schedule = scheduled(config)
    if schedule is not None:
        chosen["schedule"] = ("schedule", schedule[0])
    return chosen | {name: ("term", name) for name in read_additions(config.add)}


def plugin_options(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Options of loss, towers, schedule and added terms, from the flags and from ``-O``.

    ``-O audio.window_s=10`` names the part; without a prefix the one plug-in that knows the key takes it.

    Raises:
        ConfigError: if a flag does not apply to the loss, or a key fits several plug-ins.
        UnknownNameError: if no plug-in knows a key.
    """
    known = {part: set(registry.defaults(kind, name)) - SUPPLIED for part, (kind, name) in plugins(config).items()}
    if config.fusion == "softmax":
        known["fusion"] = {"window_tau"}  # no plug-in: it is built around the loss
    options: dict[str, dict[str, Any]] = {part: {} for part in known}
    contrast = contrasting_part(config)
    for flag in LOSS_FLAGS:
        value = getattr(config, flag)
        if value is None or (flag == "temperature" and "schedule" in known) or (flag == "base" and contrast == "base"):
            continue
        if flag not in known[contrast]:
            _refuse_flag(config, flag, flag)
        if "schedule" in known and flag in ("tau", "margin"):
            raise ConfigError(f"--{flag} {value}: the schedule gives it to every anchor; leave one of the two out")
        options[contrast][flag] = value
    for part, weights in (("audio", config.audio_weights), ("text", config.text_weights)):
        if weights is not None:
            _take_weights(config, part, weights, options)
    if config.margin_schedule is not None and "margin" not in known[contrast]:
        _refuse_flag(config, "margin_schedule", "margin")
    for key, value in registry.parse_assignments(config.options).items():
        part, dot, name = key.partition(".")
        owners = [part] if dot and part in known else [p for p in known if key in known[p]]
        name = name if dot and part in known else key
        if len(owners) > 1:
            raise ConfigError(f"-O {key}: fits {' and '.join(owners)}; write {owners[0]}.{key} or {owners[1]}.{key}")
        if not owners or name not in known[owners[0]]:
            everything = [f"{p}.{k}" for p in known for k in sorted(known[p])]
            raise UnknownNameError("option -O", key, everything)
        if "schedule" in known and owners[0] == contrast and name in ("temperature", "tau", "margin"):
            raise ConfigError(f"-O {key}: the schedule gives it to every anchor; leave it out")
        if name in options[owners[0]]:
            raise ConfigError(f"-O {key}: is also given as --{name.replace('_', '-')}; give it once")
        options[owners[0]][name] = value
    return options


def _take_weights(config: TrainConfig, part: str, weights: str, options: dict[str, dict[str, Any]]) -> None:
    if config.init is not None:
        raise ConfigError(f"--{part}-weights {weights}: --init brings its own towers with their weights; leave one out")
    kind, name = plugins(config)[part]
    if "weights" not in registry.defaults(kind, name):
        able = [other for other in registry.names(kind) if "weights" in registry.defaults(kind, other)]
        raise ConfigError(
            f"--{part}-weights {weights}: the tower {name} is trained from scratch; pass --{part}-encoder {' or '.join(able)}"
        )
    options[part]["weights"] = weights


def _refuse_flag(config: TrainConfig, flag: str, option: str) -> NoReturn:
    """Say which losses a flag belongs to."""
    wanted = {option, "wrapped"} if option == "base" else {option}
    losses = [name for name in registry.names("loss") if wanted & registry.defaults("loss", name).keys()]
    instead = "; triplet has --margin-schedule" if flag == "temperature" and config.loss == "triplet" else ""
    belongs = f"it belongs to --loss {' or '.join(losses)}{instead}"
    chosen = f"--loss {config.loss}" + (f" --base {contrasting_loss(config)}" if wraps(config) else "")
    raise ConfigError(f"--{flag.replace('_', '-')} does not apply to {chosen}; {belongs}")


def needs_variants(config: TrainConfig) -> bool:
    """Whether the loss asks for variants of each caption."""
    return config.loss in VARIANT_LOSSES


def numbers_of_variants(config: TrainConfig) -> tuple[int, int]:
    """False and true variants of each caption in a batch."""
    if not needs_variants(config):
        return 0, 0
    false = DEFAULT_FALSE_VARIANTS if config.false_variants is None else config.false_variants
    return false, config.true_variants or 0


def kinds_of_variants(config: TrainConfig) -> list[str] | None:
    """The kinds of false variants that are asked for; None where nothing was said."""
    return None if config.variants is None else [kind.strip() for kind in config.variants.split(",") if kind.strip()]


def needs_clusters(config: TrainConfig) -> bool:
    """Whether anything in the run asks for clusters of the training clips."""
    schedule = scheduled(config)
    return config.sampler == "cluster" or (schedule is not None and schedule[0] == "mmts")


def needs_features(config: TrainConfig) -> bool:
    """Whether the loss asks for a frozen vector of each training clip."""
    return "features" in registry.defaults("loss", config.loss)


def trained_towers(config: TrainConfig) -> tuple[Tower, ...]:
    """Towers that know something before the run has trained them."""
    if config.init is not None:
        return ("audio", "text")
    towers: dict[Tower, str | None] = {"audio": config.audio_weights, "text": config.text_weights}
    return tuple(tower for tower, weights in towers.items() if weights is not None)


def check_unused(config: TrainConfig) -> None:
    """Refuse flags that nothing in the run would look at, and features of a tower that knows nothing yet.

    Raises:
        ConfigError: naming the flag and what would use it, or what to do.
    """
    clusters, features = needs_clusters(config), needs_features(config)
    cluster_users = "--temperature mmts, --margin-schedule mmts or --sampler cluster"
    if not clusters:
        _require_unset(config, ("clusters", "num_clusters"), f"nothing is clustered; it belongs to {cluster_users}")
    source = config.features or DEFAULT_FEATURES
    check_num_clusters(config.num_clusters, address=config.clusters, source=source)
    if not features and (not clusters or config.clusters is not None):
        _require_unset(
            config,
            ("features",),
            f"nothing is computed from them; it belongs to {cluster_users} without --clusters, or --loss cwcl",
        )
    check_source(source, trained_towers=trained_towers(config))
    if config.sampler != "mined":
        _require_unset(config, ("mine_every", "mine_neighbours", "mine_filter"), "belongs to --sampler mined")


def _require_unset(config: TrainConfig, fields: tuple[str, ...], reason: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if value is not None:
            raise ConfigError(f"--{field.replace('_', '-')} {value}: {reason}")


def make_plan(config: TrainConfig, batches_per_epoch: int) -> Plan:
    """Steps and intervals of a configuration."""
    steps_per_epoch = batches_per_epoch // config.accum_steps
    if not steps_per_epoch:
        raise ConfigError(
            f"--accum-steps {config.accum_steps}: an epoch has {batches_per_epoch} batches; pass fewer, or a smaller "
            "--batch-size"
        )
    total = config.max_steps if config.max_steps is not None else config.epochs * steps_per_epoch
    warmup = config.warmup_steps if config.warmup_steps is not None else min(500, max(1, total // 20))
    return Plan(
        total_steps=total,
        warmup_steps=min(warmup, total),
        schedule=config.schedule,
        clip_grad=config.clip_grad,
        precision=config.precision,
        eval_every=config.eval_every * steps_per_epoch,
        save_every=config.save_every,
        log_every=config.log_every,
        keep_best=config.keep_best,
        lower_is_better=config.keep_best.endswith(("MedR", "MeanR")),
        patience=config.patience,
        diagnostics_every=config.diagnostics,
        accum_steps=config.accum_steps,
        grad_cache_chunk=config.grad_cache_chunk,
    )
