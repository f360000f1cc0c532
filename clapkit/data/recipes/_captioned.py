"""Clips of captioned corpora: sentences that say nothing are refused aloud, the clip stays with the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from clapkit.types import Caption, Clip, Rejection


def without_empty_captions(clip: Clip) -> Iterator[Clip | Rejection]:
    """Strip the captions of a clip and refuse the empty ones.

    Args:
        clip: with the captions as the corpus has them, in its order.

    Yields:
        A rejection for each empty caption (numbered from 1, as in the corpus) and then the clip with the others; one rejection
        of the clip if no caption is left.
    """
    if clip.captions and all(caption.text and caption.text == caption.text.strip() for caption in clip.captions):
        yield clip  # as nearly all are, and there are hundreds of thousands
        return
    captions = [Caption(caption.text.strip(), caption.lang) for caption in clip.captions]
    if not any(caption.text for caption in captions):
        found = "no caption" if not captions else f"{len(captions)} captions, all empty" if captions[1:] else "an empty caption"
        yield Rejection(
            clip.id, f"{found}, expected a sentence; fill it in or drop it", check="empty_caption", split=clip.split
        )
        return
    for number, caption in enumerate(captions, start=1):
        if not caption.text:
            reason = "empty, expected a sentence; fill it in or drop it"
            yield Rejection(f"{clip.id} caption {number}", reason, check="empty_caption", split=clip.split)
    yield replace(clip, captions=tuple(caption for caption in captions if caption.text))
