"""The objective of a run, put together from its parts: schedule, loss, added terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from clapkit import registry
from clapkit.config import TrainConfig
from clapkit.data.clusters import Clusters
from clapkit.errors import ConfigError
from clapkit.objectives.added import with_terms
from clapkit.objectives.contract import needs_of
from clapkit.objectives.languages import Anchored, PerLanguage
from clapkit.objectives.temperature import Temperature
from clapkit.objectives.window_fusion import FusedSimilarity
from clapkit.steps.row_features import FloatArray
from clapkit.steps.train_batches import anchor_language
from clapkit.steps.train_options import (
    contrasting_loss,
    contrasting_part,
    make_plan,
    needs_clusters,
    needs_features,
    scheduled,
    wraps,
)
from clapkit.training.plan import Plan
from clapkit.training.teacher import Teacher
from clapkit.training.whole_batch import language_code
from clapkit.types import Reporter

_MANY_BATCHES = 10**6
"""Of an epoch whose length is not known yet."""


def build_objective(
    config: TrainConfig,
    options: Mapping[str, Mapping[str, Any]],
    *,
    plan: Plan,
    steps_per_epoch: int,
    num_rows: int,
    embedding_dim: int,
    clusters: Clusters | None,
    features: FloatArray | None,
    captions_per_clip: int = 1,
) -> nn.Module:
    """The loss with everything that it needs to know of the run.

    Args:
        config: of the run.
        options: part -> options of its plug-in, from ``plugin_options``.
        plan: for the length of schedules.
        steps_per_epoch: likewise.
        num_rows: training clips, for losses that remember each.
        embedding_dim: width of the embeddings, for losses that keep some.
        clusters: of the training clips, where something needs them.
        features: frozen vectors of the training clips [num_rows, d], where the loss needs them.
        captions_per_clip: pairs of each clip in a batch.

    Raises:
        ConfigError: if an option is out of its range or does not fit the others.
        UnknownNameError: if there is no such plug-in.
    """
    # Of several languages each has a softmax of its own, over as many rows as there are clips.
    rows_of_loss = (
        config.batch_size // captions_per_clip if config.language_strategy in ("all", "anchor") else config.batch_size
    )
    supplied: dict[str, Any] = {"batch_size": rows_of_loss, "num_rows": num_rows, "embedding_dim": embedding_dim}
    schedule = scheduled(config)
    if schedule is not None:
        name, quantity = schedule
        sizes = None if clusters is None else torch.from_numpy(clusters.row_sizes)
        about_run = {
            "total_steps": plan.total_steps,
            "steps_per_epoch": steps_per_epoch,
            "cluster_sizes": sizes,
            "quantity": quantity,
        }
        supplied["schedule"] = registry.build("schedule", name, {**options["schedule"], **_known("schedule", name, about_run)})
    if features is not None:
        supplied |= {"features": torch.from_numpy(features), "side": "audio" if config.features == "audio" else "text"}
    if wraps(config):
        base = contrasting_loss(config)
        supplied["wrapped"] = registry.build("loss", base, {**options["base"], **_known("loss", base, supplied)})
    objective = registry.build("loss", config.loss, {**options["loss"], **_known("loss", config.loss, supplied)})
    assert isinstance(objective, nn.Module)
    parts = ("loss", "base", "schedule", "fusion", "audio", "text")
    if config.fusion == "softmax":
        objective = FusedSimilarity(objective, **_read_fusion(options.get("fusion", {})))
    terms = {name: options[name] for name in options if name not in parts and options[name]}
    objective = with_terms(objective, config.add, options=terms)
    if config.language_strategy == "all":
        return PerLanguage(objective)
    if config.language_strategy == "anchor":
        return Anchored(objective, language_code(anchor_language(config)))
    return objective


def check_objective(config: TrainConfig, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a loss that no data could make right, before data are read and towers are made.

    Builds it once, with stand-ins for what only data can tell: as many training clips as a batch has pairs, an epoch of a
    million batches, and the width of ``--embedding-dim``, whatever ``--init`` has.

    Args:
        config: of the run.
        options: as for ``build_objective``.

    Raises:
        ConfigError: if an option is out of its range or does not fit the others.
        UnknownNameError: if there is no such plug-in.
    """
    num_rows = max(2, config.batch_size)
    objective = build_objective(
        config,
        options,
        plan=make_plan(config, _MANY_BATCHES * config.accum_steps),
        steps_per_epoch=1,
        num_rows=num_rows,
        embedding_dim=config.embedding_dim,
        clusters=Clusters.of(np.arange(num_rows)) if needs_clusters(config) else None,
        features=np.ones((num_rows, 1), dtype=np.float32) if needs_features(config) else None,
    )
    needs = needs_of(objective)
    if "features" in needs and (config.windows or 1) > 1:
        raise ConfigError(
            f"--windows {config.windows}: the loss looks at embeddings before they have unit norm, and those of several windows"
            " are put together after; use --windows 1, or leave out -O rafa"
        )
    if config.diagnostics is not None and needs:
        raise ConfigError(
            f"--diagnostics: the loss also looks at {', '.join(sorted(needs))}, and drift is measured of losses that look at "
            "the pairs only; leave --diagnostics out"
        )


def _read_fusion(options: Mapping[str, str]) -> dict[str, float]:
    """The options of ``--fusion softmax``, which is no plug-in that the registry could read them for."""
    return {key: registry.read_value(key, text, float) for key, text in options.items()}


def teacher_of(objective: nn.Module, encoder: nn.Module) -> Teacher | None:
    """The teacher that an objective asks for, made of the encoder as it is now; None if it asks for none."""
    if "teacher" not in needs_of(objective):
        return None
    momenta: list[Any] = [module.teacher_momentum for module in objective.modules() if hasattr(module, "teacher_momentum")]
    return Teacher(encoder, momentum=momenta[0])


def start_from_scale(config: TrainConfig, options: dict[str, dict[str, Any]], scale: float | None, reporter: Reporter) -> None:
    """Let a learned temperature start where the model of ``--init`` left it, unless the temperature is given.

    Args:
        config: of the run.
        options: part -> options of its plug-in; that of the loss, or of its base, gets ``tau``.
        scale: factor on cosines that the model was trained with; None where it is not known.
        reporter: is told.
    """
    loss, known = options[contrasting_part(config)], registry.defaults("loss", contrasting_loss(config))
    learned = loss.get("temperature", known.get("temperature")) == "learnable"
    is_sigmoid = "siglip" in (config.loss, config.base)  # its scale belongs to a bias that no model stores
    if scale is None or not learned or is_sigmoid or scheduled(config) is not None or "tau" in loss or "tau" not in known:
        return
    loss["tau"] = min(1.0, max(0.01, 1 / scale))
    reporter.say(f"temperature: starts at {loss['tau']:.4g}, where the model of --init ended; pass --tau for another")


@torch.no_grad()
def logit_scale(objective: nn.Module) -> float | None:
    """The factor on similarities of a trained objective, where there is one for all pairs."""
    for module in objective.modules():
        if isinstance(module, Temperature) and module.schedule is None:
            return float(module.scale(torch.zeros(0, dtype=torch.int64), 0.0))
    return None


def _known(kind: str, name: str, supplied: Mapping[str, Any]) -> dict[str, Any]:
    """What a plug-in asks for of what the run can tell."""
    return {key: value for key, value in supplied.items() if key in registry.defaults(kind, name)}
