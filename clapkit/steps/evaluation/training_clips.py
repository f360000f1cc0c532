"""Which clips a probe learns on and which judge it, so that no recording is on both sides."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clapkit.data.recordings import recording
from clapkit.types import Clip

BoolArray = npt.NDArray[np.bool_]

# One recording in five of every class chooses the strength of the penalty.
_HELD_OUT_PARTS = 5


def held_out_clips(clips: Sequence[Clip], *, seed: int) -> BoolArray:
    """Hold out whole recordings, a fifth of those of each class, at least one; the only one of a class stays.

    What is held out depends on the seed and the names of the recordings, not on the order of the clips. A recording with
    several classes counts as one of the first of them.

    Args:
        clips: M, each with a label.
        seed: of the choice.

    Returns:
        bool [M].
    """
    label_of: dict[str, str] = {}
    for clip in clips:
        label_of[recording(clip)] = min(*clip.labels, label_of.get(recording(clip), clip.labels[0]))
    of_label: dict[str, list[str]] = defaultdict(list)
    for source, label in label_of.items():
        of_label[label].append(source)
    chosen: set[str] = set()
    for sources in of_label.values():
        count = max(1, len(sources) // _HELD_OUT_PARTS) if len(sources) > 1 else 0
        chosen.update(sorted(sources, key=lambda source: _draw(seed, source))[:count])
    return np.array([recording(clip) in chosen for clip in clips], dtype=bool)


def leaked_clips(clips: Sequence[Clip], training: Sequence[Clip]) -> list[Clip]:
    """Clips that are from a recording of the training clips."""
    known = {recording(clip) for clip in training}
    return [clip for clip in clips if recording(clip) in known]


def _draw(seed: int, source: str) -> bytes:
    return hashlib.sha256(f"{seed}\n{source}".encode()).digest()
