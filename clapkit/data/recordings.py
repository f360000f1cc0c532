"""Which recording a clip is of."""

from __future__ import annotations

from clapkit.types import Clip


def recording(clip: Clip) -> str:
    """What a clip was cut from; the clip itself where nobody says."""
    return clip.source or clip.id
