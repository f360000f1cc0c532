"""Whether a copy of Clotho is what it says: release of the caption files, and durations of the splits.

Copies with swapped splits are in circulation: one packing script calls evaluation ``valid`` and validation ``test``, and a
benchmark's ``test`` is the official validation split. The durations tell them apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OFFICIAL_CLIPS = {"train": 3839, "val": 1045, "test": 1045}
OFFICIAL_NAMES = {"train": "development", "val": "validation", "test": "evaluation"}

# Of the caption files of version 2.1, as published.
_CAPTION_MD5 = {
    "d4090b39ce9f2491908eebf4d5b09bae": "train",
    "5879e023032b22a2c930aaa0528bead4": "val",
    "1b16b9e57cf7bdb7f13a13802aeb57e2": "test",
}

# Below this share of a split, its mean says nothing: 2 % of 1,045 clips (4 s standard deviation) move it by about 0.02 s.
_MIN_SHARE = 0.98
_MEAN_TOLERANCE_S = 0.04
# Resampling and lossy formats change a length by a few samples.
_LENGTH_TOLERANCE_S = 0.01


@dataclass(frozen=True, slots=True)
class Durations:
    """Durations of a split in seconds."""

    min_s: float
    mean_s: float
    max_s: float


PUBLISHED_DURATIONS = {
    "train": Durations(15.0, 22.494, 30.0),
    "val": Durations(15.05, 22.6185, 29.954),
    "test": Durations(15.003, 22.408, 30.0),
}


def caption_release(name: str, content: bytes, split: str) -> dict[str, str]:
    """What a caption file is, by its MD5 sum, whatever its line ends are.

    Args:
        name: of the file.
        content: of the file.
        split: as which it is read.

    Returns:
        ``file``, ``md5``, ``split`` (that it really is, or ``unknown``) and ``release`` (``2.1`` or ``unknown``).
    """
    lines = content.replace(b"\r\n", b"\n")
    sums = [hashlib.md5(text, usedforsecurity=False).hexdigest() for text in (content, lines, lines.replace(b"\n", b"\r\n"))]
    found = next((_CAPTION_MD5[md5] for md5 in sums if md5 in _CAPTION_MD5), None)
    return {"file": name, "md5": sums[0], "split": found or "unknown", "release": "unknown" if found is None else "2.1"}


def check_durations(split: str, seconds: Sequence[float]) -> tuple[dict[str, Any] | None, str | None]:
    """Compare the durations of a split with the published ones.

    Args:
        split: name of the split.
        seconds: durations of its clips.

    Returns:
        Minimum, mean and maximum with the name of the split that they fit, and a warning if it is not this one; None and
        None where too few clips are there to tell.
    """
    if not _MIN_SHARE * OFFICIAL_CLIPS[split] <= len(seconds) <= OFFICIAL_CLIPS[split]:
        return None, None
    found = Durations(min(seconds), sum(seconds) / len(seconds), max(seconds))
    # The right answer first: with tolerances, it wins.
    candidates = [split, *(name for name in OFFICIAL_CLIPS if name != split)]
    fitting = next((name for name in candidates if _fits(found, PUBLISHED_DURATIONS[name])), None)
    summary = {"min": round(found.min_s, 4), "mean": round(found.mean_s, 4), "max": round(found.max_s, 4), "fits": fitting}
    if fitting == split:
        return summary, None
    durations = f"durations of {split}: {found.min_s:.3f} to {found.max_s:.3f} s, mean {found.mean_s:.3f} s"
    official = OFFICIAL_NAMES[split]
    if fitting is None:
        return (
            summary,
            f"{durations}, expected those of the official {official} split; the audio may be cut or of another corpus",
        )
    return summary, (
        f"{durations}, expected those of the official {official} split, but they are those of {OFFICIAL_NAMES[fitting]}; "
        "this copy has swapped splits: rename them, or do not compare results on it"
    )


def _fits(found: Durations, published: Durations) -> bool:
    return (
        abs(found.mean_s - published.mean_s) <= _MEAN_TOLERANCE_S
        and found.min_s >= published.min_s - _LENGTH_TOLERANCE_S
        and found.max_s <= published.max_s + _LENGTH_TOLERANCE_S
    )
