"""The batches of a training run: which clips share one, and what the sampler has to know of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clapkit.config import TrainConfig
from clapkit.data.caption_languages import LanguageDraw
from clapkit.data.caption_variants import CaptionVariants
from clapkit.data.clusters import Clusters
from clapkit.data.dataset import TrainingBatches, caption_groups
from clapkit.data.language_tags import normal_tag
from clapkit.data.manifest import Manifest
from clapkit.data.mining import MinedBatches
from clapkit.data.samplers import (
    BatchSampler,
    ClusterBatches,
    RandomBatches,
    ShardBatches,
    UniqueCaptionBatches,
    shard_of_rows,
)
from clapkit.encoders.dual import DualEncoder
from clapkit.steps.row_features import evaluation
from clapkit.steps.train_options import kinds_of_variants, numbers_of_variants
from clapkit.training.diagnostics import embed
from clapkit.training.distributed import Processes
from clapkit.types import Reporter

_PROBE_ROWS = 64
_MOST_LOOKED_AT = 5000
DEFAULT_ANCHOR = "en"


def training_batches(
    config: TrainConfig,
    train_data: Manifest,
    encoder: DualEncoder,
    *,
    size: int,
    clusters: Clusters | None,
    workers: int,
    reporter: Reporter,
    processes: Processes,
    cache_dir: Path,
    caption_draw: LanguageDraw | None = None,
) -> TrainingBatches:
    """The batches with the sampler that is asked for.

    Args:
        config: of the run.
        train_data: the training split.
        encoder: of the run; the sampler ``mined`` embeds with it.
        size: clips in a batch, from ``clips_per_batch``.
        clusters: of the training clips, for the sampler ``cluster``.
        workers: threads that decode.
        reporter: is told of clips that are never drawn, of a search that never comes, of captions that come twice and of clips
            that are too short for several windows.
        processes: that share the work; this one decodes its part of every batch.
        cache_dir: where decoded audio is kept, if it is kept on disk.
        caption_draw: from ``language_draw``.

    Raises:
        ConfigError: if no batch can be filled.
        ManifestError: if a clip has no caption.
    """

    def embed_all() -> tuple[np.ndarray, np.ndarray]:
        rows = np.array_split(np.arange(len(train_data)), processes.size)[processes.rank]
        parts = processes.gather_values(embed_rows(encoder, batches, rows))
        audio, text = (np.concatenate(side) for side in zip(*parts, strict=True))
        return audio, text

    sampler: BatchSampler
    if config.sampler == "cluster":
        assert clusters is not None, "the step makes clusters for the sampler that needs them"
        sampler = ClusterBatches(clusters.cluster, size, seed=config.seed)
        if sampler.num_unused:
            reporter.warn(
                f"--sampler cluster: {sampler.num_unused} of {len(train_data)} clips are in clusters smaller than a batch and"
                " are never drawn; pass fewer --num-clusters or a smaller --batch-size"
            )
    elif config.sampler == "unique-caption":
        sampler = UniqueCaptionBatches(caption_groups(train_data.clips), size, seed=config.seed)
    elif config.sampler == "mined":
        given = {"every": config.mine_every, "neighbours": config.mine_neighbours, "filter": config.mine_filter}
        chosen = {key: value for key, value in given.items() if value is not None}
        groups = caption_groups(train_data.clips)
        sampler = MinedBatches(len(train_data), size, seed=config.seed, embed=embed_all, groups=groups, **chosen)
        _warn_if_never_mined(config, sampler, reporter)
    elif config.sampler == "shards":
        sampler = ShardBatches(shard_of_rows(train_data), size, seed=config.seed)
    else:
        sampler = RandomBatches(len(train_data), size, seed=config.seed)
    batches = TrainingBatches(
        train_data,
        encoder.audio_spec,
        sampler=sampler,
        positives=config.positives,
        seed=config.seed,
        workers=workers,
        captions_per_clip=config.captions_per_clip,
        part=(processes.rank, processes.size),
        audio_cache=config.audio_cache,
        cache_dir=cache_dir,
        caption_draw=caption_draw,
        variant_draw=_variant_draw(config, train_data, reporter),
        windows=config.windows or 1,
    )
    if batches.num_short_of_captions and caption_draw is None:
        reporter.warn(
            f"--captions-per-clip {config.captions_per_clip}: {batches.num_short_of_captions} of {len(train_data)} clips have"
            " fewer different captions; theirs come more than once"
        )
    if batches.windows > 1 and not batches.num_of_several_windows:
        reporter.warn(
            f"--windows {config.windows}: no training clip is longer than the {batches.spec.window_s:g} s that the model hears"
            " at once, so that each comes as one window; leave --windows out, or train on longer recordings"
        )
    return batches


def anchor_language(config: TrainConfig) -> str:
    """The language that ``--language-strategy anchor`` compares the others with."""
    return normal_tag(config.anchor_language or DEFAULT_ANCHOR)


def language_draw(config: TrainConfig, train_data: Manifest) -> LanguageDraw | None:
    """What draws captions by their languages; None where they are drawn whatever their language is.

    Raises:
        ConfigError: if there is one language only.
        ManifestError: if clips lack a language that the strategy asks for.
    """
    if config.language_strategy is None:
        return None
    return LanguageDraw(train_data.clips, config.language_strategy, anchor=anchor_language(config))


def _variant_draw(config: TrainConfig, train_data: Manifest, reporter: Reporter) -> CaptionVariants | None:
    num_false, num_true = numbers_of_variants(config)
    if num_false + num_true == 0:
        return None
    kinds = kinds_of_variants(config)
    draw = CaptionVariants(train_data.clips, num_false=num_false, num_true=num_true, kinds=kinds)
    without, looked_at = draw.num_without(most=_MOST_LOOKED_AT) if num_false else (0, 0)
    if without:
        reporter.warn(
            f"--loss {config.loss}: {without} of the first {looked_at} captions have no false variant and are trained on like "
            "any other; more kinds of --variants, or hard_captions in the manifest, would give them some"
        )
    return draw


def _warn_if_never_mined(config: TrainConfig, sampler: MinedBatches, reporter: Reporter) -> None:
    epochs = config.epochs if config.max_steps is None else -(-config.max_steps // sampler.batches_per_epoch)
    if sampler.neighbours and epochs <= sampler.every:
        reporter.warn(
            f"--sampler mined: the first search would come after {sampler.every} epochs, the training has {epochs}, so that"
            " all batches are random; pass a smaller --mine-every or train longer"
        )


def embed_rows(encoder: DualEncoder, batches: TrainingBatches, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Audio and text embeddings of training rows as they are now, float32 [N, D] each; draws nothing, changes nothing.

    Args:
        encoder: of the run.
        batches: the training set.
        rows: int64 [N].
    """
    with evaluation(encoder):
        parts = [
            embed(encoder, batches.probe(rows[start : start + _PROBE_ROWS]), encoder.device)
            for start in range(0, len(rows), _PROBE_ROWS)
        ]
    return (
        np.concatenate([part.audio.float().cpu().numpy() for part in parts]),
        np.concatenate([part.text.float().cpu().numpy() for part in parts]),
    )
