"""Splits of corpora with official cross-validation folds; recordings are never torn apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clapkit.data.splits import draw
from clapkit.errors import ConfigError, ManifestError
from clapkit.types import Clip


def check_val_share(val_share: float) -> None:
    """Refuse what is no share.

    Raises:
        ConfigError: if it is not between 0 and 1.
    """
    if not 0 <= val_share <= 1:
        raise ConfigError(f"option val_share={val_share}: expected a share between 0 and 1")


def split_by_fold(clips: Sequence[Clip], *, test_fold: int | None, val_share: float, seed: int, corpus: Path) -> list[Clip]:
    """Make one fold ``test``, a part of the fold before it ``val``, and the rest ``train``.

    Args:
        clips: with fold, source and one label each.
        test_fold: the fold that becomes ``test``; None is the last one.
        val_share: share of the fold before it (before the first comes the last) that becomes ``val``, class by class, whole
            recordings.
        seed: draws ``val``.
        corpus: for messages.

    Raises:
        ManifestError: if the fold is not there or fewer than three are.
    """
    folds = sorted({clip.fold for clip in clips if clip.fold is not None})
    test_fold = test_fold if test_fold is not None else max(folds, default=None)
    if test_fold not in folds:
        raise ManifestError(f"{corpus}: no clip in test_fold {test_fold}, folds found: {folds}; name one of them")
    if len(folds) < 3:
        raise ManifestError(
            f"{corpus}: not enough data for the split: folds {folds} found, expected at least 3; "
            "get the whole corpus, or prepare it as a folder"
        )
    val_fold = folds[folds.index(test_fold) - 1]
    split_of = {clip.source or clip.id: "test" if clip.fold == test_fold else "train" for clip in clips}
    generator = np.random.default_rng(seed)
    for label in sorted({clip.labels[0] for clip in clips}):
        sizes = Counter(clip.source or clip.id for clip in clips if clip.fold == val_fold and clip.labels[0] == label)
        drawn = draw(sizes, size=val_share * sizes.total(), generator=generator, max_sources=len(sizes))
        split_of |= dict.fromkeys(drawn, "val")
    return [replace(clip, split=split_of[clip.source or clip.id]) for clip in clips]
