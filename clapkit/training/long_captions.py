"""How often captions that are trained on were too long for the encoder.

An encoder counts everything that it reads: validation, chunks that are embedded a second time, variants. What the user wants
to know is how often training lost the end of a caption, so that the counters are read around the first pass of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clapkit.training.plan import Progress
from clapkit.types import Batch


@contextmanager
def counted(encoder: Any, batch: Batch, progress: Progress) -> Iterator[None]:
    """Add the captions of a batch that are cut, or read in parts, while it is embedded; its variants do not count.

    Args:
        encoder: with ``captions_cut``, ``captions_split`` and ``long_among``, as the dual encoder has them; nothing is counted
            of one that has none.
        batch: is embedded once in the meantime.
        progress: of the run; its ``captions_cut`` and ``captions_split`` grow.
    """
    before = _so_far(encoder)
    yield
    cut, split = (now - then for now, then in zip(_so_far(encoder), before, strict=True))
    if batch.variants and (cut or split):  # of the captions, the variants, or both
        cut, split = encoder.long_among(batch.captions) or (cut, split)
    progress.captions_cut += cut
    progress.captions_split += split


def _so_far(encoder: Any) -> tuple[int, int]:
    """What an encoder has cut and split in all."""
    cut = getattr(encoder, "captions_cut", None) or (0, 0)
    return cut[0], getattr(encoder, "captions_split", 0)
